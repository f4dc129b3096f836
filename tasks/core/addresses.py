"""Host and port in URLs and messages. Pure."""

from __future__ import annotations

import ipaddress


def host_and_port(host: str, port: int | str) -> str:
    """`127.0.0.1:8000`, `[::1]:8000`: IPv6 addresses get brackets (RFC 3986)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this host can reach it. A name other than `localhost` counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def base_url(host: str, port: int) -> str:
    """The URL of a server that listens there, without a path."""
    return f"http://{host_and_port(host, port)}"
