"""Load on a served model: what is asked of the clients, and what they measured."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Load(BaseModel):
    """Clients that each ask one streamed completion after another, with prompts that no two requests share.

    Lengths are tokens; outputs vary by a quarter around `output_tokens`, so that requests do not march in step.
    The run ends once every client has had an answer, `min_s` have passed and `min_requests` are answered; on a
    slow engine after `max_s`, as soon as every client has had some tokens, so that a run takes no minutes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    min_s: float = Field(0.5, ge=0)
    max_s: float = Field(3, gt=0)
    min_requests: int = Field(4, ge=1)
    timeout_s: float = Field(300, gt=0)
    seed: int = 0


class LoadFigures(BaseModel):
    """What a load run measured.

    `ttft` is the time from sending a request to its first token; `tpot` the time per token after the first.
    `requests` counts those that had their first token before the end. `tokens_per_s` is of all clients together,
    over the whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: int = Field(ge=1)
    seconds: float = Field(gt=0)
    tokens_per_s: float = Field(ge=0)
    ttft_p50_ms: float
    ttft_p95_ms: float
    tpot_p50_ms: float
    tpot_p95_ms: float


def longest_output(output_tokens: int) -> int:
    """The longest output of a load that asks for `output_tokens`."""
    return output_tokens + output_tokens // 4


def load_for_decoding(*, context: int, output_tokens: int, seed: int = 0) -> Load:
    """One client whose time goes almost wholly into decoding: next to no prompt, a long answer."""
    room = context - longest_output(output_tokens)
    return Load(
        clients=1, prompt_tokens=max(1, min(8, room)), output_tokens=output_tokens, seed=seed, min_requests=2
    )


def load_for(*, clients: int, context: int, output_tokens: int, seed: int = 0) -> Load:
    """A load whose requests fit into `context` tokens: a prompt of a quarter of it, at most 128."""
    room = context - longest_output(output_tokens)
    return Load(
        clients=clients,
        prompt_tokens=max(1, min(128, context // 4, room)),
        output_tokens=output_tokens,
        seed=seed,
    )
