"""Who waits for a service's lease, how long, and what is said."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tasks.core.cancellation import current
from tasks.core.errors import BusyError, StageCancelledError
from tasks.core.files import file_lock
from tasks.core.leases import bring_back, end_service, hold_service, is_to_end
from tasks.core.settings import Settings


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


def test_what_is_over_in_a_moment_fails_no_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the look of each minute."""
    look = contextlib.ExitStack()
    look.enter_context(file_lock(settings.service_lease("chat"), wait=False, holder="chat"))
    monkeypatch.setattr("tasks.core.leases._pause", look.close)
    with hold_service(settings, "chat"), pytest.raises(BusyError), hold_service(settings, "chat", wait_s=0):
        pass


def test_what_takes_longer_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    recovery = bring_back(settings, "chat", by="keep-running")
    with recovery, pytest.raises(BusyError) as busy, hold_service(settings, "chat"):
        pass
    assert busy.value.what == (
        "another run is already working on the service chat: keep-running is bringing it back"
    )
    # What the one before said is not said of the next one.
    deploy = hold_service(settings, "chat")
    with deploy, pytest.raises(BusyError) as busy, hold_service(settings, "chat"):
        pass
    assert busy.value.what == "another run is already working on the service chat"


def test_a_stop_ends_what_brings_the_service_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    with contextlib.ExitStack() as recovery:
        recovery.enter_context(bring_back(settings, "chat", by="keep-running"))
        signal = current()
        signal.check()  # nobody wants it to end

        def sees_the_wish() -> None:
            with pytest.raises(StageCancelledError, match="slipway stop chat"):
                signal.check()
            recovery.close()

        monkeypatch.setattr("tasks.core.leases._pause", sees_the_wish)
        with end_service(settings, "chat"):
            assert is_to_end(settings, "chat")
    assert not is_to_end(settings, "chat")
    current().check()


def test_a_stop_waits_no_longer_than_others_for_a_deploy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    with hold_service(settings, "chat"), pytest.raises(BusyError), end_service(settings, "chat"):
        pass
    assert not is_to_end(settings, "chat")
