"""The tuning flow on the real engine: measured once, answered from the record, measured anew when it must be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from blocks.storage.record_store import open_record_store
from flows.quantize_model import quantize_model
from flows.tune_serving import TuningOutcome, quantized, read_facts, tune_serving
from tasks.batching.guidellm import REQUIREMENTS, closed_figures, read_report
from tasks.batching.models import BatchingResult, Fit
from tasks.core.cancellation import begin
from tasks.core.errors import SpecError, StageCancelledError
from tasks.core.files import file_lock
from tasks.core.load import Load
from tasks.core.settings import Settings
from tasks.core.spec import parse_spec
from tasks.core.spec_kinds import CandidateFormat, EngineKind, LoadGenerator, LoadKind
from tasks.core.spec_sections import Hardware, Objectives, Tuning, TuningLoad
from tasks.core.verdicts import StageName
from tasks.tuning.models import TuningRequest

pytestmark = [pytest.mark.engine, pytest.mark.server]


@pytest.fixture
def tiny(repository: Path) -> Path:
    return repository / "examples" / "tiny"


@pytest.fixture
def asked(tiny: Path, engine_python: Path, slipway_home: Path) -> TuningRequest:
    return TuningRequest(
        name="first",
        engine=EngineKind.LLAMA_CPP,
        python_path=engine_python,
        environment_digest="sha256:" + "e" * 64,
        model_dir=tiny / "model",
        model_digest="sha256:" + "d" * 64,
        tuning=Tuning(
            candidates=(CandidateFormat.F16, CandidateFormat.Q8_0),
            quality_text=tiny / "heldout.txt",
            quality_tokens=256,
            context=128,
            max_batch=2,
            output_tokens=16,
        ),
        objectives=Objectives(quality_tolerance=0.05, memory_fraction=0.5),
        hardware=Hardware(cpus=1, memory=2 * 10**9),
    )


def changed(request: TuningRequest, **tuning: Any) -> TuningRequest:
    return request.model_copy(update={"tuning": request.tuning.model_copy(update=tuning)})


def progress(key: str) -> str:
    """What the progress artifact says, at its end."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    assert found[0].data == 100
    return found[0].description or ""


def batching(outcome: TuningOutcome) -> BatchingResult:
    assert outcome.batching is not None
    return outcome.batching.result


def test_tuning_is_measured_once_and_then_remembered(asked: TuningRequest) -> None:
    first = tune_serving(asked)
    assert (first.quantization.verdict, first.quantization.cached) == ("chosen", False)
    result = batching(first)
    assert result.batch in (1, 2)
    assert (result.config.served_name, result.config.batch, result.config.context) == (
        "first",
        result.batch,
        128,
    )
    assert result.limits.memory_bytes == 10**9
    assert result.prior is None

    # Each candidate and size was shown while it was measured; what stays is the last one.
    candidates, sizes = progress("quantization-first-progress"), progress("batching-first-progress")
    assert f"2 of 2 candidates; {asked.tuning.candidates[-1]}: " in candidates
    assert "first: batch " in sizes

    # Another service of the same model: no work, and its own name.
    again = tune_serving(asked.model_copy(update={"name": "second"}))
    assert again.batching is not None
    assert (again.quantization.cached, again.batching.cached) == (True, True)
    assert again.batching.record == first.batching.record if first.batching else False
    assert batching(again).config == result.config.model_copy(update={"served_name": "second"})

    # Something else is asked of the same model: the earlier answer is where the search starts, and is cited.
    other = tune_serving(changed(asked, output_tokens=12))
    assert other.quantization.cached
    assert batching(other).prior == result.batch
    store = open_record_store(Settings.load())
    records = store.list(StageName.BATCHING)
    assert [record.consulted for record in records] == [(), (records[0].id,)]
    assert set(records[0].numbers) >= {"batch", "throughput", "peak_bytes", "ttft_p95_ms", "tpot_p95_ms"}
    repeated = tune_serving(changed(asked, output_tokens=12))
    assert repeated.batching is not None
    assert repeated.batching.cached

    # A candidate whose bytes changed is no answer any more.
    candidate = first.quantization.result.candidate
    candidate.path.write_bytes(candidate.path.read_bytes()[:-1] + b"\1")
    healed = tune_serving(asked)
    assert not healed.quantization.cached
    assert healed.quantization.result.candidate.digest in {
        row.candidate.digest for row in first.quantization.result.measured if row.candidate
    }


def test_no_size_keeps_an_impossible_objective(asked: TuningRequest) -> None:
    wanted = asked.model_copy(update={"objectives": Objectives(ttft_ms=0.001, quality_tolerance=0.05)})
    outcome = tune_serving(changed(wanted, candidates=(CandidateFormat.Q8_0,), quality_text=None))
    assert outcome.batching is not None
    assert outcome.batching.says_no
    assert batching(outcome).reason.startswith("not even batch 1 works: ttft_p95 is ")


