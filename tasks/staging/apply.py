"""Lay a model onto the local disk: pinned, streamed, hashed on the way, resumable, repairable.

Each file goes to `.part`, fsync, rename; finished files are noted in a ledger, so that a killed copy goes on
from there; the manifest comes last. Memory stays bounded by `_CHUNK_BYTES` for each read in flight.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from blake3 import blake3
from pydantic import ValidationError

from tasks.core.cancellation import current
from tasks.core.errors import BusyError, ModelError, WrongUseError
from tasks.core.files import (
    PART,
    as_disk_full,
    file_lock,
    fsync_folder,
    mount_of,
    require_space,
    sweep_parts,
    write_atomically,
)
from tasks.core.manifest import MANIFEST_FILE, Manifest, StagedFile, damaged_files
from tasks.core.model_shape import parse_model_shape
from tasks.core.progress import advance, say
from tasks.core.safetensors import LENGTH_BYTES, Header, header_length, parse_header
from tasks.core.verdicts import StageName, StagingVerdict
from tasks.staging.models import DiskFigures, DiskResult, SourceFile
from tasks.staging.plan import (
    CONFIG_FILE,
    LEDGER_FILE,
    PlannedFile,
    Range,
    check_index,
    lay_out,
    read_index,
    select_files,
    slow_because,
    source_digest,
)

_CHUNK_BYTES = 16 << 20


class ModelSource(Protocol):
    """Where a model's files are read from."""

    @property
    def name(self) -> str:
        """Its address, for people: `file:…` or `s3://…`."""

    @property
    def parallel(self) -> int:
        """How many reads at once make it fastest."""

    def list_files(self) -> Sequence[SourceFile]:
        """All files, by path. Raises `ModelError` or `NotFoundError` if there is no such place."""

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that file. Raises `ModelError` if it has changed."""


@dataclass(frozen=True)
class Pinned:
    """A source and the state that its files are in now."""

    source: ModelSource
    files: tuple[SourceFile, ...]

    @property
    def digest(self) -> str:
        """Names source and state."""
        return source_digest(self.source.name, self.files)

    def file(self, path: str) -> SourceFile:
        """The file of that path."""
        return next(file for file in self.files if file.path == path)

    def read_whole(self, path: str) -> bytes:
        """A small file."""
        file = self.file(path)
        return self.source.read(file, 0, file.size_bytes) if file.size_bytes else b""


@dataclass(frozen=True)
class CopyPlan:
    """The files to be written, and remarks about those that are not."""

    files: tuple[PlannedFile, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Staged:
    """What one run did to a folder. `manifest` is absent if `damaged` files could not be made good."""

    manifest: Manifest | None
    copied_bytes: int
    seconds: float
    restaged: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def pin(source: ModelSource) -> Pinned:
    """Look once at what is there. Raises as `ModelSource.list_files`."""
    return Pinned(source, tuple(source.list_files()))


def plan_copy(pinned: Pinned, shards: int | Literal["auto"], *, convertible: bool) -> CopyPlan:
    """Read index and headers, believe nothing in them, and lay out the shards.

    Raises `ModelError` for whatever is wrong with the model; nothing has been written then.
    """
    name = pinned.source.name
    selection = select_files(pinned.files, name)
    config = pinned.read_whole(CONFIG_FILE)
    if convertible:
        parse_model_shape(config, f"{name}/{CONFIG_FILE}")
    if selection.index:
        where = f"{name}/{selection.index}"
        paths = [file.path for file in pinned.files]
        weight_map = read_index(pinned.read_whole(selection.index), paths, where)
        headers = {path: read_header(pinned, path) for path in sorted(set(weight_map.values()))}
        check_index(weight_map, headers, where)
    else:
        headers = {path: read_header(pinned, path) for path in selection.weights}
    side = [_carried(pinned.file(path)) for path in selection.side]
    return CopyPlan((*side, *lay_out(headers, shards)), selection.findings)


def read_header(pinned: Pinned, path: str) -> Header:
    """Header of one safetensors file. Raises `ModelError`."""
    file, name = pinned.file(path), f"{pinned.source.name}/{path}"
    first = pinned.source.read(file, 0, LENGTH_BYTES) if file.size_bytes >= LENGTH_BYTES else b""
    length = header_length(first, file.size_bytes, name)
    text = pinned.source.read(file, LENGTH_BYTES, length) if length else b""
    return parse_header(text, file.size_bytes, name)


def stage_model(pinned: Pinned, plan: CopyPlan, folder: Path, *, leases: Path, own: bool) -> Staged:
    """Make `folder` hold the planned files, copying only what is not there unharmed.

    `own` folders are Slipway's, so that unknown files in them are of no value to anybody.

    Raises `DiskFullError` before or during the copy (resumable), `ModelError` if the source changes under it
    (nothing is left behind), `WrongUseError` for a folder that holds something else.
    """
    start = time.monotonic()
    with file_lock(lock_of(folder, leases), wait=True, holder=str(folder)):
        new = not folder.exists()
        known = _known_files(pinned, plan, folder, own=own)
        folder.mkdir(parents=True, exist_ok=True)
        sweep_parts(folder)
        todo = _not_there(plan, known, folder)
        require_space(folder, sum(file.size_bytes for file in todo))
        try:
            done, damaged = _copy(pinned, todo, known, folder)
            if tuple(pinned.source.list_files()) != pinned.files:
                raise ModelError(
                    f"{pinned.source.name} changed while it was copied", fix="try again when it rests"
                )
        except ModelError:
            if not (folder / MANIFEST_FILE).exists():
                _discard(plan, folder, remove_folder=new)
            raise
        had_manifest = (folder / MANIFEST_FILE).exists()
        manifest = None if damaged else _finish(pinned, plan, {**known, **done}, folder)
    return Staged(
        manifest=manifest,
        copied_bytes=sum(file.size_bytes for file in done.values()),
        seconds=time.monotonic() - start,
        restaged=tuple(done) if had_manifest else (),
        damaged=damaged,
        findings=plan.findings,
    )


class DiskBenchmark(Protocol):
    """Measures the disk that a folder is on."""

    def __call__(self, folder: Path, /) -> DiskFigures:
        """A few seconds of reading and writing. Raises `MissingToolError` where there is no fio."""


def measure_disk(benchmark: DiskBenchmark, folder: Path, now: datetime) -> DiskResult:
    """Measure the disk of `folder` and judge it against the baselines."""
    say(StageName.DISK, f"measuring {mount_of(folder)} with fio")
    figures = benchmark(folder)
    findings = slow_because(figures)
    if not figures.direct:
        findings += ("direct I/O was refused here: the figures include the system's cache",)
    return DiskResult(
        verdict=StagingVerdict.SLOW if slow_because(figures) else StagingVerdict.VERIFIED,
        mount=str(mount_of(folder)),
        at=now,
        figures=figures,
        findings=findings,
    )


def sweep_abandoned(models: Path, leases: Path) -> None:
    """Remove what killed runs left unfinished in any staged folder that nobody works on now."""
    for folder in {part.parent for part in models.glob(f"*/*{PART}")}:
        try:
            with file_lock(lock_of(folder, leases), wait=False, holder=str(folder)):
                sweep_parts(folder)
        except BusyError:
            continue


def lock_of(folder: Path, leases: Path) -> Path:
    """The lock under which `folder` is written."""
    return leases / f"model-{blake3(os.fsencode(folder.absolute())).hexdigest()[:16]}"


def _known_files(pinned: Pinned, plan: CopyPlan, folder: Path, *, own: bool) -> dict[str, StagedFile]:
    """What an earlier run says it staged here: from the manifest, or the ledger of an unfinished copy.

    Raises `WrongUseError` if a folder that is not Slipway's holds another model or something else.
    """
    planned = {file.path for file in plan.files}
    for name in (MANIFEST_FILE, LEDGER_FILE):
        try:
            earlier = Manifest.model_validate_json((folder / name).read_bytes())
        except (FileNotFoundError, ValidationError):
            continue
        if earlier.source_digest == pinned.digest and {file.path for file in earlier.files} <= planned:
            return {file.path: file for file in earlier.files}
        if name == MANIFEST_FILE:
            raise WrongUseError(
                f"{folder} already holds a copy of {earlier.source}, in another state or number of shards",
                fix="choose another folder, or remove this one",
            )
        for file in earlier.files:  # never finished, and now of no use
            if "/" not in file.path:
                (folder / file.path).unlink(missing_ok=True)
        (folder / name).unlink()
    foreign = sorted(path.name for path in folder.glob("*") if not path.name.endswith(PART))
    if foreign and not own:
        raise WrongUseError(f"{folder} is not empty: it holds {foreign[0]}", fix="choose an empty folder")
    return {}


def _not_there(plan: CopyPlan, known: Mapping[str, StagedFile], folder: Path) -> list[PlannedFile]:
    """Planned files that must be copied. Damaged ones are removed: they would only take room."""
    damaged = set(damaged_files(folder, list(known.values())))
    todo = [file for file in plan.files if file.path not in known or file.path in damaged]
    for file in todo:
        (folder / file.path).unlink(missing_ok=True)
    return todo


def _copy(
    pinned: Pinned, todo: Sequence[PlannedFile], known: Mapping[str, StagedFile], folder: Path
) -> tuple[dict[str, StagedFile], tuple[str, ...]]:
    done: dict[str, StagedFile] = {}
    damaged = []
    _note(pinned, known, folder)  # from now on the folder is known to be an unfinished copy
    with ThreadPoolExecutor(max_workers=pinned.source.parallel) as pool:
        for planned in todo:
            before = time.monotonic()
            staged = _write(pinned, planned, known.get(planned.path), folder, pool)
            if staged is None:
                damaged.append(planned.path)
                continue
            done[planned.path] = staged
            _note(pinned, {**known, **done}, folder)
            if planned.kind == "weights":
                rate = planned.size_bytes / 1e6 / max(time.monotonic() - before, 1e-6)
                say(
                    StageName.STAGING, f"{planned.path}: {planned.size_bytes / 1e6:.1f} MB at {rate:.0f} MB/s"
                )
    return done, tuple(damaged)


def _write(
    pinned: Pinned,
    planned: PlannedFile,
    expected: StagedFile | None,
    folder: Path,
    pool: ThreadPoolExecutor,
) -> StagedFile | None:
    """Write one file and name it by its digest; None, and no file, if it is not the one expected."""
    path = folder / planned.path
    part = path.with_name(path.name + PART)
    state = blake3(max_threads=blake3.AUTO)
    try:
        with part.open("wb") as file:
            for chunk in _chunks(pinned, planned, pool):
                current().check()
                state.update(chunk)
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        staged = StagedFile(
            path=planned.path,
            size_bytes=planned.size_bytes,
            digest=f"blake3:{state.hexdigest()}",
            kind=planned.kind,
        )
        if expected is not None and expected != staged:
            return None
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)  # before the free bytes are counted
        raise as_disk_full(error, path) from error
    finally:
        part.unlink(missing_ok=True)
    fsync_folder(folder)
    return staged


def _chunks(pinned: Pinned, planned: PlannedFile, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The file's bytes in order, with as many reads in flight as the source likes."""
    if planned.head:
        yield planned.head
    waiting: deque[Future[bytes]] = deque()
    try:
        for item in _split(planned.ranges):
            file = pinned.file(item.path)
            waiting.append(pool.submit(pinned.source.read, file, item.start, item.size_bytes))
            if len(waiting) >= pinned.source.parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _split(ranges: Sequence[Range]) -> Iterator[Range]:
    for item in ranges:
        for start in range(item.start, item.start + item.size_bytes, _CHUNK_BYTES):
            yield Range(item.path, start, min(_CHUNK_BYTES, item.start + item.size_bytes - start))


