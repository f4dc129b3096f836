"""What a Prefect server needs besides deployments. Idempotent: existing objects are kept, or replaced if an older
Slipway made them differently."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

WORK_POOL = "slipway"

ZOMBIES = "slipway: end runs whose heartbeat stopped"
"""If worker and run are killed together, the run stays `Running` forever; missed heartbeats end it."""

PATIENCE = 6
"""Heartbeats that may be missed: a loaded machine was seen to lose a minute of them."""

VERDICTS = "slipway: tell of verdicts that say no"

TOLD_STATES = ("Refused", "Unhealthy", "Confirmed", "Rolled back", "Still down", "Could not look")
"""Names of the states that send a message: those about a service. Other stages' states only explain a refused
deploy."""

NOTIFICATION_BLOCK = "slipway"
"""Name of the notification blocks that send them, of any type that Prefect has."""

_OLD_NAME = "slipway"
"""The name of every deployment, up to November 2026."""

_MESSAGE = """\
{{ flow_run.name }}: {{ flow_run.state.name }}
{{ flow_run.state.message }}
{{ flow_run|ui_url }}"""


def create_work_pool() -> None:
    """The process work pool that the deployments name."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        except ObjectAlreadyExists:
            return


def create_automations(heartbeat: timedelta) -> None:
    """The automation that ends zombie runs, for runs that beat every `heartbeat`.

    Any event of a run counts as a heartbeat. Its last one has its state's name, which is its verdict.
    """
    wanted = AutomationCore(
        name=ZOMBIES,
        description="A run without a heartbeat is dead: mark it crashed, so that its slots are freed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=PATIENCE * heartbeat,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its process is gone")],
    )
    with get_client(sync_client=True) as client:
        _put(client, wanted)


def tell_of_verdicts() -> int:
    """The automation that reports verdicts that say no, if a notification block is named `slipway`; how many blocks.

    Blocks contain addresses and tokens, so they are created in Prefect's UI, not by Slipway.
    """
    with get_client(sync_client=True) as client:
        blocks = _notification_blocks(client)
        if blocks:
            _put(client, _verdicts_automation(blocks))
        else:
            for found in client.read_automations_by_name(VERDICTS):
                client.delete_automation(found.id)
    return len(blocks)


def remove_old_deployments(flows: Collection[str]) -> None:
    """Remove the deployments of these flows under their names up to November 2026, and their automations."""
    with get_client(sync_client=True) as client:
        old = client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[_OLD_NAME])),
        )
        for deployment in old:
            client.delete_resource_owned_automations(f"prefect.deployment.{deployment.id}")
            client.delete_deployment(deployment.id)


def _notification_blocks(client: SyncPrefectClient) -> list[BlockDocument]:
    return [
        block
        for block in client.read_block_documents(include_secrets=False)
        if block.name == NOTIFICATION_BLOCK
        and block.block_schema is not None
        and "notify" in block.block_schema.capabilities
    ]


def _verdicts_automation(blocks: list[BlockDocument]) -> AutomationCore:
    return AutomationCore(
        name=VERDICTS,
        description=f"Sent by the notification blocks named {NOTIFICATION_BLOCK}.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{name}" for name in TOLD_STATES},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block.id,
                subject="{{ flow_run.name }}: {{ flow_run.state.name }}",
                body=_MESSAGE,
            )
            for block in blocks
        ],
    )


def _put(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create the automation, or update the one of that name. One that was switched off stays off."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return
    if not _alike(found[0], wanted):
        client.update_automation(found[0].id, wanted.model_copy(update={"enabled": found[0].enabled}))


def _alike(found: AutomationCore, wanted: AutomationCore) -> bool:
    parts = {"trigger", "actions", "description"}
    return found.model_dump(include=parts, exclude={"trigger": {"id"}}) == wanted.model_dump(
        include=parts, exclude={"trigger": {"id"}}
    )
