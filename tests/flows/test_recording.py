"""What all stages share: the record is the cache, failures are records, and one `no` stops the others."""

from __future__ import annotations

import os
import signal as signals
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, cast

import httpx
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound

from blocks.host.host_load import ForeignLoad
from blocks.storage.record_store import open_record_store
from flows.recording import Outcome, artifact_key, run_stage
from flows.side_by_side import side_by_side
from tasks.core import verdicts
from tasks.core.cancellation import begin, current
from tasks.core.errors import DiskFullError, ModelError, StageCancelledError
from tasks.core.freshness import measure_anew
from tasks.core.progress import listen, to_log
from tasks.core.records import Number
from tasks.core.result import StageResult
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName


class Answer(StageResult):
    """Stands for a stage's result."""

    value: int = 0


class AnswerReport:
    """Stands for a stage's report module."""

    def headline(self, result: Answer, /) -> str:
        return f"value {result.value}"

    def numbers(self, result: Answer, /) -> dict[str, Number]:
        return {"value": Number(value=result.value, unit="1")}

    def markdown(self, result: Answer, /) -> str:
        return f"# answer {result.value}"


REPORT = AnswerReport()


class Work:
    """Counts how often it was done."""

    def __init__(self, verdict: str = "verified") -> None:
        self.verdict = verdict
        self.times = 0

    def __call__(self) -> Answer:
        self.times += 1
        return Answer(verdict=self.verdict, value=self.times)


def stage(work: Any, *, still_good: Any = lambda result: True, **changes: Any) -> Outcome[Answer]:
    settings: dict[str, Any] = {"subject": "tiny", "inputs": {"source": "a"}, **changes}
    return run_stage(
        StageName.STAGING, result_type=Answer, report=REPORT, work=work, still_good=still_good, **settings
    )


def records() -> list[Any]:
    return list(open_record_store(Settings.load()).list())


def test_a_good_record_stands_in_for_the_work(slipway_home: Path) -> None:
    work = Work()
    first, second = stage(work), stage(work)
    assert (first.cached, second.cached, work.times) == (False, True, 1)
    assert second.result == first.result
    assert second.record == first.record
    assert len(records()) == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"inputs": {"source": "b"}}, "other inputs"),
        ({"consulted": ("01A",)}, "new knowledge"),
        ({"still_good": lambda result: False}, "outputs that do not verify"),
        ({"still_good": None}, "a stage that is never reused"),
    ],
)
def test_the_work_is_done_again_for(slipway_home: Path, changes: dict[str, Any], why: str) -> None:
    work = Work()
    stage(work)
    assert not stage(work, **changes).cached, why
    assert work.times == 2


def test_a_no_is_no_cache(slipway_home: Path) -> None:
    work = Work("corrupt")
    assert stage(work).says_no
    assert not stage(work).cached


def test_a_later_no_takes_back_an_earlier_yes(slipway_home: Path) -> None:
    stage(Work())
    assert stage(Work("corrupt"), still_good=lambda result: False).says_no
    assert not stage(Work()).cached
    assert stage(Work()).cached


class Neighbour(ForeignLoad):
    """Others use this share of the processors: while the work is done, and afterwards."""

    def __init__(self, meanwhile: float, now: float = 0.0) -> None:
        super().__init__()
        self.share, self.later = meanwhile, now

    def now(self) -> float:
        return self.later


