"""What `slipway up` sets up at a server, and what it makes of what an earlier version left there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from blocks.prefect.bootstrap import (
    NOTIFICATION_BLOCK,
    VERDICTS,
    ZOMBIES,
    create_automations,
    remove_old_deployments,
    tell_of_verdicts,
)

pytestmark = pytest.mark.server
BEAT = timedelta(seconds=30)


@flow(name="old-flow")
def old_flow() -> None:
    """Never runs."""


@flow(name="of-somebody-else")
def other_flow() -> None:
    """Never runs."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as found:
        yield found
        for name in (VERDICTS, ZOMBIES):
            for automation in found.read_automations_by_name(name):
                found.delete_automation(automation.id)


def only(client: SyncPrefectClient, name: str) -> Automation:
    (found,) = client.read_automations_by_name(name)
    return found


def trigger(automation: AutomationCore) -> EventTrigger:
    assert isinstance(automation.trigger, EventTrigger)
    return automation.trigger


def test_any_last_event_of_a_run_tells_that_it_is_no_zombie(client: SyncPrefectClient) -> None:
    """It bears the name of the run's last state: a verdict's. An earlier version waited for four names only."""
    client.create_automation(
        AutomationCore(
            name=ZOMBIES,
            enabled=False,
            trigger=EventTrigger(
                expect={"prefect.flow-run.Completed"}, posture=Posture.Proactive, threshold=1, within=6 * BEAT
            ),
            actions=[ChangeFlowRunState(state=StateType.CRASHED)],
        )
    )
    create_automations(BEAT)
    made = only(client, ZOMBIES)
    assert trigger(made).expect == {"prefect.flow-run.*"}
    assert not made.enabled  # whoever switched it off had a reason
    create_automations(BEAT)
    assert only(client, ZOMBIES) == made


def test_verdicts_are_told_by_the_blocks_that_are_called_so(client: SyncPrefectClient) -> None:
    assert tell_of_verdicts() == 0
    assert client.read_automations_by_name(VERDICTS) == []
    block = CustomWebhookNotificationBlock(name="desk", url="http://127.0.0.1:9/")
    saved = block.save(NOTIFICATION_BLOCK, overwrite=True)
    assert isinstance(saved, UUID)
    assert tell_of_verdicts() == tell_of_verdicts() == 1
    made = only(client, VERDICTS)
    assert trigger(made).expect == {
        f"prefect.flow-run.{name}"
        for name in ("Refused", "Unhealthy", "Confirmed", "Rolled back", "Still down", "Could not look")
    }
    assert [getattr(action, "block_document_id", None) for action in made.actions] == [saved]
    client.delete_block_document(saved)
    assert tell_of_verdicts() == 0
    assert client.read_automations_by_name(VERDICTS) == []


def test_deployments_of_an_earlier_version_go_with_their_triggers(client: SyncPrefectClient) -> None:
    client.create_work_pool(WorkPoolCreate(name="upgrade", type="process"))
    ours, others = client.create_flow(old_flow), client.create_flow(other_flow)
    old, new, foreign = (
        client.create_deployment(flow_id, name=name, work_pool_name="upgrade")
        for flow_id, name in ((ours, "slipway"), (ours, "old-flow"), (others, "slipway"))
    )
    for deployment in (old, new):
        client.create_automation(
            AutomationCore(
                name=f"trigger of {deployment}",
                trigger=EventTrigger(expect={"moved"}, posture=Posture.Reactive, threshold=1),
                actions=[ChangeFlowRunState(state=StateType.CRASHED)],
                owner_resource=f"prefect.deployment.{deployment}",
            )
        )
    for _ in range(2):
        remove_old_deployments(["old-flow"])
        with pytest.raises(ObjectNotFound):
            client.read_deployment(old)
        assert [client.read_deployment(kept).name for kept in (new, foreign)] == ["old-flow", "slipway"]
        assert client.read_automations_by_name(f"trigger of {old}") == []
        assert len(client.read_automations_by_name(f"trigger of {new}")) == 1
