"""Candidates measured on the real engine; and engines that die, starve or never answer while they are measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from random_model import read_floats, rewrite_model, write_random_model
from sabotage import Sabotage
from strays import processes_of

from blocks.engine_bench import EngineBench
from blocks.engine_process import serve
from blocks.process_memory import command_pids, gpu_bytes, peak_bytes, peak_host_bytes
from tasks.batching.models import Run
from tasks.core.digests import digest_of_file
from tasks.core.errors import EngineError, SpecError
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import ChoiceVerdict
from tasks.engines.base import HOST, PORT, CommandLine, ServingConfig
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.apply import measure_candidates, still_good
from tasks.quantization.models import Exercise, QuantizationRequest
from tasks.quantization.quality import kept
from tasks.quantization.recipe import RECIPES

pytestmark = pytest.mark.engine

ODD_ENGINE = Path(__file__).parents[1] / "support" / "odd_engine.py"
CONFIG = ServingConfig(served_name="test", batch=2, context=128, threads=1)


class OddEngine(LlamaCpp):
    """Starts `odd_engine.py` in the engine's place."""

    def __init__(self, behaviour: str) -> None:
        super().__init__()
        self.behaviour = behaviour

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=(sys.executable, str(ODD_ENGINE), HOST, PORT, self.behaviour))


@pytest.fixture(scope="session")
def bench(engine_python: Path) -> EngineBench:
    return EngineBench(engine=LlamaCpp(), python=engine_python, threads=1)


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
    bench: EngineBench, settings: Settings, tiny: Path, held_out: str
) -> None:
    result = measure_candidates(request(tiny / "model", held_out, "f16", "q8_0"), bench, settings)
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
    again = measure_candidates(request(tiny / "model", held_out, "f16", "q8_0"), bench, settings)
    assert q8.candidate.path.stat().st_mtime_ns == written
    assert digest_of_file(damaged) == f16.candidate.digest
    assert [row.candidate for row in again.measured] == [f16.candidate, q8.candidate]
    assert again.measured[1].quality is not None
    assert again.measured[1].quality.loss.value == pytest.approx(q8.quality.loss.value, abs=0.002)
    assert list(settings.candidates.rglob("*.part")) == []
    q8.candidate.path.unlink()
    assert still_good(result) is (result.candidate != q8.candidate)


@dataclass(frozen=True)
class SabotagedBench(EngineBench):
    """Makes Q8_0 from a damaged copy of the model; the baseline is untouched."""

    sabotage: Sabotage | None = None
    scratch: Path = Path()

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        if self.sabotage and form == CandidateFormat.Q8_0:
            model_dir = self.sabotage.apply(model_dir, self.scratch / "damaged")
        super().convert(worker, model_dir, form, out)


@pytest.mark.parametrize(
    ("sabotage", "shows_in_text"),
    [
        (Sabotage("self_attn.v_proj", 1, other=3), True),
        (Sabotage("self_attn.k_proj", 0, seed=2), False),  # that layer's attention hardly takes part
    ],
    ids=lambda case: case.name if isinstance(case, Sabotage) else "",
)
def test_a_sabotaged_candidate_is_refused(
    sabotage: Sabotage,
    shows_in_text: bool,
    engine_python: Path,
    settings: Settings,
    tiny: Path,
    held_out: str,
    tmp_path: Path,
) -> None:
    bench = SabotagedBench(
        engine=LlamaCpp(), python=engine_python, threads=1, sabotage=sabotage, scratch=tmp_path
    )
    result = measure_candidates(request(tiny / "model", held_out, "f16", "q8_0"), bench, settings)
    assert result.chosen is not None
    assert result.chosen.format == CandidateFormat.F16
    rejected = result.measured[1]
    assert rejected.rejected is not None
    assert rejected.rejected.startswith(f"damaged: its tensor blk.{sabotage.layer}.")
    assert ("; loses " in rejected.rejected) is shows_in_text
    assert rejected.quality is not None
    assert (kept(rejected.quality).value < 0.98) is shows_in_text


