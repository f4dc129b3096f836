"""Candidates measured on the real engine; and engines that die, starve or never answer while they are measured."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from damage import Damage
from random_model import read_floats, rewrite_model, write_random_model
from strays import processes_of
from trials import measure

from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from blocks.engine.load_client import LoadClient
from blocks.engine.process import RunningEngine, serve
from blocks.host.nvml import gpu_bytes_of
from blocks.processes.process_memory import command_pids, peak_bytes, peak_host_bytes
from tasks.batching import report
from tasks.batching.apply import find_batch
from tasks.batching.judging import summarise
from tasks.batching.models import BatchingRequest, BatchingResult, Fit, Limits, ProbeRequest
from tasks.core.digests import is_digest_of_model
from tasks.core.errors import EngineDiedError, EngineError, SpecError
from tasks.core.load import Prompts
from tasks.core.serving import FITTED, ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat, EngineKind, LoadKind
from tasks.core.spec_sections import TuningLoad
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.base import HOST, PORT, CommandLine
from tasks.engines.card import EngineCard, read_card
from tasks.engines.failures import FailureKind
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.apply import still_good
from tasks.quantization.models import (
    Candidate,
    QuantizationRequest,
    QuantizationResult,
    TaskItem,
    Trial,
    TrialPlan,
)
from tasks.quantization.quality import kept
from tasks.quantization.recipe import RECIPES

pytestmark = pytest.mark.engine

FAULTY_ENGINE = Path(__file__).parents[1] / "support" / "faulty_engine.py"
CONFIG = ServingConfig(served_name="test", batch=2, context=128, threads=1)


class FaultyEngine(LlamaCpp):
    """Starts `faulty_engine.py` in the engine's place."""

    def __init__(self, behaviour: str, mark: str = "-") -> None:
        super().__init__()
        self.behaviour = behaviour
        self.mark = mark

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=(sys.executable, str(FAULTY_ENGINE), HOST, PORT, self.behaviour, self.mark))


@pytest.fixture(scope="session")
def bench(engine_python: Path) -> EngineBench:
    return EngineBench(engine=LlamaCpp(), python=engine_python)


@pytest.fixture(scope="session")
def workbench(bench: EngineBench) -> GgufBench:
    return GgufBench(bench, CONFIG)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    return Settings(home=home, records=str(home / "records"), registry="", s3_endpoint=None)


def request(model: Path, text: str | None, *formats: str, tolerance: float = 0.02) -> QuantizationRequest:
    return QuantizationRequest(
        model_dir=model,
        model_digest="sha256:" + "a" * 64,
        formats=tuple(CandidateFormat(form) for form in formats),
        text=text,
        tokens=512,
        context=256,
        tolerance=tolerance,
    )


@pytest.fixture(scope="session")
def tiny(repository: Path) -> Path:
    return repository / "examples" / "tiny"


@pytest.fixture(scope="session")
def held_out(tiny: Path) -> str:
    return (tiny / "heldout.txt").read_text()[:8000]


def test_candidates_of_a_trained_model(
    workbench: GgufBench, settings: Settings, tiny: Path, held_out: str
) -> None:
    result = measure(request(tiny / "model", held_out, "f16", "q8_0"), workbench, settings)
    assert result.verdict == ChoiceVerdict.CHOSEN
    f16, q8 = result.measured
    assert f16.quality is not None
    assert q8.quality is not None
    assert 5 < f16.quality.perplexity < 60  # its model card says 16 to 19; chance would be thousands
    assert f16.quality.tokens >= 500
    assert abs(q8.quality.loss.value) < 0.01
    assert 0 < q8.quality.divergence.value < 0.001
    assert kept(q8.quality).low > 0.98
    assert q8.predicted_bytes == pytest.approx(q8.candidate.size_bytes if q8.candidate else 0, rel=0.02)
    assert q8.quality.agreement.value > 0.9
    assert q8.rejected is None
    assert f16.candidate is not None
    assert q8.candidate is not None
    assert 0.5 < q8.candidate.size_bytes / f16.candidate.size_bytes < 0.6
    assert still_good(result)

    # Made once: the same file is measured again, a damaged one is made anew.
    written = q8.candidate.path.stat().st_mtime_ns
    damaged = f16.candidate.path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    (damaged.parent / "model.gguf.part").write_bytes(b"left by a killed run")
    again = measure(request(tiny / "model", held_out, "f16", "q8_0"), workbench, settings)
    assert q8.candidate.path.stat().st_mtime_ns == written
    assert is_digest_of_model(f16.candidate.digest, damaged)
    assert [row.candidate for row in again.measured] == [f16.candidate, q8.candidate]
    assert again.measured[1].quality is not None
    assert again.measured[1].quality.loss.value == pytest.approx(q8.quality.loss.value, abs=0.002)
    assert list(settings.candidates.rglob("*.part")) == []
    q8.candidate.path.unlink()
    assert still_good(result) is (result.candidate != q8.candidate)


