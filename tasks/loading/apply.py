"""Load a model with each loader, from a cold page cache each time, and compare the result with the files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from tasks.core.cancellation import current
from tasks.core.errors import CommandError, ModelError, NotFoundError
from tasks.core.progress import say
from tasks.core.safetensors import LENGTH_BYTES, Tensor, header_length, parse_header
from tasks.core.serving import Loader
from tasks.core.verdicts import ChoiceVerdict, StageName
from tasks.engines.catalogue import engines_with
from tasks.loading.models import Load, LoaderFigures, LoadingResult, Model
from tasks.loading.plan import choose, figures_of, find_model, loaders_for

_BLOCK_BYTES = 4 << 20


class LoadBench(Protocol):
    """Loads files in a fresh process."""

    @property
    def installed(self) -> bool:
        """Whether the libraries' environment is installed."""

    def available_bytes(self) -> int:
        """Memory that a load may take, bytes."""

    def make_cold(self, files: Sequence[Path]) -> None:
        """Evict the files from the page cache. Raises `SlipwayError` if they stay in it."""

    def load(self, loader: Loader, files: Sequence[Path], *, digest: bool) -> Load:
        """Load them once. Raises `CommandError` if the loader fails."""


def look_at(folder: Path) -> Model:
    """The model in a folder, its headers checked. Raises `NotFoundError` and `ModelError`."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist or is not a folder", fix="give the folder of a model")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    model = find_model(folder, sizes)
    if model.format == "safetensors":
        names = [tensor.name for file in model.files for tensor in _tensors(file)]
        if len(set(names)) != len(names):
            raise ModelError(
                f"{folder} contains tensors of the same name in several files", fix="copy it again"
            )
    return model


def compare_loaders(
    folder: Path, bench: LoadBench, *, runs: int, disk_read_mb_s: float | None, now: datetime
) -> LoadingResult:
    """Each loader `runs` times, taking turns, so that a busy moment does not hit one loader only.

    Raises `SlipwayError` if files cannot be evicted from the page cache, and what `look_at` raises.
    """
    model = look_at(folder)
    planned = loaders_for(model, installed=bench.installed, available_bytes=bench.available_bytes())
    loads: dict[Loader, list[Load]] = {loader: [] for loader, why in planned.items() if why is None}
    reasons = {loader: why for loader, why in planned.items() if why is not None}
    for run in range(runs):
        for loader in [loader for loader in loads if loader not in reasons]:
            current().check()
            bench.make_cold(model.files)
            try:
                load = bench.load(loader, model.files, digest=run == 0)
            except CommandError as error:
                reasons[loader] = f"failed: {(error.detail or error.what).splitlines()[-1]}"
                continue
            loads[loader].append(load)
            rate = load.size_bytes / 1e6 / load.seconds
            say(
                StageName.LOADING,
                f"{loader}, run {run + 1} of {runs}: {load.seconds:.2f} s, {rate:,.0f} MB/s",
            )
    reference = reference_digest(model)
    figures = tuple(
        LoaderFigures(loader=loader, reason=reasons[loader])
        if loader in reasons
        else figures_of(loader, loads[loader], reference)
        for loader in planned
    )
    chosen = choose(figures)
    return LoadingResult(
        verdict=ChoiceVerdict.CHOSEN if chosen else ChoiceVerdict.NONE,
        at=now,
        folder=folder,
        format=model.format,
        files=len(model.files),
        size_bytes=model.size_bytes,
        loaders=figures,
        chosen=chosen,
        engine_arguments=engines_with(chosen, model.format) if chosen else {},
        disk_read_mb_s=disk_read_mb_s,
        findings=tuple(f"{one.loader} {one.reason}" for one in figures if one.reason),
    )


def reference_digest(model: Model) -> str:
    """Digest of all tensors' bytes in the files, computed as in `worker/load.py`."""
    parts: dict[str, tuple[int, bytes]] = {}
    for file in model.files:
        tensors = _tensors(file) if model.format == "safetensors" else [_whole(file)]
        with file.open("rb") as content:
            for tensor in tensors:
                content.seek(tensor.start)
                state, left = hashlib.sha256(), tensor.size_bytes
                while left and (block := content.read(min(_BLOCK_BYTES, left))):
                    state.update(block)
                    left -= len(block)
                parts[tensor.name] = (tensor.size_bytes, state.digest())
                current().check()
    whole = hashlib.sha256()
    for name, (size, digest) in sorted(parts.items()):
        whole.update(json.dumps([name, size]).encode())
        whole.update(digest)
    return "sha256:" + whole.hexdigest()


def _tensors(file: Path) -> tuple[Tensor, ...]:
    size = file.stat().st_size
    with file.open("rb") as content:
        length = header_length(content.read(LENGTH_BYTES), size, str(file))
        return parse_header(content.read(length), size, str(file)).tensors


def _whole(file: Path) -> Tensor:
    return Tensor(file.name, "U8", (), 0, file.stat().st_size)
