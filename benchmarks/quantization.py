"""Whether the quality floor refuses damaged candidates and accepts honest ones, by the real engine. Writes JSON.

`python -m benchmarks.quantization [--cases N] [--seed N] [--python PYTHON] [--out FILE]`

Damaged: Q8_0 of the tiny model with noise of one tensor's own standard deviation in one layer, or with two tensors
of equal shape swapped between layers, drawn by the seed from all such cases; then noise in each projection of each
layer in turn. The F16 baseline is untouched. Honest: Q8_0 of as many different models (every weight matrix changed by
5 % of its deviation, by another seed each), each beside its own F16 baseline on another piece of the held-out text.
Formats: each file's size beside its prediction, and its quality. What each measure alone would have refused is
counted too, perplexity by its estimate among them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blocks.candidates.gguf_bench import GgufBench
from blocks.engine.bench import EngineBench
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization import plan
from tasks.quantization.apply import predict_sizes
from tasks.quantization.models import Candidate, Measured, QuantizationRequest, Trial, TrialPlan
from tasks.quantization.quality import kept, losses, reject_weights, worst_weight
from tasks.quantization.recipe import RECIPES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from damage import Damage, drawn_cases, every_noise  # noqa: E402
from random_model import read_floats, rewrite_model, source_of  # noqa: E402

TINY = ROOT / "examples" / "tiny"
LAYERS = 4
F16, Q8 = CandidateFormat.F16, CandidateFormat.Q8_0
TOKENS = 2048
CONTEXT = 512
CONFIG = ServingConfig(served_name="bench", batch=1, context=CONTEXT, threads=2)
CHANGE = 0.05
STRICT = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=43)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument(
        "--python", type=Path, help="Python of an environment with the engine; made when absent."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quantization.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        python = arguments.python or make_environment(scratch / "engine")
        rig = Rig(
            GgufBench(EngineBench(engine=LlamaCpp(), python=python), CONFIG), scratch, arguments.tolerance
        )
        figures = {
            "tolerance": arguments.tolerance,
            "seed": arguments.seed,
            "formats": formats(rig),
            "damaged": damaged(rig, drawn_cases(LAYERS, arguments.cases, arguments.seed)),
            "noise_in_each": damaged(rig, every_noise(LAYERS, arguments.seed + 1000)),
            "honest": honest(rig, arguments.cases, arguments.seed),
        }
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    short = {key: {k: v for k, v in figures[key].items() if k != "rows"} for key in list(figures)[3:]}
    print(json.dumps(short, indent=1))


def make_environment(folder: Path) -> Path:
    uv = Path(sys.executable).with_name("uv")
    python = folder / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--python", "3.11", folder], check=True)
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, *LlamaCpp().requirements], check=True
    )
    return python


@dataclass(frozen=True)
class Rig:
    """Makes and measures one candidate at a time, as the stage does."""

    bench: GgufBench
    scratch: Path
    tolerance: float

    def request(self, model: Path, text: str, *forms: CandidateFormat) -> QuantizationRequest:
        return QuantizationRequest(
            model_dir=model,
            model_digest="",
            formats=forms or (F16, Q8),
            text=text,
            tokens=TOKENS,
            context=CONTEXT,
            tolerance=self.tolerance,
        )

    def measure(self, model: Path, form: CandidateFormat, text: str) -> tuple[Candidate, Trial]:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        file = folder / "model.gguf"
        self.bench.convert(RECIPES["gguf-file"].worker, model, form, file)
        made = Candidate(format=form, path=file, digest="", size_bytes=file.stat().st_size)
        asked = TrialPlan(text=text, tokens=TOKENS, window=CONTEXT, slots=4)
        return made, self.bench.try_candidate(made, asked)

    def judge(self, model: Path, form: CandidateFormat, base: tuple[Candidate, Trial], text: str) -> Measured:
        """As the stage judges: the weights, then the text."""
        candidate, trial = self.measure(model, form, text)
        worst = worst_weight(
            self.bench.compare_weights(RECIPES["gguf-file"].comparer, base[0].path, candidate.path)
        )
        row = plan.judge(candidate, trial, base[1], self.request(model, text))
        found = [reason for reason in (reject_weights(worst, form, base[0].format), row.rejected) if reason]
        return row.model_copy(update={"weights": worst, "rejected": "; ".join(found) or None})


def formats(rig: Rig) -> list[dict[str, Any]]:
    """Each format of the untouched model: size and prediction, quality, whether it keeps the floor."""
    model, text = TINY / "model", held_out()
    sizes = predict_sizes(rig.request(model, text, *LlamaCpp().formats), source_of(model))
    base = rig.measure(model, F16, text)
    rows = []
    for form in LlamaCpp().formats:
        row = rig.judge(model, form, base, text)
        assert row.candidate is not None
        size = row.candidate.size_bytes
        rows.append(
            {
                "format": form.value,
                "bytes": size,
                "predicted_bytes": sizes[form],
                "prediction_error": round(sizes[form] / size - 1, 5),
                **measures(row, rig.tolerance),
            }
        )
        say(form.value, row)
    return rows


def damaged(rig: Rig, cases: Sequence[Damage]) -> dict[str, Any]:
    text = held_out()
    base = rig.measure(TINY / "model", F16, text)
    rows = []
    for number, case in enumerate(cases):
        row = rig.judge(
            case.apply(TINY / "model", rig.scratch / f"damaged-{case.seed}-{number}"), Q8, base, text
        )
        rows.append({"case": case.name, **measures(row, rig.tolerance)})
        say(case.name, row)
    by = Counter(name for row in rows for name in row["refused_by"])
    refused = sum(not row["accepted"] for row in rows)
    return {"cases": len(rows), "refused": refused, "refused_by": by, "rows": rows}


def honest(rig: Rig, cases: int, seed: int) -> dict[str, Any]:
    rows = []
    for number, text in enumerate(pieces(held_out(), cases)):
        model = changed(rig.scratch / f"model-{number}", seed + number)
        row = rig.judge(model, Q8, rig.measure(model, F16, text), text)
        rows.append({"seed": seed + number, **measures(row, rig.tolerance)})
        say(f"honest {number}", row)
    return {
        "cases": cases,
        "accepted": sum(row["accepted"] for row in rows),
        "accepted_at_0.999": sum(row["kept_low"] >= 1 - STRICT for row in rows),
        "rows": rows,
    }


def measures(row: Measured, tolerance: float) -> dict[str, Any]:
    """The figures of one row, and which measures refuse it."""
    quality, weights = row.quality, row.weights
    assert quality is not None
    assert weights is not None
    refused = [name for name, loss in losses(quality) if loss.high > tolerance]
    if quality.loss.value > tolerance:
        refused.append("perplexity by its estimate")
    if refused:
        refused.append("text")
    if reject_weights(weights, row.format, F16):
        refused.append("weights")
    return {
        "accepted": row.rejected is None,
        "refused_by": refused,
        "kept": round(kept(quality).value, 5),
        "kept_low": round(kept(quality).low, 5),
        "perplexity": round(quality.perplexity, 3),
        "loss": [round(one, 5) for one in (quality.loss.low, quality.loss.value, quality.loss.high)],
        "kl_nats": [round(one, 6) for one in (quality.divergence.value, quality.divergence.high)],
        "agreement": round(quality.agreement.value, 4),
        "choice_loss": [round(one, 5) for one in (quality.choice_loss.value, quality.choice_loss.high)],
        "weight_error": round(weights.error, 5) if weights.error is not None else None,
        "tokens": quality.tokens,
    }


def held_out() -> str:
    return (TINY / "heldout.txt").read_text()


def pieces(text: str, count: int) -> Iterator[str]:
    """As many pieces of equal length, which share no text."""
    step = len(text) // count
    return (text[start * step : (start + 1) * step] for start in range(count))


def changed(folder: Path, seed: int) -> Path:
    """The tiny model with every matrix changed a little: another model, as good as it for measuring."""
    folder.mkdir()
    for file in (TINY / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    random = np.random.default_rng(seed)
    tensors = read_floats(folder / "model.safetensors")
    return rewrite_model(folder, tensors=dict(_nudged(tensors.items(), random)))


def _nudged(
    tensors: Iterable[tuple[str, np.ndarray[Any, Any]]], random: np.random.Generator
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name, values in tensors:
        if values.ndim > 1:
            noise = random.normal(0, CHANGE * values.std(), values.shape)
            yield name, values + noise.astype(np.float32)


def say(name: str, row: Measured) -> None:
    print(f"{name}: {row.rejected or 'accepted'}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
