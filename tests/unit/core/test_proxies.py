"""Proxy variables as people have them: clients start, and the loopback is reached without a proxy."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from unittest import mock
from urllib.request import proxy_bypass

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.proxies import LOOPBACK, plan_proxies

pytestmark = pytest.mark.slow

NAMES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def environment_after(environ: Mapping[str, str]) -> dict[str, str]:
    changes = plan_proxies(environ)
    kept = {name: value for name, value in environ.items() if name not in changes.unusable}
    return kept | changes.set_to


def proxied(environ: Mapping[str, str], url: str) -> bool:
    """Whether httpx sends a request for `url` to a proxy, asked of the transport that it chooses."""
    with mock.patch.dict(os.environ, environ, clear=True), httpx.Client() as client:
        return client._transport_for_url(httpx.URL(url)) is not client._transport


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_loopback_is_never_asked_of_a_proxy(name: str, host: str) -> None:
    given = {name: "http://127.0.0.1:9"}
    assert proxied(given, f"{'https' if 's_' in name.lower() else 'http'}://{host}:4200")
    after = environment_after(given)
    for scheme in ("http", "https"):
        assert not proxied(after, f"{scheme}://{host}:4200")
    assert proxied(after, f"{'https' if 's_' in name.lower() else 'http'}://example.org"), (
        "the outside still is"
    )
    with mock.patch.dict(os.environ, after, clear=True):  # what Prefect's websockets and boto3 go by
        assert proxy_bypass(host.strip("[]"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("localhost,127.0.0.0/8,::1", ("localhost", "127.0.0.0/8", "::1", "127.0.0.1")),
        ("[::1]", ("::1", "127.0.0.1", "localhost")),
        ("::1/128", ("::1", "127.0.0.1", "localhost")),
        ("fd00::/8", LOOPBACK),
        ("host:port", LOOPBACK),
        ("büro.example", LOOPBACK),
        (" , ,, ", LOOPBACK),
        (" .corp.example  *.lan, db:5432 ", (".corp.example", "*.lan", "db:5432", *LOOPBACK)),
        ("*", ("*",)),
        ("", LOOPBACK),
    ],
)
def test_exceptions_are_kept_as_far_as_every_client_reads_them(given: str, kept: tuple[str, ...]) -> None:
    after = environment_after({"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": given})
    assert tuple(after["NO_PROXY"].split(",")) == kept
    assert after["no_proxy"] == after["NO_PROXY"]
    assert not proxied(after, "http://127.0.0.1:4200")


def test_the_lower_case_name_decides() -> None:
    after = environment_after({"HTTP_PROXY": "http://p:1", "NO_PROXY": "upper", "no_proxy": "lower"})
    assert after["NO_PROXY"].split(",")[0] == "lower"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks5h://127.0.0.1:9", "SOCKS://127.0.0.1:9/"])
def test_a_socks_proxy_is_used(proxy: str) -> None:
    after = environment_after({"all_proxy": proxy})
    assert proxied(after, "http://example.org")
    assert not proxied(after, "http://127.0.0.1:4200")


def test_a_socks_proxy_reaches_no_host_that_is_excepted() -> None:
    """The transport that is chosen connects by itself, not only by the name of its class."""
    after = environment_after({"all_proxy": "socks://127.0.0.1:9"})
    with socket.create_server(("127.0.0.1", 0)) as server, mock.patch.dict(os.environ, after, clear=True):
        port = server.getsockname()[1]
        server.close()
        with pytest.raises(httpx.ConnectError, match="refused"):
            httpx.get(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "proxy",
    ["socks4://127.0.0.1:9", "ftp://proxy", "not a url", "http://[::1", "http://proxy:abc", "://", "http://"],
)
def test_what_is_not_a_proxy_is_named_and_removed(proxy: str) -> None:
    given = {"HTTP_PROXY": proxy, "https_proxy": "http://127.0.0.1:9"}
    assert plan_proxies(given).unusable == ("HTTP_PROXY",)
    assert not proxied(environment_after(given), "http://example.org")


@pytest.mark.parametrize(
    "proxy",
    ["proxy", "proxy:8080", "http://user:p%40ss@proxy.example:8080/", "HTTPS://proxy:1", "http://[::1]:8080"],
)
def test_a_proxy_is_left_as_it_is(proxy: str) -> None:
    changes = plan_proxies({"HTTP_PROXY": proxy})
    assert not changes.unusable
    assert "HTTP_PROXY" not in changes.set_to


def test_without_any_of_the_variables_nothing_changes() -> None:
    assert plan_proxies({"PATH": "/bin", "HTTP_PROXY": ""}).set_to == {}


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30)


@given(st.fixed_dictionaries({}, optional={"HTTP_PROXY": _TEXT, "ALL_PROXY": _TEXT, "NO_PROXY": _TEXT}))
def test_a_client_starts_whatever_they_hold(environ: dict[str, str]) -> None:
    after = environment_after(environ)
    assert not proxied(after, "http://127.0.0.1:4200")
    assert not proxied(after, "http://[::1]:4200")
