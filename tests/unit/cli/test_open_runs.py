"""A killed deploy leaves a mark that the next one sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.open_runs import has_open_run, open_run
from tasks.core.settings import Settings


def test_a_run_is_open_until_it_ends(slipway_home: Path) -> None:
    settings = Settings.load()
    with open_run(settings, "chat"):
        assert has_open_run(settings, "chat")
        assert not has_open_run(settings, "coder")
    assert not has_open_run(settings, "chat")


def test_what_a_kill_left_stays_until_a_run_ends_well(slipway_home: Path) -> None:
    settings = Settings.load()
    killed = settings.prefect_home / "open-runs" / "chat" / "1"
    killed.parent.mkdir(parents=True)
    killed.touch()
    with pytest.raises(KeyboardInterrupt), open_run(settings, "chat"):
        raise KeyboardInterrupt
    assert has_open_run(settings, "chat")
    with open_run(settings, "chat"):
        pass
    assert not has_open_run(settings, "chat")
