"""A seeded tenth of `make prove-staging`: copies are killed at random moments, and random bytes flipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

KILLS, FLIPS, SEED = 20, 50, 7


def test_killed_copies_go_on_and_flipped_bytes_are_found(tmp_path: Path, repository: Path) -> None:
    out = tmp_path / "proof.json"
    proof = [
        sys.executable,
        "-m",
        "benchmarks.prove_staging",
        "--chunk-bytes",
        str(1 << 20),
        "--folder",
        tmp_path,
    ]
    numbers = ["--kills", str(KILLS), "--flips", str(FLIPS), "--seed", str(SEED), "--out", out]
    finished = subprocess.run([*proof, *numbers], cwd=repository, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    figures = json.loads(out.read_text())
    assert (figures["kills"], figures["kills_that_do_not_hold"]) == (KILLS, 0)
    assert figures["copied_twice"]["most"] <= 0.05
    assert (figures["flips"], figures["flips_found"]) == (FLIPS, FLIPS)
    assert figures["flips_repaired"] > 0