@dataclass(frozen=True)
class DamagedBench(GgufBench):
    """Makes Q8_0 from a damaged copy of the model; the baseline is untouched."""

    damage: Damage | None = None
    scratch: Path = Path()

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        if self.damage and form == CandidateFormat.Q8_0:
            model_dir = self.damage.apply(model_dir, self.scratch / "damaged")
        super().convert(worker, model_dir, form, out)


@pytest.mark.parametrize(
    ("damage", "shows_in_text"),
    [
        (Damage("self_attn.v_proj", 1, other=3), True),
        (Damage("self_attn.k_proj", 0, seed=2), False),  # that layer's attention hardly takes part
    ],
    ids=lambda case: case.name if isinstance(case, Damage) else "",
)
def test_a_damaged_candidate_is_refused(
    damage: Damage,
    shows_in_text: bool,
    engine_python: Path,
    settings: Settings,
    tiny: Path,
    held_out: str,
    tmp_path: Path,
) -> None:
    bench = DamagedBench(
        EngineBench(engine=LlamaCpp(), python=engine_python), CONFIG, damage=damage, scratch=tmp_path
    )
    result = measure(request(tiny / "model", held_out, "f16", "q8_0"), bench, settings)
    assert result.chosen is not None
    assert result.chosen.format == CandidateFormat.F16
    rejected = result.measured[1]
    assert rejected.rejected is not None
    assert rejected.rejected.startswith(f"damaged: its tensor blk.{damage.layer}.")
    assert ("; loses " in rejected.rejected) is shows_in_text
    assert rejected.quality is not None
    assert (kept(rejected.quality).value < 0.98) is shows_in_text


def test_what_cannot_fit_is_not_made(
    workbench: GgufBench, settings: Settings, tiny: Path, held_out: str
) -> None:
    asked = request(tiny / "model", held_out, "q8_0", "f32").model_copy(update={"memory_bytes": 8_000_000})
    result = measure(asked, workbench, settings)
    assert result.candidate.format == CandidateFormat.Q8_0
    refused = result.measured[1]
    assert refused.rejected is not None
    assert refused.rejected.startswith("not made: it would need 13.18 MB of memory")
    assert [path.name.split("-")[1] for path in settings.candidates.iterdir()] == ["q8_0"]
    none = measure(asked.model_copy(update={"memory_bytes": 1_000_000}), workbench, settings)
    assert none.verdict == ChoiceVerdict.NONE
    assert [row.rejected for row in none.measured][1] == "no baseline to compare with"


