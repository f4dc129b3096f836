from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from releases import make_release

from tasks.core.release import Release, ServiceState
from tasks.core.spec_kinds import Target
from tasks.rollout.models import RolloutAction, Running
from tasks.rollout.plan import address_of, plan_rollout, release_before


@pytest.fixture
def wanted(tmp_path: Path) -> Release:
    return release(tmp_path, b"wanted")


def release(folder: Path, content: bytes, **rollout: Any) -> Release:
    gguf = folder / f"{content.decode()}.gguf"
    gguf.write_bytes(content)
    return make_release(folder / "bin" / "python", gguf, **rollout)


def state(release_id: str, previous: str | None = None, port: int = 8000) -> ServiceState:
    return ServiceState(
        name="chat", target=Target.PROCESS, host="127.0.0.1", port=port, release=release_id,
        previous=previous, since=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def running(release_id: str, *, up: bool = True, port: int = 8000) -> Running:
    return Running(release=release_id, host="127.0.0.1", port=port, up=up)


def test_the_first_release_starts_where_nothing_serves(wanted: Release) -> None:
    plan = plan_rollout(wanted, None, None)
    assert (plan.action, plan.port, plan.serving, plan.previous) == (RolloutAction.START, None, None, None)
    assert [step.replace(wanted.id[7:19], "NEW") for step in plan.steps] == snapshot(
        [
            "claim 127.0.0.1:(a free port)",
            "start NEW on a private address",
            "gate within 600 s: /health, then 16 tokens for 'The'",
            "switch traffic to NEW",
            "verify a completion at the public address",
        ]
    )


def test_another_release_is_replaced(wanted: Release) -> None:
    plan = plan_rollout(wanted, state("sha256:old"), running("sha256:old"))
    assert (plan.action, plan.port, plan.serving) == (RolloutAction.REPLACE, 8000, "sha256:old")
    assert plan.previous == "sha256:old"
    assert plan.steps[-1] == snapshot("drain old for at most 30 s, then end it")


def test_what_serves_and_is_written_down_is_left_alone(wanted: Release) -> None:
    plan = plan_rollout(wanted, state(wanted.id, "sha256:older"), running(wanted.id))
    assert (plan.action, plan.previous) == (RolloutAction.NOTHING, "sha256:older")
    assert len(plan.steps) == 1


@pytest.mark.parametrize("written", [None, state("sha256:old")])
def test_what_serves_but_is_not_written_down_is_adopted(
    wanted: Release, written: ServiceState | None
) -> None:
    plan = plan_rollout(wanted, written, running(wanted.id))
    assert plan.action is RolloutAction.ADOPT
    assert plan.previous == (written.release if written else None)
    assert len(plan.steps) == 1


def test_what_does_not_answer_is_replaced_by_itself(wanted: Release) -> None:
    plan = plan_rollout(wanted, state(wanted.id, "sha256:older"), running(wanted.id, up=False))
    assert (plan.action, plan.serving, plan.previous) == (RolloutAction.REPLACE, wanted.id, "sha256:older")


def test_another_port_is_a_replacement(tmp_path: Path) -> None:
    moved = release(tmp_path, b"wanted", port=9000)
    plan = plan_rollout(moved, state(moved.id), running(moved.id))
    assert (plan.action, plan.port) == (RolloutAction.REPLACE, 9000)


def test_a_port_once_given_is_kept(tmp_path: Path, wanted: Release) -> None:
    assert address_of(wanted.spec.rollout, None) == ("127.0.0.1", None)
    assert address_of(wanted.spec.rollout, state("sha256:old")) == ("127.0.0.1", 8000)
    elsewhere = release(tmp_path, b"elsewhere", host="127.0.0.2")
    assert address_of(elsewhere.spec.rollout, state("sha256:old")) == ("127.0.0.2", None)


def test_rollback_goes_to_what_really_ran(wanted: Release) -> None:
    """A rollout was killed after its switch: another release serves than the one written down."""
    plan = plan_rollout(wanted, state(wanted.id, "sha256:older"), running("sha256:killed"))
    assert plan.previous == "sha256:killed"


def test_a_service_whose_processes_are_gone_starts_at_its_port(wanted: Release) -> None:
    plan = plan_rollout(wanted, state("sha256:old"), None)
    assert (plan.action, plan.port, plan.serving, plan.previous) == (
        RolloutAction.START, 8000, None, "sha256:old",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "serving", "before"),
    [
        (None, None, None),
        (None, "b", None),  # the first rollout was killed before it was written down
        (("b", "a"), "b", "a"),
        (("b", "a"), None, "a"),
        (("a", None), "a", None),
        (("a", "p"), "b", "a"),  # the rollout of b was killed before it was written down
        (("a", None), "b", "a"),
        (("a", "b"), "b", "a"),  # the way back to b was
    ],
)
def test_the_way_back_goes_from_what_serves(
    written: tuple[str, str | None] | None, serving: str | None, before: str | None
) -> None:
    found = release_before(state(*written) if written else None, running(serving) if serving else None)
    assert found == before