def _note(pinned: Pinned, files: Mapping[str, StagedFile], folder: Path) -> None:
    """Remember finished files, unless the manifest does already."""
    if not (folder / MANIFEST_FILE).exists():
        write_atomically(
            folder / LEDGER_FILE, _manifest(pinned, files.values()).model_dump_json(by_alias=True)
        )


def _finish(pinned: Pinned, plan: CopyPlan, files: Mapping[str, StagedFile], folder: Path) -> Manifest:
    manifest = _manifest(pinned, (files[planned.path] for planned in plan.files))
    write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    (folder / LEDGER_FILE).unlink(missing_ok=True)
    return manifest


def _manifest(pinned: Pinned, files: Iterable[StagedFile]) -> Manifest:
    return Manifest(source=pinned.source.name, source_digest=pinned.digest, files=tuple(files))


def _discard(plan: CopyPlan, folder: Path, *, remove_folder: bool) -> None:
    for name in (*(file.path for file in plan.files), LEDGER_FILE):
        (folder / name).unlink(missing_ok=True)
    if remove_folder and not any(folder.iterdir()):
        folder.rmdir()


def _carried(file: SourceFile) -> PlannedFile:
    return PlannedFile(file.path, "side", b"", (Range(file.path, 0, file.size_bytes),))