def test_a_task_set_is_answered_by_each_candidate(
    workbench: GgufBench, tiny: Path, engine_python: Path, tmp_path: Path
) -> None:
    task_items = (
        TaskItem(prompt="If the file does not", choices=(" exist", " harbour", " 42"), answer=0),
        TaskItem(prompt="If the file does not", choices=(" harbour", " exist"), answer=0),
        TaskItem(prompt="If the file does not", expected="exist"),
        TaskItem(prompt="If the file does not", expected="exi"),
        TaskItem(prompt="The caf\u00e9 is", choices=(" not na\u00efve", " qqq zzz xxx"), answer=0),
    )
    model = tmp_path / "model.gguf"
    workbench.convert(RECIPES["gguf-file"].worker, tiny / "model", CandidateFormat.Q8_0, model)
    made = Candidate(format=CandidateFormat.Q8_0, path=model, digest="", size_bytes=model.stat().st_size)
    plan = TrialPlan(tokens=64, window=128, slots=2, task_items=task_items)
    found = workbench.try_candidate(made, plan)
    assert found.answers == (True, False, True, False, True)
    long = (TaskItem(prompt="word " * 200, expected="x"),)
    with pytest.raises(SpecError, match="task 1 of tuning"):
        workbench.try_candidate(made, plan.model_copy(update={"task_items": long}))


def test_one_format_needs_no_text(workbench: GgufBench, settings: Settings, random_model: Path) -> None:
    result = measure(request(random_model, None, "q8_0"), workbench, settings)
    assert result.candidate.format == CandidateFormat.Q8_0
    assert result.measured[0].quality is None


def test_a_format_that_cannot_be_made_is_rejected_and_a_baseline_is_a_fault(
    workbench: GgufBench, settings: Settings, tmp_path: Path
) -> None:
    model = write_random_model(tmp_path / "model")
    name = "model.layers.0.self_attn.k_proj.weight"  # keys are normalised, so the model itself bears it
    keys = read_floats(model / "model.safetensors")[name].copy()
    keys[0, 0] = 1e6
    rewrite_model(model, dtype="F32", tensors={name: keys})
    text = "a ship and a crane " * 20
    result = measure(request(model, text, "f32", "f16"), workbench, settings)
    assert result.candidate.format == CandidateFormat.F32
    assert "beyond 16-bit floats" in (result.measured[1].rejected or "")
    assert list(settings.candidates.rglob("*.part")) == []
    with pytest.raises(Exception, match="beyond 16-bit floats"):
        measure(request(model, text, "f16", "f32"), workbench, settings)


@pytest.mark.parametrize(
    ("behaviour", "kind", "rejected"),
    [
        ("die", FailureKind.CRASHED, r"crashed: the engine died while serving \(exit status 3\)"),
        ("hang", FailureKind.HUNG, r"hung: .*/completion sent no byte within 0\.3 s"),
        ("refuse", FailureKind.GARBAGE, 'garbage: .*/completion answered 500: {"error": "no slot"}'),
        ("no-numbers", FailureKind.GARBAGE, "garbage: its probabilities are not numbers"),
    ],
)
def test_an_engine_that_fails_on_a_candidate_rejects_it(
    behaviour: str,
    kind: FailureKind,
    rejected: str,
    engine_python: Path,
    settings: Settings,
    random_model: Path,
) -> None:
    """The baseline is served by the real engine, the other candidate by one that fails while it scores text."""

    class Engine(LlamaCpp):
        def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
            odd = "q8_0" in model_file
            chosen = FaultyEngine(behaviour, str(settings.home)) if odd else LlamaCpp()
            return chosen.command(python, worker, model_file, config)

    class Impatient(GgufBench):
        """Only with the odd one: the real engine may take its time."""

        def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
            patience = 0.3 if candidate.format is CandidateFormat.Q8_0 else 60
            return GgufBench(self.bench, CONFIG, patience).try_candidate(candidate, plan)

    bench = Impatient(EngineBench(engine=Engine(), python=engine_python), CONFIG)
    text = "a ship and a crane " * 20
    result = measure(request(random_model, text, "f16", "q8_0"), bench, settings)
    assert result.candidate.format == CandidateFormat.F16
    measured = result.measured[1]
    assert measured.failure is not None
    assert measured.failure.kind is kind
    assert re.fullmatch(rejected, measured.rejected or ""), measured.rejected
    assert not processes_of(settings.home)
    assert QuantizationResult.model_validate(result.model_dump(mode="json")) == result


