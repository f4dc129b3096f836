"""The places for engines behind a proxy, the commands that switch between them, and what the proxy says of them.

Standard library only: a service's supervisor uses it too. Pure.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass

BACKEND = "engine"
BACKEND_HOST = "127.0.0.1"
SLOTS = ("blue", "green", "red", "yellow")
"""One serves, one is about to, and others may still drain."""

QUEUE_S = 30

LOOK = "show stat -1 4 -1"
"""Asks for what `slots_in` reads."""


@dataclass(frozen=True)
class Slot:
    """One place behind the proxy.

    `requests` are those it works on now, `sent_bytes` those of all answers so far.
    """

    state: str
    """`ready`, `drain` or `maint`."""
    port: int
    requests: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class Route:
    """What a proxy starts with: the public address, and the slot that serves.

    `metrics_port` is of the loopback. Requests wait up to `queue_s` for an engine that died and is started again.
    """

    host: str
    port: int
    slot: str | None = None
    backend_port: int | None = None
    release: str | None = None
    metrics_port: int | None = None
    queue_s: int = QUEUE_S


def slots_in(answer: str) -> dict[str, Slot]:
    """The slots, as HAProxy answers `LOOK`. Raises `ValueError` for anything else."""
    rows = csv.DictReader(answer.removeprefix("# ").splitlines())
    found = {
        row["svname"]: Slot(
            state={"MAINT": "maint", "DRAIN": "drain"}.get(row["status"], "ready"),
            port=int(row["addr"].rpartition(":")[2]),
            requests=int(row["scur"]) + int(row["qcur"]),
            sent_bytes=int(row["bout"]),
        )
        for row in rows
        if row.get("svname") in SLOTS
    }
    if not found:
        raise ValueError(f"not an answer to {LOOK!r}: {answer[:80]!r}")
    return found


def refusals_in(answer: str) -> list[str]:
    """What a proxy answered to commands that it did not take."""
    return [line for line in answer.splitlines() if line and "chang" not in line]


def send_to(slot: str, port: int) -> tuple[str, ...]:
    """Commands that give new requests to `slot`, whose engine is at `port`; `drain` takes them from the others."""
    return (
        f"set server {BACKEND}/{slot} addr {BACKEND_HOST} port {port}",
        f"set server {BACKEND}/{slot} state ready",
    )


def drain(slots: Iterable[str]) -> tuple[str, ...]:
    """Commands that give these slots no new request; they keep those they have."""
    return tuple(f"set server {BACKEND}/{slot} state drain" for slot in slots)


def take_out(slot: str) -> tuple[str, ...]:
    """Commands that put a drained slot out of service."""
    return (f"set server {BACKEND}/{slot} state maint",)


def folder_name(host: str, port: int) -> str:
    """Name of the folder of the proxy at a public address."""
    return f"{host.replace(':', '_')}-{port}"


def other(slot: str | None) -> str:
    """The slot that takes turns with `slot` if only two are used."""
    return SLOTS[1] if slot == SLOTS[0] else SLOTS[0]


def address_in(name: str) -> tuple[str, int] | None:
    """The address that a proxy's folder is named by; host names and addresses contain no underscore."""
    host, _, port = name.rpartition("-")
    return (host.replace("_", ":"), int(port)) if host and port.isdecimal() else None
