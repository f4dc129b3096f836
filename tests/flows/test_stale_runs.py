"""Runs that were killed do not go on for ever by Prefect's account."""

from __future__ import annotations

from prefect import flow, get_client, task
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Completed, Pending, Running

from flows.stale_runs import end_stale_runs, service_tag


@flow(name="next-run")
def next_run(name: str) -> int:
    return end_stale_runs(name, flow_run.id, flow_run.tags)


@task
def work() -> None:
    """Never runs: what is killed is only in the database."""


def test_the_next_run_ends_what_was_killed_before_or_while_it_ran() -> None:
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
        assert next_run("one") == 2
        assert [client.read_flow_run(run.id).state_type for run in killed] == [StateType.CRASHED] * 2
        assert [client.read_task_run(run.id).state_type for run in killed_tasks] == [StateType.CRASHED] * 2
        assert client.read_task_run(finished.id).state_type == StateType.COMPLETED
        assert client.read_flow_run(others.id).state_type == StateType.RUNNING
        assert next_run("one") == 0
