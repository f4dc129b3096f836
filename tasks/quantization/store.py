"""Candidates on disk: a file or a folder each, with a document written last that names its bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from tasks.core.digests import digest_of_model, files_below
from tasks.core.files import fsync_folder
from tasks.core.frozen import Frozen
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.models import Candidate

DOCUMENT = "candidate.json"


class CandidateDocument(Frozen):
    """`candidate.json`, written last: what lies next to it, and from what and by which converter it was made."""

    schema_: Literal["slipway.candidate/1"] = Field(default="slipway.candidate/1", alias="schema")
    model_digest: str
    maker_digest: str
    format: CandidateFormat
    digest: str
    size_bytes: int
    stored_as: str | None = None


def read_candidate(folder: Path, name: str, model_digest: str) -> Candidate | None:
    """The whole candidate `name` in `folder`; None if there is none or a byte of it has changed."""
    try:
        document = CandidateDocument.model_validate_json((folder / DOCUMENT).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValidationError):
        return None
    candidate = candidate_of(folder / name, document)
    return candidate if document.model_digest == model_digest and is_whole(candidate) else None


def candidate_of(path: Path, document: CandidateDocument) -> Candidate:
    """What the document says of the file or folder next to it."""
    return Candidate(
        format=document.format,
        path=path,
        digest=document.digest,
        size_bytes=document.size_bytes,
        stored_as=document.stored_as,
    )


def is_whole(candidate: Candidate) -> bool:
    """Whether the bytes that were measured are there, and no others: engines serve damaged tensors happily."""
    try:
        return (
            size_of(candidate.path) == candidate.size_bytes
            and digest_of_model(candidate.path) == candidate.digest
        )
    except FileNotFoundError:
        return False


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder. Raises `FileNotFoundError`."""
    return sum(file.stat().st_size for file in files_below(path)) if path.is_dir() else path.stat().st_size


def sync_model(path: Path) -> None:
    """Make a file, or a folder with all in it, durable."""
    for file in files_below(path) if path.is_dir() else [path]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if path.is_dir():
        fsync_folder(path)


def link_model(folder: Path, names: Sequence[str], to: Path) -> None:
    """Make `to` the model in these files of `folder`, without a second copy of their bytes if the disk is the same:
    the one file, or a folder with all of them."""
    if len(names) == 1:
        _link(folder / names[0], to)
        return
    to.mkdir()
    for name in names:
        _link(folder / name, to / name)


def _link(path: Path, to: Path) -> None:
    try:
        to.hardlink_to(path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(path, to)


def remove_model(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