def test_a_baseline_that_fails_is_a_fault(
    engine_python: Path, settings: Settings, random_model: Path
) -> None:
    class Engine(LlamaCpp):
        def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
            return FaultyEngine("die", str(settings.home)).command(python, worker, model_file, config)

    bench = GgufBench(EngineBench(engine=Engine(), python=engine_python), CONFIG)
    with pytest.raises(EngineDiedError, match="exit status 3"):
        measure(request(random_model, "a ship " * 90, "q8_0", "f16"), bench, settings)
    assert not processes_of(settings.home)


# --- probes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def candidate(workbench: GgufBench, random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("candidate")
    settings = Settings(home=home, records="", registry="", s3_endpoint=None)
    return measure(request(random_model, None, "q8_0"), workbench, settings).candidate.path


def test_a_probe_measures_each_run(bench: EngineBench, candidate: Path, tmp_path: Path) -> None:
    runs = bench.probe(
        ProbeRequest(model_file=candidate, config=CONFIG, log=tmp_path / "log", output_tokens=16, runs=2)
    )
    assert len(runs) == 2
    for run in runs:
        assert run.answered
        assert run.batch == CONFIG.batch
        assert (run.throughput or 0) > 0
        assert 20e6 < (run.peak_bytes or 0) < 2e9
        assert set(run.latency_ms) == {"ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95"}
    assert runs[1].latency_ms != runs[0].latency_ms


@pytest.mark.parametrize(("share", "saturated"), [(0.3, False), (4, True)])
def test_requests_at_a_rate_tell_whether_the_engine_keeps_up(
    share: float, saturated: bool, bench: EngineBench, candidate: Path, tmp_path: Path
) -> None:
    """The rate is a share of what this engine did in a closed loop, here and now."""
    (closed,) = bench.probe(
        ProbeRequest(model_file=candidate, config=CONFIG, log=tmp_path / "log", output_tokens=16, runs=1)
    )
    assert closed.fault is None
    assert closed.saturation is None
    load = TuningLoad(kind=LoadKind.OPEN, rate=share * (closed.throughput or 0) / 16, requests=100)
    (run,) = bench.probe(
        ProbeRequest(
            model_file=candidate, config=CONFIG, log=tmp_path / "log", output_tokens=16, runs=1, load=load
        )
    )
    assert run.saturation is not None
    assert run.saturation.saturated == saturated, run
    limits = Limits(memory_bytes=10**10, max_batch=16, rate_per_s=load.rate)
    assert summarise([run], limits)[CONFIG.batch].fit is (Fit.SATURATED if saturated else Fit.FITS)


def test_more_slots_take_more_memory(bench: EngineBench, candidate: Path, tmp_path: Path) -> None:
    few, many = (
        bench.probe(
            ProbeRequest(
                model_file=candidate,
                config=CONFIG.model_copy(update={"batch": batch, "context": 2048}),
                log=tmp_path / "log",
                output_tokens=4,
                runs=1,
            )
        )[0]
        for batch in (1, 16)
    )
    # Keys and values of 15 x 2048 more tokens: 2 heads x 32 x 2 bytes x 2 layers, twice.
    assert (many.peak_bytes or 0) - (few.peak_bytes or 0) > 0.7 * 15 * 2048 * 512


def test_a_step_takes_as_many_tokens_as_the_engine_is_told(
    bench: EngineBench, candidate: Path, tmp_path: Path
) -> None:
    told = CONFIG.model_copy(update={"batched_tokens": 48})
    for config, most in ((CONFIG, 100), (told, 48)):
        asked = {"prompt": "a" * 100, "n_predict": 1, "stream": True, "return_progress": True}
        with bench.serve(candidate, config, tmp_path / "log") as served:
            answer = httpx.post(f"{served.base_url}/completion", json=asked).text
        taken = [int(number) for number in re.findall(r'"processed":(\d+)', answer)]
        assert max(after - before for before, after in itertools.pairwise(taken)) == most, answer


