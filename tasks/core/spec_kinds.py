"""The words that a spec chooses from."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

CARDS = Path(__file__).parent.parent / "engines" / "cards"
"""One file for each serving engine that is known. Their names are all that the spec needs of them."""

_NAMES = {
    re.sub("[-.]", "_", name).upper(): name for name in sorted(file.stem for file in CARDS.glob("*.toml"))
}

EngineKind = StrEnum("EngineKind", _NAMES)  # type: ignore[misc]
"""Known serving engines; `slipway engines` says which of them can be deployed today."""

DEFAULT_ENGINE = EngineKind("llama.cpp")


class Target(StrEnum):
    """Where a release runs."""

    PROCESS = "process"
    DOCKER = "docker"

    @property
    def in_image(self) -> bool:
        """Whether it runs in an image: one that is built from the environment's lock, or the makers' own."""
        return self is Target.DOCKER


class CandidateFormat(StrEnum):
    """Formats that the quantization stage can make; the card of an engine says which of them it serves.

    `AS_IS` is a model that comes as GGUF, in whatever quantization: nothing is made.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q6_K = "q6_k"
    Q5_K_M = "q5_k_m"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_K_M = "q4_k_m"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    W8A8 = "w8a8"
    W4A16 = "w4a16"
    FP8 = "fp8"
    AS_IS = "as-is"


DEFAULT_CANDIDATES = (CandidateFormat.F16,)


class QuantizationPolicy(StrEnum):
    """What counts first among the candidates that keep the quality floor."""

    ACCURACY = "accuracy"
    LATENCY = "latency"
    RESOURCES = "resources"


class EnvironmentManager(StrEnum):
    """What makes the engine's environment; `system` uses an existing one."""

    UV = "uv"
    CONDA = "conda"
    SYSTEM = "system"


class DiskFloor(StrEnum):
    """What a disk below the baselines does to a deploy."""

    WARN = "warn"
    BLOCK = "block"


class LoadKind(StrEnum):
    """Whether a client waits for its answer before the next request."""

    CLOSED = "closed"
    OPEN = "open"


class LoadGenerator(StrEnum):
    """What sends the requests that batch sizes are measured with."""

    BUILTIN = "builtin"
    GUIDELLM = "guidellm"
