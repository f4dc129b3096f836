"""Which files of a source make up the model, and which bytes go into which shard. Pure."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tasks.core.digests import digest_of
from tasks.core.errors import ModelError, WrongUseError
from tasks.core.manifest import MANIFEST_FILE
from tasks.core.safetensors import BITS, Header, Tensor, render_header
from tasks.staging.models import DiskFigures, SourceFile

INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
SHARD_BYTES = 2 * 1024**3
"""Size that `auto` aims at: 0.5-4 GiB loads well, and leaves room beside it in GPU memory."""

READ_BASELINE_MB_S = 7000.0
RANDOM_WRITE_BASELINE_IOPS = 500_000.0
"""What the source article asks of a disk that serves models (PCIe 4 NVMe)."""

DISK_FIGURES_VALID_S = 7 * 24 * 3600

LEDGER_FILE = "progress.json"
RESERVED = {MANIFEST_FILE, LEDGER_FILE}
"""Names that staging itself uses: a source's own file of that name stays behind."""

_LAYOUT = 1
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_SIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
_SIDE_NAMES = ("license", "notice")


@dataclass(frozen=True)
class Selection:
    """The parts of a source: an index or the weights themselves, files carried along, and remarks."""

    index: str | None
    weights: tuple[str, ...]
    side: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Consecutive bytes of one source file."""

    path: str
    start: int
    size_bytes: int


@dataclass(frozen=True)
class PlannedFile:
    """One file to be written: `head`, then the ranges one after the other."""

    path: str
    kind: Literal["weights", "index", "side"]
    head: bytes
    ranges: tuple[Range, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.head) + sum(item.size_bytes for item in self.ranges)


def source_digest(name: str, files: Sequence[SourceFile]) -> str:
    """Names a source and the state its files are in, and the layout that is made of them."""
    listing = [[file.path, file.size_bytes, file.identity] for file in files]
    return digest_of({"layout": _LAYOUT, "source": name, "files": listing})


def select_files(files: Sequence[SourceFile], source: str) -> Selection:
    """Sort a source's files. Raises `ModelError` without safetensors or `config.json`; pickles never pass."""
    names = sorted(file.path for file in files)
    tensors = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if PurePosixPath(name).suffix in _PICKLED]
    if not tensors and INDEX_FILE not in names:
        if pickled:
            raise ModelError(
                f"{source}/{pickled[0]} holds pickled weights, which can run code when they are loaded",
                fix="convert the model to safetensors, or take a version of it that has them",
            )
        raise ModelError(f"{source} holds no safetensors", fix="give a folder in the Hugging Face layout")
    if CONFIG_FILE not in names:
        raise ModelError(f"{source} holds no {CONFIG_FILE}", fix="give a folder in the Hugging Face layout")
    index = INDEX_FILE if INDEX_FILE in names else None
    weights = () if index else tuple(["model.safetensors"] if "model.safetensors" in tensors else tensors)
    side = tuple(name for name in names if _is_side(name))
    findings = [f"{name} holds pickled weights and was left behind" for name in pickled]
    parts = {*tensors, *pickled, *side, INDEX_FILE}
    others = [name for name in names if name not in parts and not name.startswith(".")]
    if others:
        findings.append(f"not part of the model, left behind: {', '.join(others)}")
    return Selection(index, weights, side, tuple(findings))


def read_index(text: bytes, names: Iterable[str], where: str) -> Mapping[str, str]:
    """Tensor name to shard, from an index found at `where`. Raises `ModelError`."""
    try:
        weight_map = json.loads(text)["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ModelError(f"{where} is not an index of safetensors: it has no weight_map") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{where} is not an index of safetensors: its weight_map is empty or no map")
    there = set(names)
    for shard in weight_map.values():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{where} names {str(shard)[:80]!r}, which is not a shard in the model's folder")
        if shard not in there:
            raise ModelError(f"{where} names the shard {shard!r}, which is missing", fix="copy it again")
    return weight_map


def check_index(weight_map: Mapping[str, str], headers: Mapping[str, Header], where: str) -> None:
    """Every tensor that the index names must be in the shard it names. Raises `ModelError`."""
    held = {file: {tensor.name for tensor in header.tensors} for file, header in headers.items()}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            raise ModelError(
                f"{where} looks for the tensor {name[:80]!r} in {shard}, which does not hold it",
                fix="copy the model again",
            )


