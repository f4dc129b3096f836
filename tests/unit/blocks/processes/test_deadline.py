"""Waiting for what is outside ends; a look at the registry that hangs is ended by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import psutil
import pytest

from blocks.processes.deadline import within
from blocks.storage.look_lease import only_look
from blocks.storage.model_registry import read_alias
from blocks.storage.model_source import FolderSource
from blocks.storage.object_store import FolderObjects
from blocks.storage.sources import resolve
from tasks.core.errors import BusyError, DeadlineError, ModelError
from tasks.core.files import read_regular
from tasks.core.settings import Settings

told: ContextVar[str] = ContextVar("told", default="")


def test_a_call_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    with pytest.raises(DeadlineError, match=r"the mount \(0 s\) did not answer in time") as error:
        within(0.01, "the mount", never.wait)
    assert error.value.retryable
    never.set()


def test_what_a_call_answers_or_raises_is_handed_on() -> None:
    told.set("here")
    assert within(60, "x", told.get) == "here"
    for fault in (ValueError("its own"), TimeoutError("its own"), KeyboardInterrupt("its own")):

        def fail(fault: BaseException = fault) -> None:
            raise fault

        with pytest.raises(type(fault), match="its own"):
            within(60, "x", fail)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (pipe, "is a pipe, not a file"),
        (device, "is a device, not a file"),
        (large, "bytes, the limit"),
    ],
)
def test_what_would_never_end_is_not_read(
    make: Callable[[Path], None], told: str, slipway_home: Path, tmp_path: Path
) -> None:
    alias = slipway_home / "registry" / "tiny" / "aliases" / "champion"
    alias.parent.mkdir(parents=True)
    make(alias)
    settings = Settings.load()
    for read in (
        lambda: read_alias("tiny", "champion", settings),
        lambda: resolve("models:/tiny@champion", settings),
        lambda: FolderObjects(alias.parent).read("champion"),
        lambda: read_regular(alias, 100),
    ):
        with pytest.raises(ModelError, match=told):
            read()


def test_a_pipe_in_a_hugging_face_cache_is_not_waited_for(slipway_home: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "refs").mkdir()
    os.mkfifo(tmp_path / "refs" / "main")
    assert resolve(f"file:{tmp_path}", Settings.load()).source == f"file:{tmp_path}"


def test_pipes_and_devices_among_a_models_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    source = FolderSource(tmp_path)
    (file,) = source.list_files()
    assert file.path == "config.json"
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelError):
        source.read(file, 0, 2)


HOLD = """
import sys, pathlib
from blocks.storage.look_lease import only_look
with only_look(pathlib.Path(sys.argv[1]), 1e9):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("step_s", [0, 3600], ids=["steady clock", "clock set forward"])
def test_a_look_that_hangs_is_ended_by_the_next(
    tmp_path: Path, step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the clock moves the time of day at which the kernel says that a process began."""
    by_the_old_clock = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: by_the_old_clock(self) + step_s)
    lease = tmp_path / "leases" / "registry-look"
    command = [sys.executable, "-c", HOLD, str(lease)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hanging:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "holds\n"
        with (
            pytest.raises(BusyError, match="another check of the registry is still running"),
            only_look(lease, 1e9),
        ):
            pass
        with only_look(lease, 0.0):
            assert hanging.wait(timeout=30) == -signal.SIGKILL


def test_a_look_that_cannot_be_killed_holds_up_no_other(tmp_path: Path) -> None:
    """This process stands for one that hangs in the kernel: it does not kill itself."""
    lease = tmp_path / "registry-look"
    with only_look(lease, 1e9), only_look(lease, 0.0), pytest.raises(BusyError), only_look(lease, 1e9):
        pass
    with only_look(lease, 1e9):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}'])
def test_a_lease_that_cannot_be_read_counts_as_young(tmp_path: Path, content: str) -> None:
    lease = tmp_path / "registry-look"
    with only_look(lease, 1e9):
        lease.write_text(content)
        with pytest.raises(BusyError), only_look(lease, 0.0):
            pass