@pytest.fixture
def mindful(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: others may use a tenth."""
    monkeypatch.delenv("SLIPWAY_BUSY_SHARE")


@pytest.mark.parametrize(
    ("meanwhile", "now", "cached"),
    [(0.6, 0.0, False), (0.6, 0.5, True), (0.05, 0.0, True), (0.05, 0.9, True)],
    ids=["busy then quiet", "busy still", "quiet", "quiet then busy"],
)
def test_what_was_measured_beside_a_busy_neighbour_is_measured_again_when_it_is_quiet(
    mindful: None, meanwhile: float, now: float, cached: bool
) -> None:
    first = stage(Work(), load=Neighbour(meanwhile))
    again = stage(Work(), load=Neighbour(0.0, now))
    assert again.cached is cached
    marked = meanwhile > 0.1
    assert first.headline.endswith(", under foreign load (60% of the CPUs)") is marked
    newest = records()[-1]
    assert newest.numbers["foreign_load"] == Number(value=meanwhile if cached else 0.0, unit="1")
    assert stage(Work(), load=Neighbour(0.0)).cached is ((cached and not marked) or not cached)


def test_a_host_that_is_always_busy_can_be_told_to_be_as_it_is(
    slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_BUSY_SHARE", "0.7")
    assert "foreign" not in stage(Work(), load=Neighbour(0.6)).headline
    assert stage(Work(), load=Neighbour(0.0)).cached


def test_a_stage_measures_anew_where_it_is_asked_to(slipway_home: Path) -> None:
    stage(Work())
    measure_anew([StageName.BATCHING])
    assert stage(Work()).cached
    measure_anew([StageName.STAGING])
    assert not stage(Work()).cached
    measure_anew([])
    assert stage(Work()).cached


def test_a_result_of_another_version_is_not_reused(slipway_home: Path) -> None:
    class Older(Answer):
        gone: int = 1

    run_stage(
        StageName.STAGING,
        subject="tiny",
        inputs={"source": "a"},
        result_type=Older,
        report=REPORT,
        work=lambda: Older(verdict="verified"),
    )
    assert not stage(Work()).cached


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ModelError("truncated shard", fix="copy it again", detail="header says 12"), "fault"),
        (StageCancelledError("stopped: compatibility says block"), "cancelled"),
        (KeyError("surprise"), "fault"),
    ],
)
def test_a_failure_is_recorded_and_raised(slipway_home: Path, error: Exception, outcome: str) -> None:
    def fail() -> NoReturn:
        raise error

    with pytest.raises(type(error)):
        stage(fail)
    (record,) = records()
    assert record.outcome == outcome
    assert record.evidence["error"]["what"]
    work = Work()
    stage(work)
    assert work.times == 1


def test_a_run_shows_the_verdict_and_the_artifact(slipway_home: Path) -> None:
    work = Work("slow")

    @flow
    def stage_flow() -> Outcome[Answer]:
        return stage(work).as_state()

    first = stage_flow(return_state=True)
    again = stage_flow(return_state=True)
    assert (first.name, again.name, first.message) == ("Slow", "Cached", "value 1")
    assert stage_flow().result.value == 1
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["staging-tiny"]))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(artifact_filter=key)
    assert str(artifact.data).startswith("# answer 1")
    assert artifact.description == "slow: value 1"


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
        state = cast(State[Any], outcome.as_state())
        red = verdicts.says_no(stage_name, verdict)
        assert state.type is (StateType.FAILED if red else StateType.COMPLETED), verdict
        assert (state.name, state.message) == (verdict.replace("_", " ").capitalize(), "why")


def test_artifact_keys_hold_letters_digits_and_dashes() -> None:
    assert artifact_key(StageName.STAGING, "models:/My_Model@champion") == "staging-models-my-model-champion"
    assert artifact_key(StageName.STAGING, "file:/home/josé/m²") == "staging-file-home-jos-m"


def test_one_no_cancels_what_runs_beside_it(slipway_home: Path) -> None:
    signal = begin()

    def waits() -> Outcome[Answer]:
        def until_cancelled() -> NoReturn:
            signal.wait()
            current().check()
            raise AssertionError("the signal did not reach the work")

        return stage(until_cancelled, inputs={"source": "waits"})

    outcomes = side_by_side([lambda: stage(Work("corrupt")), waits], signal)
    assert outcomes[0] is not None
    assert outcomes[0].says_no
    assert outcomes[1] is None
    assert signal.reason == "staging says corrupt"
    assert sorted(record.outcome for record in records()) == ["cancelled", "corrupt"]


def test_a_store_that_is_down_does_not_hide_the_fault(slipway_home: Path) -> None:
    (slipway_home / "records").parent.mkdir(parents=True, exist_ok=True)
    (slipway_home / "records").write_text("in the way: no folder can be made here")

    def fails() -> NoReturn:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        stage(fails, still_good=None)


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

    monkeypatch.setattr("flows.recording.create_markdown_artifact", fails)
    said: list[str] = []
    answers: list[Outcome[Answer]] = []

    def finds_no_room() -> NoReturn:
        raise DiskFullError("no room left")

    @flow
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
    refused = f"Prefect's server did not take the artifact: {reason}"
    assert said == [refused, "verified: value 1", refused, "fault: no room left"]


def test_an_interrupt_ends_what_runs_side_by_side(slipway_home: Path) -> None:
    """As Ctrl-C does: it reaches the main thread only, which must not wait for hours of copying."""
    signal, began = begin(), threading.Event()

    def works_for_hours() -> NoReturn:
        began.set()
        signal.wait(30)
        current().check()
        raise AssertionError("the signal did not reach the work")

    def interrupts() -> None:
        began.wait()
        os.kill(os.getpid(), signals.SIGINT)

    former = signals.signal(signals.SIGINT, signals.default_int_handler)  # background jobs ignore it
    try:
        threading.Thread(target=interrupts, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            side_by_side([works_for_hours], signal)
    finally:
        signals.signal(signals.SIGINT, former)
    assert signal.reason == "interrupted"


def test_a_fault_is_raised_after_all_have_ended(slipway_home: Path) -> None:
    signal = begin()

    def fails() -> NoReturn:
        raise ModelError("no such model")

    def waits() -> Outcome[Answer]:
        signal.wait()
        current().check()
        raise AssertionError("not cancelled")

    with pytest.raises(ModelError, match="no such model"):
        side_by_side([waits, fails], signal)
    assert signal.reason == "no such model"


class SecretReport(AnswerReport):
    """Says what a source told, password and all."""

    def headline(self, result: Answer, /) -> str:
        return "read from http://ci:TopSecret1@registry"

    def markdown(self, result: Answer, /) -> str:
        return "# read from http://ci:TopSecret1@registry"


def test_no_secret_is_in_a_record_an_artifact_or_a_state(
    slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @flow
    def reads() -> Any:
        inputs = {"source": "http://ci:TopSecret1@registry", "password": "short"}
        return run_stage(
            StageName.STAGING,
            subject="secret",
            inputs=inputs,
            result_type=Answer,
            report=SecretReport(),
            work=Work(),
        ).as_state()

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

    @flow
    def fails() -> None:
        stage(work)

    state = fails(return_state=True)
    assert "http://***@registry: no idea" in (state.message or "")
    assert records()[0].evidence["error"]["what"] == "RuntimeError: http://***@registry: no idea"
