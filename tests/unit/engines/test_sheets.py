"""The sheets of the engines: whole, sourced, and of one mind with the tables that hosts are judged by."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tasks.compatibility.rules import load_tables
from tasks.compatibility.subject import find_engine
from tasks.core.errors import NotFoundError, SlipwayError
from tasks.core.pins import pinned_versions
from tasks.core.spec import EngineKind
from tasks.engines import sheet as sheet_module
from tasks.engines.base import ServingConfig
from tasks.engines.catalogue import get_engine
from tasks.engines.sheet import EngineSheet, MetricName, read_sheet

CONFIG = ServingConfig(
    served_name="chat",
    batch=2,
    context=512,
    threads=2,
    gpus=1,
    gpu_layers=1,
    batched_tokens=64,
    dtype="bfloat16",
)
every_sheet = pytest.mark.parametrize(
    "sheet", [read_sheet(kind) for kind in EngineKind], ids=lambda one: one.kind
)


@every_sheet
def test_a_sheet_is_whole(sheet: EngineSheet) -> None:
    assert sheet.kind in sheet_module.DATA.joinpath(f"{sheet.kind}.toml").read_text()
    assert sheet.readiness.completion.startswith("/v"), "readiness ends with a completion"
    assert len({knob.name for knob in sheet.knob}) == len(sheet.knob)
    assert len({one.name for one in sheet.quantization}) == len(sheet.quantization)
    assert sheet.metrics.path or not sheet.metrics.names
    assert sheet.image is None or "@" not in sheet.image.repository
    assert (sheet.missing is None) == (sheet.kind is EngineKind.LLAMA_CPP)


@every_sheet
def test_a_sheet_and_the_compatibility_tables_agree(sheet: EngineSheet) -> None:
    tables = load_tables()
    row = find_engine(sheet.kind, tables)
    assert row is not None
    assert row.needs_gpu == sheet.needs_gpu
    pins = pinned_versions("\n".join(sheet.requirements))
    release = next(
        (
            one
            for one in tables.releases
            if (one.package, one.version) == (sheet.package, pins.get(sheet.package))
        ),
        None,
    )
    if release is not None and release.torch is not None:
        assert pins["torch"] == release.torch
    for line in sheet.requirements:
        Requirement(line)


@every_sheet
def test_a_floor_of_the_engine_is_none_of_its_quantizations(sheet: EngineSheet) -> None:
    floor = Version(sheet.min_compute_capability or "0")
    for one in sheet.quantization:
        if one.min_compute_capability and one.name != "bitsandbytes" and one.name != "gptq":
            assert Version(one.min_compute_capability) >= floor


@every_sheet
def test_every_knob_but_the_optional_ones_is_turned_by_a_command_or_a_manifest(sheet: EngineSheet) -> None:
    engine = get_engine(sheet.kind)
    written: list[str] = []
    try:
        command = engine.command("/e/bin/python", "w.py", "/m", CONFIG)
        written += [*command.argv, *command.env]
    except NotFoundError:
        pass
    if sheet.image is not None:
        command = engine.container_command("/m", CONFIG)
        written += [*command.argv, *command.env]
    written += engine.files("/m", CONFIG).values()
    text = "\n".join(written)
    for knob in sheet.knob:
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
    assert read_sheet(EngineKind.VLLM).translate(vllm) == {
        "requests_running": 3.0,
        "kv_cache_usage": 0.25,
        "ttft_seconds_sum": 1.5,
        "ttft_seconds_count": 10.0,
    }
    triton = {
        "nv_inference_first_response_histogram_ms_sum": 1500.0,
        "nv_inference_first_response_histogram_ms_count": 3.0,
    }
    assert read_sheet(EngineKind.TRITON_TENSORRT_LLM).translate(triton) == {
        "ttft_seconds_sum": 1.5,
        "ttft_seconds_count": 3.0,
    }
    assert read_sheet(EngineKind.OLLAMA).translate(vllm) == {}
    assert MetricName.TPOT.is_histogram
    assert not MetricName.OUTPUT_TOKENS.is_histogram


def test_quantized_weights_by_compute_capability() -> None:
    vllm = read_sheet(EngineKind.VLLM)
    assert vllm.quantizations_on("7.5") == ("awq", "bitsandbytes", "gptq", "int8")
    assert vllm.quantizations_on("9.0") == ("awq", "bitsandbytes", "fp8", "gptq", "int8")
    assert vllm.quantizations_on("10.0") == vllm.quantizations_on("9.0")
    assert vllm.quantizations_on(None) == ("gptq", "int8")
    assert not vllm.serves_on([])
    assert not vllm.serves_on(["9.0", "7.0"])
    assert read_sheet(EngineKind.TRANSFORMERS).serves_on(["6.1"])


def test_a_damaged_catalogue_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(sheet_module, "DATA", tmp_path)
    read_sheet.cache_clear()
    with pytest.raises(SlipwayError, match=r"catalogue is damaged: vllm.toml: FileNotFoundError"):
        read_sheet(EngineKind.VLLM)
    assert isinstance(tmp_path, type(sheet_module.DATA))
    (tmp_path / "vllm.toml").write_text('kind = "vllm"\n')
    with pytest.raises(SlipwayError, match=r"vllm.toml: sources: Field required"):
        read_sheet(EngineKind.VLLM)
