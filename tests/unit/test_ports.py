from __future__ import annotations

import os
import socket

import psutil
import pytest

from blocks.processes import ports
from blocks.processes.ports import check_port_free, free_port, holder_of
from tasks.core.errors import PortTakenError, WrongUseError


def test_a_free_port_is_free() -> None:
    check_port_free("127.0.0.1", 0)


def test_a_taken_port_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError) as caught:
            check_port_free("127.0.0.1", port)
    name = psutil.Process().name()
    assert caught.value.what == f"port {port} of 127.0.0.1 is taken by {name} (process {os.getpid()})"
    assert caught.value.fix


def test_a_holder_of_another_user_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def connections(kind: str) -> list[object]:
        assert kind == "tcp"
        return [psutil._ntuples.sconn(-1, 2, 1, psutil._ntuples.addr("0.0.0.0", 80), (), "LISTEN", None)]

    monkeypatch.setattr(ports.psutil, "net_connections", connections)
    assert holder_of(80) is None


def test_an_address_that_is_not_ours_is_no_taken_port() -> None:
    with pytest.raises(WrongUseError, match=r"port 8000 of 192\.0\.2\.1: Cannot assign"):
        check_port_free("192.0.2.1", 8000)


def test_a_host_without_an_address_is_one_clear_line() -> None:
    with pytest.raises(WrongUseError, match=r"port 8000 of no-such-host\.invalid"):
        check_port_free("no-such-host.invalid", 8000)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_a_free_port_is_found_on_every_kind_of_address(host: str) -> None:
    check_port_free(host, free_port(host))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid", "a" * 64 + ".invalid"])
@pytest.mark.parametrize("port", [None, 8000])
def test_a_host_that_is_not_here_is_one_line(host: str, port: int | None) -> None:
    with pytest.raises(WrongUseError, match="nothing can listen on") as refused:
        check_port_free(host, port) if port else free_port(host)
    assert host in refused.value.what


def test_a_taken_port_of_ipv6_is_one() -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
        pytest.raises(PortTakenError, match=r"of ::1 is taken by"),
    ):
        check_port_free("::1", server.getsockname()[1])
