"""The sampler's parts, on real processes and files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.core.errors import WrongUseError
from tasks.core.progress import listen
from tasks.leaks import daemon
from tasks.leaks.apply import damage, judge_samples, read_runs
from tasks.leaks.daemon import Sample, Writer
from tasks.leaks.models import LeakRequest

HOLD_64_MB = "import sys; kept = bytearray(b'x') * (64 << 20); print('ready', flush=True); sys.stdin.read()"
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process whose child holds 64 MiB."""
    child = subprocess.Popen(
        [sys.executable, "-c", PARENT, HOLD_64_MB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.communicate("")


def test_memory_is_that_of_the_whole_tree(holder: subprocess.Popen[str]) -> None:
    sample = daemon.measure_trees([holder.pid])
    assert sample is not None
    assert 64 << 20 < sample.bytes < 160 << 20
    assert daemon.anonymous_bytes(Path(f"/proc/{holder.pid}")) < 32 << 20
    assert sample.run.startswith(f"{holder.pid}-")


def test_nothing_is_measured_of_what_has_ended(holder: subprocess.Popen[str]) -> None:
    holder.communicate("")
    assert daemon.measure_trees([holder.pid]) is None
    assert daemon.anonymous_bytes(Path(f"/proc/{holder.pid}")) == 0


def cgroup(folder: Path, **files: str) -> str:
    """A container's cgroup that holds this process; its id."""
    container = "c" * 64
    place = folder / "system.slice" / f"docker-{container}.scope"
    place.mkdir(parents=True)
    for name, text in {"cgroup_procs": f"{os.getpid()}\n", **files}.items():
        (place / name.replace("_", ".", 2 if name == "memory_swap_current" else 1)).write_text(text)
    return container


def test_a_container_is_measured_without_its_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CGROUPS", tmp_path)
    stat = "anon 1000\nfile 900000\n"
    container = cgroup(tmp_path, memory_stat=stat, memory_swap_current="24\n")
    sample = daemon.measure({"kind": "container", "id": container})
    assert sample is not None
    assert sample.bytes == 1024
    assert sample.run.startswith(f"{os.getpid()}-")


def test_the_first_version_of_cgroups_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "CGROUPS", tmp_path)
    container = cgroup(tmp_path, memory_stat="rss 1\ntotal_rss 2000\ntotal_swap 48\ntotal_cache 9\n")
    sample = daemon.measure_cgroup(container)
    assert sample is not None
    assert sample.bytes == 2048


def test_a_cgroup_without_an_account_is_measured_by_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CGROUPS", tmp_path)
    sample = daemon.measure_cgroup(cgroup(tmp_path))
    assert sample is not None
    assert sample.bytes > 1 << 20


@pytest.mark.parametrize("container", ["d" * 64, "c" * 64])
def test_a_container_that_is_gone_has_no_memory(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "CGROUPS", tmp_path)
    cgroup(tmp_path, cgroup_procs="")
    assert daemon.measure_cgroup(container) is None


def test_the_counters_of_an_engine_s_work_are_summed() -> None:
    vllm = 'vllm:request_success_total{finished_reason="stop"} 3\nvllm:request_success_total{finished_reason="x"} 2\n'
    llama = (
        "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 9\n"
        "llamacpp:prompt_tokens_cached_total 12\nllamacpp:tokens_predicted_total 15\n"
    )
    assert daemon.sum_counters(vllm, ["vllm:request_success_total"]) == 5
    work = ["prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total"]
    assert daemon.sum_counters(llama, [f"llamacpp:{name}" for name in work]) == 36
    assert daemon.sum_counters("# nothing\nbroken\nother 1 x\n", ["broken", "other"]) is None


class Metrics(BaseHTTPRequestHandler):
    """An engine's `/metrics`, as llama.cpp prints them; elsewhere it counts something else."""

    def do_GET(self) -> None:
        body = b"llamacpp:tokens_predicted_total %d\n" % (41 if self.path == "/metrics" else 7)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(
    ("place", "work"),
    [({}, 41), ({"metrics_path": "/metrics"}, 41), ({"metrics_path": "/prometheus/metrics"}, 7)],
)
def test_one_sample(tmp_path: Path, place: dict[str, str], work: int) -> None:
    """A document of an earlier version names no path."""
    server = HTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = {
        "kind": "process",
        "pids": [os.getpid()],
        "endpoint": f"http://127.0.0.1:{server.server_port}",
        "period_s": 3,
        "work": "tokens",
        "work_counters": ["llamacpp:tokens_predicted_total"],
        **place,
    }
    (tmp_path / "processes.json").write_text(json.dumps(target))
    (tmp_path / "samples").mkdir()
    try:
        assert daemon.sample_once(tmp_path, Writer(tmp_path / "samples")) == 3
    finally:
        server.shutdown()
        server.server_close()
    (run,) = read_runs(tmp_path / "samples")
    assert run.requests == (work,)
    assert run.bytes_[0] > 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"kind": "process"}',
        '{"kind": "supervised", "socket": "/nowhere/x.sock", "period_s": 1}',
    ],
)
def test_a_document_that_cannot_be_used_is_looked_at_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "processes.json").write_text(text)
    assert daemon.sample_once(tmp_path, Writer(tmp_path)) == daemon.LOOK_S
    assert list(tmp_path.glob("*.csv")) == []


