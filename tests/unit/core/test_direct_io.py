"""Bytes come through unchanged whatever their alignment, also where direct I/O is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.direct_io import (
    BLOCK,
    DirectFile,
    chunk_count,
    digest_of_chunks,
    reserve,
    ring,
)

CONTENT = os.urandom(3 * BLOCK + 1000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("direct") / "w"
    path.write_bytes(CONTENT)
    return path


def read(path: Path, offset: int, length: int, at: int, *, direct: bool = True) -> tuple[bytes, bytes, int]:
    (buffer,) = ring(1, at + length)
    buffer.view[:at] = b"x" * at
    told = bytearray()
    with DirectFile(path, os.O_RDONLY, direct=direct) as file:
        count = file.read_into(offset, length, buffer, at, told.extend)
    assert bytes(buffer.view[:at]) == b"x" * at
    return bytes(buffer.view[at : at + count]), bytes(told), count


@settings(max_examples=60, deadline=None)
@given(
    offset=st.integers(0, len(CONTENT)),
    length=st.integers(1, 2 * len(CONTENT)),
    at=st.one_of(st.just(0), st.integers(0, 3 * BLOCK)),
    direct=st.booleans(),
)
def test_any_range_arrives_at_any_place(path: Path, offset: int, length: int, at: int, direct: bool) -> None:
    wanted = CONTENT[offset : offset + length]
    assert read(path, offset, length, at, direct=direct) == (wanted, wanted, len(wanted))


def test_a_long_range_is_told_in_steps(tmp_path: Path) -> None:
    content = os.urandom(700_001)
    (tmp_path / "w").write_bytes(content)
    assert read(tmp_path / "w", 13, 700_000, 5)[:2] == (content[13:], content[13:])


@pytest.mark.parametrize("refused", ["open", "read and write", "nothing"])
def test_a_file_system_without_direct_io_is_used_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    really_open, really_read, really_write = os.open, os.preadv, os.pwrite

    def is_direct(handle: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)

    def refuse() -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            refuse()
        return really_open(path, flags, mode)

    def preadv(handle: int, views: list[memoryview], offset: int) -> int:
        if is_direct(handle):
            refuse()
        return really_read(handle, views, offset)

    def pwrite(handle: int, view: memoryview, offset: int) -> int:
        if is_direct(handle):
            refuse()
        return really_write(handle, view, offset)

    if refused == "open":
        monkeypatch.setattr(os, "open", open_)
    elif refused == "read and write":
        monkeypatch.setattr(os, "preadv", preadv)
        monkeypatch.setattr(os, "pwrite", pwrite)
    (buffer,) = ring(1, 10_000)
    buffer.view[:10_000] = CONTENT[:10_000]
    with DirectFile(tmp_path / "w", os.O_RDWR | os.O_CREAT) as file:
        reserve(file.handle, BLOCK + 10_000)
        file.write(buffer, 10_000, BLOCK)
        reserve(file.handle, BLOCK + 10_000)
    assert (tmp_path / "w").read_bytes() == bytes(BLOCK) + CONTENT[:10_000]
    assert read(tmp_path / "w", BLOCK + 1, 9000, 3)[0] == CONTENT[1:9001]


def test_other_errors_of_the_disk_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "none", os.O_RDONLY)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    (buffer,) = ring(1, BLOCK)
    with DirectFile(tmp_path / "w", os.O_RDWR | os.O_CREAT) as file:
        monkeypatch.setattr(os, "preadv", broken)
        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(OSError, match="Input/output"):
            file.read_into(0, 10, buffer, 0, len)
        with pytest.raises(OSError, match="Input/output"):
            file.write(buffer, 10, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        reserve(-1, 10)


def test_a_file_of_one_chunk_is_named_as_everybody_names_it() -> None:
    chunk = blake3(b"one").hexdigest()
    assert digest_of_chunks([chunk]) == f"blake3:{chunk}"
    two = digest_of_chunks([chunk, chunk])
    assert two == f"blake3-chunks:{blake3(bytes.fromhex(chunk) * 2).hexdigest()}"
    assert [chunk_count(size, 4) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]
