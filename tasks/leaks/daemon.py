"""The leak sampler: one small process per service, which outlives flows. Standard library only, run as a script.

`python -I daemon.py SERVICE_FOLDER` writes the memory of the service's engine, and the work it has done, to
`samples/<second>-<process>-<its start>.csv`: one file per run of the engine, because a leak cannot be followed
across a restart. `processes.json` says what to sample, and is read again for every sample:

    {"kind": "supervised", "socket": PATH, "endpoint": URL, "period_s": 60}   the supervisor names the engine
    {"kind": "process", "pids": [1234], "endpoint": URL, "period_s": 60}      roots of process trees
    {"kind": "container", "id": HEX, "endpoint": URL, "period_s": 60}         the container's own cgroup

Memory means anonymous pages, resident and swapped, which cannot be reclaimed without swapping. The page cache does
not count. Neither does GPU memory: reading it takes NVML, and engines preallocate it, so it stays constant. The
process ends when `current.json` is gone, because the service was stopped. Files are bounded. While the disk is full,
samples are lost, but the sampler and earlier samples survive.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_ROWS = 20_000
"""Most samples in a file; beyond that every second one is dropped, so that the file still covers the whole run."""
MAX_FILES = 8
LOOK_S = 1.0
"""Longest time between checks whether the service was stopped, s."""
TIMEOUT_S = 2.0
LOCK_TRIES = 25
CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

_HEADERS = tuple(f"t_s,bytes,{column}\n" for column in ("requests", "tokens"))


class Sample(NamedTuple):
    """Anonymous bytes of one run of the engine; `run` names that run."""

    run: str
    bytes: int


def main(argv: list[str]) -> int:
    folder = Path(argv[1])
    os.umask(0o077)
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    lock = take_lock(samples / "sampler.lock")
    if lock is None:
        return 0
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    writer = Writer(samples)
    while not stop.is_set() and (folder / "current.json").exists():
        period_s = sample_once(folder, writer)
        wait(stop, folder / "current.json", period_s)
    return 0


def wait(stop: threading.Event, state: Path, period_s: float) -> None:
    """Wait until the next sample is due; whether there is still anything to sample."""
    due = time.monotonic() + period_s
    while (left := due - time.monotonic()) > 0 and not stop.wait(min(left, LOOK_S)) and state.exists():
        pass


def take_lock(path: Path) -> int | None:
    """Become the only sampler of the service, and write down its process id; None if there is another one.

    A check whether a sampler runs also holds the lock for a moment, so this tries more than once.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return handle
    os.close(handle)
    return None


def sample_once(folder: Path, writer: Writer) -> float:
    """Take one sample if possible; seconds until the next one."""
    try:
        target: dict[str, Any] = json.loads((folder / "processes.json").read_bytes())
        period_s = max(0.05, float(target["period_s"]))
        sample = measure(target)
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return LOOK_S  # not written yet, or the engine is restarting
    if sample is not None:
        count = read_work(metrics_url(target), target.get("work_counters") or (), read_key(folder))
        with contextlib.suppress(OSError):  # no space: there may be some for the next one
            writer.write(sample, target.get("work") or "requests", count)
    return period_s


def measure(target: dict[str, Any]) -> Sample | None:
    """Memory of what `processes.json` names; None if none of it runs."""
    if target["kind"] == "container":
        return measure_cgroup(target["id"])
    roots = target["pids"] if target["kind"] == "process" else ask_supervisor(target["socket"])
    return measure_trees(roots)


def ask_supervisor(path: str) -> list[int]:
    """Roots of the engine's process tree, as the supervisor's control socket reports them."""
    folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            # A Unix socket's address has at most 107 bytes: use a path relative to its folder.
            client.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
            client.sendall(b'{"op": "status"}\n')
            status = json.loads(client.makefile("rb").readline() or b"{}")
    finally:
        os.close(folder)
    return [status["pid"]] if status.get("pid") else []


def measure_trees(roots: list[int]) -> Sample | None:
    """Anonymous and swapped memory of these processes and all their children."""
    children: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := read_stat(entry)) is not None:
            parent, started[int(entry.name)] = found
            children.setdefault(parent, []).append(int(entry.name))
    alive = [pid for pid in roots if pid in started]
    if not alive:
        return None
    total, waiting = 0, list(alive)
    while waiting:
        pid = waiting.pop()
        total += anonymous_bytes(PROC / str(pid))
        waiting += children.get(pid, [])
    first = min(alive)
    return Sample(f"{first}-{started[first]}", total)


def read_stat(process: Path) -> tuple[int, int] | None:
    """Parent and start time (clock ticks since boot) of a process; None if it has ended."""
    try:
        text = (process / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])


def anonymous_bytes(process: Path) -> int:
    """RssAnon and VmSwap of a process; 0 if it has ended."""
    try:
        text = (process / "status").read_text(errors="replace")
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return sum(int(values.get(key, "0 kB").split()[0]) << 10 for key in ("RssAnon", "VmSwap"))


def measure_cgroup(container: str) -> Sample | None:
    """Anonymous and swapped memory of a container: `anon` of cgroup 2, `total_rss` and `total_swap` of 1."""
    for place, folders, _ in os.walk(CGROUPS):
        if container in Path(place).name:
            folders.clear()
            with contextlib.suppress(OSError):
                return read_cgroup(Path(place))
    return None


