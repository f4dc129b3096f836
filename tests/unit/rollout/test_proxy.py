"""The proxy's configuration and commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import SpecError
from tasks.rollout.container.models import SLOTS, Route
from tasks.rollout.container.proxy import other, proxy_config, send_back_to, send_to, take_out


def test_a_new_proxy_sends_requests_nowhere() -> None:
    assert proxy_config(Route(host="127.0.0.1", port=8000)) == snapshot("""\
global
    nbthread 1
    noreuseport
    stats socket unix@admin.sock mode 600 level admin
    stats timeout 10s

defaults
    mode http
    option http-server-close
    retries 0
    timeout connect 5s
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout queue 30s
    timeout client 4h
    timeout server 4h

frontend service
    bind 127.0.0.1:8000
    default_backend engine

backend engine
    server blue 127.0.0.1:1 disabled
    server green 127.0.0.1:1 disabled
""")


def test_a_restarted_proxy_sends_requests_where_it_did() -> None:
    config = proxy_config(Route(host="::1", port=8000, slot="green", backend_port=4000, release="sha256:r"))
    assert "    bind [::1]:8000\n" in config
    assert "    server blue 127.0.0.1:1 disabled\n" in config
    assert "    server green 127.0.0.1:4000\n" in config


@given(st.text())
def test_no_host_adds_a_line_to_the_configuration(host: str) -> None:
    try:
        config = proxy_config(Route(host=host, port=8000))
    except SpecError:
        return
    shown = f"[{host}]" if ":" in host else host
    assert f"    bind {shown}:8000\n" in config
    assert len(config.splitlines()) == len(proxy_config(Route(host="localhost", port=8000)).splitlines())
    assert len(host.split()) == 1


@pytest.mark.parametrize("host", ["", "a b", "127.0.0.1\n", "*", "-x", "a;b"])
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(SpecError, match=r"rollout\.host"):
        proxy_config(Route(host=host, port=8000))


def test_commands_of_a_switch_and_back() -> None:
    assert send_to("green", 4000) == snapshot(
        (
            "set server engine/green addr 127.0.0.1 port 4000",
            "set server engine/green state ready",
            "set server engine/blue state drain",
        )
    )
    assert send_back_to("blue") == snapshot(
        ("set server engine/blue state ready", "set server engine/green state drain")
    )
    assert take_out("blue") == snapshot(("set server engine/blue state maint",))


def test_slots_take_turns() -> None:
    assert [other(slot) for slot in SLOTS] == ["green", "blue"]
    assert other(None) == "blue"
