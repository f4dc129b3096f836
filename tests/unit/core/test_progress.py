"""How far a copy is, in words, counted by several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from inline_snapshot import snapshot

from tasks.core.progress import Meter, Progress, advance, meter


def test_progress_in_words() -> None:
    assert str(Progress(1_200_000_000, 4_500_000_000, 1.2)) == snapshot("1.2 of 4.5 GB, 1,000 MB/s, 3 s left")
    assert str(Progress(4_500_000_000, 4_500_000_000, 4.5)) == snapshot("4.5 of 4.5 GB, 1,000 MB/s")
    assert Progress(1, 4, 1).percent == 25
    assert Progress(0, 0, 0).percent == 100
    assert Progress(9, 4, 1).percent == 100


def test_threads_of_the_context_are_counted_and_nobody_else() -> None:
    counted = Meter(1000)
    advance(1)
    meter(counted)
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(copy_context().run, advance, 10) for _ in range(50)]:
            future.result()
        pool.submit(advance, 10).result()
    assert counted.progress().done_bytes == 500
