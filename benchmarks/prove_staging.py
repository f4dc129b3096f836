"""Kill copies at random moments and go on; flip random bytes and look for them.

`python -m benchmarks.prove_staging [--kills N] [--flips N] [--seed S] [--chunk-bytes N] [--from KIND] [--out FILE]`

The source is a folder, or with `--from` `hub`, `mlflow` or `oci` a real server that is started here.

Kills: a process copies a model and is killed with `kill -9` at a random moment of the copy; another goes on. The
result must be byte-identical to a copy that nobody killed, nothing unfinished may be left, and of the model's bytes
at most 5 % may have been read from the source twice (a shared counter survives the kill). The model is 25 times what
a copy has in flight. Flips: one random byte of one random file, the manifest included, becomes another; `verify` must
name that file. About every tenth is repaired from the source instead of being put back. Ends with 1 if anything does
not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import platform
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchmarks.staging_model import same_tensors, write_model
from blocks.storage.model_source import FolderSource
from blocks.storage.sources import open_source, resolve
from tasks.core.direct_io import CHUNK_BYTES, Buffer, Took
from tasks.core.errors import ModelError
from tasks.core.files import PART
from tasks.core.manifest import MANIFEST_FILE, Manifest, verify
from tasks.core.progress import listen
from tasks.core.settings import Settings
from tasks.staging.apply import plan_copy, repair_model, stage_model
from tasks.staging.ledger import LEDGER_FILE
from tasks.staging.models import SourceFile
from tasks.staging.source import ModelSource, pin

MOST_TWICE = 0.05
PARALLEL = {"folder": FolderSource(Path()).parallel, "hub": 8, "mlflow": 1, "oci": 8}
"""How many chunks each kind of source has in flight."""

SHARDS = 5


class Counted:
    """A source that counts the bytes of long reads in memory that forked processes share.

    Each process opens it for itself. Implements `tasks.staging.source.ModelSource`.
    """

    def __init__(self, opener: Callable[[], ModelSource]) -> None:
        self._opener = opener
        self._shared = mmap.mmap(-1, 8)
        self._lock = threading.Lock()

    @cached_property
    def _source(self) -> ModelSource:
        return self._opener()

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def parallel(self) -> int:
        return self._source.parallel

    def list_files(self) -> Sequence[SourceFile]:
        return self._source.list_files()

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        return self._source.read(file, offset, length)

    def take_count(self) -> int:
        """Bytes since the last call."""
        (count,) = struct.unpack("q", self._shared[:])
        self._shared[:] = bytes(8)
        return int(count)

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        with self._lock:
            (count,) = struct.unpack("q", self._shared[:])
            self._shared[:] = struct.pack("q", count + length)
        self._source.read_into(file, offset, length, buffer, at, took)


@dataclass
class Kill:
    """One kill in the middle of a copy, and what came of it. Seconds, and shares of the model's bytes."""

    after_s: float
    chunks_noted: int
    twice: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Flip:
    """One changed byte, and what came of it."""

    file: str
    position: int
    repaired: bool
    faults: list[str] = field(default_factory=list)


Serve = Callable[[Path], Callable[[], ModelSource]]
"""Puts a folder where the copies come from; what opens it there."""


@contextlib.contextmanager
def served_by(kind: str, work: Path) -> Iterator[Serve]:
    """Where the copies come from: the folder itself, or a real server in `work` until the block is left."""
    if kind == "folder":
        yield lambda folder: lambda: FolderSource(folder)
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
    server = {"hub": _hub, "mlflow": _mlflow, "oci": _oci}[kind]
    with server(work) as serve:
        yield serve


@contextlib.contextmanager
def _hub(work: Path) -> Iterator[Serve]:
    from hub_server import running

    with running(work) as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(work / "no-cache")}

        def push(folder: Path) -> Callable[[], ModelSource]:
            commit = hub.push("acme/model", folder)
            return lambda: open_source(f"hf:acme/model@{commit}", endpoint=None)

        yield push


