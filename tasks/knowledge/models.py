"""What the knowledge base answers."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from tasks.core.engine_options import EngineArg
from tasks.core.frozen import Frozen
from tasks.core.records import Number, Record


class Cell(Frozen):
    """Engine x model x hardware: the best parameters that were measured there, and the record that says so.

    The hardware is the host and how many of its GPUs the engine had: `gpus`, 0 on the CPU. `gpu_layers` were on them,
    or the engine took `memory_fraction` of each. `batched_tokens` per step and `micro_batch_tokens` computed at once
    were its settings; None if it has no such setting, or used its default. `engine_args` and `engine_env` are what
    the spec gave it besides.
    `throughput` in `answers` a second (tokens, texts, documents), `memory_bytes` the largest peak, `ttft_ms` and
    `tpot_ms` 95th percentiles at that batch size; `quality_loss` relative to the baseline format. None: not measured.
    """

    engine: str
    model: str
    model_digest: str
    hardware: str
    host_fingerprint: str
    gpus: int
    gpu_layers: int | None
    memory_fraction: float | None
    batched_tokens: int | None
    micro_batch_tokens: int | None
    batch: int
    format: str | None
    context: int | None
    threads: int | None
    throughput: float
    memory_bytes: int | None
    kv_tokens: int
    memory_at_kv: Number | None
    """Peak memory with keys and values of `kv_tokens` tokens: measured, or predicted from measurements."""
    ttft_ms: float | None
    tpot_ms: float | None
    quality_loss: float | None
    answers: str = "tokens"
    measured: int
    """Number of records of this cell that have an answer."""
    at: datetime
    record: str
    engine_args: dict[str, EngineArg] = Field({})
    engine_env: dict[str, str] = Field({})


class Reason(Frozen):
    """One record behind a decision. `depth` counts the steps from the release; `missing` ones are named, but not in
    this store."""

    id: str
    depth: int
    record: Record | None

    @property
    def missing(self) -> bool:
        """Whether the record is missing from this store."""
        return self.record is None
