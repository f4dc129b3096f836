"""The cards of the engines: whole, sourced, and of one mind with the tables that hosts are judged by."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tasks.compatibility.rules import load_tables
from tasks.compatibility.subject import find_engine
from tasks.core.errors import NotFoundError, SlipwayError
from tasks.core.pins import pinned_versions
from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines import card as card_module
from tasks.engines.card import EngineCard, MetricName, read_card
from tasks.engines.catalogue import get_engine

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
    assert card.kind in card_module.DATA.joinpath(f"{card.kind}.toml").read_text()
    assert card.readiness.completion.startswith("/v"), "readiness ends with a completion"
    assert len({knob.name for knob in card.knob}) == len(card.knob)
    assert len({one.name for one in card.quantization}) == len(card.quantization)
    assert card.metrics.path or not card.metrics.names
    assert card.image is None or "@" not in card.image.repository
    assert (card.missing is None) == (card.scored_by is not None), "what can be measured can be deployed"


@every_card
def test_a_card_and_the_compatibility_tables_agree(card: EngineCard) -> None:
    tables = load_tables()
    row = find_engine(card.kind, tables)
    assert row is not None
    assert row.needs_gpu == card.needs_gpu
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


@every_card
def test_every_knob_but_the_optional_ones_is_turned_by_a_command_or_a_manifest(card: EngineCard) -> None:
    engine = get_engine(card.kind)
    written: list[str] = []
    try:
        command = engine.command("/e/bin/python", "w.py", "/m", CONFIG)
        written += [*command.argv, *command.env]
    except NotFoundError:
        pass
    if card.image is not None:
        command = engine.container_command("/m", CONFIG)
        written += [*command.argv, *command.env]
    written += engine.files("/m", CONFIG).values()
    text = "\n".join(written)
    for knob in card.knob:
        if knob.name != "kv_dtype":  # left at the engine's default
            assert knob.flag.rpartition(".")[2] in text, knob.flag


def test_metrics_come_under_one_set_of_names_and_in_one_unit() -> None:
    vllm = {
        "vllm:num_requests_running": 3.0,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:time_to_first_token_seconds_sum": 1.5,
        "vllm:time_to_first_token_seconds_count": 10.0,
        "vllm:time_to_first_token_seconds_bucket": 99.0,
        "process_cpu_seconds_total": 7.0,
    }
    assert read_card(EngineKind.VLLM).translate(vllm) == {
        "requests_running": 3.0,
        "kv_cache_usage": 0.25,
        "ttft_seconds_sum": 1.5,
        "ttft_seconds_count": 10.0,
    }
    triton = {
        "nv_inference_first_response_histogram_ms_sum": 1500.0,
        "nv_inference_first_response_histogram_ms_count": 3.0,
    }
    assert read_card(EngineKind.TRITON_TENSORRT_LLM).translate(triton) == {
        "ttft_seconds_sum": 1.5,
        "ttft_seconds_count": 3.0,
    }
    assert read_card(EngineKind.OLLAMA).translate(vllm) == {}
    assert MetricName.TPOT.is_histogram
    assert not MetricName.OUTPUT_TOKENS.is_histogram


def test_quantized_weights_by_compute_capability() -> None:
    vllm = read_card(EngineKind.VLLM)
    assert vllm.quantizations_on("7.5") == ("awq", "bitsandbytes", "gptq", "int8")
    assert vllm.quantizations_on("9.0") == ("awq", "bitsandbytes", "fp8", "gptq", "int8")
    assert vllm.quantizations_on("10.0") == (
        "awq",
        "bitsandbytes",
        "fp8",
        "gptq",
    )  # INT8 ends before Blackwell
    assert vllm.quantizations_on(None) == ("gptq", "int8")
    assert not vllm.serves_on([])
    assert not vllm.serves_on(["9.0", "7.0"])
    assert read_card(EngineKind.TRANSFORMERS).serves_on(["6.1"])


def test_a_damaged_catalogue_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(card_module, "DATA", tmp_path)
    read_card.cache_clear()
    with pytest.raises(SlipwayError, match=r"catalogue is damaged: vllm.toml: FileNotFoundError"):
        read_card(EngineKind.VLLM)
    assert isinstance(tmp_path, type(card_module.DATA))
    (tmp_path / "vllm.toml").write_text('kind = "vllm"\n')
    with pytest.raises(SlipwayError, match=r"vllm.toml: sources: Field required"):
        read_card(EngineKind.VLLM)
