"""Cold loads side by side: the disk by fio, the prefetch, an engine's start alone and beside it, and other loaders.

`python -m benchmarks.loading [--rounds N] [--layers N] [--shard-bytes N] [--folder F] [--out FILE] [--figure FILE]`

Everything is measured in turns, in one run, on the same files of about 2 GB, which are taken out of the page cache
before each measurement and looked for there. First a GGUF file: fio reads it past the page cache by several
configurations, into a few buffers again and again, on small pages and on huge ones. Rounds of their own choose the
best of them, since the largest of several noisy figures is a lucky one. Then, three times as often, the chosen are
measured anew beside fio into as much memory as the file has bytes, and beside the prefetch, which reads it into the
page cache, with small pages and with huge ones. llama.cpp serves it, from process start to its first completion,
alone, with the prefetch beside its start, and once more warm. The memory that they take has just been in use, so that
the machine has it. A virtual machine may give memory that is free back to its host: on such a one engines are started
on memory that was given back as well. Then safetensors shards: a
map, a map with the prefetch beside, safetensors, fastsafetensors and the Run:ai streamer, in an environment that is
built and locked for them; every loader's bytes are held against the files. Ends with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import base64
import json
import mmap
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blocks.engine.process import serve
from blocks.engine.trial import EnvironmentTrial
from blocks.host.fio import HUGE_PAGES, program
from blocks.host.load_trial import LoadTrial
from blocks.host.page_cache import evict, gives_memory_back
from blocks.host.prefetch import Prefetcher
from blocks.packages.uv import Uv
from blocks.processes.process import run
from flows.compare_loaders import WORKER, loaders_python
from tasks.core.figures import bars
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.progress import listen
from tasks.core.safetensors import Tensor, render_header
from tasks.core.serving import Loader, ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Environment
from tasks.engines.base import CommandLine
from tasks.engines.catalogue import get_engine
from tasks.environment import apply as environments
from tasks.environment.models import Refusal
from tasks.environment.plan import make_lock_request
from tasks.loading.apply import compare_loaders

ROOT = Path(__file__).parent.parent
FIO = (
    *((1, 32, False), (4, 4, False)),
    *((2, 8, True), (4, 4, True), (8, 4, True), (16, 1, True), (16, 4, True)),
)
"""Blocks in MiB, how many at once, and whether the buffers are on huge pages."""

COMPARED = 3
"""Rounds in which the chosen are compared, for each that chooses."""

WHOLE_MIB = 16
"""Blocks of the configuration that has a buffer for each block of the file."""

_T = TypeVar("_T")

HUGE = " huge"
PAGES = {"small": False, "huge": True}
WHOLE = "fio, a buffer for each block"
KEPT = "memory kept"
GIVEN_BACK = "memory given back"
REPORTED_S = 8.0
"""Until free memory has been given back: Linux looks for it every two seconds, some of it at a time."""

LEAST_OF_FIO = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=18, help="of the GGUF model: about 126 MB each")
    parser.add_argument("--shard-bytes", type=int, default=1_080_000_000, help="of each of two shards")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a scratch folder by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "loading.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "loading.svg")
    arguments = parser.parse_args()
    listen(lambda stage, line: print(f"{stage}: {line}", flush=True))
    with tempfile.TemporaryDirectory(prefix="slipway-loading-", dir=arguments.folder) as name:
        work = Path(name)
        os.environ["SLIPWAY_HOME"] = str(work / "home")
        disk, engine = measure_engine(work, arguments.layers, arguments.rounds)
        loaders = measure_loaders(work, arguments.shard_bytes, arguments.rounds)
    document = {
        "machine": machine(),
        "rounds": arguments.rounds,
        "disk_and_prefetch": disk,
        "engine_start_to_first_completion": engine,
        "loaders": loaders,
    }
    document["bounds"] = held = bounds(document)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    arguments.figure.write_text(figure(engine, loaders))
    print(json.dumps(held, indent=1))
    if not all(held.values()):
        sys.exit(1)


def machine() -> dict[str, Any]:
    """What this ran on."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def measure_engine(work: Path, layers: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Disk and prefetch in GB/s, and engine starts in seconds, of the same file in turns."""
    python = engine_python()
    model = work / "model.gguf"
    made = run([python, ROOT / "benchmarks" / "large_gguf.py", model, str(layers)], timeout_s=600)
    made.check("making the model")
    size = model.stat().st_size
    engine = get_engine(EngineKind.LLAMA_CPP)
    config = ServingConfig(served_name="bench", batch=1, context=256, threads=len(os.sched_getaffinity(0)))
    command = engine.command(str(python), str(engine.server_worker), str(model), config)
    disk = measure_disk(model, rounds)
    starts: dict[str, Callable[[], float]] = {"alone": lambda: start(command, model, work, no_prefetch)} | {
        f"prefetched, {name}": partial(start, command, model, work, Prefetcher("loading", huge_pages=huge))
        for name, huge in PAGES.items()
    }
    states = {KEPT: lambda: use_memory(2 * size)}
    if gives_memory_back():
        states[GIVEN_BACK] = lambda: time.sleep(REPORTED_S)
    seconds: dict[str, dict[str, list[float]]] = {state: {} for state in states}
    warm: list[float] = []
    for number in range(rounds):
        for state, bring_about in in_turn(states, number):
            for name, measure in in_turn(starts, number):
                evict(model)
                bring_about()
                seconds[state].setdefault(name, []).append(measure())
        warm.append(start(command, model, work, no_prefetch))
        print(f"engine, round {number + 1}: {'; '.join(map(last, seconds.values()))}", flush=True)
    model.unlink()
    return disk, {
        "bytes": size,
        "gives_memory_back": gives_memory_back(),
        "seconds": {state: summary(found) for state, found in seconds.items()},
        "warm": summary({"alone": warm}),
        "alone_to_prefetched": {
            state: {name: ratio(found["alone"], found[name]) for name in found if name != "alone"}
            for state, found in seconds.items()
        },
    }


