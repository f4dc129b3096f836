"""What the bytes of a streamed answer tell: first token after 200 ms, one more each 20 ms, in many dialects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.engine.answer_stream import AnswerStream

FIRST_S, STEP_S, TOKENS = 0.200, 0.020, 40
START = 100.0
HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

Read = tuple[float, str]
"""When it comes, in seconds from the start, and what."""


def text(piece: str, **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "text": piece, "finish_reason": None}], **more}


def delta(**parts: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": parts, "finish_reason": None}]}


def event(value: object, space: str = " ", newline: str = "\n") -> str:
    return f"data:{space}{value if isinstance(value, str) else json.dumps(value)}{newline}{newline}"


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS}}
END: Read = (FIRST_S + STEP_S * (TOKENS - 1), event(USAGE) + event("[DONE]"))


def came(token: int) -> float:
    """When token `token`, counted from 1, is made."""
    return FIRST_S + STEP_S * (token - 1)


def stream(make: Any = text, **style: str) -> list[Read]:
    """An event for each token, and the end."""
    reads = [(came(token), event(make("tok"), **style)) for token in range(1, TOKENS + 1)]
    return [*reads, (END[0], event(USAGE, **style) + event("[DONE]", **style))]


def in_chunks(first: int, size: int) -> list[Read]:
    """Events that hold several tokens."""
    ends = [first, *range(first + size, TOKENS, size), TOKENS]
    return [
        (came(1), event(text("tok"))),
        *((came(end), event(text("tok " * size))) for end in ends[1:]),
        END,
    ]


def buffered(reads: list[Read], size: int) -> list[Read]:
    """Several events at once, when the last of them comes."""
    groups = [reads[start : start + size] for start in range(0, len(reads), size)]
    return [(group[-1][0], "".join(piece for _, piece in group)) for group in groups]


def cut(reads: list[Read]) -> Iterator[Read]:
    """Each event in two reads."""
    for at, piece in reads:
        yield at, piece[:9]
        yield at, piece[9:]


CASES: dict[str, list[Read]] = {
    "plain": stream(),
    "CRLF": stream(newline="\r\n"),
    "no space after data:": stream(space=""),
    "an empty first event": [(0.001, event(text(""))), *stream()],
    "an event of the prompt's filter": [
        (0.001, event({"choices": [], "prompt_filter_results": []})),
        *stream(),
    ],
    "a chat: the role first": [
        (0.001, event(delta(role="assistant", content=""))),
        *stream(lambda piece: delta(content=piece)),
    ],
    "a chat: a role without content": [
        (0.001, event(delta(role="assistant", content=None))),
        *stream(lambda piece: delta(content=piece)),
    ],
    "a chat that thinks": [
        (0.001, event(delta(role="assistant", content=""))),
        *stream(lambda piece: delta(reasoning_content=piece, content="")),
    ],
    "a chat that calls a tool": [
        (0.001, event(delta(role="assistant", content=""))),
        *stream(lambda piece: delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])),
    ],
    "comments in between": [(0.001, ": ping\n\n"), *stream()],
    "the usage in each event": stream(lambda piece: text(piece, usage={"completion_tokens": 1})),
    "a reason at the end": [
        *stream()[:-1],
        (END[0], event({"choices": [{"text": "", "finish_reason": "length"}]})),
    ],
    "no mark at the end": [*stream()[:-1], (END[0], event(USAGE))],
    "no usage": [*stream()[:-1], (END[0], event("[DONE]"))],
    "four tokens an event": in_chunks(1, 4),
    "cut anywhere": list(cut(stream())),
    "text that quotes an event": stream(lambda _: text('"text": "" data: {"text": ""')),
}


def read(reads: list[Read]) -> AnswerStream:
    answer = AnswerStream()
    answer.feed(HEAD.encode(), START)
    for at, piece in reads:
        answer.feed(piece.encode(), START + at)
    answer.end(START + reads[-1][0])
    return answer


@pytest.mark.parametrize("name", CASES)
def test_the_first_token_and_the_time_per_token_are_true(name: str) -> None:
    answer = read(CASES[name])
    assert answer.done
    assert answer.fault is None
    assert answer.first - START == pytest.approx(FIRST_S)
    assert answer.tpot_ms(answer.tokens / answer.events) == pytest.approx(1000 * STEP_S)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_events_that_a_buffer_gathers_still_tell_the_time_per_token(size: int) -> None:
    """The first of them comes late: nobody can see that here."""
    answer = read([*buffered(stream()[:-1], size), END])
    assert answer.first - START == pytest.approx(came(size))
    assert answer.tpot_ms(1.0) == pytest.approx(1000 * STEP_S)


@pytest.mark.parametrize("apart_s", [None, 0.004])
def test_what_came_in_one_piece_tells_no_time_per_token(apart_s: float | None) -> None:
    """Nor what a buffer let out in two, a moment apart: 0.2 ms a token are no engine's."""
    whole = "".join(piece for _, piece in stream())
    middle = whole.index("\n\n", len(whole) // 2) + 2 if apart_s else len(whole)
    answer = read([(0.9, whole[:middle]), (0.9 + (apart_s or 0), whole[middle:] or "\n")])
    assert answer.done
    assert answer.events == TOKENS
    assert answer.tpot_ms(1.0) is None


def test_short_answers_are_measured_if_each_token_came_alone() -> None:
    reads = [(came(1), event(text("a"))), (came(2), event(text("b"))), (came(2), event("[DONE]"))]
    assert read(reads).tpot_ms(1.0) == pytest.approx(1000 * STEP_S)
    assert read([*buffered(reads, 2), (1.0, "\n")]).tpot_ms(1.0) is None


def test_tokens_without_text_count_where_an_answer_has_no_others() -> None:
    """A model with random weights may say nothing but special tokens."""
    silent = read([*((at, event(text(""))) for at, _ in stream()[:-1]), END])
    assert (silent.events, silent.tokens) == (TOKENS, TOKENS)
    assert silent.first - START == pytest.approx(FIRST_S)
    halves = read([(0.001, event(delta(role="assistant", content=""))), END])
    assert (halves.done, halves.events, halves.tokens) == (True, 0, TOKENS)
    assert (halves.first, halves.last - START) == (0, pytest.approx(END[0]))
    assert halves.tpot_ms(1.0) is None


@pytest.mark.parametrize(
    "fault",
    [
        {"error": {"message": "CUDA error", "code": 500}},
        {"object": "error", "message": "CUDA error", "code": 500},
    ],
)
def test_an_error_in_the_stream_is_named(fault: dict[str, Any]) -> None:
    answer = read([*stream()[:5], (0.3, event(fault)), (0.3, event("[DONE]"))])
    assert answer.fault is not None
    assert b"CUDA error" in answer.fault


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter"])
def test_an_answer_that_was_given_up_is_not_whole(reason: str) -> None:
    given_up = {"choices": [{"text": "", "finish_reason": reason}]}
    assert not read([*stream()[:5], (0.3, event(given_up))]).done


@given(st.data())
def test_where_reads_end_changes_no_count(data: st.DataObject) -> None:
    whole = "".join(piece for _, piece in stream()).encode()
    ends = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    answer = AnswerStream()
    for start, end in zip([0, *ends], [*ends, len(whole)], strict=True):
        answer.feed(whole[start:end], START)
    answer.end(START)
    assert (answer.done, answer.events, answer.tokens) == (True, TOKENS, TOKENS)