def read_cgroup(cgroup: Path) -> Sample | None:
    """Memory as the cgroup accounts it; summed over its processes if it does not."""
    pids = [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    starts = {pid: found[1] for pid in pids if (found := read_stat(PROC / str(pid))) is not None}
    if not starts:
        return None
    first = min(starts, key=lambda pid: (starts[pid], pid))
    run = f"{first}-{starts[first]}"
    if not (cgroup / "memory.stat").exists():
        return Sample(run, sum(anonymous_bytes(PROC / str(pid)) for pid in pids))
    pairs = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    if "anon" not in stat:
        return Sample(run, stat["total_rss"] + stat.get("total_swap", 0))
    swap = cgroup / "memory.swap.current"
    return Sample(run, stat["anon"] + (int(swap.read_text()) if swap.exists() else 0))


def read_key(folder: Path) -> str | None:
    """The key that Slipway's own requests carry; None if the service has none."""
    try:
        return (folder / "own-key").read_text().strip()
    except (OSError, ValueError):
        return None


def metrics_url(target: dict[str, Any]) -> str | None:
    """Where the engine shows its metrics; None if its address is not known."""
    endpoint = target.get("endpoint")
    return f"{endpoint}{target.get('metrics_path') or '/metrics'}" if endpoint else None


def read_work(url: str | None, counters: Sequence[str], key: str | None = None) -> float | None:
    """The work done since the engine's start, as its `counters` have it; None if it does not say."""
    if not url or not counters:
        return None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return sum_counters(answer.read(1 << 20).decode(errors="replace"), counters)
    except (OSError, ValueError):
        return None  # busy, restarting, or without metrics


def sum_counters(text: str, counters: Sequence[str]) -> float | None:
    """The sum of these counters in a Prometheus text, over all labels; None if it contains none of them."""
    found = []
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.partition("{")[0] in counters:
            with contextlib.suppress(ValueError):
                found.append(float(value))
    return sum(found) if found else None


_FILE = re.compile(r"(\d+)-\d+-(\d+)\.csv")
_ROW = re.compile(r"\d+\.\d{3},\d+,\d*\n")


def run_files(samples: Path) -> list[Path]:
    """The files of the runs, oldest first; other files are ignored."""
    return sorted((path for path in samples.glob("*.csv") if _FILE.fullmatch(path.name)), key=begun)


def begun(path: Path) -> tuple[int, int]:
    """When the run in this file began, from its name: the second, and the process's own start within it.

    If the clock was set back, a later run still gets a later second than the newest file.
    """
    found = _FILE.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2])


def rows_of(text: str) -> list[str]:
    """The samples in a file's text; a truncated line, or one that no sampler can have written, is ignored."""
    return [line for line in text.splitlines(keepends=True) if _ROW.fullmatch(line)]


class Writer:
    """Appends samples to the file of their run, and keeps files few and short.

    A file is created complete, with its header and first line, because one without a header could not be read.
    """

    def __init__(self, samples: Path) -> None:
        self._samples = samples
        self._run = ""
        self._path = samples
        self._header = ""
        self._rows = 0
        self._last_t = 0.0

    def write(self, sample: Sample, column: str, count: float | None) -> None:
        """Add one line. The run of an earlier sampler is continued in its file. Raises `OSError`."""
        if sample.run != self._run:
            self._open(sample.run, column)
        self._run = ""  # a truncated line is removed when the file is opened again
        self._last_t = max(time.time(), self._last_t + 0.001)  # the clock may be set back
        line = f"{self._last_t:.3f},{sample.bytes},{'' if count is None else f'{count:.0f}'}\n"
        if self._rows:
            with self._path.open("ab") as file:
                file.write(line.encode())
            self._rows += 1
        else:
            self._rewrite([line])
            self._remove_oldest()
        if self._rows > MAX_ROWS:
            self._rewrite(rows_of(self._path.read_text(errors="replace"))[::2])
        self._run = sample.run

    def _open(self, run: str, column: str) -> None:
        """Find the run's file and repair it, or name a new one: the newest, whatever the clock says."""
        files = run_files(self._samples)
        found = [path for path in files if path.name.endswith(f"-{run}.csv")]
        second = max(int(time.time()), begun(files[-1])[0] + 1) if files else int(time.time())
        self._path = self._samples / f"{second}-{run}.csv"
        self._header = f"t_s,bytes,{column}\n"
        self._rows, self._last_t = 0, 0.0
        if not found:
            return
        if found[-1] == files[-1]:
            self._path = found[-1]
        else:  # an engine that serves again: the newest run is judged
            found[-1].rename(self._path)
        text = self._path.read_text(errors="replace")
        self._header = next((header for header in _HEADERS if text.startswith(header)), self._header)
        lines = rows_of(text)
        self._rows = len(lines)
        if lines:
            self._last_t = float(lines[-1].partition(",")[0])
            if text != self._header + "".join(lines):
                self._rewrite(lines)

    def _rewrite(self, lines: list[str]) -> None:
        part = self._path.with_name(self._path.name + ".part")
        try:
            with part.open("w") as file:
                file.write(self._header + "".join(lines))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._rows = len(lines)

    def _remove_oldest(self) -> None:
        for old in run_files(self._samples)[:-MAX_FILES]:
            if old != self._path:
                old.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
