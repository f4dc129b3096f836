"""Wall time of the lifecycle: cold, warm, and what orchestration costs. Writes JSON.

`python -m benchmarks.lifecycle [--runs N] [--spec SPEC] [--out FILE]`

Cold is a deploy into an empty SLIPWAY_HOME (packages come from uv's cache, as on a build machine that has built
before); warm is the same command again. Overhead is the wall time outside the stages' own work: the command's own
start, the Prefect server's start, and Prefect's bookkeeping. Beside it, in the same run: `--dry-run` and `--help`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SLIPWAY = Path(sys.executable).with_name("slipway")
SIDE_BY_SIDE = {"environment", "compatibility", "staging"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--spec", type=Path, default=ROOT / "examples" / "tiny" / "slipway.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "lifecycle.json")
    arguments = parser.parse_args()
    runs = [measure(arguments.spec) for _ in range(arguments.runs)]
    figures = {
        "machine": {"cpus": os.cpu_count(), "python": sys.version.split()[0]},
        "runs": arguments.runs,
        "median": {kind: median([run[kind] for run in runs]) for kind in runs[0]},
        "all": runs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["median"], indent=1))


def measure(spec: Path) -> dict[str, dict[str, float]]:
    """One cold and one warm deploy, with the quick commands between them."""
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as home:
        environment = {**os.environ, "SLIPWAY_HOME": home}
        try:
            cold = deploy(spec, environment)
            warm = deploy(spec, environment)
            quick = {
                "help_s": seconds([SLIPWAY, "--help"], environment)[0],
                "dry_run_s": seconds([SLIPWAY, "deploy", spec, "--dry-run"], environment)[0],
                "status_s": seconds([SLIPWAY, "status"], environment)[0],
            }
        finally:
            subprocess.run([SLIPWAY, "stop", "tiny"], env=environment, check=False, capture_output=True)
    return {"cold": cold, "warm": warm, "commands": quick}


def deploy(spec: Path, environment: dict[str, str]) -> dict[str, float]:
    """Wall times in seconds: of the command, of each stage, and the rest."""
    wall, output = seconds([SLIPWAY, "deploy", spec, "--json"], environment)
    stages = {row["stage"]: row["seconds"] for row in json.loads(output)["stages"]}
    at_once = max(stages[name] for name in SIDE_BY_SIDE)
    working = at_once + sum(time_s for name, time_s in stages.items() if name not in SIDE_BY_SIDE)
    return {"wall_s": wall, "stages_s": working, "overhead_s": wall - working} | {
        f"{name}_s": time_s for name, time_s in stages.items()
    }


def seconds(command: list[Any], environment: dict[str, str]) -> tuple[float, str]:
    """Wall time of a command that must succeed, and what it printed."""
    start = time.monotonic()
    finished = subprocess.run(
        [str(part) for part in command], env=environment, check=False, capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(f"{command} ended with {finished.returncode}:\n{finished.stderr}")
    return time.monotonic() - start, finished.stdout


def median(samples: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure."""
    return {key: round(statistics.median(sample[key] for sample in samples), 3) for key in samples[0]}


if __name__ == "__main__":
    main()