def test_what_cannot_fit_is_not_made(
    bench: EngineBench, settings: Settings, tiny: Path, held_out: str
) -> None:
    asked = request(tiny / "model", held_out, "q8_0", "f32").model_copy(update={"memory_bytes": 8_000_000})
    result = measure_candidates(asked, bench, settings)
    assert result.candidate.format == CandidateFormat.Q8_0
    refused = result.measured[1]
    assert refused.rejected is not None
    assert refused.rejected.startswith("not made: it would need 12.66 MB of memory")
    assert [path.name.split("-")[1] for path in settings.candidates.iterdir()] == ["q8_0"]
    none = measure_candidates(asked.model_copy(update={"memory_bytes": 1_000_000}), bench, settings)
    assert none.verdict == ChoiceVerdict.NONE
    assert [row.rejected for row in none.measured][1] == "no baseline to compare with"


def test_a_task_set_is_answered_by_each_candidate(
    bench: EngineBench, tiny: Path, engine_python: Path, tmp_path: Path
) -> None:
    exercises = (
        Exercise(prompt="If the file does not", choices=(" exist", " harbour", " 42"), answer=0),
        Exercise(prompt="If the file does not", choices=(" harbour", " exist"), answer=0),
        Exercise(prompt="If the file does not", expected="exist"),
        Exercise(prompt="If the file does not", expected="exi"),
        Exercise(prompt="The caf\u00e9 is", choices=(" not na\u00efve", " qqq zzz xxx"), answer=0),
    )
    model = tmp_path / "model.gguf"
    bench.convert(RECIPES["gguf-file"].worker, tiny / "model", CandidateFormat.Q8_0, model)
    found = bench.try_candidate(
        model, tmp_path / "log", text=None, tokens=64, window=128, slots=2, exercises=exercises
    )
    assert found.answers == (True, False, True, False, True)
    long = (Exercise(prompt="word " * 200, expected="x"),)
    with pytest.raises(SpecError, match="task 1 of tuning"):
        bench.try_candidate(
            model, tmp_path / "log", text=None, tokens=64, window=128, slots=2, exercises=long
        )


def test_one_format_needs_no_text(bench: EngineBench, settings: Settings, random_model: Path) -> None:
    result = measure_candidates(request(random_model, None, "q8_0"), bench, settings)
    assert result.candidate.format == CandidateFormat.Q8_0
    assert result.measured[0].quality is None


def test_a_format_that_cannot_be_made_is_rejected_and_a_baseline_is_a_fault(
    bench: EngineBench, settings: Settings, tmp_path: Path
) -> None:
    model = write_random_model(tmp_path / "model")
    name = "model.layers.0.self_attn.k_proj.weight"  # keys are normalised, so the model itself bears it
    keys = read_floats(model / "model.safetensors")[name].copy()
    keys[0, 0] = 1e6
    rewrite_model(model, dtype="F32", tensors={name: keys})
    text = "a ship and a crane " * 20
    result = measure_candidates(request(model, text, "f32", "f16"), bench, settings)
    assert result.candidate.format == CandidateFormat.F32
    assert "beyond 16-bit floats" in (result.measured[1].rejected or "")
    assert list(settings.candidates.rglob("*.part")) == []
    with pytest.raises(Exception, match="beyond 16-bit floats"):
        measure_candidates(request(model, text, "f16", "f32"), bench, settings)


def test_an_engine_that_dies_on_a_candidate_rejects_it(
    engine_python: Path, settings: Settings, random_model: Path
) -> None:
    """The baseline is served by the real engine, the other candidate by one that dies under load."""

    class Engine(LlamaCpp):
        def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
            chosen = OddEngine("die") if "q8_0" in model_file else LlamaCpp()
            return chosen.command(python, worker, model_file, config)

    bench = EngineBench(engine=Engine(), python=engine_python, threads=1)
    text = "a ship and a crane " * 20
    result = measure_candidates(request(random_model, text, "f16", "q8_0"), bench, settings)
    assert result.candidate.format == CandidateFormat.F16
    assert result.measured[1].rejected is not None
    assert not processes_of(settings.home)
    with pytest.raises(EngineError):
        measure_candidates(request(random_model, text, "q8_0", "f16"), bench, settings)


# --- probes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def candidate(bench: EngineBench, random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("candidate")
    settings = Settings(home=home, records="", registry="", s3_endpoint=None)
    return measure_candidates(request(random_model, None, "q8_0"), bench, settings).candidate.path


