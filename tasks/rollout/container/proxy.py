"""The proxy's configuration and runtime commands. Pure."""

from __future__ import annotations

import re

from tasks.core.addresses import host_and_port
from tasks.core.errors import SpecError
from tasks.rollout.container.models import SLOTS, Route, SlotName

BACKEND = "engine"
BACKEND_HOST = "127.0.0.1"
_NO_PORT = 1
"""Placeholder of a slot that nothing was assigned to; it is in maintenance, so nothing goes there."""

_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", re.ASCII)


def proxy_config(route: Route) -> str:
    """HAProxy's configuration for one service.

    It is written anew with each settled switch: what serves survives a restart of the proxy. One thread, so
    that a runtime command runs between two steps of a request, never during one. Requests to an engine get a
    connection of their own: a reused one may close under a POST, which must not be sent twice. No retries for
    the same reason: a failure is shown to whoever asked. Raises `SpecError` for a host that is no address.
    """
    if not _HOST.fullmatch(route.host):
        raise SpecError(
            f"rollout.host: {route.host!r} is no host name or address", fix="for example 127.0.0.1"
        )
    return f"""\
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
    bind {host_and_port(route.host, route.port)}
    default_backend {BACKEND}

backend {BACKEND}
{_server_line(route, "blue")}
{_server_line(route, "green")}
"""


def _server_line(route: Route, slot: SlotName) -> str:
    if route.slot == slot and route.backend_port is not None:
        return f"    server {slot} {BACKEND_HOST}:{route.backend_port}"
    return f"    server {slot} {BACKEND_HOST}:{_NO_PORT} disabled"


def folder_name(host: str, port: int) -> str:
    """Name of the folder of the proxy at a public address."""
    return f"{host.replace(':', '_')}-{port}"


def address_in(name: str) -> tuple[str, int] | None:
    """The address that a proxy's folder is named by; host names and addresses hold no underscore."""
    host, _, port = name.rpartition("-")
    return (host.replace("_", ":"), int(port)) if host and port.isdecimal() else None


def other(slot: SlotName | None) -> SlotName:
    """The slot beside `slot`."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def send_to(slot: SlotName, port: int) -> tuple[str, ...]:
    """Commands that give all new requests to `slot`; the other slot keeps those it has."""
    return (
        f"set server {BACKEND}/{slot} addr {BACKEND_HOST} port {port}",
        f"set server {BACKEND}/{slot} state ready",
        f"set server {BACKEND}/{other(slot)} state drain",
    )


def send_back_to(slot: SlotName) -> tuple[str, ...]:
    """Commands that undo `send_to` of the other slot."""
    return (
        f"set server {BACKEND}/{slot} state ready",
        f"set server {BACKEND}/{other(slot)} state drain",
    )


def take_out(slot: SlotName) -> tuple[str, ...]:
    """Commands that put a drained slot out of service."""
    return (f"set server {BACKEND}/{slot} state maint",)
