"""Copy a model to the local disk: pinned, streamed, hashed on the way, resumable, repairable.

Files are written as `.part`, chunk by chunk, each noted in a ledger, so that a killed copy can be continued; then
fsync, rename, fsync of the folder; the manifest comes last. Memory use is one buffer per thread, whatever the size.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blake3 import blake3

from tasks.core.direct_io import CHUNK_BYTES
from tasks.core.errors import BusyError, ModelError, UnreadableError, WrongUseError
from tasks.core.files import (
    PART,
    discard,
    file_lock,
    fsync_folder,
    make_folder,
    require_space,
    sweep_parts,
    write_atomically,
)
from tasks.core.manifest import MANIFEST_FILE, Manifest, read_manifest
from tasks.core.model_shape import check_convertible, parse_model_config, shape_of
from tasks.engines.families import shape_findings
from tasks.engines.weights import gguf_engines
from tasks.staging import ledger
from tasks.staging.convertible import (
    TOKENIZER_FILE,
    check_features,
    check_tensors,
    check_tokenizer,
    is_decoder,
)
from tasks.staging.copier import Copied, copy, missing_bytes, part_of, place_of
from tasks.staging.gguf_choice import gguf_files, read_gguf_model
from tasks.staging.headers import check_whole, choose_files, read_weights
from tasks.staging.layout import FileKind, PlannedFile, Range, lay_out
from tasks.staging.ledger import LEDGER_FILE
from tasks.staging.models import SourceFile
from tasks.staging.plan import CONFIG_FILE, Selection, Staged
from tasks.staging.remote_code import code_finding, code_in, digests_of
from tasks.staging.source import Pinned, sums_of
from tasks.staging.weights import weight_format_of


@dataclass(frozen=True)
class CopyPlan:
    """The files to be written, and remarks about those that are not."""

    files: tuple[PlannedFile, ...]
    findings: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    """Those of the findings that are not about the model as a whole: what is left behind, what may be missing."""


def plan_copy(
    pinned: Pinned,
    shards: int | Literal["auto"],
    *,
    convertible: bool,
    servable: bool = False,
    tensor_parallel: int = 1,
    trust_remote_code: bool = False,
) -> CopyPlan:
    """Read index and headers, check everything in them, and lay out the shards.

    Raises `ModelError` for anything wrong with the model, before anything is written.
    """
    name = pinned.source.name
    code = code_in(pinned)
    digests = digests_of(pinned, code, trusted=trust_remote_code)
    selection = check_files(pinned, convertible=convertible, servable=servable, code=digests)
    carried = [_carried(pinned.file(path), "side") for path in selection.side]
    carried += [_carried(pinned.file(path), "gguf") for path in selection.gguf]
    described = _check_gguf(pinned, selection.gguf)
    if not selection.weights and not selection.index:
        return CopyPlan(tuple(carried), (*described, *selection.findings))
    config = parse_model_config(pinned.read_whole(CONFIG_FILE), f"{name}/{CONFIG_FILE}")
    weights = read_weights(pinned, selection)
    remarks = check_whole(weights, config, name, servable=servable or convertible)
    if convertible and is_decoder(config):
        check_tensors(config, weights.headers.values(), name)
    stored = weight_format_of(pinned)
    known = (
        *(
            shape_findings(config, shape_of(config, f"{name}/{CONFIG_FILE}"))
            if convertible or servable
            else ()
        ),
        *((f"comes quantized: {stored.describe()}",) if stored else ()),
        *filter(None, (code_finding(digests, code, trusted=trust_remote_code),)),
    )
    remarks = (*weights.findings, *remarks, *selection.findings)
    return CopyPlan(
        (*carried, *lay_out(weights.headers, shards, tensor_parallel)), (*known, *remarks), remarks
    )


def check_files(
    pinned: Pinned, *, convertible: bool, servable: bool = False, code: Collection[str] = ()
) -> Selection:
    """The files of the model, with those of its `code`, judged by their names, the configuration and the tokenizer: a
    few small reads.

    Raises `ModelError`.
    """
    name = pinned.source.name
    selection = choose_files(pinned, code)
    if not selection.weights and not selection.index:
        if servable and not convertible:
            raise ModelError(
                f"{name} contains only GGUF files, which the engine does not serve",
                fix=f"use engine: {' or '.join(gguf_engines())}, or give a folder with the model's safetensors",
            )
        return selection
    where = f"{name}/{CONFIG_FILE}"
    config = parse_model_config(pinned.read_whole(CONFIG_FILE), where)
    if convertible or servable:
        shape = shape_of(config, where)
        if convertible:
            check_convertible(shape, where)
        if convertible and is_decoder(config):  # BERT's maker checks its own
            check_features(config, name)
            there = any(file.path == TOKENIZER_FILE for file in pinned.files)
            check_tokenizer(pinned.read_whole(TOKENIZER_FILE) if there else None, config, name)
    return selection


def stage_model(
    pinned: Pinned, plan: CopyPlan, folder: Path, *, leases: Path, own: bool, chunk_bytes: int = CHUNK_BYTES
) -> Staged:
    """Make `folder` contain the planned files, copying only what is missing or damaged.

    `own` folders belong to Slipway, so unknown files in them may be removed.

    Raises `DiskFullError` before or during the copy and `UnreadableError` (both resumable), `ModelError` if the
    source changes meanwhile (nothing is left behind), `WrongUseError` for a folder with other content, or for a path
    that cannot be a folder.
    """
    start = time.monotonic()
    sums = sums_of(pinned)
    with file_lock(lock_of(folder, leases), wait=True, holder=str(folder)):
        if own and folder.is_file():
            discard(folder)
        new = make_folder(folder)
        manifest = _finished(pinned, plan, folder, own=own)
        if manifest is not None:
            return _mend(pinned, plan, manifest, folder, sums, start, own=own)
        this = ledger.Copy(pinned.source.name, pinned.digest, chunk_bytes, _sizes(plan))
        expected = _unfinished(this, folder, own=own)
        _sweep_unplanned(plan, folder, own=own)
        require_space(folder, missing_bytes(plan.files, folder))
        notes = ledger.Ledger.begin(folder, this)
        try:
            done = copy(
                pinned,
                plan.files,
                folder,
                expected=expected,
                binding=False,
                sums=sums,
                note=notes.note,
                chunk_bytes=chunk_bytes,
            )
            _check_unchanged(pinned)
        except UnreadableError:
            raise
        except ModelError:
            _discard(plan, folder, remove_folder=new)
            raise
        finally:
            notes.close()
        fsync_folder(folder)
        manifest = _finish(pinned, plan, done, folder, chunk_bytes)
    return Staged(
        manifest=manifest,
        copied_bytes=done.copied_bytes,
        seconds=time.monotonic() - start,
        findings=plan.findings,
    )


def repair_model(pinned: Pinned, folder: Path, *, leases: Path) -> Staged:
    """Read a staged model again and replace damaged chunks from the source, if that still has the same bytes.

    The source may have been touched or moved since: each chunk's digest decides. Raises `ModelError` for a folder
    without a manifest, or a source that is a different model now.
    """
    start = time.monotonic()
    with file_lock(lock_of(folder, leases), wait=True, holder=str(folder)):
        manifest = read_manifest(folder)
        plan = plan_copy(pinned, len(manifest.shards) or "auto", convertible=False)
        if not _is_planned(manifest, plan):
            raise ModelError(
                f"{pinned.source.name} is no longer the model that {folder} contains",
                fix="stage it into another folder",
            )
        return _mend(pinned, plan, manifest, folder, {}, start, own=False)


def _mend(
    pinned: Pinned,
    plan: CopyPlan,
    manifest: Manifest,
    folder: Path,
    sums: Mapping[str, str],
    start: float,
    *,
    own: bool,
) -> Staged:
    """Check every chunk that the manifest names; copy those that are damaged, and only with the same content."""
    _sweep_unplanned(plan, folder, own=own)
    require_space(folder, missing_bytes(plan.files, folder))
    done = copy(
        pinned,
        plan.files,
        folder,
        expected={file.path: dict(enumerate(file.chunks)) for file in manifest.files},
        binding=True,
        sums=sums,
        note=lambda *_: None,
        chunk_bytes=manifest.chunk_bytes,
    )
    _check_unchanged(pinned)
    fsync_folder(folder)
    return Staged(
        manifest=None if done.damaged else manifest,
        copied_bytes=done.copied_bytes,
        seconds=time.monotonic() - start,
        restaged=tuple(sorted(done.touched)),
        damaged=tuple(sorted(done.damaged)),
        findings=plan.findings,
    )


def _check_unchanged(pinned: Pinned) -> None:
    if tuple(pinned.source.list_files()) != pinned.files:
        raise ModelError(
            f"{pinned.source.name} changed while it was copied", fix="try again once it is stable"
        )


def sweep_abandoned(models: Path, leases: Path) -> None:
    """Remove unfinished files of killed runs in every staged folder that no run works on now.

    Copies that can be continued, those with a ledger, stay. So do files that the manifest names: its digests
    say which of their chunks a killed repair had written, and the next repair continues.
    """
    for folder in {part.parent for part in models.glob(f"*/*{PART}")}:
        if (folder / LEDGER_FILE).exists():
            continue
        try:
            with file_lock(lock_of(folder, leases), wait=False, holder=str(folder)):
                sweep_parts(folder, keep=_being_mended(folder))
        except BusyError:
            continue


def _being_mended(folder: Path) -> set[Path]:
    try:
        return {part_of(folder / file.path) for file in Manifest.read(folder).files}
    except (FileNotFoundError, NotADirectoryError, ModelError):
        return set()


def lock_of(folder: Path, leases: Path) -> Path:
    """The lock under which `folder` is written."""
    return leases / f"model-{blake3(os.fsencode(folder.absolute())).hexdigest()[:16]}"


def _finished(pinned: Pinned, plan: CopyPlan, folder: Path, *, own: bool) -> Manifest | None:
    """The manifest of a finished copy of this, or None if there is no usable one.

    Raises `WrongUseError` for another copy, `ModelError` for a manifest that cannot be read, unless the folder is
    Slipway's own: there, an unusable copy is replaced, for example one whose files an earlier version chose.
    """
    try:
        earlier = Manifest.read(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ModelError:
        if not own:
            raise
    else:
        if earlier.source_digest == pinned.digest and _is_planned(earlier, plan):
            return earlier
        if not own:
            raise WrongUseError(
                f"{folder} already contains {earlier.source}, but another version of it, or in other shards",
                fix="choose another folder, or remove this one",
            )
    discard(folder / MANIFEST_FILE)
    return None


def _is_planned(manifest: Manifest, plan: CopyPlan) -> bool:
    planned = {file.path: file.size_bytes for file in plan.files}
    return {file.path: file.size_bytes for file in manifest.files} == planned


def _unfinished(this: ledger.Copy, folder: Path, *, own: bool) -> Mapping[str, Mapping[int, str]]:
    """Chunks that a killed copy of the same model left. A copy of anything else is discarded.

    Raises `WrongUseError` if a folder that is not Slipway's contains anything else, even unfinished files:
    they may be a browser's.
    """
    noted = ledger.read_ledger(folder, this)
    if noted is not None:
        return noted
    named = ledger.named_files(folder)
    if named is not None:  # never finished, and useless now
        for path in named:
            (folder / path).unlink(missing_ok=True)
            part_of(folder / path).unlink(missing_ok=True)
        (folder / LEDGER_FILE).unlink()
    foreign = sorted(path.name for path in folder.glob("*"))
    if foreign and not own:
        raise WrongUseError(f"{folder} is not empty: it contains {foreign[0]}", fix="choose an empty folder")
    return {}


def _sizes(plan: CopyPlan) -> tuple[tuple[str, int], ...]:
    return tuple((file.path, file.size_bytes) for file in plan.files)


def _sweep_unplanned(plan: CopyPlan, folder: Path, *, own: bool) -> None:
    """Remove unfinished files that this copy will not continue.

    In a folder that is not Slipway's own, files with neither a planned name nor the manifest's belong to the user.
    """
    paths = [folder / file.path for file in plan.files]
    going_on = {place for place in map(place_of, paths) if not place.is_symlink()}
    parts = {*map(part_of, paths), *(folder.glob(f"*/*{PART}") if own else ())}
    parts |= {*folder.glob(f"*{PART}" if own else f"{MANIFEST_FILE}.[0-9]*{PART}")}
    for part in parts - going_on:
        if part.is_file() or part.is_symlink():
            part.unlink()


def _finish(pinned: Pinned, plan: CopyPlan, done: Copied, folder: Path, chunk_bytes: int) -> Manifest:
    manifest = Manifest(
        source=pinned.source.name,
        source_digest=pinned.digest,
        chunk_bytes=chunk_bytes,
        files=tuple(done.files[planned.path] for planned in plan.files),
    )
    write_atomically(folder / MANIFEST_FILE, manifest.render(), private=False)
    (folder / LEDGER_FILE).unlink(missing_ok=True)
    return manifest


def _discard(plan: CopyPlan, folder: Path, *, remove_folder: bool) -> None:
    for file in plan.files:
        (folder / file.path).unlink(missing_ok=True)
        part_of(folder / file.path).unlink(missing_ok=True)
    (folder / LEDGER_FILE).unlink(missing_ok=True)
    for below in {(folder / file.path).parent for file in plan.files} - {folder}:
        with contextlib.suppress(OSError):  # there is none, or something else is in it
            below.rmdir()
    if remove_folder and not any(folder.iterdir()):
        folder.rmdir()


def _check_gguf(pinned: Pinned, paths: Sequence[str]) -> tuple[str, ...]:
    """Refuse GGUF files that are damaged, cut off or lack a part; a remark about each model. Raises `ModelError`."""
    found = [(one, read_gguf_model(pinned, one.paths)) for one in gguf_files(paths)]
    return tuple(f"{one.paths[0]}: {model.describe()}" for one, model in found)


def _carried(file: SourceFile, kind: FileKind) -> PlannedFile:
    ranges = (Range(file.path, 0, file.size_bytes),) if file.size_bytes else ()
    return PlannedFile(file.path, kind, b"", ranges)
