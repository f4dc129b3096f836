"""Which loaders are tried, and which wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.core.errors import ModelError
from tasks.core.records import Record, new_record
from tasks.core.serving import LIBRARIES, Loader
from tasks.core.verdicts import StageName
from tasks.loading.models import Load, LoaderFigures, Model
from tasks.loading.plan import choose, figures_of, find_choice, find_model, loaders_for

SHARDS = Model(format="safetensors", files=(Path("a.safetensors"),), size_bytes=1_000)


def test_shards_come_before_gguf_files_and_nothing_else_is_a_model() -> None:
    sizes = {"b.safetensors": 5, "a.safetensors": 7, "m.gguf": 9, "config.json": 3, "empty.safetensors": 0}
    model = find_model(Path("/m"), sizes)
    assert (model.format, model.size_bytes) == ("safetensors", 12)
    assert [path.name for path in model.files] == ["a.safetensors", "b.safetensors"]
    assert find_model(Path("/m"), {"m.gguf": 9}).format == "gguf"
    with pytest.raises(ModelError, match="/m contains neither safetensors nor GGUF files"):
        find_model(Path("/m"), {"config.json": 3})


def test_libraries_read_safetensors_where_they_are_installed_and_the_model_fits() -> None:
    plenty = loaders_for(SHARDS, installed=True, available_bytes=10_000)
    assert plenty == dict.fromkeys(Loader)
    bare = loaders_for(SHARDS, installed=False, available_bytes=10_000)
    assert [loader for loader, why in bare.items() if why] == list(LIBRARIES)
    small = loaders_for(SHARDS, installed=True, available_bytes=1_000)
    assert [loader for loader, why in small.items() if why is None] == [Loader.MMAP]
    gguf = SHARDS.model_copy(update={"format": "gguf"})
    assert list(loaders_for(gguf, installed=True, available_bytes=10_000)) == [Loader.MMAP, Loader.PREFETCH]


def load(seconds: float, digest: str | None = None) -> Load:
    return Load(
        seconds=seconds, cpu_s=1, size_bytes=2_000_000_000, anonymous_bytes=3, peak_bytes=4, digest=digest
    )


def test_a_loader_is_known_by_its_median() -> None:
    figures = figures_of(Loader.MMAP, [load(4, "sha256:1"), load(1), load(2)], "sha256:1")
    assert (figures.seconds, figures.mb_s, figures.cpu_s_per_gb) == (2, 1000, 0.5)
    assert (figures.golden, figures.runs_s) == (True, (4, 1, 2))


def test_the_fastest_wins_only_with_the_right_bytes() -> None:
    wrong = figures_of(Loader.FASTSAFETENSORS, [load(1, "sha256:2")], "sha256:1")
    right = figures_of(Loader.PREFETCH, [load(2, "sha256:1")], "sha256:1")
    slow = figures_of(Loader.MMAP, [load(3, "sha256:1")], "sha256:1")
    assert wrong.reason == "gave different bytes than the files"
    assert choose([wrong, slow, right]) is Loader.PREFETCH
    assert choose([wrong, LoaderFigures(loader=Loader.RUNAI_STREAMER, reason="failed")]) is None


def compared(
    chosen: str | None, *, host: str = "here", mount: str = "/nvme", outcome: str = "chosen"
) -> Record:
    return new_record(
        stage=StageName.LOADING,
        subject="/nvme/m",
        host_fingerprint=host,
        inputs_digest="sha256:0",
        outcome=outcome,
        seconds=1,
        evidence={"inputs": {"mount": mount}, "result": {"format": "safetensors", "chosen": chosen}},
    )


def test_the_newest_comparison_on_this_disk_of_this_host_names_the_loader() -> None:
    older, newer = compared("safetensors"), compared("runai_streamer")
    elsewhere = [
        compared("mmap", host="there"),
        compared("mmap", mount="/"),
        compared("mmap", outcome="fault"),
    ]
    unknown = compared("of a later version")

    def found(records: list[Record], file_format: str = "safetensors") -> tuple[Loader, str] | None:
        return find_choice(records, host="here", mount=Path("/nvme"), file_format=file_format)

    assert found([newer, older, *elsewhere, unknown]) == (Loader.RUNAI_STREAMER, newer.id)
    assert found([older]) == (Loader.SAFETENSORS, older.id)
    assert found([older, newer], "gguf") is None
    assert found(elsewhere) is None
