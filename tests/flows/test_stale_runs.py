"""Runs that were killed do not go on for ever by Prefect's account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest
from prefect import flow, get_client, tags, task
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Cancelling, Completed, Pending, Running, State

from blocks.prefect.database import has_open_run
from blocks.prefect.server import TemporaryServer
from blocks.prefect.service_tag import service_tag
from blocks.prefect.stale_runs import end_runs_of_pool, end_stale_runs
from tasks.core.settings import Settings


@flow(name="next-run")
def next_run(name: str) -> int:
    return end_stale_runs(name)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_run_never_ends_itself(tagged: bool) -> None:
    """A deploy by the command bears the tag from its creation, one that a worker took does not."""
    with tags(*[service_tag("own")] * tagged):
        state = next_run("own", return_state=True)
    run = state.state_details.flow_run_id
    assert run is not None
    with get_client(sync_client=True) as client:
        history = [found.type for found in client.read_flow_run_states(run)]
        assert history == [StateType.PENDING, StateType.RUNNING, StateType.COMPLETED]
        assert service_tag("own") in client.read_flow_run(run).tags


@task
def work() -> None:
    """Never runs: what is killed is only in the database."""


def test_the_next_run_ends_what_was_killed_before_or_while_it_ran(prefect_server: TemporaryServer) -> None:
    settings = replace(Settings.load(), home=prefect_server.log.parent.parent)
    assert not has_open_run(settings, service_tag("one"))
    with get_client(sync_client=True) as client:
        killed = [
            client.create_flow_run(
                next_run, parameters={"name": "one"}, tags=[service_tag("one")], state=state
            )
            for state in (Pending(), Running())
        ]
        others = client.create_flow_run(
            next_run, parameters={"name": "two"}, tags=[service_tag("two")], state=Running()
        )
        killed_tasks = [
            client.create_task_run(work, killed[1].id, dynamic_key=str(number), state=state)
            for number, state in enumerate((Pending(), Running()))
        ]
        finished = client.create_task_run(work, killed[1].id, dynamic_key="2", state=Completed())
        assert has_open_run(settings, service_tag("one"))  # as the file tells without the server
        assert next_run("one") == 2
        assert not has_open_run(settings, service_tag("one"))
        assert [client.read_flow_run(run.id).state_type for run in killed] == [StateType.CRASHED] * 2
        assert [client.read_task_run(run.id).state_type for run in killed_tasks] == [StateType.CRASHED] * 2
        assert client.read_task_run(finished.id).state_type == StateType.COMPLETED
        assert client.read_flow_run(others.id).state_type == StateType.RUNNING
        assert next_run("one") == 0


@pytest.mark.parametrize("states", [(Pending,), (Pending, Running), (Pending, Running, Cancelling)])
def test_what_a_former_worker_took_gives_its_deployments_slot_back(
    states: tuple[Callable[[], State[None]], ...],
) -> None:
    """Of its own pool only; what waits for the slot goes on waiting."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(next_run)
        pools = [f"pool-{uuid4()}" for _ in range(2)]
        taken, deployments = [], []
        for pool in pools:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            deployments.append(
                client.create_deployment(flow_id, name=pool, work_pool_name=pool, concurrency_limit=1)
            )
            taken.append(client.create_flow_run_from_deployment(deployments[-1]).id)
            for state in states:
                answer = client.set_flow_run_state(taken[-1], state())
                assert answer.status is SetStateStatus.ACCEPT
        waiting = client.create_flow_run_from_deployment(deployments[0]).id
        assert client.set_flow_run_state(waiting, Pending()).status is SetStateStatus.REJECT
        assert end_runs_of_pool(pools[0]) == 1
        ended, other = (client.read_flow_run(run).state for run in taken)
        assert ended is not None
        assert (ended.type, ended.message) == (
            StateType.CRASHED,
            "its process was killed; found by the next `slipway up`",
        )
        assert other is not None
        assert other.type is states[-1]().type
        assert client.read_flow_run(waiting).state_type is StateType.SCHEDULED
        assert client.set_flow_run_state(waiting, Pending()).status is SetStateStatus.ACCEPT