@contextlib.contextmanager
def _mlflow(work: Path) -> Iterator[Serve]:
    from mlflow_server import running

    with running(work) as mlflow:
        os.environ["SLIPWAY_REGISTRY"] = mlflow.url

        def register(folder: Path) -> Callable[[], ModelSource]:
            mlflow.register("model", folder, proxied=True)
            mlflow.point("model", "champion", 1)
            place = resolve("models:/model@champion", Settings.load()).source
            return lambda: open_source(place, endpoint=None)

        yield register


@contextlib.contextmanager
def _oci(work: Path) -> Iterator[Serve]:
    from oci_registry import running

    with running(work) as registry:

        def push(folder: Path) -> Callable[[], ModelSource]:
            digest = registry.push("model", "latest", folder)
            return lambda: open_source(f"oci://{registry.host}/model@{digest}", endpoint=None)

        yield push


class Proof:
    """A model, its copy that nobody killed, and a folder for those that are."""

    def __init__(self, work: Path, chunk_bytes: int, seed: int, serve: Serve, parallel: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.leases = work / "leases"
        self.folder = work / "staged"
        folder = write_model(work / "source", 25 * chunk_bytes * parallel, seed=seed)
        self.source = Counted(serve(folder))
        self.reference = work / "reference"
        self.lengths = []
        for _ in range(3):
            shutil.rmtree(self.reference, ignore_errors=True)
            start = time.monotonic()
            assert self._finish(self._fork(self.reference)) == 0
            self.lengths.append(time.monotonic() - start)
        self.size_bytes = self.source.take_count() // 3
        if not same_tensors(folder, self.reference):
            raise SystemExit("a copy that nobody killed does not hold the source's tensors")

    def kill(self, chance: random.Random) -> Kill | None:
        """One kill and one resumption; None if the copy had ended before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        after = chance.uniform(0, statistics.median(self.lengths))
        child = self._fork(self.folder)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (self.folder / MANIFEST_FILE).exists():
            self.source.take_count()
            return None
        ledger = self.folder / LEDGER_FILE
        kill = Kill(round(after, 3), len(ledger.read_bytes().splitlines()[1:]) if ledger.exists() else 0)
        if self._finish(self._fork(self.folder)) != 0:
            kill.faults.append("the copy did not go on")
        kill.twice = max(0.0, round(self.source.take_count() / self.size_bytes - 1, 4))
        if kill.twice > MOST_TWICE:
            kill.faults.append(f"{kill.twice:.1%} of the bytes were copied twice")
        kill.faults += [f"left behind: {path.name}" for path in self.folder.glob(f"*{PART}")]
        kill.faults += ["left behind: the ledger"] if ledger.exists() else []
        kill.faults += self._differences(self.folder)
        return kill

    def flip(self, chance: random.Random) -> Flip:
        """One byte of the reference copy becomes another, is looked for and put back."""
        path = chance.choice([found for found in sorted(self.reference.iterdir()) if found.stat().st_size])
        flip = Flip(path.name, chance.randrange(path.stat().st_size), False)
        was = _exchange(path, flip.position, lambda byte: byte ^ chance.randrange(1, 256))
        try:
            _, damaged = verify(self.reference)
        except ModelError:
            damaged = (MANIFEST_FILE,)
        if damaged != (path.name,):
            flip.faults.append(f"verify named {damaged}")
        flip.repaired = path.name != MANIFEST_FILE and chance.random() < 0.1
        if flip.repaired:
            repair_model(pin(self.source), self.reference, leases=self.leases)
        else:
            _exchange(path, flip.position, lambda _: was)
        if flip.repaired and verify(self.reference)[1]:
            flip.faults.append("it was not repaired")
        return flip

    def _differences(self, folder: Path) -> list[str]:
        wanted = Manifest.read(self.reference)
        found = Manifest.read(folder)
        if found != wanted:
            return ["the manifest differs"]
        return [f"{path} differs" for path in verify(folder)[1]]

    def _fork(self, folder: Path) -> int:
        child = os.fork()
        if child:
            return child
        try:
            pinned = pin(self.source)
            plan = plan_copy(pinned, SHARDS, convertible=False)
            stage_model(pinned, plan, folder, leases=self.leases, own=True, chunk_bytes=self.chunk_bytes)
            os._exit(0)
        finally:
            os._exit(1)

    def _finish(self, child: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_kills(proof: Proof, kills: int, seed: int) -> Iterator[Kill]:
    """That many kills that hit a copy, at moments that `seed` names."""
    chance = random.Random(seed)
    while kills:
        kill = proof.kill(chance)
        if kill is not None:
            kills -= 1
            yield kill


def run_flips(proof: Proof, flips: int, seed: int) -> Iterator[Flip]:
    """That many flipped bytes, one at a time."""
    chance = random.Random(seed)
    for _ in range(flips):
        yield proof.flip(chance)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--from", dest="kind", choices=tuple(PARALLEL), default="folder")
    parser.add_argument("--chunk-bytes", type=int, default=CHUNK_BYTES)
    parser.add_argument(
        "--flip-chunk-bytes", type=int, default=1 << 20, help="of the smaller model for flips"
    )
    parser.add_argument("--folder", type=Path, help="where to work; a scratch folder by default")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    listen()
    parallel = PARALLEL[arguments.kind]
    with _working(arguments) as (work, serve):
        proof = Proof(work / "kills", arguments.chunk_bytes, arguments.seed, serve, parallel)
        kills = list(_told(run_kills(proof, arguments.kills, arguments.seed), arguments.kills))
        size_bytes = proof.size_bytes
    with _working(arguments) as (work, serve):
        proof = Proof(work / "flips", arguments.flip_chunk_bytes, arguments.seed, serve, parallel)
        flips = list(_told(run_flips(proof, arguments.flips, arguments.seed), arguments.flips))
    faults = sum(bool(kill.faults) for kill in kills) + sum(bool(flip.faults) for flip in flips)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(_document(arguments, size_bytes, kills, flips), indent=1) + "\n")
    worst = max((kill.twice for kill in kills), default=0.0)
    print(
        f"{len(kills)} kills, at most {worst:.1%} copied twice; {len(flips)} flipped bytes, "
        f"{sum(flip.repaired for flip in flips)} repaired; {faults} that do not hold"
    )
    sys.exit(1 if faults else 0)


@contextlib.contextmanager
def _working(arguments: argparse.Namespace) -> Iterator[tuple[Path, Serve]]:
    """A scratch folder, and what serves the copies' source."""
    with contextlib.ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="slipway-prove-", dir=arguments.folder)
        work = Path(stack.enter_context(scratch))
        yield work, stack.enter_context(served_by(arguments.kind, work))