def test_an_endpoint_that_does_not_answer_costs_the_count_only(tmp_path: Path) -> None:
    target = {
        "kind": "process",
        "pids": [os.getpid()],
        "endpoint": "http://127.0.0.1:1",
        "period_s": 3,
        "work_counters": ["x"],
    }
    (tmp_path / "processes.json").write_text(json.dumps(target))
    daemon.sample_once(tmp_path, Writer(tmp_path))
    (run,) = read_runs(tmp_path)
    assert run.requests is None


def test_files_stay_short_and_keep_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "MAX_ROWS", 100)
    writer = Writer(tmp_path)
    for count in range(1000):
        writer.write(Sample("1-1", 1000 + count), "requests", count)
    (run,) = read_runs(tmp_path)
    assert 50 <= len(run.t_s) <= 100
    assert run.bytes_[0] == 1000
    assert run.bytes_[-1] == 1999
    assert list(run.t_s) == sorted(run.t_s)


def test_runs_have_files_of_their_own_and_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "MAX_FILES", 3)
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(daemon.time, "time", lambda: next(clock))
    writer = Writer(tmp_path)
    for number in range(5):
        writer.write(Sample(f"{number}-7", number), "requests", None)
    assert [run.bytes_ for run in read_runs(tmp_path)] == [(2,), (3,), (4,)]


def test_runs_of_one_second_are_in_the_order_of_their_processes_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids begin anew: neither they nor the order in a folder tell which run came later."""
    monkeypatch.setattr(daemon, "MAX_FILES", 3)
    monkeypatch.setattr(daemon.time, "time", lambda: 1000)
    writer = Writer(tmp_path)
    runs = ["32616-998", "9-999", "308-1000", "305-1001", "10-1002"]
    for number, run in enumerate(runs):
        writer.write(Sample(run, number), "requests", None)
    assert [run.bytes_ for run in read_runs(tmp_path)] == [(2,), (3,), (4,)]


def test_a_new_sampler_goes_on_in_the_file_of_the_run(tmp_path: Path) -> None:
    Writer(tmp_path).write(Sample("1-1", 5), "tokens", 1)
    (path,) = tmp_path.glob("*.csv")
    with path.open("a") as file:
        file.write("99999999")  # cut by a kill
    Writer(tmp_path).write(Sample("1-1", 6), "tokens", 2)
    (run,) = read_runs(tmp_path)
    assert (run.bytes_, run.requests) == ((5, 6), (1, 2))
    assert path.read_text().startswith("t_s,bytes,tokens\n")


FUTURE = [f"{second}-{pid}-9.csv" for pid, second in enumerate(range(5000, 5008))]


@pytest.mark.parametrize("previous", [FUTURE[:1], FUTURE], ids=["few", "as many as are kept"])
def test_the_run_that_began_last_is_the_newest_also_when_the_clock_was_set_back(
    previous: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in previous:
        (tmp_path / name).write_text("t_s,bytes,requests\n5000.000,1,\n")
    monkeypatch.setattr(daemon.time, "time", lambda: 1000.0)
    writer = Writer(tmp_path)
    for count in range(3):
        writer.write(Sample("77-1", 7), "requests", count)
    writer.write(Sample("78-2", 8), "requests", 0)
    *_, before, last = read_runs(tmp_path)
    assert (before.bytes_, last.bytes_) == ((7, 7, 7), (8,))
    assert len(list(tmp_path.glob("*.csv"))) == min(daemon.MAX_FILES, len(previous) + 2)


def test_an_engine_that_serves_again_is_the_newest_run(tmp_path: Path) -> None:
    """A rollout that was reverted: the new release's run is the one that has ended."""
    writer = Writer(tmp_path)
    for run in ("1-1", "2-2", "1-1"):
        writer.write(Sample(run, int(run[0])), "requests", None)
    assert [run.bytes_ for run in read_runs(tmp_path)] == [(2,), (1, 1)]


