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
"""127.0.0.1, all of IPv4, all of IPv6, and the first two as IPv6 addresses, as those tables spell them."""


def free_port(host: str = LOCALHOST) -> int:
    """A port of `host` that nothing listens on now. Raises `WrongUseError` for an address that is not this host's."""
    with _bound(host, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def check_port_free(host: str, port: int) -> None:
    """Raise a `PortTakenError` that names the port and, if known, the process that listens on it.

    Raises `WrongUseError` for an address that this user cannot listen on at all.
    """
    _bound(host, port).close()


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on the port. Raises `WrongUseError` as `check_port_free` does."""
    try:
        check_port_free(host, port)
    except PortTakenError:
        return False
    return True


def _bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening. The address is resolved as the supervisor does it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        probe = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid label in a DNS name
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
        fix="set rollout.host to an address of this host, and rollout.port to 1024 or more",
    )


def port_taken(host: str, port: int) -> PortTakenError:
    """The error for a port that something else listens on."""
    holder = holder_of(port)
    return PortTakenError(
        f"port {port} of {host} is taken{f' by {holder}' if holder else ''}",
        fix="end the process that listens there, or set another rollout.port",
    )


def holder_of(port: int) -> str | None:
    """Name and id of the process that listens on `port`, if this user may know."""
    for pid in _listeners(port):
        try:
            return f"{psutil.Process(pid).name()} (process {pid})"
        except psutil.Error:
            return f"process {pid}"
    return None


def is_held_below(port: int, folder: Path) -> bool:
    """Whether the process that listens on `port` was started with a path in `folder`, like a service's
    supervisor and proxy."""
    return not set(running_below(folder)).isdisjoint(_listeners(port))


def is_own_listener(port: int) -> bool:
    """Whether what listens on `port` of 127.0.0.1 belongs to this user; False if nothing listens."""
    # 127.0.0.1 also reaches an IPv6 listener if there is none on IPv4.
    owners = _owners_of_listeners("tcp", port) or _owners_of_listeners("tcp6", port)
    return owners == {os.geteuid()}


def _owners_of_listeners(table: str, port: int) -> set[int]:
    """User ids from the kernel's table, which every user may read."""
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
    """Ids of the processes that listen on `port`, as far as this user can see."""
    return [
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr[1:2] == (port,)
        and connection.pid is not None
    ]
