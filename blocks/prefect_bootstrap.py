"""What a Prefect server needs besides deployments. Idempotent: what is there already is left alone."""

from __future__ import annotations

from datetime import timedelta

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

WORK_POOL = "slipway"

ZOMBIES = "slipway: end runs whose heartbeat stopped"
"""Worker and run killed together leave a run `Running` for ever; missed heartbeats end it."""

PATIENCE = 6
"""Heartbeats that may be missed: a loaded machine was seen to lose a minute's worth of them."""


def create_work_pool() -> None:
    """The process work pool that the deployments name."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        except ObjectAlreadyExists:
            return


def create_automations(heartbeat: timedelta) -> None:
    """The automation that ends zombie runs, for runs that beat every `heartbeat`."""
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(ZOMBIES):
            return
    Automation(
        name=ZOMBIES,
        description="A run without a heartbeat is dead: mark it crashed, so that its slots are freed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *_terminal_events()},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=PATIENCE * heartbeat,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its process is gone")],
    ).create()


def _terminal_events() -> set[str]:
    return {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
