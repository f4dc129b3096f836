"""The cards of the engines: whole, sourced, and of one mind with the tables that hosts are judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
from inline_snapshot import snapshot
from packaging.requirements import Requirement
from packaging.version import Version

from tasks.compatibility.engines import find_engine
from tasks.compatibility.rules import load_tables
from tasks.core.errors import SlipwayError
from tasks.core.pins import pinned_versions
from tasks.core.serving import ChatTemplate, Loader, ServingConfig
from tasks.core.spec_kinds import CARDS, EngineKind
from tasks.engines import card as card_module
from tasks.engines.base import Engine
from tasks.engines.card import EngineCard, read_card
from tasks.engines.catalogue import deployable_engines, engines_with

CONFIG = ServingConfig(
    served_name="chat",
    batch=2,
    context=512,
    threads=2,
    gpus=1,
    gpu_layers=1,
    batched_tokens=64,
    micro_batch_tokens=32,
    dtype="bfloat16",
)
every_card = pytest.mark.parametrize(
    "card", [read_card(kind) for kind in EngineKind], ids=lambda one: one.kind
)


@every_card
def test_a_card_is_whole(card: EngineCard) -> None:
    assert len({knob.name for knob in card.knob}) == len(card.knob)
    assert len({one.name for one in card.quantization}) == len(card.quantization)
    assert len({one.name for one in card.loader}) == len(card.loader)


@every_card
def test_a_card_and_the_compatibility_tables_agree(card: EngineCard) -> None:
    tables = load_tables()
    row = find_engine(card.kind, tables)
    assert row is None or row.needs_gpu == card.needs_gpu
    pins = pinned_versions("\n".join(card.requirements))
    release = next(
        (
            one
            for one in tables.releases
            if (one.package, one.version) == (card.package, pins.get(card.package))
        ),
        None,
    )
    if release is not None and release.torch is not None:
        assert pins["torch"] == release.torch
    for line in card.requirements:
        Requirement(line)


@every_card
def test_a_floor_of_the_engine_is_none_of_its_quantizations(card: EngineCard) -> None:
    floor = Version(card.min_compute_capability or "0")
    for one in card.quantization:
        if one.min_compute_capability and one.name != "bitsandbytes" and one.name != "gptq":
            assert Version(one.min_compute_capability) >= floor


@pytest.mark.parametrize("engine", deployable_engines(), ids=lambda one: one.kind)
def test_every_knob_is_turned_by_the_command(engine: Engine) -> None:
    command = engine.command("/e/bin/python", "w.py", "/m", CONFIG)
    for knob in engine.card.knob:
        assert knob.flag in command.argv


def test_each_engine_is_told_of_a_loader_in_its_own_words() -> None:
    told = {loader.value: engines_with(loader, "safetensors") for loader in Loader}
    assert told == snapshot(
        {
            "mmap": {"sglang": (), "vllm": ()},
            "prefetch": {
                "sglang": ("--weight-loader-prefetch-checkpoints",),
                "vllm": ("--safetensors-load-strategy", "prefetch"),
            },
            "safetensors": {
                "sglang": ("--load-format", "safetensors"),
                "vllm": ("--load-format", "safetensors"),
            },
            "fastsafetensors": {
                "sglang": ("--load-format", "fastsafetensors"),
                "vllm": ("--load-format", "fastsafetensors"),
            },
            "runai_streamer": {
                "sglang": ("--load-format", "runai_streamer"),
                "vllm": ("--load-format", "runai_streamer"),
            },
        }
    )
    llama = read_card(EngineKind("llama.cpp"))
    assert llama.load_arguments(Loader.PREFETCH) == (), "it needs no telling"
    assert llama.load_arguments(Loader.RUNAI_STREAMER) is None


def test_quantized_weights_by_compute_capability() -> None:
    vllm = read_card(EngineKind("vllm"))
    found = {
        on: [one.name for one in vllm.quantization if one.runs_on(on)] for on in ("7.5", "9.0", "10.0", None)
    }
    assert found == {
        "7.5": ["awq", "bitsandbytes", "gptq", "int8"],
        "9.0": ["awq", "bitsandbytes", "fp8", "gptq", "int8"],
        "10.0": ["awq", "bitsandbytes", "fp8", "gptq"],  # INT8 ends before Blackwell
        None: ["gptq", "int8"],
    }
    assert not vllm.serves_on([])
    assert not vllm.serves_on(["9.0", "7.0"])
    assert read_card(EngineKind.TRANSFORMERS).serves_on(["6.1"])


def test_another_release_takes_along_what_follows_it() -> None:
    vllm = read_card(EngineKind("vllm"))
    assert vllm.requirements_of("0.20.1") == ("vllm==0.20.1", "torch")
    assert vllm.requirements_of("0.32") == vllm.requirements_of(None) == vllm.requirements
    transformers = read_card(EngineKind.TRANSFORMERS).requirements_of("5.0.0")
    assert transformers == ("transformers[serving]==5.0.0", "torch==2.13.0", "compressed-tensors==0.20.0")


def test_a_damaged_catalogue_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(card_module, "CARDS", tmp_path)
    read_card.cache_clear()
    with pytest.raises(SlipwayError, match=r"catalogue is damaged: vllm.toml: FileNotFoundError"):
        read_card(EngineKind("vllm"))
    (tmp_path / "vllm.toml").write_text('title = "vLLM"\n')
    with pytest.raises(SlipwayError, match=r"vllm.toml: sources: Field required"):
        read_card(EngineKind("vllm"))
    whole = (CARDS / "vllm.toml").read_text()
    (tmp_path / "vllm.toml").write_text(whole.replace("scored_by", "# "))
    with pytest.raises(SlipwayError, match="give formats, scored_by and prompts, or missing"):
        read_card(EngineKind("vllm"))


@pytest.mark.parametrize("engine", deployable_engines(), ids=lambda one: str(one.kind))
def test_every_engine_takes_a_chat_template(engine: Engine) -> None:
    chat = ChatTemplate(digest="sha256:" + "a" * 64, file=Path("/home/mine.jinja"))
    argv = engine.command(
        "/env/bin/python", "/worker.py", "/m", CONFIG.model_copy(update={"chat": chat})
    ).argv
    option = "--chat_template" if engine.card.underscores else "--chat-template"
    assert argv[argv.index(option) + 1] == "/home/mine.jinja"
    own = CONFIG.model_copy(update={"chat": ChatTemplate(digest="sha256:" + "a" * 64)})
    assert (
        engine.command("/env/bin/python", "/worker.py", "/m", own).argv
        == engine.command("/env/bin/python", "/worker.py", "/m", CONFIG).argv
    )
