"""Kill deploys at random moments, run the same command again, and look at what is left.

`python -m benchmarks.prove_lifecycle --kills N --seed S [--spec SPEC] [--out FILE]`

For each kill: an empty SLIPWAY_HOME, a deploy that is killed with `kill -9` at a random moment of one stage (stages
take turns), then the same command. It must end with the model serving; stages that had finished before the kill must
not be done again; and no stray process, container, lease or `.part` file may be left. Ends with 1 if any kill does
not hold. The figures are written as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tasks.core.errors import BusyError
from tasks.core.files import PART, file_lock

ROOT = Path(__file__).parent.parent
SLIPWAY = Path(sys.executable).with_name("slipway")
STAGES = ("environment", "compatibility", "staging", "quantization", "batching", "rollout", "health")
PROGRESS = re.compile(r"^\[ *([0-9.]+) s\] ([a-z]+): (.*)$")
DONE = re.compile(r"^(cached|sound|flagged|pass|warn|verified|slow|chosen|serving|healthy|degraded): ")
KILL_WITHIN_S = 3.0
"""A random moment of a stage: at most this long after its first sign."""

DEPLOY_TIMEOUT_S = 300.0


@dataclass
class Kill:
    """One kill and what came of it."""

    stage: str
    after_s: float
    finished_before: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    rerun_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=70)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spec", type=Path, default=ROOT / "examples" / "tiny" / "slipway.yaml")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills = []
    for number in range(arguments.kills):
        stage = STAGES[number % len(STAGES)]
        kill = prove(arguments.spec, stage, chance.uniform(0, KILL_WITHIN_S))
        kills.append(kill)
        print(
            f"{number + 1}/{arguments.kills} {stage} +{kill.after_s:.2f} s: {kill.faults or 'holds'}",
            flush=True,
        )
    faults = sum(bool(kill.faults) for kill in kills)
    if arguments.out:
        document = {
            "seed": arguments.seed,
            "kills": len(kills),
            "faults": faults,
            "all": [asdict(k) for k in kills],
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{len(kills)} kills, {faults} that do not hold")
    sys.exit(1 if faults else 0)


def prove(spec: Path, stage: str, after_s: float) -> Kill:
    """One kill in `stage`, one rerun, one look around."""
    kill = Kill(stage, after_s)
    home = Path(tempfile.mkdtemp(prefix="slipway-prove-"))
    environment = {**os.environ, "SLIPWAY_HOME": str(home)}
    try:
        kill.finished_before = deploy_and_kill(spec, environment, stage, after_s)
        start = time.monotonic()
        finished = subprocess.run(
            [SLIPWAY, "deploy", spec, "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEPLOY_TIMEOUT_S,
        )
        kill.rerun_s = round(time.monotonic() - start, 2)
        if finished.returncode:
            kill.faults.append(f"the rerun ended with {finished.returncode}: {finished.stderr[-800:]}")
            return kill
        answer = json.loads(finished.stdout)
        repeated = [row["stage"] for row in answer["stages"] if not row["cached"]]
        kill.repeated = [
            name for name in repeated if name in kill.finished_before and name not in NEVER_CACHED
        ]
        if kill.repeated:
            kill.faults.append(f"done again although finished: {kill.repeated}")
        kill.faults += look_around(home, answer["name"], answer["endpoint"])
    finally:
        subprocess.run([SLIPWAY, "stop", "tiny"], env=environment, capture_output=True, check=False)
        kill.faults += [f"left after stop: {line}" for line in processes_of(home)]
        shutil.rmtree(home, ignore_errors=True)
    return kill


NEVER_CACHED = {"compatibility", "rollout", "health"}
"""A host is surveyed, a release looked at and a service's health checked at every deploy."""


def deploy_and_kill(spec: Path, environment: dict[str, str], stage: str, after_s: float) -> list[str]:
    """Kill the command `after_s` after the first sign of `stage`; stages that had finished by then."""
    finished: list[str] = []
    with subprocess.Popen(
        [SLIPWAY, "deploy", spec, "--json"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as deploy:
        assert deploy.stderr is not None
        timer: threading.Timer | None = None
        for line in deploy.stderr:
            match = PROGRESS.match(line.strip())
            if match is None:
                continue
            if DONE.match(match[3]):
                finished.append(match[2])
            if match[2] == stage and timer is None:
                timer = threading.Timer(after_s, lambda: deploy.send_signal(signal.SIGKILL))
                timer.start()
        deploy.wait()
        if timer is not None:
            timer.cancel()
    return finished


def look_around(home: Path, name: str, endpoint: str) -> list[str]:
    """What is wrong with a home in which one service should serve and nothing else should be."""
    faults = [f"left behind: {path.relative_to(home)}" for path in home.rglob(f"*{PART}")]
    body = json.dumps({"model": name, "prompt": "The", "max_tokens": 4}).encode()
    request = urllib.request.Request(
        f"{endpoint}/v1/completions", body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            if not json.load(answer)["choices"][0]["text"]:
                faults.append("the service completes nothing")
    except OSError as error:
        faults.append(f"the service does not answer: {error}")
    for lease in home.glob("leases/*"):
        try:
            with file_lock(lease, wait=False, holder=lease.name):
                pass
        except BusyError:
            faults.append(f"lease still held: {lease.name}")
    allowed = ("daemon.py", "llama_cpp_server.py", "leash.py")
    faults += [
        f"stray process: {line}" for line in processes_of(home) if not any(part in line for part in allowed)
    ]
    servers = [
        line for line in processes_of(home) if "llama_cpp_server.py" in line and "leash.py" not in line
    ]
    if len(servers) != 1:
        faults.append(f"{len(servers)} engines run instead of 1: {servers}")
    return faults


def processes_of(home: Path) -> list[str]:
    """Command lines of the processes that belong to this home."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.info["cmdline"] or [])
            if str(home) in line or process.environ().get("SLIPWAY_HOME") == str(home):
                found.append(f"{process.pid} {line[:200]}")
    return found


if __name__ == "__main__":
    main()
