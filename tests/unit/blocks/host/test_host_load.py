"""What others use of the processors is told from what this process and its children use."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from blocks.host.host_load import ForeignLoad, Seconds, foreign_share, read_seconds
from tasks.core.errors import WrongUseError
from tasks.core.settings import Settings

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()\n"


@pytest.mark.parametrize(
    ("busy", "own", "share"),
    [(10, 10, 0.0), (10, 4, 0.3), (20, 0, 1.0), (9, 10, 0.0), (50, 0, 1.0)],
    ids=["all its own", "some", "all", "counted a little late", "more than there is"],
)
def test_the_share_is_what_is_neither_idle_nor_its_own(busy: float, own: float, share: float) -> None:
    assert foreign_share(Seconds(100, 50, 1000), Seconds(100 + busy, 50 + own, 1020)) == pytest.approx(share)


def test_no_time_is_no_load() -> None:
    assert foreign_share(Seconds(1, 1, 1), Seconds(1, 1, 1)) == 0


def test_the_time_of_the_work_counts_also_where_it_fails() -> None:
    looks = iter([Seconds(0, 0, 0), Seconds(5, 1, 10), Seconds(5, 1, 10), Seconds(9, 1, 20)])
    load = ForeignLoad(lambda: next(looks))
    assert load.share is None
    assert load.over(lambda: "done") == "done"
    assert load.share == pytest.approx(0.4)
    with pytest.raises(ZeroDivisionError):
        load.over(lambda: 1 // 0)
    assert load.share == pytest.approx(0.4)


def test_children_are_its_own_alive_and_dead() -> None:
    """The kernel counts ticks of 10 ms: so much may be missing at either end."""
    before = read_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        assert read_seconds().own - before.own >= 0.25
        child.communicate("\n")
    after = read_seconds()
    assert after.own - before.own >= 0.25
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    assert read_seconds().own - after.own >= 0.09


@pytest.mark.parametrize("text", ["a", "-1", "2", "nan", "10%"])
def test_what_is_no_share_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_BUSY_SHARE", text)
    with pytest.raises(WrongUseError, match=f"SLIPWAY_BUSY_SHARE is '{text}', not a share from 0 to 1"):
        Settings.load()
