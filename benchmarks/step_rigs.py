"""Servers on a processor made from a seed, whose steps can be longer or shorter. What the search for them is scored
on.

After what llama.cpp does (ADR 49): prompts of the first slots first, a pause for all others while they are taken in,
a buffer for each token that is computed at once. The generator stays as it is: a change would let the search be
fitted to its test. Scores are taken on seeds that nothing was tuned with.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.placement_rigs import MEMORY_FRACTION, TOLERANCE, TPOT, TTFT, BaseRig
from tasks.batching.models import Devices, Footprint, Limits, Placement, Requests, Run
from tasks.engines.failures import Failure, FailureKind

BATCHED, MICRO = 2048, 512
BATCHED_LADDER = (64, 128, 256, 512, 1024, 4096, 8192)
MICRO_LADDER = (64, 128, 256, 1024, 2048)


@dataclass(frozen=True)
class StepRig(BaseRig):
    """Times in ms: a step takes `step_ms`, `each_ms` more for each sequence, and `token_ms` for each token of a
    prompt; of a micro-batch of few tokens each takes longer, by `half_tokens`. Of the longest step that others'
    prompts fill a token waits for the part `waits`, beside its share of all prompts. Bytes: `fixed_bytes`,
    `each_bytes` for a sequence, `token_bytes` for a token that is computed at once."""

    requests: Requests
    step_ms: float
    each_ms: float
    token_ms: float
    half_tokens: float
    waits: float
    fixed_bytes: float
    each_bytes: float
    token_bytes: float

    @property
    def capacity_bytes(self) -> int:
        return self.devices.host_bytes

    def placements(self) -> Iterator[Placement]:
        for batched, micro in itertools.product((None, *BATCHED_LADDER), (None, *MICRO_LADDER)):
            if (micro or 0) <= (batched or BATCHED):
                yield Placement(batched_tokens=batched, micro_batch_tokens=micro)

    def truth(self, placement: Placement, batch: int) -> Run:
        batched = placement.batched_tokens or BATCHED
        micro = min(batched, placement.micro_batch_tokens or MICRO)
        prompt, answer = self.requests.prompt_tokens, self.requests.output_tokens
        if batch * (prompt + answer) > prompt + answer * batched:
            return Run.failing(batch, Failure(kind=FailureKind.HUNG, what="the last slot gets no step"))
        token = self.token_ms * (1 + self.half_tokens / micro)
        step = self.step_ms + self.each_ms * batch
        others = (batch - 1) * prompt
        pause = min(batched, others) * token
        return Run(
            batch=batch,
            peak_bytes=int(self.fixed_bytes + self.each_bytes * batch + self.token_bytes * micro),
            latency_ms={
                TPOT: step + 0.3 * others * token / answer + self.waits * pause,
                TTFT: step + batch * prompt * token,
            },
            throughput=1000 * batch / (step * (1 + 8 / batched) + batch * prompt * token / answer),
        )


def make_step_rig(seed: int) -> StepRig:
    """From short prompts to long ones; in most the time per token or memory ends the sizes, in some nothing does."""
    make = random.Random(f"steps {seed}")
    step_ms = 2 ** make.uniform(1, 7)
    each_ms = step_ms / 2 ** make.uniform(2, 7)
    weights = 2 ** make.uniform(30, 35)
    token_bytes = make.choice((0.0, weights / 2 ** make.uniform(10, 15)))
    each_bytes = weights / 2 ** make.uniform(2, 9)
    fixed = weights * make.uniform(1.0, 1.1)
    room = 2 ** make.uniform(-0.5, 7)
    bound = fixed + token_bytes * MICRO + each_bytes * room
    reach = 2 ** make.uniform(0, 6)
    latency = {TPOT: step_ms + each_ms * reach + make.uniform(0, 4) * step_ms} if make.random() < 0.7 else {}
    return StepRig(
        seed=seed,
        limits=Limits(
            memory_bytes=int(bound),
            latency_ms=latency,
            tolerance=TOLERANCE,
            max_batch=make.choice((8, 32, 128)),
        ),
        footprint=Footprint(
            layers=1, layer_bytes=int(weights), output_bytes=0, kv_bytes=1, heads=1, kv_heads=1
        ),
        devices=Devices(host_bytes=int(bound / MEMORY_FRACTION)),
        spread=make.uniform(0.005, 0.03),
        memory_spread=make.uniform(0, 0.003),
        requests=Requests(
            prompt_tokens=make.choice((32, 128, 256, 512, 1500, 4000)),
            output_tokens=make.choice((32, 128, 256)),
        ),
        step_ms=step_ms,
        each_ms=each_ms,
        token_ms=step_ms / 2 ** make.uniform(1, 7),
        half_tokens=make.choice((8.0, 64.0, 256.0)),
        waits=make.uniform(0.02, 0.3),
        fixed_bytes=fixed,
        each_bytes=each_bytes,
        token_bytes=token_bytes,
    )
