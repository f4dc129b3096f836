"""Embeddings and scores as bytes, and as the numbers that they must be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocks.engine.load_client import _Exchange, _figures
from blocks.engine.load_prompts import embed_tokens, rank_words
from blocks.engine.vectors import describe_scores, describe_vectors, embeddings_in, scores_in
from blocks.engine.whole_answer import WholeAnswer
from tasks.core.errors import EngineError

EMBEDDING = json.dumps({"data": [{"index": 0, "embedding": [0.1, -2e-05, 3]}], "usage": None}).encode()
SCORES = json.dumps({"results": [{"index": 0, "relevance_score": -0.5}]}).encode()
EMPTY = b'{"data": [{"index": 0, "embedding": []}]}'
NAN = b'{"data": [{"index": 0, "embedding": [0.1, null]}]}'


def http(body: bytes, *, chunks: int = 0, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\n"
    if not chunks:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    parts = [body[start : start + chunks] for start in range(0, len(body), chunks)]
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + coded


def answered(content: bytes, *, reads: int = 1) -> WholeAnswer:
    answer = WholeAnswer()
    step = max(1, -(-len(content) // reads))
    for number, start in enumerate(range(0, len(content), step)):
        answer.feed(content[start : start + step], 1.0 + number)
    answer.end(9.0)
    return answer


@pytest.mark.parametrize("body", [EMBEDDING, SCORES])
@pytest.mark.parametrize("chunks", [0, 7])
def test_a_complete_answer_counts_as_one_at_its_last_byte(body: bytes, chunks: int) -> None:
    answer = answered(http(body, chunks=chunks), reads=3)
    assert (answer.done, answer.events, answer.tokens) == (True, 1, 1)
    assert (answer.first, answer.last, answer.fault) == (3.0, 3.0, None)
    assert answer.tpot_ms(1.0) is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (http(EMBEDDING)[:-1], False),
        (http(EMBEDDING, chunks=7)[:-5], False),
        (b"", False),
        (http(EMPTY), True),
        (http(NAN), True),
        (http(b'{"data": []}'), True),
        (http(b""), True),
        (http(EMBEDDING, chunks=7).replace(b"7\r\n", b"zz\r\n", 1), True),
        (http(b"busy", status="503 Service Unavailable"), False),
    ],
)
def test_what_is_cut_off_or_no_number_is_no_answer(content: bytes, fault: bool) -> None:
    answer = answered(content)
    assert not answer.done
    assert (answer.fault is not None) is fault
    with pytest.raises(EngineError):
        _Exchange(b"", answer=answer).check("http://engine")


def test_times_are_those_of_whole_answers() -> None:
    exchange = _Exchange(b"", answer=answered(http(EMBEDDING)))
    exchange.sent = 0.5
    figures = _figures([exchange], 1.0, 7.0, 1.0, whole=True)
    assert figures.latency_ms == {"latency_p50": 500.0, "latency_p95": 500.0}
    assert figures.tokens_per_s == 7.0


def test_requests_are_those_that_users_send() -> None:
    assert embed_tokens("m", [1, 2], 9) == {"model": "m", "input": [1, 2]}
    assert rank_words("m", ["where", "is", "the", "ship", "it", "lies", "here"], 9) == {
        "model": "m",
        "query": "where",
        "documents": ["is the ship it lies here"],
    }
    assert rank_words("m", ["ship"], 9)["documents"] == ["ship"]


def rows(*vectors: list[Any]) -> dict[str, Any]:
    return {"data": [{"index": number, "embedding": vector} for number, vector in enumerate(vectors)]}


def test_embeddings_come_in_the_order_of_their_texts() -> None:
    answer = {"data": list(reversed(rows([1, 0], [0, 1])["data"]))}
    assert embeddings_in(answer, 2, "engine") == [(1.0, 0.0), (0.0, 1.0)]
    assert describe_vectors([(0.5,) * 4]) == "4 numbers: 0.5000, 0.5000, 0.5000, …"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (rows([1, 0]), "did not return embeddings"),
        (rows([1, 0], [0, None]), "did not return embeddings"),
        (rows([1, 0], [1]), "of different lengths"),
        (rows([1, 0], [0, 0]), "an embedding of zeros"),
        (rows([1, 0], [0, float("nan")]), "not numbers"),
        (rows([], []), "not numbers"),
        ({"data": "text"}, "did not return embeddings"),
        ({}, "did not return embeddings"),
    ],
)
def test_what_is_no_embedding_is_told(answer: dict[str, Any], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        embeddings_in(answer, 2, "engine")


def test_scores_come_in_the_order_of_their_documents() -> None:
    answer = {
        "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": -1}],
    }
    assert scores_in(answer, 2, "engine") == [-1.0, 0.9]
    assert describe_scores([-1.0, 0.9]) == "scores -1.0000, 0.9000"
    for wrong in ({"results": answer["results"][:1]}, {"results": None}, {}):
        with pytest.raises(EngineError, match="did not return scores"):
            scores_in(wrong, 2, "engine")
