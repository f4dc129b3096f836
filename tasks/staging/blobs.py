"""Give a staged GGUF file to Ollama, without a second copy if it is on the same disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tasks.core.cancellation import current
from tasks.core.direct_io import CHUNK_BYTES, DirectFile, ring
from tasks.core.disk_faults import as_disk_fault
from tasks.core.errors import ModelError
from tasks.core.files import PART, fsync_folder, require_space, write_atomically
from tasks.core.manifest import damaged_files, read_manifest
from tasks.staging.ollama import (
    GGUF_HEAD_BYTES,
    LICENSE_MEDIA_TYPE,
    MODEL_MEDIA_TYPE,
    Layer,
    blob_path,
    config_layer,
    manifest_path,
    render_config,
    render_manifest,
)


@dataclass(frozen=True)
class Exported:
    """A model in Ollama's folder: its manifest, the blob of its weights, and how many bytes had to be copied."""

    manifest: Path
    blob: Path
    copied_bytes: int


def export_to_ollama(folder: Path, store: Path, name: str) -> Exported:
    """Make `name` a model of the Ollama whose `OLLAMA_MODELS` is `store`, from the staged model in `folder`.

    Raises `ModelError` if that has no GGUF file, several, or a damaged one, `WrongUseError` for a name that Ollama
    does not accept, `DiskFullError`.
    """
    manifest = store / manifest_path(name)
    staged = read_manifest(folder)
    weights = [file for file in staged.files if file.kind == "gguf"]
    if len(weights) != 1:
        raise ModelError(
            f"{folder} contains {len(weights)} GGUF files, but Ollama takes exactly one",
            fix="stage a source with one GGUF file",
        )
    licenses = [file for file in staged.files if file.path.lower().startswith("license")]
    if damaged := damaged_files(folder, [*weights, *licenses], staged.chunk_bytes):
        raise ModelError(f"{folder / damaged[0]} is damaged", fix=f"slipway stage verify --repair {folder}")
    copied = 0
    layers = []
    for file, media_type in [
        (weights[0], MODEL_MEDIA_TYPE),
        *((one, LICENSE_MEDIA_TYPE) for one in licenses),
    ]:
        layer = Layer(media_type, _sha256(folder / file.path, file.size_bytes), file.size_bytes)
        copied += _place(folder / file.path, store / blob_path(layer.sha256))
        layers.append(layer)
    with (folder / weights[0].path).open("rb") as opened:
        config = render_config(opened.read(GGUF_HEAD_BYTES), layers)
    digest = hashlib.sha256(config).hexdigest()
    write_atomically(store / blob_path(digest), config, private=False)
    text = render_manifest(config_layer(digest, len(config)), layers)
    write_atomically(manifest, text, private=False)
    return Exported(manifest, store / blob_path(layers[0].sha256), copied)


def _sha256(path: Path, size_bytes: int) -> str:
    state = hashlib.sha256()
    (buffer,) = ring(1, CHUNK_BYTES)
    with DirectFile(path, os.O_RDONLY) as file:
        for offset in range(0, size_bytes, CHUNK_BYTES):
            current().check()
            file.read_into(offset, min(CHUNK_BYTES, size_bytes - offset), buffer, 0, state.update)
    return state.hexdigest()


def _place(path: Path, blob: Path) -> int:
    """Link the file to the blob's name, or copy it to another disk; the number of bytes copied."""
    size = path.stat().st_size
    if blob.is_file() and blob.stat().st_size == size:
        return 0
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.{os.getpid()}{PART}")
    copied = 0
    try:
        try:
            os.link(path, part)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            require_space(blob.parent, size)
            copied = size
            shutil.copyfile(path, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.rename(blob)
    except OSError as error:
        raise as_disk_fault(error, blob) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    fsync_folder(blob.parent)
    return copied
