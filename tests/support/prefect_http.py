"""Prefect's HTTP interface as the UI uses it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
TERMINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
DEADLINE_S = 240.0


def wait_for(look: Callable[[], T | None], what: str, *, deadline_s: float = DEADLINE_S) -> T:
    """The first thing that `look` finds. Fails with `what` was waited for."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {deadline_s:.0f} s in vain for {what}")


class _PatientClient(httpx.Client):
    """Asks again after 503, as Prefect's own client does: SQLite has one writer, and it was another one's turn."""

    def request(self, *args: Any, **kwargs: Any) -> httpx.Response:
        def look() -> httpx.Response | None:
            answer = super(_PatientClient, self).request(*args, **kwargs)
            return None if answer.status_code == 503 else answer

        return wait_for(look, "the server's turn to write", deadline_s=60)


class PrefectHttp:
    """A client of one server; `server` is its address without `/api`, `key` its `USER:SECRET`."""

    def __init__(self, server: str, key: str) -> None:
        user, _, secret = key.partition(":")
        self.client = _PatientClient(
            base_url=f"{server}/api", auth=(user, secret), timeout=30, trust_env=False
        )

    def deployment(self, flow: str) -> dict[str, Any]:
        """The deployment of a flow."""
        answer = self.client.get(f"/deployments/name/{flow}/{flow}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def start(self, flow: str, parameters: dict[str, Any]) -> httpx.Response:
        """Press the run button."""
        identity = self.deployment(flow)["id"]
        return self.client.post(f"/deployments/{identity}/create_flow_run", json={"parameters": parameters})

    def run(self, flow: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run and wait until it has ended."""
        answer = self.start(flow, parameters)
        assert answer.status_code in (200, 201), answer.text
        return self.ended(answer.json()["id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """The run, once it has ended."""

        def look() -> dict[str, Any] | None:
            run: dict[str, Any] = self.client.get(f"/flow_runs/{run_id}").json()
            return run if run["state_type"] in TERMINAL else None

        return wait_for(look, f"the end of run {run_id}")

    def runs_of(self, flow: str) -> list[dict[str, Any]]:
        """All runs of a flow's deployment, newest first."""
        wanted = {"deployments": {"id": {"any_": [self.deployment(flow)["id"]]}}, "sort": "START_TIME_DESC"}
        found: list[dict[str, Any]] = self.client.post("/flow_runs/filter", json=wanted).json()
        return found

    def logs(self, run_id: str) -> str:
        """What a run logged: for the message of a failed test."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}}
        return "\n".join(line["message"] for line in self.client.post("/logs/filter", json=wanted).json())
