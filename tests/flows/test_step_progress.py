"""What a run shows while it measures: an artifact, and its subflows' lines in its own log."""

from __future__ import annotations

import logging
from uuid import UUID

import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from blocks.prefect.progress import follow_subflows, show_steps
from tasks.core.progress import listen, say, step, to_log
from tasks.core.verdicts import StageName

pytestmark = pytest.mark.server


def artifacts(key: str) -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def test_each_step_is_shown_and_the_last_one_stays() -> None:
    during: list[tuple[object, str | None]] = []

    @flow(name="stepping")
    def stepping() -> None:
        with show_steps(StageName.BATCHING, "stepping"):
            for batch in (1, 2):
                step(batch / 4, f"batch {batch}: 100 tokens/s")
                (found,) = artifacts("batching-stepping-progress")
                during.append((found.data, found.description))

    stepping()
    assert during == [(25, "stepping: batch 1: 100 tokens/s"), (50, "stepping: batch 2: 100 tokens/s")]
    (last,) = artifacts("batching-stepping-progress")
    assert (last.data, last.description) == (100, "stepping: batch 2: 100 tokens/s")


def test_what_breaks_off_stays_where_it_was() -> None:
    @flow(name="broken")
    def broken() -> None:
        with show_steps(StageName.QUANTIZATION, "broken"):
            step(0.5, "1 of 2 candidates")
            raise ValueError("said by the flow")

    with pytest.raises(ValueError, match="said by the flow"):
        broken()
    assert [found.data for found in artifacts("quantization-broken-progress")] == [50]
    step(1.0, "nobody follows any more")
    assert [found.data for found in artifacts("quantization-broken-progress")] == [50]


def test_a_runs_log_holds_what_its_subflows_say_once(caplog: pytest.LogCaptureFixture) -> None:
    @flow(name="tuning")
    def tuning() -> None:
        say("batching", "batch 1: 100 tokens/s")

    @flow(name="deploying")
    def deploying() -> UUID:
        listen(to_log)
        with follow_subflows(StageName.LIFECYCLE):
            say("staging", "said by the run itself")
            tuning()
            say(StageName.LIFECYCLE, "batching chosen")
        say("batching", "said after it")
        return UUID(int=0)

    with caplog.at_level(logging.INFO):
        state = deploying(return_state=True)
    own = str(state.state_details.flow_run_id)
    said = [found.getMessage() for found in caplog.records if getattr(found, "flow_run_id", None) == own]
    assert [line for line in said if line.startswith(("batching", "staging"))] == [
        "batching: batch 1: 100 tokens/s"
    ]
    by_itself = [found.getMessage() for found in caplog.records if found.name == "slipway"]
    assert by_itself == [
        "staging: said by the run itself",
        "batching: batch 1: 100 tokens/s",
        "lifecycle: batching chosen",
        "batching: said after it",
    ]
