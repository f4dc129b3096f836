"""A Llama model with random weights in F16 as one GGUF file of some size. Runs with the engine environment's Python.

`python large_gguf.py FILE LAYERS`: each layer takes about 126 MB.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import numpy as np
import random_gguf

random_gguf.HIDDEN, random_gguf.HEADS, random_gguf.KV_HEADS, random_gguf.FFN = 2048, 16, 8, 8192
BLOCK = (np.random.default_rng(0).standard_normal((random_gguf.FFN, random_gguf.HIDDEN)) * 0.02).astype(
    np.float16
)


def values(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Cheap and different: the same block, turned."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    return np.resize(np.roll(BLOCK.ravel(), int(random.integers(1, 10_000))), shape)


if __name__ == "__main__":
    random_gguf.LAYERS = int(sys.argv.pop(2))
    random_gguf.values = values
    random_gguf.main()