T = TypeVar("T", Kill, Flip)


def _told(items: Iterator[T], total: int) -> Iterator[T]:
    for number, item in enumerate(items, start=1):
        if item.faults or number % 50 == 0:
            print(f"{number}/{total} {item}", flush=True)
        yield item


def _document(
    arguments: argparse.Namespace, size_bytes: int, kills: list[Kill], flips: list[Flip]
) -> dict[str, object]:
    twice = [kill.twice for kill in kills] or [0.0]
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "source": arguments.kind,
        "seed": arguments.seed,
        "model_bytes": size_bytes,
        "chunk_bytes": arguments.chunk_bytes,
        "kills": len(kills),
        "kills_that_do_not_hold": sum(bool(kill.faults) for kill in kills),
        "copied_twice": {"median": statistics.median(twice), "most": max(twice)},
        "flips": len(flips),
        "flips_found": sum(not flip.faults for flip in flips),
        "flips_repaired": sum(flip.repaired for flip in flips),
        "all_kills": [asdict(kill) for kill in kills],
        "all_flips": [asdict(flip) for flip in flips],
    }


def _exchange(path: Path, position: int, change: Callable[[int], int]) -> int:
    """Change one byte; what it was."""
    with path.open("r+b") as file:
        file.seek(position)
        (was,) = file.read(1)
        file.seek(position)
        file.write(bytes([change(was)]))
    return was


if __name__ == "__main__":
    main()
