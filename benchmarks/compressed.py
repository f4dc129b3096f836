"""Whether damage of candidates in folders shows in their weights, and honest ones pass. Writes JSON.

`python -m benchmarks.compressed --engine PYTHON --quantizer PYTHON [--cases N] [--seed N] [--out FILE]`, with the
Pythons of the environments that `slipway tune quantization` builds for `engine: transformers`.

Formats: each one's size beside its prediction, seconds to make, and the tensor that differs most. Damaged: W8A8 and
W4A16 in turn of the tiny model with noise of one tensor's own standard deviation in one layer, or with two tensors of
equal shape swapped between layers, drawn by the seed. Honest: as many different models (every weight matrix changed
by 5 % of its deviation), each beside itself. The text is left out: it can only refuse more of the damaged.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blocks.candidates.candidate_worker import compare_folders, make_folder
from tasks.core.model_shape import read_model_config
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.transformers import Transformers
from tasks.quantization.folder_sizes import PLAIN, folder_bytes
from tasks.quantization.models import Calibration, WeightError
from tasks.quantization.quality import reject_weights, worst_weight
from tasks.quantization.recipe import RECIPES
from tasks.quantization.source import read_source
from tasks.quantization.store import size_of

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from damage import drawn_cases  # noqa: E402
from random_model import read_floats, rewrite_model  # noqa: E402

TINY = ROOT / "examples" / "tiny"
MODEL = TINY / "model"
LAYERS = 4
BF16, W8A8, W4A16 = CandidateFormat.BF16, CandidateFormat.W8A8, CandidateFormat.W4A16
CHANGE = 0.05
RECIPE = RECIPES["hf-folder"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--quantizer", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=44)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "compressed.json")
    arguments = parser.parse_args()
    text = (TINY / "heldout.txt").read_text()[20_000:]
    with tempfile.TemporaryDirectory() as name:
        calibration = Calibration(text=text, tokens=4096, window=256)
        rig = Rig(arguments.engine, arguments.quantizer, calibration, Path(name))
        figures = {
            "seed": arguments.seed,
            "formats": [of_format(rig, form) for form in Transformers().formats],
            "damaged": damaged(rig, arguments.cases, arguments.seed),
            "honest": honest(rig, arguments.cases, arguments.seed),
        }
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for key in ("damaged", "honest"):
        print(key, json.dumps({name: value for name, value in figures[key].items() if name != "rows"}))


@dataclass(frozen=True)
class Rig:
    """Makes one candidate at a time."""

    engine: Path
    quantizer: Path
    calibration: Calibration
    scratch: Path

    def make(self, model: Path, form: CandidateFormat) -> Path:
        out = Path(tempfile.mkdtemp(dir=self.scratch)) / "model"
        python = self.engine if form in PLAIN else self.quantizer
        fitted = self.calibration if form is W4A16 else None
        make_folder(python, RECIPE.worker, model, form, out, threads=2, calibration=fitted)
        return out

    def differ(self, baseline: Path, candidate: Path) -> WeightError:
        return worst_weight(compare_folders(self.engine, RECIPE.comparer, baseline, candidate))

    def copy(self) -> Path:
        """Where a changed model goes."""
        return Path(tempfile.mkdtemp(dir=self.scratch)) / "changed"


def of_format(rig: Rig, form: CandidateFormat) -> dict[str, Any]:
    start = time.monotonic()
    out = rig.make(MODEL, form)
    seconds = time.monotonic() - start
    row = {
        "format": form.value,
        "bytes": size_of(out),
        "predicted_bytes": folder_bytes(read_source(MODEL, read_model_config(MODEL)), form),
        "seconds": round(seconds, 1),
        "worst": rig.differ(MODEL, out).model_dump(),
    }
    print(json.dumps(row), flush=True)
    return row


def damaged(rig: Rig, cases: int, seed: int) -> dict[str, Any]:
    """Damaged candidates beside the untouched model."""
    rows = []
    for number, case in enumerate(drawn_cases(LAYERS, cases, seed)):
        form = W4A16 if number % 2 else W8A8
        copy = rig.copy()
        rows.append(judged(rig, MODEL, case.apply(MODEL, copy), form) | {"case": case.name})
        shutil.rmtree(copy)
    return {"cases": len(rows), "refused": sum(row["refused"] for row in rows), "rows": rows}


def honest(rig: Rig, cases: int, seed: int) -> dict[str, Any]:
    """Candidates of other models, each beside its own."""
    rows = []
    for number in range(cases):
        random = np.random.default_rng(seed + number)
        copy = shutil.copytree(MODEL, rig.copy())
        changed = {
            name: (values + random.normal(0, CHANGE * values.std(), values.shape)).astype(np.float32)
            for name, values in read_floats(copy / "model.safetensors").items()
            if values.ndim == 2
        }
        rewrite_model(copy, tensors=changed)
        rows.append(judged(rig, copy, copy, W4A16 if number % 2 else W8A8))
        shutil.rmtree(copy)
    return {"cases": len(rows), "refused": sum(row["refused"] for row in rows), "rows": rows}


def judged(rig: Rig, baseline: Path, source: Path, form: CandidateFormat) -> dict[str, Any]:
    out = rig.make(source, form)
    worst = rig.differ(baseline, out)
    shutil.rmtree(out)
    row = {
        "format": form.value,
        "worst": worst.model_dump(),
        "refused": reject_weights(worst, form, BF16) is not None,
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