def measure_disk(model: Path, rounds: int) -> dict[str, Any]:
    """fio and the prefetch in GB/s: which configuration of fio is the best, then that one beside the prefetch."""
    size = model.stat().st_size
    few: dict[str, Callable[[], float]] = {
        f"fio {mib} MiB x {depth}{HUGE if huge else ''}": partial(by_fio, model, mib, depth, huge=huge)
        for mib, depth, huge in FIO
    }
    chose = read_in_turns("choosing", few, model, rounds)
    best = {name: best_of_fio(chose, huge=huge) for name, huge in PAGES.items()}
    whole = partial(by_fio, model, WHOLE_MIB, -(-size // (WHOLE_MIB << 20)), huge=True)
    prefetches = {f"prefetch, {name}": partial(by_prefetch, model, huge=huge) for name, huge in PAGES.items()}
    chosen = {name: few[name] for name in best.values()}
    gb_s = read_in_turns("comparing", chosen | {WHOLE: whole} | prefetches, model, COMPARED * rounds)
    pairs = {f"the best of fio into a few buffers on {name} pages": (name, best[name]) for name in PAGES}
    pairs["fio into as much memory"] = ("huge", WHOLE)
    return {
        "bytes": size,
        "chose_gb_s": summary(chose),
        "gb_s": summary(gb_s),
        "ratios": {
            f"the prefetch with {pages} pages to {to}": {
                "best": name,
                **ratio(gb_s[f"prefetch, {pages}"], gb_s[name]),
            }
            for to, (pages, name) in pairs.items()
        },
    }


def read_in_turns(
    what: str, measures: dict[str, Callable[[], float]], model: Path, rounds: int
) -> dict[str, list[float]]:
    """GB/s of each, in so many rounds."""
    size = model.stat().st_size
    gb_s: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name, measure in in_turn(measures, number):
            evict(model)
            use_memory(2 * size)
            gb_s[name].append(size / 1e9 / measure())
        print(f"{what}, round {number + 1}: {last(gb_s)}", flush=True)
    return gb_s


def best_of_fio(gb_s: dict[str, list[float]], *, huge: bool) -> str:
    """The name of the fastest configuration on such pages."""
    few = [name for name in gb_s if (HUGE in name) == huge]
    return max(few, key=lambda name: statistics.median(gb_s[name]))


def use_memory(size_bytes: int) -> None:
    """Have that much memory and free it: a virtual machine has it again, whatever it had given back."""
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size_bytes, mmap.PAGESIZE):
            memory[page] = 1


def measure_loaders(work: Path, shard_bytes: int, rounds: int) -> dict[str, Any]:
    """Loaders of safetensors, as `slipway bench load` compares them."""
    python = loaders_python(Settings.load(), install=True)
    folder = work / "shards"
    folder.mkdir()
    for number in (1, 2):
        write_shard(folder / f"model-{number:05}-of-00002.safetensors", number, shard_bytes)
    trial = LoadTrial(WORKER, python)
    now = datetime.now(UTC)
    result = compare_loaders(folder, trial, runs=rounds, disk_read_mb_s=None, now=now)
    figures = {
        one.loader.value: {
            "median_s": round(one.seconds, 3),
            "gb_s": round((one.mb_s or 0) / 1e3, 3),
            "cpu_s_per_gb": round(one.cpu_s_per_gb or 0, 3),
            "memory_beside_the_cache_mb": round((one.anonymous_bytes or 0) / 1e6),
            "golden": one.golden,
            "all_s": [round(seconds, 3) for seconds in one.runs_s],
        }
        for one in result.loaders
        if one.seconds is not None
    }
    return {"bytes": result.size_bytes, "chosen": result.chosen, "findings": result.findings, "by": figures}


def engine_python() -> Path:
    """The Python of the engine's environment, built and locked as for a deploy."""
    tool = Uv()
    requirements = get_engine(EngineKind.LLAMA_CPP).card.requirements
    settings = Settings.load()
    locked = environments.lock(make_lock_request(requirements, tool.platform, Environment()), tool, settings)
    if isinstance(locked, Refusal):
        raise SystemExit(locked.reason)
    return environments.build(locked, tool, EnvironmentTrial(), settings).python_path


def write_shard(path: Path, number: int, size_bytes: int) -> None:
    """Random bytes as tensors of 54 MB."""
    each = 54_000_000
    tensors = [
        Tensor(f"layers.{number}.{one}", "BF16", (each // 2,), 0, each) for one in range(size_bytes // each)
    ]
    block = os.urandom(each + len(tensors))
    with path.open("wb") as file:
        file.write(render_header(tensors, {"format": "pt"}))
        for one in range(len(tensors)):
            file.write(block[one : one + each])


def by_fio(file: Path, mib: int, depth: int, *, huge: bool) -> float:
    """Seconds in which fio reads the whole file past the page cache."""
    command = [
        program(),
        "--thread",
        "--readonly",
        "--output-format=json",
        f"--filename={file}",
        "--name=read",
    ]
    command += ["--rw=read", f"--bs={mib}M", f"--iodepth={depth}", "--ioengine=libaio", "--direct=1"]
    command += [f"--size={file.stat().st_size}"]
    answer = run(command, timeout_s=600, env=HUGE_PAGES if huge else None).check("reading by fio").stdout
    read = json.loads(answer[answer.index("{") :])["jobs"][0]["read"]
    return float(file.stat().st_size / read["bw_bytes"])


def by_prefetch(file: Path, *, huge: bool) -> float:
    """Seconds in which the prefetch brings the whole file into the page cache."""
    begun = time.monotonic()
    with Prefetcher("loading", huge_pages=huge)([file]) as done:
        done.ended.wait()
    if done.why_not or done.read_bytes != file.stat().st_size:
        raise SystemExit(f"the prefetch did not read all of it: {done}")
    return time.monotonic() - begun


def start(command: CommandLine, model: Path, work: Path, prefetch: Prefetch) -> float:
    """Seconds from the engine's start to its first completion."""
    with serve(command, served_name="bench", log=work / "log", maps=(model,), prefetch=prefetch) as engine:
        return engine.start_s


def in_turn(measures: dict[str, _T], number: int) -> list[tuple[str, _T]]:
    """Every other round backwards."""
    items = list(measures.items())
    return items if number % 2 == 0 else items[::-1]


def last(samples: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.2f}" for name, values in samples.items())


def summary(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Median and all of each."""
    return {
        name: {"median": round(statistics.median(values), 3), "all": [round(value, 3) for value in values]}
        for name, values in samples.items()
    }


def ratio(of: list[float], to: list[float]) -> dict[str, Any]:
    """Of the medians, and the median of the pairs measured in the same round."""
    pairs = [one / other for one, other in zip(of, to, strict=True)]
    medians = statistics.median(of) / statistics.median(to)
    return {"of_medians": round(medians, 3), "median_of_pairs": round(statistics.median(pairs), 3)}


def bounds(document: dict[str, Any]) -> dict[str, bool]:
    """What the project promises, and whether it held."""
    by = document["loaders"]["by"]
    peers = (Loader.FASTSAFETENSORS, Loader.RUNAI_STREAMER)
    engine = document["engine_start_to_first_completion"]
    read = {
        f"{name}: at least {LEAST_OF_FIO}": found["of_medians"] >= LEAST_OF_FIO
        for name, found in document["disk_and_prefetch"]["ratios"].items()
    }
    chosen = {KEPT: "prefetched, huge", GIVEN_BACK: "prefetched, small"}
    ahead = {
        f"{state}: a start {chosen[state]}, is ahead of the engine alone": (
            starts[chosen[state]]["median"] < starts["alone"]["median"]
        )
        for state, starts in engine["seconds"].items()
    }
    return (
        read
        | ahead
        | {
            "a map with the prefetch beside is ahead of fastsafetensors and the Run:ai streamer": all(
                by[Loader.PREFETCH]["median_s"] < by[peer]["median_s"] for peer in peers
            ),
            "every loader gives the bytes of the files": all(figures["golden"] for figures in by.values()),
        }
    )


def figure(engine: dict[str, Any], loaders: dict[str, Any]) -> str:
    """The medians as bars: engine starts, then loaders."""
    rows = [
        (f"{state.removeprefix('memory ')}, {name.removeprefix('prefetched, ')}", found["median"])
        for state, starts in engine["seconds"].items()
        for name, found in starts.items()
    ]
    rows += [("warm", engine["warm"]["alone"]["median"])]
    rows += [(name, found["median_s"]) for name, found in loaders["by"].items()]
    sizes = [found["bytes"] / 1e9 for found in (engine, loaders)]
    title = f"Cold: llama.cpp with {sizes[0]:.1f} GB to a first completion, {sizes[1]:.1f} GB loaded"
    image = bars(title, "s", rows, marked="kept, huge")
    found = re.search(r"base64,([^)]+)", image)
    assert found is not None
    return base64.b64decode(found[1]).decode() + "\n"


if __name__ == "__main__":
    main()
