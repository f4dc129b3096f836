"""Wall time of the lifecycle: cold, warm, and what orchestration costs. Writes JSON.

`python -m benchmarks.lifecycle [--runs N] [--spec SPEC] [--out FILE]`

Cold is a deploy into an empty SLIPWAY_HOME (packages come from uv's cache, as on a build machine that has built
before); warm is the same command again. Overhead is the wall time outside the stages' own work. Its parts:
`server_s` until the Prefect server answers; meanwhile the command imports what it needs (0 without a server);
`begin_s` from there, or from the start, to a stage's first line; `end_s` from the last line of a stage to the end
of the command, with its first imports. `cpu_s` is the processor time of the command and of all that it waited for.
Beside it, in the same run: `--dry-run` and `--help`, and the processor time of the imports of a deploy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SLIPWAY = Path(sys.executable).with_name("slipway")
IMPORTS = "import time, flows.deploy_model; print(time.process_time())"
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
                "imports_cpu_s": float(seconds([sys.executable, "-c", IMPORTS], environment)[1]),
            }
        finally:
            subprocess.run([SLIPWAY, "stop", "tiny"], env=environment, check=False, capture_output=True)
    return {"cold": cold, "warm": warm, "commands": quick}


def deploy(spec: Path, environment: dict[str, str]) -> dict[str, float]:
    """Wall times in seconds: of the command, of each stage, and the rest."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, output, progress = seconds([SLIPWAY, "deploy", spec, "--json"], environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    stages = {row["stage"]: row["seconds"] for row in json.loads(output)["stages"]}
    at_once = max(stages[name] for name in SIDE_BY_SIDE)
    working = at_once + sum(time_s for name, time_s in stages.items() if name not in SIDE_BY_SIDE)
    figures = {"wall_s": wall, "stages_s": working, "overhead_s": wall - working, "cpu_s": cpu}
    return figures | parts(wall, progress) | {f"{name}_s": time_s for name, time_s in stages.items()}


def parts(wall: float, progress: str) -> dict[str, float]:
    """Of the overhead, by the times of the lines that the command prints."""
    lines = [
        (float(found[1]), found[2]) for found in re.finditer(r"^\[ *([\d.]+) s\] (\w+):", progress, re.M)
    ]
    server = max((at for at, who in lines if who == "prefect"), default=0.0)
    stages = [at for at, who in lines if who != "prefect"]
    return {"server_s": server, "begin_s": min(stages) - server, "end_s": wall - max(stages)}


def seconds(command: list[Any], environment: dict[str, str]) -> tuple[float, str, str]:
    """Wall time of a command that must succeed, and what it printed, as output and as progress."""
    start = time.monotonic()
    finished = subprocess.run(
        [str(part) for part in command], env=environment, check=False, capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(f"{command} ended with {finished.returncode}:\n{finished.stderr}")
    return time.monotonic() - start, finished.stdout, finished.stderr


def median(samples: list[dict[str, float]]) -> dict[str, float]:
    """Median of each figure."""
    return {key: round(statistics.median(sample[key] for sample in samples), 3) for key in samples[0]}


if __name__ == "__main__":
    main()
