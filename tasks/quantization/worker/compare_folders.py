"""How far each tensor of one model folder is from another's. Runs inside an environment with torch and safetensors.

`python compare_folders.py --baseline DIR --candidate DIR` prints `{"errors": {name: error}}`: the root mean square of
the difference over the baseline tensor's own standard deviation; null if a value is not a number, if a
tensor is missing, or if shapes differ. The baseline is in 16 bits or more, the candidate may be compressed
(8 bits with a scale for each row; 4 bits, eight to a word, with a scale for each group of a row). Of large
tensors, evenly spread blocks of rows are compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

BLOCK_VALUES = 1 << 18
MOST_BLOCKS = 16
BITS, IN_WORD = 4, 8
PARTS = ("_scale", "_shape", "_zero_point", "_g_idx")


class Folder:
    """The tensors of a model folder by name, uncompressed a block of rows at a time."""

    def __init__(self, path: Path) -> None:
        self.files: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            opened = safe_open(file, framework="pt")
            self.files |= dict.fromkeys(opened.keys(), opened)

    @property
    def names(self) -> set[str]:
        """Of the tensors before they were compressed."""
        return {name.removesuffix("_packed") for name in self.files if not self._is_part(name)}

    def _is_part(self, name: str) -> bool:
        """Whether it says how another tensor was compressed."""
        wholes = (name.removesuffix(end) for end in PARTS if name.endswith(end))
        return any(whole in self.files or f"{whole}_packed" in self.files for whole in wholes)

    def shape(self, name: str) -> list[int] | None:
        if f"{name}_packed" in self.files:
            return [int(size) for size in self._get(f"{name}_shape")]
        return list(self.files[name].get_slice(name).get_shape()) if name in self.files else None

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        """Rows of a tensor in 64 bits: a vector's deviation may be tiny compared with its mean."""
        scale = self._part(f"{name}_scale", start, end)
        if f"{name}_packed" in self.files:
            packed = self._part(f"{name}_packed", start, end)
            assert packed is not None
            values = unpack(packed)[:, : int(self._get(f"{name}_shape")[1])]
        else:
            part = self._part(name, start, end)
            assert part is not None
            values = part
        values = values.to(torch.float64)
        if scale is None:
            return values
        width = -(-values.shape[1] // scale.shape[1])
        return values * scale.to(torch.float64).repeat_interleave(width, dim=1)[:, : values.shape[1]]

    def _get(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.files[name].get_tensor(name)
        return found

    def _part(self, name: str, start: int, end: int) -> torch.Tensor | None:
        if name not in self.files:
            return None
        part: torch.Tensor = self.files[name].get_slice(name)[start:end]
        return part


def unpack(words: torch.Tensor) -> torch.Tensor:
    """Numbers from -8 to 7, the first in a word's lowest bits."""
    shifts = torch.arange(IN_WORD, dtype=torch.int32) * BITS
    found = (words[:, :, None] >> shifts) & (2**BITS - 1)
    return found.reshape(len(words), -1) - 2 ** (BITS - 1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--candidate", type=Path, required=True)
    arguments = parser.parse_args()
    ours, theirs = Folder(arguments.candidate), Folder(arguments.baseline)
    print(
        json.dumps(
            {"errors": {name: error(ours, theirs, name) for name in sorted(ours.names | theirs.names)}}
        )
    )
    return 0


def error(ours: Folder, theirs: Folder, name: str) -> float | None:
    """Root mean square of the difference, in standard deviations of `theirs`."""
    shape = theirs.shape(name)
    if shape is None or ours.shape(name) != shape:
        return None
    count, difference, total, square = 0, 0.0, 0.0, 0.0
    for start, end in blocks(shape):
        mine, right = ours.rows(name, start, end), theirs.rows(name, start, end)
        count += right.numel()
        difference += float(torch.square(mine - right).sum())
        total += float(right.sum())
        square += float(torch.square(right).sum())
    deviation = max(0.0, square / count - (total / count) ** 2) ** 0.5
    found = (difference / count) ** 0.5
    relative = found / deviation if deviation else (0.0 if found == 0 else float("inf"))
    return relative if relative < float("inf") else None


def blocks(shape: list[int]) -> Iterator[tuple[int, int]]:
    columns = shape[-1] if len(shape) > 1 else 1
    step = max(1, BLOCK_VALUES // columns)
    starts = range(0, shape[0], step)
    for start in starts[:: max(1, -(-len(starts) // MOST_BLOCKS))]:
        yield start, min(start + step, shape[0])


if __name__ == "__main__":
    sys.exit(main())