@pytest.mark.parametrize("left", ["", "t_s,by", "1000.000,4,1\n", "\0" * 512 + "\n1000.000,4,1\n2000.0"])
def test_a_file_that_was_left_without_a_header_is_made_whole(left: str, tmp_path: Path) -> None:
    path = tmp_path / "1000-1-1.csv"
    path.write_text(left)
    Writer(tmp_path).write(Sample("1-1", 6), "tokens", 2)
    (run,) = read_runs(tmp_path)
    assert run.bytes_[-1] == 6
    assert len(run.bytes_) == 1 + left.count("1000.000,4,1\n")
    assert path.read_text().startswith("t_s,bytes,tokens\n")


def test_a_full_disk_costs_samples_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "processes.json").write_text(
        json.dumps({"kind": "process", "pids": [os.getpid()], "endpoint": None, "period_s": 3})
    )
    samples = tmp_path / "samples"
    samples.mkdir()
    writer = Writer(samples)
    full = FullDisk(monkeypatch)
    for is_full in (True, False, True, True, False, False):
        full.room = 10 if is_full else None
        assert daemon.sample_once(tmp_path, writer) == 3
        assert damage(samples) is None
    (run,) = read_runs(samples)
    assert len(run.t_s) == 3
    assert list(samples.glob("*.part")) == []


class FullDisk:
    """Files opened to be written take `room` bytes, then no more; any number where it is None."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        opened = Path.open

        def open_(path: Path, mode: str = "r", **options: Any) -> Any:
            file = opened(path, mode, **options)
            if mode[0] in "aw" and self.room is not None:
                write, room = file.write, self.room

                def short(data: Any) -> int:
                    write(data[:room])
                    file.flush()
                    raise OSError(errno.ENOSPC, "No space left on device")

                file = SimpleNamespace(write=short, flush=file.flush, fileno=file.fileno, close=file.close)
                return contextlib.closing(file)
            return file

        monkeypatch.setattr(Path, "open", open_)


def test_a_damaged_file_of_an_earlier_run_is_skipped(tmp_path: Path) -> None:
    for second, text in ((1, "no samples\n"), (2, "t_s,bytes,requests\n5.000,3,\n"), (3, "\0\n")):
        (tmp_path / f"{second}-1-{second}.csv").write_text(text)
    Writer(tmp_path).write(Sample("9-9", 7), "requests", None)
    (tmp_path / "notes.csv").write_text("nothing of the sampler's\n")
    said: list[str] = []
    listen(lambda _, line: said.append(line))
    assert [run.bytes_ for run in read_runs(tmp_path)] == [(3,), (7,)]
    assert [line.split(" has ")[0] for line in said] == [
        f"an earlier run is skipped: {tmp_path / name}" for name in ("1-1-1.csv", "3-1-3.csv")
    ]
    assert damage(tmp_path) is None


def test_a_damaged_file_of_the_running_engine_is_said_and_no_other_run_judged(tmp_path: Path) -> None:
    (tmp_path / "1-1-1.csv").write_text("t_s,bytes,requests\n5.000,3,\n")
    (tmp_path / "2-2-2.csv").write_text("5.000,3,\n")
    with pytest.raises(WrongUseError):
        read_runs(tmp_path)
    result = judge_samples(tmp_path, LeakRequest())
    assert (result.verdict, result.samples) == ("none", 0)
    assert result.reason == f"the samples of the running engine cannot be read: {damage(tmp_path)}"
    assert "2-2-2.csv has no column 't_s'" in result.reason


def test_time_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1000, 5000.0, 4000.0, 4001.0])
    monkeypatch.setattr(daemon.time, "time", lambda: next(clock))
    writer = Writer(tmp_path)
    for _ in range(3):
        writer.write(Sample("1-1", 5), "requests", None)
    (run,) = read_runs(tmp_path)
    assert run.t_s == (5000.0, 5000.001, 5000.002)


def test_one_sampler_a_service(tmp_path: Path) -> None:
    first = daemon.take_lock(tmp_path / "lock")
    assert first is not None
    assert daemon.take_lock(tmp_path / "lock") is None
    os.close(first)
    second = daemon.take_lock(tmp_path / "lock")
    assert second is not None
    os.close(second)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
