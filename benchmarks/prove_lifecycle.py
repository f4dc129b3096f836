"""Kill deploys at random moments, run the same command again, and look at what is left.

`python -m benchmarks.prove_lifecycle [--kills N] [--seed S] [--target process|docker] [--spec SPEC] [--out FILE]`

A first deploy that nobody kills tells how long each stage takes. Then, for each kill: a home in which the stages
before the wanted one are finished, a deploy that is killed with `kill -9` at a random share of that stage's length
(stages take turns), and the same command again. It must end with the model serving; what had finished before the
kill must not be done again; and no stray process, container, lease, run, temporary file or `.part` file may be left.
A stage that ended earlier than the first time is hit later than wanted: each kill counts where it hit. Ends with 1 if
any kill does not hold. The deploys share one Prefect server, which outlives their deaths; with `--own-server` each
starts its own, as `slipway deploy` does where there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import leftovers
from benchmarks.killed_deploy import STAGES, Deploy, Watched, watch
from blocks.prefect.server import temporary_server
from tasks.core.settings import Settings

ROOT = Path(__file__).parent.parent
QUICK = (
    "hardware.cpus=1",
    "tuning.candidates=[f16, q4_0]",
    "tuning.quality_tokens=128",
    "tuning.max_batch=2",
    "tuning.output_tokens=8",
)
"""A kill needs stages that take long enough to be hit, not more."""

CONTAINERS = (
    "target=docker",
    "rollout.base_image=slipway/base:bookworm",
    "environment.requirements=[iniconfig==2.1.0]",  # an image of this proof's own, which it may remove
)
NEVER_CACHED = {"compatibility", "health"}
"""A host is surveyed and a service's health checked at every deploy."""


@dataclass
class Kill:
    """One kill and what came of it. `hit` is the stage it hit; `share` of the wanted stage's length."""

    wanted: str
    share: float
    hit: str = ""
    finished_before: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    killed_after_s: float = 0.0
    rerun_s: float = 0.0
    redone: list[str] = field(default_factory=list)
    last_line: str = ""

    def __str__(self) -> str:
        told = "; ".join(self.faults) or "holds"
        return f"{self.wanted} at {self.share:.0%}, hit {self.hit} after {self.last_line!r}: {told}"


@dataclass
class Proof:
    """A folder, a command, and how long each of its stages took when nobody killed it."""

    deploy: Deploy
    lengths: dict[str, float] = field(default_factory=dict)

    def measure(self) -> None:
        """The deploy that nobody kills. Raises `SystemExit` with its output if it does not end well."""
        whole = watch(self.deploy)
        faults = _ended_badly(whole) or self._look(whole.answer)
        if faults:
            raise SystemExit(f"a deploy that nobody killed: {'; '.join(faults)}")
        self.lengths = {stage: whole.length(stage) for stage in STAGES}

    def kill(self, wanted: str, share: float) -> Kill:
        """One kill, one look around, one rerun, another look."""
        kill = Kill(wanted, share)
        self.deploy.rewind(wanted)
        killed = watch(self.deploy, (wanted, share * self.lengths[wanted]))
        kill.hit, kill.finished_before = killed.hit(wanted), sorted(killed.finished)
        kill.killed_after_s = round(killed.seconds, 2)
        kill.last_line = killed.last_line
        if not killed.was_killed:
            kill.faults += _ended_badly(killed)
        kill.faults += [f"after the kill: {line}" for line in self._strays(kill.hit)]
        before = leftovers.finished_files(self.deploy.home)
        engines = leftovers.engines(self.deploy.home)
        again = watch(self.deploy)
        kill.rerun_s = round(again.seconds, 2)
        if bad := _ended_badly(again):
            kill.faults += bad
            return kill
        kill.redone = [row["stage"] for row in again.answer["stages"] if not row["cached"]]
        self.lengths |= {stage: again.length(stage) for stage in kill.redone}
        kill.faults += _done_again(kill)
        if "rollout" in killed.finished and engines != leftovers.engines(self.deploy.home):
            kill.faults.append("the engine was started again although its rollout had finished")
        kill.faults += [f"was finished and made anew: {path}" for path in before.changed(self.deploy.home)]
        kill.faults += self._look(again.answer)
        return kill

    def close(self) -> list[str]:
        """End the service; what is left of it then."""
        self.deploy.remove_image()
        self.deploy.stop()
        return [f"after stop: {line}" for line in leftovers.strays(self.deploy.home, {}, exact=True)]

    def _strays(self, hit: str) -> list[str]:
        """What a killed deploy ran has to end without any help; only a service that was begun may live on."""
        if self.deploy.docker:  # a container may wait for the next deploy to be swept
            return leftovers.strays(self.deploy.home, {**self.deploy.parts, "container": 2}, exact=False)
        serves = hit not in STAGES or STAGES.index(hit) >= STAGES.index("rollout")
        return leftovers.strays(self.deploy.home, self.deploy.parts if serves else {}, exact=False)

    def _look(self, answer: dict[str, Any]) -> list[str]:
        return leftovers.faults_of(self.deploy, answer)


