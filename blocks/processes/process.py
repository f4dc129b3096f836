"""Child processes. Each runs under a process guard: it ends when this process does, however that happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tasks.core.cancellation import current
from tasks.core.child_environment import Needs, child_environment
from tasks.core.disk_faults import fault_told
from tasks.core.errors import CommandError, CommandTimeoutError, MissingToolError

_GUARD = Path(__file__).with_name("process_guard.py")
_POLL_S = 0.02

MOST_BYTES = 64_000_000
"""Limit for each of a command's outputs, which are kept in memory. Locks and lists take a few MB."""


@dataclass(frozen=True)
class Finished:
    """The result of a command: exit status, output and wall time."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float

    def check(self, doing: str, *, fix: str | None = None, writes: Path | None = None) -> Finished:
        """This result, if the command succeeded.

        Raises `CommandError` with the end of its error output, or `DiskError` if the disk that it `writes` to failed.
        """
        if self.code == 0:
            return self
        tail = last_lines(self.stderr or self.stdout)
        if writes is not None and (fault := fault_told(tail, writes)):
            raise fault
        raise CommandError(
            f"{doing} failed: {Path(self.argv[0]).name} exited with {self.code}", fix=fix, detail=tail
        )


def last_lines(text: str, count: int = 12) -> str:
    """The end of a log."""
    return "\n".join(text.strip().splitlines()[-count:])


def find_tool(name: str, *, install: str) -> str:
    """Path of a program. Raises `MissingToolError` that says how to install it."""
    sibling = Path(sys.executable).with_name(name)
    found = str(sibling) if sibling.exists() else shutil.which(name)
    if found is None:
        raise MissingToolError(f"the program {name} is not installed", fix=install)
    return found


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float,
    needs: Sequence[Needs | str] = (),
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run a command to its end and keep what it printed.

    From this process's environment it gets what it `needs`, plus `env`, in which None removes a variable.
    Raises `CommandTimeoutError` past `timeout_s`, `CommandError` past `MOST_BYTES` of output and
    `StageCancelledError` when the run's cancellation is set; the command and its children have ended by then.
    """
    command = tuple(str(arg) for arg in argv)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(_memory_file(name)) for name in ("stdout", "stderr"))
        child = stack.enter_context(guarded(command, stdout=out, stderr=err, needs=needs, env=env, cwd=cwd))
        while True:
            try:
                code = child.wait(timeout=_POLL_S if time.monotonic() - start < 1 else 5 * _POLL_S)
                break
            except subprocess.TimeoutExpired:
                current().check()
                _check_length(command, out, err)
                if time.monotonic() - start > timeout_s:
                    raise CommandTimeoutError(
                        f"{Path(command[0]).name} did not end within {timeout_s:g} s",
                        detail=last_lines(_text_of(err)),
                    ) from None
        _check_length(command, out, err)
        return Finished(command, code, _text_of(out), _text_of(err), time.monotonic() - start)


@contextlib.contextmanager
def guarded(
    argv: Sequence[str],
    *,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
    needs: Sequence[Needs | str] = (),
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A running command that ends with the block or this process. Its environment is that of `run`."""
    allowed = child_environment(os.environ, *needs)
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_GUARD), *argv],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={key: value for key, value in {**allowed, **(env or {})}.items() if value is not None},
        cwd=cwd,
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def terminate(child: subprocess.Popen[bytes], *, timeout_s: float) -> int | None:
    """End a guarded command with SIGTERM; its exit status, or None if it did not end in time."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        return child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None


@contextlib.contextmanager
def _memory_file(name: str) -> Iterator[IO[bytes]]:
    """A file in memory: unlike a pipe it never blocks, unlike a disk it is never full."""
    with os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b") as file:
        yield file


def _check_length(command: Sequence[str], *outputs: IO[bytes]) -> None:
    if any(os.fstat(output.fileno()).st_size > MOST_BYTES for output in outputs):
        raise CommandError(
            f"{Path(command[0]).name} printed more than {MOST_BYTES / 1e6:g} MB, the limit",
            fix="make it print less",
        )


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
