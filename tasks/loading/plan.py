"""Which loaders to try on a model, and which of them to use. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tasks.core.errors import ModelError
from tasks.core.prefetch import why_not
from tasks.core.records import Record
from tasks.core.serving import LIBRARIES, Loader
from tasks.loading.models import Load, LoaderFigures, Model

FIGURES_VALID_S = 7 * 24 * 3600

REQUIREMENTS = (
    "torch==2.13.0",
    "numpy>=2,<3",
    "safetensors==0.8.0",
    "fastsafetensors==0.5.0",
    "runai-model-streamer==0.17.0",
)
"""Packages of the libraries' environment."""


def find_model(folder: Path, sizes: Mapping[str, int]) -> Model:
    """The model among a folder's files, given by name and size. Raises `ModelError` if there is none."""
    for kind in ("safetensors", "gguf"):
        names = sorted(name for name, size in sizes.items() if name.endswith(f".{kind}") and size)
        if names:
            size = sum(sizes[name] for name in names)
            return Model(format=kind, files=tuple(folder / name for name in names), size_bytes=size)
    raise ModelError(
        f"{folder} contains neither safetensors nor GGUF files",
        fix="give the folder of a model, or stage one",
    )


def loaders_for(model: Model, *, installed: bool, available_bytes: int) -> dict[Loader, str | None]:
    """All loaders of the model's format, each with the reason why it is not tried; None for those that are."""
    missing = (
        None if installed else "not installed: slipway bench load --install builds an environment for it"
    )
    no_room = "does not fit into memory" if why_not(model.size_bytes, available_bytes) else None
    found: dict[Loader, str | None] = {Loader.MMAP: None, Loader.PREFETCH: no_room}
    if model.format == "safetensors":
        found |= dict.fromkeys(LIBRARIES, missing or no_room)
    return found


def figures_of(loader: Loader, loads: Sequence[Load], reference: str | None) -> LoaderFigures:
    """Medians of at least one load, of which the first has a digest; `reference` is the right digest."""
    size = loads[0].size_bytes
    seconds = statistics.median(load.seconds for load in loads)
    golden = loads[0].digest == reference
    return LoaderFigures(
        loader=loader,
        golden=golden,
        reason=None if golden else "gave different bytes than the files",
        seconds=seconds,
        mb_s=size / 1e6 / seconds,
        cpu_s_per_gb=statistics.median(load.cpu_s for load in loads) / (size / 1e9),
        anonymous_bytes=int(statistics.median(load.anonymous_bytes for load in loads)),
        peak_bytes=max(load.peak_bytes for load in loads),
        runs_s=tuple(load.seconds for load in loads),
    )


def choose(loaders: Sequence[LoaderFigures]) -> Loader | None:
    """The fastest that gave the right bytes; None if none did."""
    right = [(figures.seconds, figures.loader) for figures in loaders if figures.golden and figures.seconds]
    return min(right)[1] if right else None


def find_choice(
    records: Iterable[Record], *, host: str, mount: Path, file_format: str
) -> tuple[Loader, str] | None:
    """The loader that last won on this host's disk for files of this format, and the record that says so."""
    for record in sorted(records, key=lambda record: record.id, reverse=True):
        if not record.good or record.host_fingerprint != host:
            continue
        inputs, result = record.evidence.get("inputs", {}), record.evidence.get("result", {})
        if (inputs.get("mount"), result.get("format")) != (str(mount), file_format):
            continue
        if (chosen := result.get("chosen")) in list(Loader):
            return Loader(chosen), record.id
    return None
