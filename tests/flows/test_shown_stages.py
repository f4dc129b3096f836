"""What Prefect shows of a stage: the verdict in the run's state, its artifact, and no secret."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from small_stage import Answer, AnswerReport, Work, records
from small_stage import stage as small_stage

from blocks.prefect.artifacts import artifact_key, publish
from blocks.prefect.flows import flow
from tasks.core import verdicts
from tasks.core.errors import DiskFullError
from tasks.core.progress import listen, to_log
from tasks.core.stage import Outcome
from tasks.core.verdicts import StageName


def test_a_run_shows_the_verdict_and_the_artifact(slipway_home: Path) -> None:
    work = Work("slow")

    @flow(name="stage-flow")
    def stage_flow() -> Outcome[Answer]:
        return stage(work)

    first = stage_flow(return_state=True)
    again = stage_flow(return_state=True)
    assert (first.name, again.name, first.message) == ("Slow", "Cached", "value 1")
    assert stage_flow().result.value == 1
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["staging-tiny"]))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(artifact_filter=key)
    assert str(artifact.data).startswith("# answer 1")
    assert artifact.description == "slow: value 1"


def stage(work: Any, **changes: Any) -> Outcome[Answer]:
    return small_stage(work, publish=publish, **changes)


VERDICTS: dict[StageName, type[StrEnum]] = {
    StageName.ENVIRONMENT: verdicts.EnvironmentVerdict,
    StageName.COMPATIBILITY: verdicts.CompatibilityVerdict,
    StageName.STAGING: verdicts.StagingVerdict,
    StageName.DISK: verdicts.StagingVerdict,
    StageName.LOADING: verdicts.ChoiceVerdict,
    StageName.QUANTIZATION: verdicts.ChoiceVerdict,
    StageName.BATCHING: verdicts.ChoiceVerdict,
    StageName.ROLLOUT: verdicts.RolloutVerdict,
    StageName.HEALTH: verdicts.HealthVerdict,
    StageName.LEAKS: verdicts.LeakVerdict,
    StageName.REGISTRY: verdicts.RegistryVerdict,
    StageName.LIFECYCLE: verdicts.LifecycleVerdict,
}


@pytest.mark.parametrize("stage_name", list(StageName))
def test_exactly_the_verdicts_that_say_no_are_red(stage_name: StageName) -> None:
    @flow(name="answers")
    def answers(outcome: Outcome[Answer]) -> Outcome[Answer]:
        return outcome

    for verdict in VERDICTS[stage_name]:
        outcome = Outcome[Answer](
            stage=stage_name,
            verdict=verdict,
            cached=False,
            seconds=1,
            record="01A",
            headline="why",
            result=Answer(verdict=verdict),
        )
        state = answers(outcome, return_state=True)
        red = verdicts.says_no(stage_name, verdict)
        assert state.type is (StateType.FAILED if red else StateType.COMPLETED), verdict
        assert (state.name, state.message) == (verdict.replace("_", " ").capitalize(), "why")


def test_artifact_keys_hold_letters_digits_and_dashes() -> None:
    assert artifact_key(StageName.STAGING, "models:/My_Model@champion") == "staging-models-my-model-champion"
    assert artifact_key(StageName.STAGING, "file:/home/josé/m²") == "staging-file-home-jos-m"


@pytest.mark.parametrize(
    "down",
    [
        httpx.ConnectError("all connection attempts failed"),
        httpx.HTTPStatusError(
            "Server error '500\nInternal Server Error'",
            request=httpx.Request("POST", "http://127.0.0.1:9/api/artifacts/"),
            response=httpx.Response(500),
        ),
        ObjectNotFound(Exception("the run is gone")),
    ],
)
def test_a_prefect_server_that_fails_hides_no_fault_and_costs_no_work(
    slipway_home: Path, monkeypatch: pytest.MonkeyPatch, down: Exception
) -> None:
    def fails(**_: object) -> NoReturn:
        raise down

    monkeypatch.setattr("blocks.prefect.artifacts.create_markdown_artifact", fails)
    said: list[str] = []
    answers: list[Outcome[Answer]] = []

    def finds_no_room() -> NoReturn:
        raise DiskFullError("no room left")

    @flow(name="stages")
    def stages() -> None:
        answers.append(stage(Work()))
        with pytest.raises(DiskFullError, match="no room left"):
            stage(finds_no_room, still_good=None)

    listen(lambda _, line: said.append(line))
    try:
        stages()
    finally:
        listen(to_log)  # fixtures share one context
    assert [answer.verdict for answer in answers] == ["verified"]
    assert sorted(record.outcome for record in records()) == ["fault", "verified"]
    reason = " ".join(str(down).split())
    refused = f"Prefect's server did not accept the artifact: {reason}"
    assert said == [refused, "verified: value 1", refused, "fault: no room left"]


class SecretReport(AnswerReport):
    """Says what a source told, password and all."""

    def headline(self, result: Answer, /) -> str:
        return "read from http://ci:TopSecret1@registry"

    def markdown(self, result: Answer, /) -> str:
        return "# read from http://ci:TopSecret1@registry"


def test_no_secret_is_in_a_record_an_artifact_or_a_state(
    slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @flow(name="reads")
    def reads() -> Any:
        inputs = {"source": "http://ci:TopSecret1@registry", "password": "short"}
        return stage(Work(), subject="secret", inputs=inputs, report=SecretReport())

    state = reads(return_state=True)
    assert state.message == "read from http://***@registry"
    (record,) = records()
    assert record.evidence["inputs"] == {"source": "http://***@registry", "password": "***"}
    with get_client(sync_client=True) as client:
        name = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(StageName.STAGING, "secret")]))
        (artifact,) = client.read_artifacts(artifact_filter=name)
    assert "# read from http://***@registry" in str(artifact.data)
    assert "TopSecret1" not in f"{artifact}"


def test_no_secret_is_in_the_state_that_an_unexplained_fault_leaves(slipway_home: Path) -> None:
    def work() -> NoReturn:
        raise RuntimeError("http://ci:TopSecret1@registry: no idea")

    @flow(name="fails")
    def fails() -> None:
        stage(work)

    state = fails(return_state=True)
    assert "http://***@registry: no idea" in (state.message or "")
    assert records()[0].evidence["error"]["what"] == "RuntimeError: http://***@registry: no idea"
