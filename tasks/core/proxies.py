"""What the user's proxy variables mean for Slipway's own clients. Pure.

Two things go wrong with them. A proxy is meant for the outside, but without an exception in `NO_PROXY` requests to
127.0.0.1 go to it too. And httpx, which Prefect's client uses, raises for values that other programs accept
or ignore: an IPv6 network in `NO_PROXY`, or an unknown kind of proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_NO_PROXY = "no_proxy"

_HOST = re.compile(r"\*|\*?\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?(:[0-9]{1,5})?", re.IGNORECASE)
_PROXY = re.compile(
    r"((?P<scheme>[a-z0-9]+)://)?([^@/\s]*@)?(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*)(:[0-9]{1,5})?/?",
    re.IGNORECASE,
)
_SCHEMES = {None, "http", "https", "socks5", "socks5h"}
_DESKTOP_SCHEME = re.compile(r"socks://", re.IGNORECASE)
"""What GNOME writes into `all_proxy`, meaning SOCKS5."""


@dataclass(frozen=True)
class ProxyChanges:
    """Variables to set, and names of those to remove because no client can use their value."""

    set_to: dict[str, str]
    unusable: tuple[str, ...] = ()


def plan_proxies(environ: Mapping[str, str]) -> ProxyChanges:
    """The changes to `environ` that let clients start, and reach the loopback without a proxy."""
    given = {name: value for name, value in environ.items() if name.lower() in _PROXIES and value}
    usable = {name: _DESKTOP_SCHEME.sub("socks5://", value.strip()) for name, value in given.items()}
    unusable = tuple(name for name, value in usable.items() if not _is_proxy(value))
    changed = {name: value for name, value in usable.items() if name not in unusable and value != given[name]}
    if given or any(name.lower() == _NO_PROXY for name in environ):
        exceptions = ",".join(_exceptions(environ))
        changed |= {_NO_PROXY: exceptions, _NO_PROXY.upper(): exceptions}
    return ProxyChanges(changed, unusable)


def _exceptions(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts of `NO_PROXY` that every client understands, and the loopback. The lower case name comes first, as
    for most programs."""
    text = environ.get(_NO_PROXY, environ.get(_NO_PROXY.upper(), ""))
    hosts = [host for entry in re.split(r"[,\s]+", text) for host in _host_of(entry)]
    return ("*",) if "*" in hosts else tuple(dict.fromkeys((*hosts, *LOOPBACK)))


def _host_of(entry: str) -> Iterator[str]:
    """The entry as httpx reads it; empty for an IPv6 network or an invalid host."""
    address = entry.strip("[]")
    try:
        network = ipaddress.ip_network(address, strict=False)
    except ValueError:
        if _HOST.fullmatch(entry):
            yield entry
        return
    if network.version == 4 or "/" not in address:
        yield address
    elif network.prefixlen == network.max_prefixlen:
        yield str(network.network_address)


def _is_proxy(value: str) -> bool:
    found = _PROXY.fullmatch(value)
    scheme = found["scheme"] if found else "none"
    return (scheme.lower() if scheme else None) in _SCHEMES
