"""What Prefect's lists call deployments and runs: words that tell what they do, and none that Prefect makes up."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import yaml
from prefect import Flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Running

import flows
from blocks.prefect.quiet_runs import NOTHING_NEW
from deployments.local import PREFECT_FILE, flow_names
from flows.watch_registry import watch_registry

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(PREFECT_FILE.read_bytes())["deployments"]


def every_flow() -> dict[str, Flow[Any, Any]]:
    """By where it is."""
    modules = [
        importlib.import_module(f"flows.{found.name}") for found in pkgutil.iter_modules(flows.__path__)
    ]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Flow)
    }


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda found: found["entrypoint"])
def test_a_deployment_bears_its_flows_name(deployment: dict[str, Any]) -> None:
    module, _, function = deployment["entrypoint"].rpartition(".")
    assert deployment["name"] == getattr(importlib.import_module(module), function).name
    assert deployment["description"]


def test_no_two_deployments_have_one_name() -> None:
    assert len(set(flow_names())) == len(flow_names()) == len(DEPLOYMENTS)


@pytest.mark.parametrize("where", every_flow())
def test_no_run_of_a_flow_is_called_by_a_made_up_name(where: str) -> None:
    assert every_flow()[where].flow_run_name


@pytest.mark.server
def test_a_look_that_found_nothing_new_takes_the_place_of_the_one_before(slipway_home: object) -> None:
    """Others of its deployment, of other deployments, and of the same flow by hand are kept."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="looks", type="process"))
        flow_id = client.create_flow(watch_registry)
        own, other = (
            client.create_deployment(flow_id, name=name, work_pool_name="looks") for name in ("a", "b")
        )
        quiet: State[None] = Completed(name=NOTHING_NEW)
        before = [
            client.create_flow_run_from_deployment(deployment, state=state).id
            for deployment, state in (
                (own, quiet), (own, Cancelled()), (own, Completed(name="Moved")), (own, Running()), (other, quiet),
            )
        ]  # fmt: skip
        by_hand = client.create_flow_run(watch_registry, state=quiet).id
        now = client.create_flow_run_from_deployment(own)
        client.set_flow_run_state(now.id, Running(), force=True)
        from prefect.flow_engine import run_flow

        run_flow(watch_registry, flow_run=client.read_flow_run(now.id))
        left = {run.id: run for run in client.read_flow_runs()}
        assert [run in left for run in before] == [False, False, True, True, True]
        assert by_hand in left
        assert (left[now.id].name, left[now.id].state_name) == (
            "watch the registry for no service",
            NOTHING_NEW,
        )