def _ended_badly(watched: Watched) -> list[str]:
    return [] if watched.code == 0 else [f"a deploy ended with {watched.code}: {watched.stderr[-1500:]}"]


def _done_again(kill: Kill) -> list[str]:
    again = sorted(set(kill.redone) & set(kill.finished_before) - NEVER_CACHED)
    return [f"done again although finished: {', '.join(again)}"] if again else []


@contextlib.contextmanager
def proof(spec: Path, *, overrides: Sequence[str], api_url: str | None) -> Iterator[Proof]:
    """A proof in a scratch folder. Nothing runs when it is left."""
    with tempfile.TemporaryDirectory(prefix="slipway-prove-") as folder:
        run = Proof(Deploy(spec, tuple(overrides), Path(folder), api_url))
        try:
            yield run
        finally:
            left = run.close()
        if left:
            raise SystemExit("; ".join(left))


def run_kills(run: Proof, kills: int, seed: int, stages: Sequence[str] = STAGES) -> Iterator[Kill]:
    """Kills at moments that `seed` names, the stages in turns."""
    chance = random.Random(seed)
    for number in range(kills):
        kill = run.kill(stages[number % len(stages)], chance.random())
        print(f"{number + 1}/{kills} {kill}", flush=True)
        yield kill


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=70)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this one; may be repeated")
    parser.add_argument("--target", choices=("process", "docker"), default="process")
    parser.add_argument("--own-server", action="store_true", help="a Prefect server for each deploy")
    parser.add_argument("--spec", type=Path, default=ROOT / "examples" / "tiny" / "slipway.yaml")
    parser.add_argument(
        "--out", type=Path, help="JSON file; figures of other targets and seeds in it are kept"
    )
    arguments = parser.parse_args()
    overrides = QUICK + (CONTAINERS if arguments.target == "docker" else ())
    with contextlib.ExitStack() as stack:
        url = None if arguments.own_server else stack.enter_context(shared_server())
        run = stack.enter_context(proof(arguments.spec, overrides=overrides, api_url=url))
        run.measure()
        print("lengths in s:", {stage: round(length, 2) for stage, length in run.lengths.items()}, flush=True)
        lengths, kills = dict(run.lengths), []
        title = f"{arguments.target}{', own server' * arguments.own_server}, seed {arguments.seed}"
        for kill in run_kills(run, arguments.kills, arguments.seed, arguments.stage or STAGES):
            kills.append(kill)
            if arguments.out:
                write_figures(arguments.out, title, overrides, lengths, kills)
    faults = sum(bool(kill.faults) for kill in kills)
    print(f"{len(kills)} kills, {faults} that do not hold")
    sys.exit(1 if faults else 0)


@contextlib.contextmanager
def shared_server() -> Iterator[str]:
    """The address of a Prefect API that answers until the block is left."""
    with tempfile.TemporaryDirectory(prefix="slipway-prove-server-") as folder:
        home = Path(folder)
        settings = Settings(home=home, records=str(home), registry=str(home), s3_endpoint=None)
        with temporary_server(settings) as server:
            server.wait()
            os.environ["PREFECT_API_AUTH_STRING"] = server.key
            yield server.url


def write_figures(
    out: Path,
    title: str,
    overrides: Sequence[str],
    lengths: dict[str, float],
    kills: Sequence[Kill],
) -> None:
    """Add this run's figures to the document, in place of an earlier run of that title."""
    document = json.loads(out.read_text()) if out.exists() else {}
    document["machine"] = {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
    }
    document[title] = {
        "overrides": list(overrides),
        "kills": len(kills),
        "do_not_hold": sum(bool(kill.faults) for kill in kills),
        "hit": dict(Counter(kill.hit for kill in kills)),
        "stage_s": {stage: round(length, 2) for stage, length in lengths.items()},
        "all": [asdict(kill) for kill in kills],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
