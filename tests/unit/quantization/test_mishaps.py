"""What goes wrong by the way keeps no format out for good."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from trials import measure

from tasks.core.errors import (
    CommandError,
    CommandTimeoutError,
    DiskError,
    DiskFullError,
    EngineError,
    EngineHungError,
)
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.failures import FailureKind
from tasks.quantization.apply import still_good
from tasks.quantization.models import Candidate, QuantizationRequest, Trial, TrialPlan

F16, Q8_0 = CandidateFormat.F16, CandidateFormat.Q8_0


class Bench:
    """Fails on Q8_0 as told, once for each error; that format is twice as fast."""

    def __init__(self, engine: Sequence[EngineError] = (), converter: Sequence[Exception] = ()) -> None:
        self.engine, self.converter = list(engine), list(converter)
        self.tried: list[CandidateFormat] = []

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        if form is Q8_0 and self.converter:
            raise self.converter.pop(0)
        out.write_text(form)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        return {"tensor": 0.0}

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        form = candidate.format
        self.tried.append(form)
        if form is Q8_0 and self.engine:
            raise self.engine.pop(0)
        return Trial(tokens_per_s=(200.0 if form is Q8_0 else 100.0,) * 3)


@pytest.fixture
def request_(random_model: Path, slipway_home: Path) -> QuantizationRequest:
    return QuantizationRequest(
        model_dir=random_model,
        model_digest="sha256:" + "a" * 64,
        formats=(F16, Q8_0),
        text=None,
        tokens=64,
        context=64,
        tolerance=0.01,
    )


def test_an_engine_that_failed_once_is_asked_again(request_: QuantizationRequest) -> None:
    bench = Bench(engine=[EngineHungError("no byte")])
    result = measure(request_, bench, Settings.load())
    assert bench.tried == [F16, Q8_0, Q8_0]
    assert result.candidate.format is Q8_0
    assert still_good(result)


def test_one_that_fails_twice_does_so_for_good(request_: QuantizationRequest) -> None:
    bench = Bench(engine=[EngineHungError("no byte"), EngineHungError("no byte")])
    result = measure(request_, bench, Settings.load())
    assert bench.tried == [F16, Q8_0, Q8_0]
    assert result.candidate.format is F16
    assert result.measured[1].failure is not None
    assert result.measured[1].failure.kind is FailureKind.HUNG
    assert still_good(result)


def test_want_of_room_is_a_fault_and_no_word_about_a_format(
    request_: QuantizationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load()
    measure(request_.model_copy(update={"formats": (F16,)}), Bench(), settings)
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(
            DiskFullError, match=f"do not fit into {settings.candidates}: the disk mounted at"
        ):
            measure(request_, Bench(), settings)
    assert measure(request_, Bench(), settings).candidate.format is Q8_0


@pytest.mark.parametrize(
    "error", [DiskFullError("no room left"), OSError(errno.EIO, "Input/output error"), DiskError("denied")]
)
def test_a_disk_that_fails_while_a_candidate_is_made_is_a_fault(
    error: Exception, request_: QuantizationRequest
) -> None:
    with pytest.raises(DiskError):
        measure(request_, Bench(converter=[error]), Settings.load())


@pytest.mark.parametrize(
    ("error", "passing"),
    [(CommandTimeoutError("the converter took too long"), True), (CommandError("no such tensor"), False)],
)
def test_a_converter_that_ran_out_of_time_is_run_again(
    error: CommandError, passing: bool, request_: QuantizationRequest
) -> None:
    result = measure(request_, Bench(converter=[error]), Settings.load())
    assert result.measured[1].rejected == error.what
    assert still_good(result) is not passing


def test_what_does_not_fit_into_memory_is_no_mishap(request_: QuantizationRequest) -> None:
    result = measure(request_.model_copy(update={"memory_bytes": 10}), Bench(), Settings.load())
    assert result.chosen is None
    assert [row.passing for row in result.measured] == [False, False]
