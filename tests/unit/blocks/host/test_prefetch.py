"""Files come into the page cache beside a block, and nothing of it is left when the block is."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.host import page_cache, prefetch
from blocks.host.page_cache import COLD, Mapping, cached_bytes, cached_share, evict
from blocks.host.prefetch import Prefetcher
from tasks.core.errors import SlipwayError
from tasks.core.prefetch import Prefetched
from tasks.core.progress import listen, to_log

pytestmark = pytest.mark.disk

PIECE = 1 << 20
SIZE = 5 * PIECE + 4097


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A file that is not in the page cache."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(SIZE))
    evict(path)
    return path


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    listen(lambda stage, line: lines.append(f"{stage}: {line}"))
    yield lines
    listen(to_log)  # fixtures share one context
    assert threads() == []


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "slipway-prefetch"]


def read_all(path: Path, **options: int) -> Prefetched:
    with Prefetcher("test", piece_bytes=PIECE, **options)([path]) as done:
        assert done.ended.wait(20)
    return done


def test_a_cold_file_is_warm_afterwards_and_is_not_read_twice(on_disk: Path, said: list[str]) -> None:
    assert (cached_share(on_disk) or 0) <= COLD
    done = read_all(on_disk)
    assert (done.read_bytes, done.why_not) == (SIZE, None)
    assert done.seconds > 0
    assert cached_share(on_disk) == 1
    assert read_all(on_disk) == Prefetched()
    assert said == []


def test_of_a_file_that_is_there_in_part_the_rest_is_read(on_disk: Path, said: list[str]) -> None:
    handle = os.open(on_disk, os.O_RDONLY)
    prefetch.read_through(handle, 0, 2 * PIECE)
    there = cached_bytes(handle, 0, SIZE)
    os.close(handle)
    assert there is not None
    assert there >= 2 * PIECE
    assert read_all(on_disk).read_bytes <= SIZE - 2 * PIECE
    assert cached_share(on_disk) == 1


def test_a_folder_stands_for_its_files(on_disk: Path, said: list[str]) -> None:
    (on_disk.parent / "below").mkdir()
    assert read_all(on_disk.parent).read_bytes == SIZE


def test_a_kernel_that_cannot_fill_a_map_reads(
    on_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_POPULATE_READ", 9999)  # the real answer to advice it does not know
    assert read_all(on_disk).read_bytes == SIZE
    assert cached_share(on_disk) == 1


@pytest.mark.parametrize("kernel_has_them", [True, False])
def test_huge_pages_are_asked_for_before_a_map_is_filled(
    on_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, kernel_has_them: bool
) -> None:
    asked: list[int] = []
    advise = Mapping.advise

    def noted(mapping: Mapping, advice: int) -> None:
        asked.append(advice)
        advise(mapping, advice if kernel_has_them or advice != mmap.MADV_HUGEPAGE else 9999)

    monkeypatch.setattr(Mapping, "advise", noted)
    assert read_all(on_disk, threads=1, huge_pages=True).read_bytes == SIZE
    assert asked == [mmap.MADV_HUGEPAGE, 22] * 6
    assert cached_share(on_disk) == 1
    evict(on_disk)
    asked.clear()
    assert read_all(on_disk, threads=1, huge_pages=False).read_bytes == SIZE
    assert asked == [22] * 6


@pytest.mark.parametrize(
    ("features", "gives"), [(["0110010100"], True), (["0110000100"], False), ([], False), ([""], False)]
)
def test_a_machine_whose_balloon_reports_free_memory_gets_small_pages(
    on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: list[str], gives: bool
) -> None:
    for number, bits in enumerate(features):
        folder = tmp_path / "balloons" / f"virtio{number}"
        folder.mkdir(parents=True)
        (folder / "features").write_text(bits + "\n")
    monkeypatch.setattr(page_cache, "_BALLOONS", tmp_path / "balloons")
    assert page_cache.gives_memory_back() is gives
    asked: list[bool] = []
    monkeypatch.setattr(prefetch, "_bring_in", lambda piece, huge_pages: asked.append(huge_pages))
    read_all(on_disk)
    assert asked == [not gives] * 6


def test_it_ends_with_the_block(on_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece is held until the block is being left: no other may follow."""
    at_work, leave = threading.Event(), threading.Event()

    def bring_in(piece: object, **_: object) -> None:
        at_work.set()
        assert leave.wait(10)

    monkeypatch.setattr(prefetch, "_bring_in", bring_in)
    real_stop = prefetch._Crew.stop
    monkeypatch.setattr(prefetch._Crew, "stop", lambda crew: (real_stop(crew), leave.set()))
    done = Prefetched()

    def fail_beside() -> None:
        nonlocal done
        with Prefetcher("test", piece_bytes=PIECE, threads=1)([on_disk]) as done:
            assert at_work.wait(10)
            raise KeyError("the block's own")

    with pytest.raises(KeyError, match="the block's own"):
        fail_beside()
    assert done.read_bytes == PIECE


def test_what_goes_wrong_is_said_once_and_hinders_nobody(
    on_disk: Path, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(piece: object, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(prefetch, "_bring_in", broken)
    prefetcher = Prefetcher("test")
    for _ in range(2):
        with prefetcher([on_disk]) as done:
            assert done.ended.wait(20)
    assert done.read_bytes == 0
    assert said == ["test: not read ahead: [Errno 5] Input/output error"]


def test_where_no_thread_can_start_the_block_goes_on(
    on_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert read_all(on_disk).read_bytes == 0
    assert said == ["test: not read ahead: no thread could be started"]


def test_what_does_not_fit_into_memory_is_left_alone(
    on_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "available_bytes", lambda: SIZE)
    assert read_all(on_disk).read_bytes == 0
    assert len(said) == 1
    assert (cached_share(on_disk) or 0) <= COLD


def test_a_file_that_is_gone_is_nothing_to_read(tmp_path: Path, said: list[str]) -> None:
    assert read_all(tmp_path / "gone") == Prefetched()


def test_both_ways_to_ask_the_kernel_agree(on_disk: Path) -> None:
    handle = os.open(on_disk, os.O_RDONLY)
    # Nothing is read ahead: of pages on their way one way tells, the other does not.
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
    prefetch.read_through(handle, 0, PIECE)
    with Mapping(handle, 0, SIZE) as mapping:
        assert mapping.cached_pages() * 4096 == cached_bytes(handle, 0, SIZE) == PIECE
    os.close(handle)


def test_a_file_that_stays_mapped_in_memory_cannot_be_measured_cold(on_disk: Path) -> None:
    read_all(on_disk)
    handle = os.open(on_disk, os.O_RDONLY)
    with Mapping(handle, 0, SIZE) as mapping:
        mapping.advise(22)
        with pytest.raises(SlipwayError, match="cannot be measured cold: 100% of it stays in memory"):
            evict(on_disk)
    os.close(handle)
    evict(on_disk)


def test_a_group_limit_counts_and_its_cache_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nfile 600000\n")
    monkeypatch.setattr(page_cache, "_CGROUPS", tmp_path)
    assert page_cache.available_bytes() == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    assert page_cache.available_bytes() > 1_000_000
