"""How a model's tensors are spread over shards, and which bytes of the source make up each chunk of them. Pure.

Tensors keep the order of the source, so a shard is a few long ranges of it: a disk reads those at full speed, and an
object store needs few requests.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.core.errors import ModelError, WrongUseError
from tasks.core.safetensors import BITS, Header, Tensor, render_header

INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
"""Size that `auto` aims at: it loads well, and leaves room in GPU memory for other data."""

LEAST_SHARD_BYTES = 512 << 20
"""Below this size, one shard per rank is not worth its file."""

_FORMAT = "format"

FileKind = Literal["weights", "index", "side", "gguf"]


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
    kind: FileKind
    head: bytes
    ranges: tuple[Range, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.head) + sum(item.size_bytes for item in self.ranges)


@dataclass(frozen=True)
class Chunk:
    """`size_bytes` of a planned file from `start` on: first `head`, then the ranges one after the other."""

    number: int
    start: int
    size_bytes: int
    head: bytes
    ranges: tuple[Range, ...]


def chunks_of(file: PlannedFile, chunk_bytes: int) -> Iterator[Chunk]:
    """The file cut into chunks, in order; the last may be shorter."""
    ranges = iter(file.ranges)
    rest: Range | None = None
    for number, start in enumerate(range(0, file.size_bytes, chunk_bytes)):
        size = min(chunk_bytes, file.size_bytes - start)
        head = file.head[start : start + size]
        room = size - len(head)
        parts = []
        while room:
            rest = rest or next(ranges)
            taken = min(room, rest.size_bytes)
            parts.append(Range(rest.path, rest.start, taken))
            left = rest.size_bytes - taken
            rest = Range(rest.path, rest.start + taken, left) if left else None
            room -= taken
        yield Chunk(number, start, size, head, tuple(parts))


def lay_out(
    headers: Mapping[str, Header], wanted: int | Literal["auto"], tensor_parallel: int = 1
) -> tuple[PlannedFile, ...]:
    """Shards and their index: whole tensors, balanced, each shard's data aligned. The same for equal input.

    Raises `ModelError` for a tensor that occurs twice, `WrongUseError` for more shards than tensors.
    """
    tensors = [(file, tensor) for file, header in sorted(headers.items()) for tensor in header.tensors]
    _check_unique(tensors)
    sizes = [tensor.size_bytes for _, tensor in tensors]
    count = shard_count(sizes, wanted, tensor_parallel)
    metadata = _common_metadata([header.metadata for header in headers.values()])
    shards: list[PlannedFile] = []
    weight_map: dict[str, str] = {}
    for number, (first, end) in enumerate(itertools.pairwise(cuts(sizes, count)), start=1):
        chosen = in_order(tensors[first:end])
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        head = render_header([tensor for _, tensor in chosen], metadata)
        shards.append(PlannedFile(name, "weights", head, merge_ranges(chosen)))
        weight_map |= {tensor.name: name for _, tensor in chosen}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(weight_map.items()))}
    return (*shards, PlannedFile(INDEX_FILE, "index", json.dumps(index, indent=1).encode()))


def shard_count(sizes: Sequence[int], wanted: int | Literal["auto"], tensor_parallel: int = 1) -> int:
    """How many shards to write.

    `auto` is one per 2 GiB, rounded to a multiple of the tensor-parallel size, so that every rank reads the same
    number. If that would make shards smaller than 0.5 GiB, it is a divisor of that size.
    """
    if not sizes:
        raise ModelError("the model contains no tensors", fix="copy or download it again")
    if wanted == "auto":
        return min(_auto_count(sum(sizes), tensor_parallel), len(sizes))
    if not 1 <= wanted <= len(sizes):
        raise WrongUseError(
            f"{wanted} shards are not possible: the model has {len(sizes)} tensors, which are never split",
            fix="ask for fewer shards, or auto",
        )
    return wanted


def _auto_count(total: int, ranks: int) -> int:
    count = max(1, round(total / SHARD_BYTES / ranks)) * ranks
    if count == ranks and total < ranks * LEAST_SHARD_BYTES:
        return max(
            n for n in range(1, ranks + 1) if ranks % n == 0 and (n == 1 or total >= n * LEAST_SHARD_BYTES)
        )
    return count


def cuts(sizes: Sequence[int], count: int) -> list[int]:
    """Where to cut a row of tensors into `count` non-empty stretches: `count` + 1 positions.

    Each cut is where the sum is nearest to its share, so no stretch differs from the average by more than the
    largest tensor.
    """
    sums = [0, *itertools.accumulate(sizes)]
    found = [0]
    for number in range(1, count):
        share = sums[-1] * number / count
        after = bisect_left(sums, share)
        nearest = after - 1 if after and share - sums[after - 1] <= sums[after] - share else after
        # At least one tensor here, and one for each remaining stretch.
        found.append(max(found[-1] + 1, min(nearest, len(sizes) - (count - number))))
    return [*found, len(sizes)]


def in_order(members: Sequence[tuple[str, Tensor]]) -> Sequence[tuple[str, Tensor]]:
    """The source's order if it aligns every tensor to its type; else the widest types first."""
    position = 0
    for _, tensor in members:
        if position * 8 % BITS[tensor.dtype]:
            return sorted(members, key=lambda pair: -BITS[pair[1].dtype])
        position += tensor.size_bytes
    return members


def merge_ranges(members: Sequence[tuple[str, Tensor]]) -> tuple[Range, ...]:
    """The bytes of these tensors in this order; neighbours in the source become one range."""
    merged: list[Range] = []
    for path, tensor in members:
        last = merged[-1] if merged else None
        if last and last.path == path and last.start + last.size_bytes == tensor.start:
            merged[-1] = Range(path, last.start, last.size_bytes + tensor.size_bytes)
        elif tensor.size_bytes:
            merged.append(Range(path, tensor.start, tensor.size_bytes))
    return tuple(merged)


def _check_unique(tensors: Sequence[tuple[str, Tensor]]) -> None:
    first: dict[str, str] = {}
    for file, tensor in tensors:
        if tensor.name in first:
            raise ModelError(
                f"the tensor {tensor.name[:80]!r} is in {first[tensor.name]} and again in {file}"
            )
        first[tensor.name] = file


def _common_metadata(all_metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The metadata that all files share, and the format (`pt`) also if some do not say it: Transformers before 5
    refuses files without one."""
    first = all_metadata[0]
    shared = {key: text for key, text in first.items() if all(m.get(key) == text for m in all_metadata)}
    formats = {m[_FORMAT] for m in all_metadata if _FORMAT in m}
    return shared | ({_FORMAT: formats.pop()} if len(formats) == 1 else {})