def lay_out(headers: Mapping[str, Header], wanted: int | Literal["auto"]) -> tuple[PlannedFile, ...]:
    """Shards and their index: whole tensors, balanced, each shard's data aligned. The same for equal input.

    Raises `ModelError` for a tensor that occurs twice, `WrongUseError` for more shards than tensors.
    """
    tensors = [(file, tensor) for file, header in sorted(headers.items()) for tensor in header.tensors]
    _check_unique(tensors)
    count = shard_count([tensor.size_bytes for _, tensor in tensors], wanted)
    metadata = _common_metadata([header.metadata for header in headers.values()])
    shards: list[PlannedFile] = []
    weight_map: dict[str, str] = {}
    for number, members in enumerate(balance([tensor.size_bytes for _, tensor in tensors], count), start=1):
        # The widest types first, so that each tensor is aligned to its own type; then as in the source.
        chosen = sorted((tensors[member] for member in members), key=lambda pair: -BITS[pair[1].dtype])
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        head = render_header([tensor for _, tensor in chosen], metadata)
        shards.append(PlannedFile(name, "weights", head, merge_ranges(chosen)))
        weight_map |= {tensor.name: name for _, tensor in chosen}
    total = sum(tensor.size_bytes for _, tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (*shards, PlannedFile(INDEX_FILE, "index", json.dumps(index, indent=1).encode()))


def shard_count(sizes: Sequence[int], wanted: int | Literal["auto"]) -> int:
    """How many shards to write; `auto` is one for each 2 GiB, at least one."""
    if not sizes:
        raise ModelError("the model holds no tensors", fix="copy or download it again")
    if wanted == "auto":
        return min(max(1, round(sum(sizes) / SHARD_BYTES)), len(sizes))
    if not 1 <= wanted <= len(sizes):
        raise WrongUseError(
            f"{wanted} shards are not possible: the model has {len(sizes)} tensors, which are never split",
            fix="ask for fewer shards, or auto",
        )
    return wanted


def balance(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Indices of `sizes` in `count` non-empty groups of about equal sum, each in rising order.

    The largest first, each to the lightest group: the heaviest is at most 4/3 of the best possible (Graham).
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    # The number of members breaks ties, so that tensors of no bytes cannot leave a group empty.
    lightest = [(0, 0, group) for group in range(count)]
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        weight, members, group = heapq.heappop(lightest)
        groups[group].append(item)
        heapq.heappush(lightest, (weight + sizes[item], members + 1, group))
    return [sorted(group) for group in groups]


def merge_ranges(members: Sequence[tuple[str, Tensor]]) -> tuple[Range, ...]:
    """The bytes of these tensors in this order, neighbours in the source as one range."""
    merged: list[Range] = []
    for path, tensor in members:
        last = merged[-1] if merged else None
        if last and last.path == path and last.start + last.size_bytes == tensor.start:
            merged[-1] = Range(path, last.start, last.size_bytes + tensor.size_bytes)
        elif tensor.size_bytes:
            merged.append(Range(path, tensor.start, tensor.size_bytes))
    return tuple(merged)


def slow_because(figures: DiskFigures) -> tuple[str, ...]:
    """In which respects a disk is below the baselines; empty if in none."""
    below = []
    if figures.read_mb_s < READ_BASELINE_MB_S:
        below.append(
            f"sequential read is {figures.read_mb_s:.0f} MB/s, the baseline {READ_BASELINE_MB_S:.0f}: "
            "models load slower from here"
        )
    if figures.random_write_iops < RANDOM_WRITE_BASELINE_IOPS:
        below.append(
            f"random write is {figures.random_write_iops:.0f} IOPS, "
            f"the baseline {RANDOM_WRITE_BASELINE_IOPS:.0f}"
        )
    return tuple(below)


def _is_side(name: str) -> bool:
    if name.endswith(".index.json") or name in RESERVED or not name.isprintable():
        return False
    return PurePosixPath(name).suffix in _SIDE or name.lower().startswith(_SIDE_NAMES)


def _check_unique(tensors: Sequence[tuple[str, Tensor]]) -> None:
    first: dict[str, str] = {}
    for file, tensor in tensors:
        if tensor.name in first:
            raise ModelError(
                f"the tensor {tensor.name[:80]!r} is in {first[tensor.name]} and again in {file}"
            )
        first[tensor.name] = file


def _common_metadata(all_metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What every file says alike, the format (`pt`) above all."""
    first = all_metadata[0]
    return {key: text for key, text in first.items() if all(m.get(key) == text for m in all_metadata)}
