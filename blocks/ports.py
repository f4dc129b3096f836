"""Ports of this host: whether one is free, and who holds it."""

from __future__ import annotations

import errno
import socket

import psutil

from tasks.core.errors import PortTakenError, WrongUseError

LOCALHOST = "127.0.0.1"


def free_port(host: str = LOCALHOST) -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port_free(host: str, port: int) -> None:
    """Raise `PortTakenError` that names the port and, where it can be known, who listens on it.

    Raises `WrongUseError` for an address that this user cannot listen on at all.
    """
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise port_taken(host, port) from None
        raise WrongUseError(
            f"nothing can listen on port {port} of {host}: {error.strerror}",
            fix="choose an address of this host, and a port from 1024 on, as rollout.host and rollout.port",
        ) from None


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def port_taken(host: str, port: int) -> PortTakenError:
    """The error for a port that something else listens on."""
    holder = holder_of(port)
    return PortTakenError(
        f"port {port} of {host} is taken{f' by {holder}' if holder else ''}",
        fix="end what listens there, or give another rollout.port",
    )


def holder_of(port: int) -> str | None:
    """Program and process id of what listens on `port`, if this user may know."""
    for connection in psutil.net_connections(kind="tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
        if not listens or connection.pid is None:
            continue
        try:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
        except psutil.Error:
            return f"process {connection.pid}"
    return None
