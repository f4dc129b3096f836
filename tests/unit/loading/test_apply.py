"""Loads compared: in turns, from a cold cache, and held against the files; with real loads of small files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from plain_safetensors import write_plain

from blocks.host.load_trial import LoadTrial
from flows.compare_loaders import WORKER
from tasks.core.errors import CommandError, ModelError, NotFoundError
from tasks.core.serving import Loader
from tasks.core.verdicts import ChoiceVerdict
from tasks.loading.apply import compare_loaders, look_at, reference_digest
from tasks.loading.models import Load, LoadingResult
from tasks.loading.report import headline, markdown, numbers

NOW = datetime(2026, 11, 26, tzinfo=UTC)
SECONDS = {Loader.MMAP: 4.0, Loader.PREFETCH: 2.0, Loader.SAFETENSORS: 3.0}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_plain(
        folder / "model-1.safetensors", {"b": ("F32", (3000,), os.urandom(12000)), "a": ("U8", (), b"x")}
    )
    write_plain(folder / "model-2.safetensors", {"c": ("BF16", (2, 0), b""), "é": ("F16", (2,), b"1234")})
    return folder


@dataclass
class FakeBench:
    """Answers what each loader takes, and writes down what it is asked."""

    digest: Callable[[Loader], str]
    failing: tuple[Loader, ...] = ()
    installed: bool = True
    asked: list[str] = field(default_factory=list)

    def available_bytes(self) -> int:
        return 1 << 40

    def make_cold(self, files: Sequence[Path]) -> None:
        self.asked.append("cold")

    def load(self, loader: Loader, files: Sequence[Path], *, digest: bool) -> Load:
        self.asked.append(f"{loader}{' digest' if digest else ''}")
        if loader in self.failing:
            raise CommandError("loading failed", detail="Traceback\nRuntimeError: no such driver")
        return Load(
            seconds=SECONDS.get(loader, 1.0),
            cpu_s=0.5,
            size_bytes=1_000_000_000,
            anonymous_bytes=0,
            peak_bytes=0,
            digest=self.digest(loader) if digest else None,
        )


def compare(folder: Path, bench: FakeBench, runs: int = 1) -> LoadingResult:
    return compare_loaders(folder, bench, runs=runs, disk_read_mb_s=1000.0, now=NOW)


def test_the_fastest_right_loader_is_chosen_and_the_others_say_why_not(shards: Path) -> None:
    right = reference_digest(look_at(shards))
    bench = FakeBench(
        digest=lambda loader: "sha256:garbled" if loader is Loader.FASTSAFETENSORS else right,
        failing=(Loader.RUNAI_STREAMER,),
    )
    result = compare(shards, bench)
    assert (result.verdict, result.chosen) == (ChoiceVerdict.CHOSEN, Loader.PREFETCH)
    assert result.engine_arguments["vllm"] == ("--safetensors-load-strategy", "prefetch")
    assert result.findings == snapshot(
        (
            "fastsafetensors gave different bytes than the files",
            "runai_streamer failed: RuntimeError: no such driver",
        )
    )
    assert headline(result) == snapshot("prefetch: 0.00 GB in 2.00 s, 0.50 of what fio reads")
    assert numbers(result)["ratio_to_disk"].value == 0.5
    assert "| prefetch" in markdown(result)


def test_loads_take_turns_each_from_a_cold_cache_and_only_the_first_is_digested(shards: Path) -> None:
    bench = FakeBench(digest=lambda _: "", failing=(Loader.MMAP,), installed=False)
    compare(shards, bench, runs=2)
    assert bench.asked == ["cold", "mmap digest", "cold", "prefetch digest", "cold", "prefetch"]


def test_where_every_loader_is_wrong_none_is_chosen(shards: Path) -> None:
    result = compare(shards, FakeBench(digest=lambda _: "sha256:garbled"))
    assert (result.verdict, result.chosen, result.winner) == (ChoiceVerdict.NONE, None, None)
    assert headline(result) == "no loader gave the right bytes"
    assert "Options for engines" not in markdown(result)


def test_what_is_no_model_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist or is not a folder"):
        look_at(tmp_path / "none")
    write_plain(shards / "model-3.safetensors", {"a": ("U8", (1,), b"x")})
    with pytest.raises(ModelError, match="tensors of the same name in several files"):
        look_at(shards)
    (shards / "model-3.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a valid safetensors file"):
        look_at(shards)


def really_compared(folder: Path) -> LoadingResult:
    return compare_loaders(folder, LoadTrial(WORKER), runs=1, disk_read_mb_s=None, now=NOW)


@pytest.mark.disk
def test_real_loads_of_shards_give_the_bytes_of_the_files(shards: Path) -> None:
    result = really_compared(shards)
    assert [one.loader for one in result.loaders if one.golden] == [Loader.MMAP, Loader.PREFETCH]
    assert result.chosen in (Loader.MMAP, Loader.PREFETCH)


@pytest.mark.disk
def test_real_loads_of_gguf_files_give_the_bytes_of_the_files(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_bytes(os.urandom(70_000))
    result = really_compared(tmp_path)
    assert [one.golden for one in result.loaders] == [True, True]
    assert (result.format, result.size_bytes) == ("gguf", 140_000)


def test_a_worker_that_prints_no_figures_is_a_clear_fault(tmp_path: Path, shards: Path) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text("print('nothing')")
    with pytest.raises(CommandError, match="printed no figures"):
        LoadTrial(silent).load(Loader.MMAP, look_at(shards).files, digest=False)