def test_a_rate_is_kept_up_with_or_refused(asked: TuningRequest) -> None:
    one = changed(asked, candidates=(CandidateFormat.Q8_0,), quality_text=None, max_batch=2, output_tokens=4)
    slow = TuningLoad(kind=LoadKind.OPEN, rate=20, requests=20)
    outcome = tune_serving(changed(one, load=slow))
    result = batching(outcome)
    assert result.batch in (1, 2)
    assert "keeps up with 20 requests/s" in result.reason
    assert result.limits.rate_per_s == 20
    assert result.sizes[-1].latency_ms["ttft_p95"] > 0
    refused = batching(
        tune_serving(changed(one, load=slow.model_copy(update={"rate": 5000, "requests": 60})))
    )
    assert refused.batch is None
    assert refused.reason.startswith("batch 2 does not keep up with 5000 requests/s: ")
    # The search begins at the earlier answer, which may be the largest size already.
    assert refused.prior == result.batch
    assert [size.batch for size in refused.sizes] == list(range(refused.prior, 3))
    assert all(size.fit is Fit.SATURATED for size in refused.sizes)


def test_guidellm_sends_when_the_spec_asks_for_it(
    asked: TuningRequest, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is stood in for by a recorded report; everything else is real."""
    python = shutil.copy2(repository / "tests" / "support" / "recorded_guidellm.py", tmp_path / "python")
    shutil.copy(repository / "tests" / "golden" / "guidellm" / "closed.json", tmp_path / "report.json")
    built: list[tuple[str, ...]] = []

    def environment(requirements: tuple[str, ...], *_: object, **__: object) -> Path:
        built.append(requirements)
        return python

    monkeypatch.setattr("flows.tune_serving.tool_python", environment)
    one = changed(asked, candidates=(CandidateFormat.Q8_0,), quality_text=None, max_batch=1)
    by_guidellm = changed(one, load_generator=LoadGenerator.GUIDELLM)
    result = batching(tune_serving(by_guidellm))
    assert result.chosen is not None
    recorded = closed_figures(
        read_report((tmp_path / "report.json").read_text()),
        Load(clients=1, prompt_tokens=1, output_tokens=2),
    )
    assert result.chosen.throughput == recorded.tokens_per_s
    assert result.chosen.latency_ms["ttft_p95"] == recorded.ttft_p95_ms
    assert built == [REQUIREMENTS]
    # Its figures are its own: they answer for no other generator, and need no environment once they are recorded.
    again = tune_serving(by_guidellm)
    assert again.batching is not None
    assert again.batching.cached
    assert len(built) == 1
    other = tune_serving(one)
    assert other.batching is not None
    assert not other.batching.cached


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"quality_text": Path("/no/such/text")}, "no tuning.quality_text /no/such/text"),
        ({"task_set": Path("/no/such/tasks")}, "no tuning.task_set /no/such/tasks"),
        ({"task_set": Path(__file__)}, "test_tune_serving.py:1 is not JSON"),
        ({"context": 100_000}, "the model supports at most"),
        ({"output_tokens": 120}, "leaves no room for a prompt"),
        (
            {"load": TuningLoad(prompt_tokens=109), "output_tokens": 16},
            "prompt_tokens 109 and outputs of up to 20 tokens do not fit into tuning.context 128",
        ),
        (
            {"candidates": (CandidateFormat.Q4_0, CandidateFormat.Q8_0)},
            "the baseline q4_0 is less exact than q8_0",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before(
    asked: TuningRequest, tuning: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        tune_serving(changed(asked, **tuning))
    assert not list(Settings.load().candidates.glob("*"))


def test_the_quantization_stage_alone(tiny: Path, slipway_home: Path) -> None:
    tuning = {"candidates": ["q8_0"], "context": 128}
    model = {"name": "alone", "model": f"file:{tiny / 'model'}", "staging": {"disk_benchmark": False}}
    outcome = quantize_model(parse_spec(model | {"tuning": tuning}))
    assert (outcome.stage, outcome.verdict) == (StageName.QUANTIZATION, "chosen")
    conflict = {"environment": {"requirements": ["numpy<2"]}}
    refused = quantize_model(parse_spec(model | {"tuning": tuning} | conflict))
    assert (refused.stage, refused.verdict) == (StageName.ENVIRONMENT, "conflicting")


def test_one_run_of_this_host_measures_at_a_time(asked: TuningRequest) -> None:
    begin().cancel("staging says corrupt")
    with (
        file_lock(Settings.load().leases / "measuring", wait=False, holder="another run's measurements"),
        pytest.raises(StageCancelledError, match="staging says corrupt"),
    ):
        quantized(asked, read_facts(asked))
