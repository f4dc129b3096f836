"""Ports of this host: whether one is free, and who holds it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import psutil

from blocks.processes.environment_users import running_below
from tasks.core.errors import PortTakenError, WrongUseError

LOCALHOST = "127.0.0.1"

_LISTEN = "0A"
"""The state, in `/proc/net/tcp`."""

_REACHED_BY_LOOPBACK = (
    "0100007F",
    "00000000",
    "0" * 32,
    f"{'0' * 16}FFFF0000{'0' * 8}",
    f"{'0' * 16}FFFF00000100007F",
)
"""127.0.0.1, all of IPv4, all of IPv6, and the first two as addresses of IPv6, in the words of those tables."""


def free_port(host: str = LOCALHOST) -> int:
    """A port of `host` that nothing listens on now. Raises `WrongUseError` for an address that is not this host's."""
    with _bound(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def check_port_free(host: str, port: int) -> None:
    """Raise `PortTakenError` that names the port and, where it can be known, who listens on it.

    Raises `WrongUseError` for an address that this user cannot listen on at all.
    """
    _bound(host, port).close()


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address; it does not listen. What it is bound to is found as the supervisor does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        probe = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label that no DNS name may have
        raise _cannot_listen(host, port, error) from None
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE and port:
            raise port_taken(host, port) from None
        raise _cannot_listen(host, port, error) from None
    return probe


def _cannot_listen(host: str, port: int, error: Exception) -> WrongUseError:
    where = f"port {port} of {host}" if port else host
    why = (isinstance(error, OSError) and error.strerror) or str(error)
    return WrongUseError(
        f"nothing can listen on {where}: {why}",
        fix="choose an address of this host, and a port from 1024 on, as rollout.host and rollout.port",
    )


def port_taken(host: str, port: int) -> PortTakenError:
    """The error for a port that something else listens on."""
    holder = holder_of(port)
    return PortTakenError(
        f"port {port} of {host} is taken{f' by {holder}' if holder else ''}",
        fix="end what listens there, or give another rollout.port",
    )


def holder_of(port: int) -> str | None:
    """Program and process id of what listens on `port`, if this user may know."""
    for pid in _listeners(port):
        try:
            return f"{psutil.Process(pid).name()} (process {pid})"
        except psutil.Error:
            return f"process {pid}"
    return None


def is_held_below(port: int, folder: Path) -> bool:
    """Whether what listens on `port` was started with a path of `folder`, as a service's supervisor and proxy are."""
    return not set(running_below(folder)).isdisjoint(_listeners(port))


def is_own_listener(port: int) -> bool:
    """Whether what listens on `port` of 127.0.0.1 is a program of this user's; not where nothing listens."""
    # A listener of IPv6 is reached by 127.0.0.1, too, where none of IPv4 is.
    owners = _owners_of_listeners("tcp", port) or _owners_of_listeners("tcp6", port)
    return owners == {os.geteuid()}


def _owners_of_listeners(table: str, port: int) -> set[int]:
    """User ids, as the kernel's table has them: who may not look into a process may read this all the same."""
    try:
        lines = Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]
    except FileNotFoundError:  # a kernel without IPv6
        return set()
    owners = set()
    for row in map(str.split, lines):
        address, _, at = row[1].rpartition(":")
        if row[3] == _LISTEN and int(at, 16) == port and address in _REACHED_BY_LOOPBACK:
            owners.add(int(row[7]))
    return owners


def _listeners(port: int) -> list[int]:
    """Ids of the processes that listen on `port`, as far as this user may know."""
    return [
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr[1:2] == (port,)
        and connection.pid is not None
    ]