def test_fewer_tokens_computed_at_once_take_less_memory(
    bench: EngineBench, candidate: Path, tmp_path: Path
) -> None:
    few, many = (
        bench.probe(
            ProbeRequest(
                model_file=candidate,
                config=CONFIG.model_copy(update={"context": 2048, "micro_batch_tokens": tokens}),
                log=tmp_path / "log",
                output_tokens=4,
                runs=1,
                load=TuningLoad(prompt_tokens=1500),
            )
        )[0]
        for tokens in (64, 2048)
    )
    # The scores of 260 words for each token that is computed, 4 bytes each.
    assert (many.peak_bytes or 0) - (few.peak_bytes or 0) > 1984 * 257 * 4


@dataclass(frozen=True)
class Ending:
    """How a faulty engine's probe is to end."""

    behaviour: str
    kind: FailureKind
    what: str
    exit_status: int | None = None
    signal: str | None = None
    said: str | None = None


@pytest.mark.parametrize(
    "ending",
    [
        Ending("unready", FailureKind.NOT_STARTED, r"not ready within 0\.3 s"),
        Ending("die-first", FailureKind.CRASHED, r"died at its first completion \(exit status 3\)", 3),
        Ending("deaf", FailureKind.HUNG, r"/v1/completions sent no byte within 0\.3 s"),
        Ending("nonsense", FailureKind.GARBAGE, "did not return JSON: '<html>It works!</html>'"),
        Ending(
            "out-of-memory", FailureKind.OUT_OF_MEMORY, "died while serving", 1, said="failed to allocate"
        ),
        Ending("die", FailureKind.CRASHED, r"\(exit status 3\)", 3, said="assertion failed: n_tokens > 0"),
        Ending("segv", FailureKind.CRASHED, "SIGSEGV", signal="SIGSEGV", said="about to touch address 0"),
        Ending("killed", FailureKind.CRASHED, "SIGKILL", signal="SIGKILL"),
        Ending("hang", FailureKind.HUNG, r"sent no byte for 0\.3 s"),
        Ending("stall", FailureKind.HUNG, r"sent no byte (for|within) 0\.3 s"),
        Ending("family", FailureKind.HUNG, r"sent no byte for 0\.3 s"),
        Ending("break", FailureKind.GARBAGE, "broke off an answer after 2 tokens"),
        Ending("fault", FailureKind.GARBAGE, "slot lost"),
        Ending("refuse", FailureKind.GARBAGE, "answered HTTP/1.1 500"),
    ],
    ids=lambda ending: ending.behaviour,
)
def test_how_an_engine_failed_is_told_and_nothing_of_it_is_left(ending: Ending, tmp_path: Path) -> None:
    bench = EngineBench(
        engine=FaultyEngine(ending.behaviour, mark=str(tmp_path)),
        python=Path(sys.executable),
        silence_s=0.3,
        dying_s=0.1 if ending.kind is FailureKind.GARBAGE else 10,
        start_timeout_s=0.3 if ending.behaviour == "unready" else 60,
    )
    (run,) = bench.probe(
        ProbeRequest(model_file=tmp_path / "x", config=CONFIG, log=tmp_path / "log", output_tokens=4, runs=3)
    )
    failure = run.failure
    assert failure is not None
    assert (failure.kind, failure.exit_status, failure.signal) == (
        ending.kind,
        ending.exit_status,
        ending.signal,
    )
    assert re.search(ending.what, failure.what), failure.what
    assert (ending.said or "") in (failure.log_tail or "")
    assert run.oom == (ending.kind is FailureKind.OUT_OF_MEMORY)
    assert not processes_of(tmp_path)


def test_a_kill_by_the_kernel_is_told_from_one_by_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same SIGKILL, while the kernel's count of processes it killed for want of memory goes up."""
    counts = itertools.count(7)
    monkeypatch.setattr("blocks.engine.process.kernel_kills", lambda: next(counts))
    monkeypatch.setattr("blocks.processes.process_memory.kernel_kills", lambda: next(counts))
    bench = EngineBench(engine=FaultyEngine("killed"), python=Path(sys.executable))
    (run,) = bench.probe(
        ProbeRequest(model_file=tmp_path / "x", config=CONFIG, log=tmp_path / "log", output_tokens=4, runs=1)
    )
    assert run.oom
    assert run.failure is not None
    assert run.failure.signal == "SIGKILL"


