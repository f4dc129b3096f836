"""One `slipway deploy` that is watched, and killed at a moment of one of its stages."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

SLIPWAY = Path(sys.executable).with_name("slipway")
STAGES = ("environment", "compatibility", "staging", "quantization", "batching", "rollout", "health")
FIRST = STAGES[:3]
"""They run side by side: each begins with the deploy."""

END = "the end"
"""What a kill hits when every stage had finished."""

LIMIT_S = 400.0
_READY = re.compile(r"^\[ *[0-9.]+ s\] prefect: ready at ")
_DONE = re.compile(
    rf"^\[ *[0-9.]+ s\] ({'|'.join(STAGES)}): "
    r"(?:cached|sound|flagged|pass|warn|verified|slow|chosen|serving|healthy|degraded): "
)
_MADE_IN = {  # by the stage before which they must be gone for it to be done again
    "environment": ("locks", "environments", "images"),
    "staging": ("models", "records/disk"),
    "quantization": ("candidates",),
    "rollout": ("services",),
}


@dataclass(frozen=True)
class Deploy:
    """A command, in a folder of its own: the home, its temporary files, its output."""

    spec: Path
    overrides: Sequence[str]
    folder: Path
    api_url: str | None
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def name(self) -> str:
        name: str = yaml.safe_load(self.spec.read_text())["name"]
        return name

    @property
    def docker(self) -> bool:
        return "target=docker" in self.overrides

    @property
    def parts(self) -> dict[str, int]:
        """What runs for a service, by kind."""
        if self.docker:
            return {"proxy": 1, "container": 1, "sampler": 1}
        return {"supervisor": 1, "guard": 2, "engine": 1, "proxy": 1, "sampler": 1}

    @property
    def argv(self) -> list[str]:
        sets = [word for override in self.overrides for word in ("--set", override)]
        return [str(SLIPWAY), "deploy", str(self.spec), "--json", *sets]

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with a home and a folder for temporary files of the command's own."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        own = {"SLIPWAY_HOME": str(self.home), "TMPDIR": str(self.temporary)}
        without = ("SLIPWAY_RECORDS", "SLIPWAY_REGISTRY", "PREFECT_API_URL")
        inherited = {key: value for key, value in os.environ.items() if key not in without}
        return {**inherited, **own, **({"PREFECT_API_URL": self.api_url} if self.api_url else {})}

    def stop(self) -> None:
        """`slipway stop`."""
        command = [str(SLIPWAY), "stop", self.name]
        subprocess.run(command, env=self.environment, capture_output=True, check=False, timeout=LIMIT_S)

    def rewind(self, stage: str) -> None:
        """Bring the home back to where `stage` has not begun and all before it are finished."""
        self.remove_image()
        self.stop()
        since = STAGES.index(stage)
        made = [f"records/{later}" for later in STAGES[since:]]
        for maker, folders in _MADE_IN.items():
            if STAGES.index(maker) >= min(since, STAGES.index("rollout")):
                made += folders
        for folder in made:
            shutil.rmtree(self.home / folder, ignore_errors=True)

    def remove_image(self) -> None:
        """So that the next rollout builds it again. Its name is this proof's own by the spec's requirements."""
        for document in self.home.glob("services/*/releases/*.json") if self.docker else ():
            if image := json.loads(document.read_text()).get("image"):
                self.stop()
                subprocess.run(["docker", "image", "rm", image], capture_output=True, check=False)


@dataclass
class Watched:
    """What a deploy did until its end. Times in s since its start."""

    code: int = 0
    seconds: float = 0.0
    ready_s: float | None = None
    finished: dict[str, float] = field(default_factory=dict)
    stderr: str = ""
    stdout: str = ""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.stdout)
        return answer

    @property
    def last_line(self) -> str:
        lines = self.stderr.strip().splitlines()
        return lines[-1].partition("] ")[2][:90] if lines else ""

    def begin(self, stage: str) -> float | None:
        """When all that this stage waits for had finished; None if that was never."""
        if stage in FIRST:
            return self.ready_s
        position = STAGES.index(stage)
        needed = FIRST if stage == STAGES[len(FIRST)] else (STAGES[position - 1],)
        if any(name not in self.finished for name in needed):
            return None
        return max(self.finished[name] for name in needed)

    def length(self, stage: str) -> float:
        """Of a deploy that went to its end."""
        begin = self.begin(stage)
        assert begin is not None
        return self.finished[stage] - begin

    def hit(self, wanted: str) -> str:
        """The stage at work when the deploy ended: the wanted one, else the first that had not finished."""
        if wanted not in self.finished:
            return wanted
        return next((stage for stage in STAGES if stage not in self.finished), END)


def watch(deploy: Deploy, moment: tuple[str, float] | None = None) -> Watched:
    """Run the command; with `moment`, a stage and seconds after its begin, kill it then."""
    seen = Watched()
    output = deploy.folder / "answer.json"
    start = time.monotonic()
    timers: list[threading.Timer] = []
    with (
        output.open("w") as stdout,
        subprocess.Popen(
            deploy.argv, env=deploy.environment, stdout=stdout, stderr=subprocess.PIPE, text=True
        ) as child,
    ):

        def kill_after(seconds: float) -> None:
            timers.append(threading.Timer(seconds, child.kill))
            timers[-1].daemon = True  # an interrupted proof does not wait for it
            timers[-1].start()

        kill_after(LIMIT_S)
        assert child.stderr is not None
        for line in child.stderr:
            seen.stderr += line
            now = time.monotonic() - start
            if _READY.match(line):
                seen.ready_s = now
            if done := _DONE.match(line):
                seen.finished[done[1]] = now
            if moment and len(timers) == 1 and seen.begin(moment[0]) is not None:
                kill_after(moment[1])
        seen.code = child.wait()
    for timer in timers:
        timer.cancel()
    seen.seconds = time.monotonic() - start
    seen.stdout = output.read_text()
    return seen