def test_a_probe_measures_each_run(bench: EngineBench, candidate: Path, tmp_path: Path) -> None:
    runs = bench.probe(candidate, CONFIG, tmp_path / "log", output_tokens=16, runs=2)
    assert len(runs) == 2
    for run in runs:
        assert run.answered
        assert run.batch == CONFIG.batch
        assert (run.throughput or 0) > 0
        assert 20e6 < (run.peak_bytes or 0) < 2e9
        assert set(run.latency_ms) == {"ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95"}
    assert runs[1].latency_ms != runs[0].latency_ms


def test_more_slots_take_more_memory(bench: EngineBench, candidate: Path, tmp_path: Path) -> None:
    few, many = (
        bench.probe(
            candidate,
            CONFIG.model_copy(update={"batch": batch, "context": 2048}),
            tmp_path / "log",
            output_tokens=4,
            runs=1,
        )[0]
        for batch in (1, 16)
    )
    # Keys and values of 15 x 2048 more tokens: 2 heads x 32 x 2 bytes x 2 layers, twice.
    assert (many.peak_bytes or 0) - (few.peak_bytes or 0) > 0.7 * 15 * 2048 * 512


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("out-of-memory", Run(batch=2, oom=True)),
        ("killed", Run(batch=2, oom=True)),
        ("die", Run(batch=2, failed="the engine died while serving (exit status 3)")),
    ],
)
def test_how_an_engine_ended_is_told(
    behaviour: str, expected: Run, engine_python: Path, tmp_path: Path
) -> None:
    bench = EngineBench(engine=OddEngine(behaviour), python=engine_python, threads=1)
    found = bench.probe(tmp_path / "x", CONFIG, tmp_path / "log", output_tokens=4, runs=3)
    assert [run.model_copy(update={"log_tail": None}) for run in found] == [expected]
    if behaviour == "die":
        assert found[0].log_tail is not None
        assert "assertion failed: n_tokens > 0" in found[0].log_tail


def test_an_engine_that_refuses_is_a_failed_probe(engine_python: Path, tmp_path: Path) -> None:
    bench = EngineBench(engine=OddEngine("refuse"), python=engine_python, threads=1)
    (run,) = bench.probe(tmp_path / "x", CONFIG, tmp_path / "log", output_tokens=4, runs=3)
    assert run.failed is not None
    assert "500" in run.failed


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
    bench = EngineBench(engine=StarvedEngine(), python=engine_python, threads=1)
    huge = CONFIG.model_copy(update={"batch": 256, "context": 50_000})
    (run,) = bench.probe(candidate, huge, tmp_path / "log", output_tokens=4, runs=1)
    assert run.oom, (run.failed, (tmp_path / "log").read_text()[-2000:])


def test_a_silent_fall_back_to_the_processor_is_named(
    engine_python: Path, settings: Settings, random_model: Path, tmp_path: Path
) -> None:
    """The prebuilt engine knows no GPU, and serves happily when it is told to use one."""
    bench = EngineBench(engine=LlamaCpp(), python=engine_python, threads=1, gpu_layers=999)
    with pytest.raises(EngineError, match="it runs on the processor"):
        measure_candidates(request(random_model, None, "q8_0"), bench, settings)
    (candidate,) = settings.candidates.glob("*/model.gguf")
    (run,) = bench.probe(candidate, CONFIG, tmp_path / "log", output_tokens=4, runs=2)
    assert run.failed == "the engine holds no memory on any GPU: it runs on the processor"


def test_memory_is_the_commands_and_not_the_leashes(
    bench: EngineBench, candidate: Path, tmp_path: Path
) -> None:
    engine = LlamaCpp()
    command = engine.command(str(bench.python), str(engine.server_worker), str(candidate), CONFIG)
    with serve(command, served_name="test", log=tmp_path / "log") as served:
        assert served.leash_pid not in command_pids(served.leash_pid)
        assert len(command_pids(served.leash_pid)) == 1
        assert peak_host_bytes(served.leash_pid) > candidate.stat().st_size
        assert gpu_bytes(served.leash_pid) == 0
        served.check()
    assert peak_host_bytes(served.leash_pid) == 0
    assert peak_bytes(2**22 + 1) == 0  # beyond the kernel's largest process id
