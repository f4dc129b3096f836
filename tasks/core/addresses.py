"""Host and port as they are written in URLs and messages. Pure."""

from __future__ import annotations


def host_and_port(host: str, port: int | str) -> str:
    """`127.0.0.1:8000`, `[::1]:8000`: an address of IPv6 is put into brackets (RFC 3986)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def base_url(host: str, port: int) -> str:
    """The URL of what listens there, without a path."""
    return f"http://{host_and_port(host, port)}"
