from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.rollout.daemon.messages import (
    BadMessageError,
    Chunked,
    Framing,
    Sized,
    UntilClose,
    parse_answer,
    parse_request,
)


def feed_in_pieces(framing: Framing, data: bytes, cuts: list[int]) -> int:
    """Feed `data` cut at these places until the body is done; how many bytes it took."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    taken = 0
    for start, end in itertools.pairwise(edges):
        if framing.done:
            break
        used = framing.feed(data[start:end])
        taken += used
        assert used == end - start or framing.done
    return taken


CUTS = st.lists(st.integers(0, 10_000), max_size=8)
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(CHUNKS, st.booleans(), st.binary(max_size=30), CUTS)
def test_a_chunked_body_ends_where_it_ends_however_it_is_cut(
    chunks: list[bytes], trailer: bool, following: bytes, cuts: list[int]
) -> None:
    body = b"".join(b"%x;name=value\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    body += b"0\r\n" + (b"Digest: x\r\n" if trailer else b"") + b"\r\n"
    framing = Chunked()
    assert feed_in_pieces(framing, body + following, cuts) == len(body)
    assert framing.done


@given(CHUNKS, CUTS)
def test_an_unfinished_chunked_body_is_not_done(chunks: list[bytes], cuts: list[int]) -> None:
    body = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n"
    framing = Chunked()
    assert feed_in_pieces(framing, body, cuts) == len(body)
    assert not framing.done


@given(st.binary(max_size=60), st.integers(0, 60), CUTS)
def test_a_sized_body_takes_its_size(data: bytes, size: int, cuts: list[int]) -> None:
    framing = Sized(size)
    assert feed_in_pieces(framing, data, cuts) == min(size, len(data))
    assert framing.done == (len(data) >= size)


@pytest.mark.parametrize("size", [b"-1", b"0x10", b"1_0", b"", b"g", b"1" * 17])
def test_a_chunk_size_is_plain_hexadecimal(size: bytes) -> None:
    with pytest.raises(BadMessageError, match="a chunk's size"):
        Chunked().feed(size + b"\r\n")


def test_a_chunk_header_is_bounded() -> None:
    with pytest.raises(BadMessageError, match="too long"):
        Chunked().feed(b"1" * 9000)


def request(*headers: str, first: str = "POST /v1/completions HTTP/1.1") -> bytes:
    return "\r\n".join([first, *headers, "", ""]).encode()


def test_requests_say_how_long_they_are() -> None:
    plain = parse_request(request(first="GET /health HTTP/1.1"))
    assert (plain.method, plain.body.done, plain.keeps_alive) == (b"GET", True, True)
    sized = parse_request(request("Content-Length: 12"))
    assert sized.body.feed(bytes(20)) == 12
    chunked = parse_request(request("TRANSFER-ENCODING: gzip, Chunked", "Content-Length: 12"))
    assert isinstance(chunked.body, Chunked)
    assert not parse_request(request("Connection: x, Close")).keeps_alive
    assert not parse_request(request(first="GET / HTTP/1.0")).keeps_alive
    assert parse_request(request("connection: keep-alive", first="GET / HTTP/1.0")).keeps_alive


@pytest.mark.parametrize(
    "head",
    [
        request(first="hello"),
        request(first="GET / HTTP/2.0"),
        request(first="GET  / HTTP/1.1"),
        request("no colon"),
        request("Name : value"),
        request(" folded: value"),
        request("Content-Length: 1", "Content-Length: 2"),
        request("Content-Length: +1"),
        request("Content-Length: "),
        request("Transfer-Encoding: gzip"),
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    with pytest.raises(BadMessageError):
        parse_request(head)


def answer(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def test_answers_say_how_long_they_are() -> None:
    assert parse_answer(answer("200 OK", "Content-Length: 0"), b"GET").body.done
    assert parse_answer(answer("200 OK", "Content-Length: 7"), b"HEAD").body.done
    assert parse_answer(answer("204 No Content"), b"POST").body.done
    assert parse_answer(answer("100 Continue"), b"POST").body.done
    chunked = parse_answer(answer("200 OK", "Transfer-Encoding: chunked"), b"GET")
    assert isinstance(chunked.body, Chunked)
    assert chunked.keeps_alive
    for until_close in (answer("200 OK"), answer("200", "Transfer-Encoding: gzip")):
        parsed = parse_answer(until_close, b"GET")
        assert isinstance(parsed.body, UntilClose)
        assert not parsed.keeps_alive
    assert not parse_answer(answer("200 OK", "Content-Length: 1", "Connection: close"), b"GET").keeps_alive
    with pytest.raises(BadMessageError, match="no HTTP"):
        parse_answer(b"SSH-2.0-server\r\n\r\n", b"GET")