class Striker(LoadClient):
    """Sends the real engine a signal under load: when a second request is drawn, others are in flight."""

    struck: signal.Signals
    served: RunningEngine

    def requests(self, load: Prompts, number: int) -> Iterator[bytes]:
        for count, request in enumerate(super().requests(load, number)):
            if load.seed == 0 and count == 1:
                for pid in command_pids(self.served.guard_pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, self.struck)
            yield request


@pytest.mark.parametrize(
    ("struck", "kind"),
    [
        (signal.SIGKILL, FailureKind.CRASHED),
        (signal.SIGSEGV, FailureKind.CRASHED),
        (signal.SIGABRT, FailureKind.CRASHED),
        (signal.SIGSTOP, FailureKind.HUNG),
    ],
)
def test_the_real_engine_struck_under_load(
    struck: signal.Signals,
    kind: FailureKind,
    bench: EngineBench,
    candidate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = tmp_path / "model.gguf"
    mine.symlink_to(candidate)

    class Here(Striker):
        pass

    Here.struck = struck

    class Struck(EngineBench):
        @contextlib.contextmanager
        def serve(self, model: Path, config: ServingConfig, log: Path) -> Iterator[RunningEngine]:
            with super().serve(model, config, log) as served:
                Here.served = served
                yield served

    monkeypatch.setattr("blocks.engine.bench.LoadClient", Here)
    here = Struck(engine=bench.engine, python=bench.python, silence_s=1)
    (run,) = here.probe(
        ProbeRequest(model_file=mine, config=CONFIG, log=tmp_path / "log", output_tokens=16, runs=1)
    )
    assert run.failure is not None
    assert run.failure.kind is kind
    assert run.failure.signal == (struck.name if kind is FailureKind.CRASHED else None)
    assert run.failure.log_tail
    assert not processes_of(tmp_path)


def test_preemptions_are_counted_where_the_engine_does(tmp_path: Path) -> None:
    """Its memory is taken beforehand: only this shows that there is no room for so many sequences."""

    class Crowded(FaultyEngine):
        @property
        def card(self) -> EngineCard:
            return super().card.model_copy(update={"metrics": read_card(EngineKind.VLLM).metrics})

    crowded = EngineBench(engine=Crowded("crowded"), python=Path(sys.executable))
    model, log = tmp_path / "model.gguf", tmp_path / "log"
    first, second = crowded.probe(
        ProbeRequest(model_file=model, config=CONFIG, log=log, output_tokens=4, runs=2)
    )
    assert (first.preemptions or 0) >= CONFIG.batch
    assert (second.preemptions or 0) >= CONFIG.batch, "of its own run"
    (uncounted,) = EngineBench(engine=FaultyEngine("crowded"), python=Path(sys.executable)).probe(
        ProbeRequest(model_file=model, config=CONFIG, log=log, output_tokens=4, runs=1)
    )
    assert uncounted.preemptions is None


def test_an_engine_that_answers_too_slowly_is_told_from_one_that_fails(tmp_path: Path) -> None:
    """It streams a token every 10 ms; every the limit is 5 ms."""
    request = BatchingRequest(
        model_file=tmp_path / "model.gguf",
        config=CONFIG.model_copy(update={"batch": 1}),
        output_tokens=4,
        limits=Limits(memory_bytes=10**9, max_batch=4, latency_ms={"tpot_p95": 5}),
    )
    bench = EngineBench(engine=FaultyEngine("slow", mark=str(tmp_path)), python=Path(sys.executable))
    result = find_batch(request, bench, None)
    assert result.verdict == ChoiceVerdict.NONE
    (size,) = result.sizes
    assert size.fit is Fit.LATENCY
    assert [one.kind for one in size.failures] == [FailureKind.SLOW]
    assert "- batch 1: slow: tpot_p95 is " in report.markdown(result)
    assert not processes_of(tmp_path)


def test_failures_of_a_search_come_with_its_result(tmp_path: Path) -> None:
    """A search on an engine that dies at every size: none, and why, in the result, the page and the deploy's log."""
    request = BatchingRequest(
        model_file=tmp_path / "model.gguf",
        config=CONFIG.model_copy(update={"batch": 1}),
        output_tokens=4,
        limits=Limits(memory_bytes=10**9, max_batch=4),
    )
    bench = EngineBench(engine=FaultyEngine("die"), python=Path(sys.executable))
    result = find_batch(request, bench, None)
    assert result.verdict == ChoiceVerdict.NONE
    assert result.reason == ("not even batch 1 works: crashed: the engine died while serving (exit status 3)")
    (size,) = result.sizes
    assert [(one.kind, one.exit_status) for one in size.failures] == [(FailureKind.CRASHED, 3)] * 2
    assert "assertion failed: n_tokens > 0" in (result.log_tail or "")
    page = report.markdown(result)
    assert "- batch 1: crashed: the engine died while serving (exit status 3)" in page
    assert "## Last words\n\nbatch 1:\n\n```\n" in page
    assert BatchingResult.model_validate(result.model_dump(mode="json")) == result


class StarvedEngine(LlamaCpp):
    """The real engine with 3 GB of addresses."""

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        whole = super().command(python, worker, model_file, config)
        starved = ("/bin/sh", "-c", 'ulimit -v 3000000; exec "$@"', "sh", *whole.argv)
        return whole.model_copy(update={"argv": starved})


def test_a_size_that_does_not_fit_is_out_of_memory(
    engine_python: Path, candidate: Path, tmp_path: Path
) -> None:
    """In the real engine's own words: 12.8 M tokens of keys and values are 6.5 GB."""
    bench = EngineBench(engine=StarvedEngine(), python=engine_python)
    huge = CONFIG.model_copy(update={"batch": 256, "context": 50_000})
    (run,) = bench.probe(
        ProbeRequest(model_file=candidate, config=huge, log=tmp_path / "log", output_tokens=4, runs=1)
    )
    assert run.oom, (run.failure, (tmp_path / "log").read_text()[-2000:])


@pytest.mark.parametrize("layers", [999, FITTED])
def test_a_silent_fall_back_to_the_processor_is_named(
    layers: int, engine_python: Path, settings: Settings, random_model: Path, tmp_path: Path
) -> None:
    """The prebuilt engine knows no GPU, and serves happily when it is told to use one, or to fit itself to one."""
    bench = EngineBench(engine=LlamaCpp(), python=engine_python)
    config = CONFIG.model_copy(update={"gpu_layers": layers})
    with pytest.raises(EngineError, match="it runs on the CPU"):
        measure(request(random_model, None, "q8_0"), GgufBench(bench, config), settings)
    (candidate,) = settings.candidates.glob("*/model.gguf")
    (run,) = bench.probe(
        ProbeRequest(model_file=candidate, config=config, log=tmp_path / "log", output_tokens=4, runs=2)
    )
    assert run.failure is not None
    assert run.failure.line == "did not start: the engine uses no GPU memory: it runs on the CPU"
    fitted = "common_fit_params: successfully fit params" in (tmp_path / "log").read_text()
    assert fitted is (layers == FITTED)


def test_memory_is_the_commands_and_not_the_guards(
    bench: EngineBench, candidate: Path, tmp_path: Path
) -> None:
    engine = LlamaCpp()
    command = engine.command(str(bench.python), str(engine.server_worker), str(candidate), CONFIG)
    with serve(command, served_name="test", log=tmp_path / "log") as served:
        assert served.guard_pid not in command_pids(served.guard_pid)
        assert len(command_pids(served.guard_pid)) == 1
        assert peak_host_bytes(served.guard_pid) > candidate.stat().st_size
        assert gpu_bytes_of(command_pids(served.guard_pid)) == 0
        served.check()
    assert peak_host_bytes(served.guard_pid) == 0
    assert peak_bytes(2**22 + 1) == 0  # beyond the kernel's largest process id
