"""How far each tensor of one GGUF file is from another's. Runs inside the engine's environment.

`python compare_gguf.py --baseline FILE --candidate FILE` prints `{"errors": {name: error}}`: the root mean square of
the difference over the baseline tensor's own standard deviation; null if a value is not a number, if a
tensor is missing, or if shapes differ. Of large tensors, evenly spread blocks of rows are compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BLOCK_VALUES = 1 << 18
MOST_BLOCKS = 16


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--candidate", type=Path, required=True)
    arguments = parser.parse_args()
    ours, theirs = tensors(arguments.candidate), tensors(arguments.baseline)
    errors = {name: error(ours.get(name), theirs.get(name)) for name in sorted({*ours, *theirs})}
    print(json.dumps({"errors": errors}))
    return 0


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def error(ours: gguf.ReaderTensor | None, theirs: gguf.ReaderTensor | None) -> float | None:
    """Root mean square of the difference, in standard deviations of `theirs`."""
    if ours is None or theirs is None or list(ours.shape) != list(theirs.shape):
        return None
    count, difference, total, square = 0, 0.0, 0.0, 0.0
    for mine, right in zip(blocks(ours), blocks(theirs), strict=True):
        count += right.size
        difference += float(np.square(mine - right).sum())
        total += float(right.sum())
        square += float(np.square(right).sum())
    deviation = max(0.0, square / count - (total / count) ** 2) ** 0.5
    found = (difference / count) ** 0.5
    relative = found / deviation if deviation else (0.0 if found == 0 else np.inf)
    return float(relative) if np.isfinite(relative) else None


def blocks(tensor: gguf.ReaderTensor) -> Iterator[np.ndarray[Any, Any]]:
    """Its values, rows at a time, in 64 bits: a vector's deviation may be tiny compared with its mean."""
    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    columns = int(tensor.shape[0])
    step = max(1, BLOCK_VALUES // columns)
    starts = range(0, len(data), step)
    for start in starts[:: max(1, -(-len(starts) // MOST_BLOCKS))]:
        part = np.ascontiguousarray(data[start : start + step])
        yield gguf.quants.dequantize(part, tensor.tensor_type).astype(np.float64)


if __name__ == "__main__":
    sys.exit(main())
