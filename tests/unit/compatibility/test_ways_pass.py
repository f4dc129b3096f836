"""Every way out that is told passes the judge, on whatever host and for whatever stack; and it forgets no fact."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.compatibility.models import PASSES, Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import load_tables
from tasks.compatibility.way_out import ways_with_facts
from tasks.core.facts import Facts

TABLES = load_tables()
GPUS = {
    "Tesla K80": "3.7",
    "Tesla M60": "5.2",
    "Tesla P100-PCIE-16GB": "6.0",
    "Tesla V100-SXM2-32GB": "7.0",
    "Tesla T4": "7.5",
    "NVIDIA A100-SXM4-80GB": "8.0",
    "NVIDIA GeForce RTX 3090": "8.6",
    "NVIDIA L4": "8.9",
    "NVIDIA H200": "9.0",
    "NVIDIA B200": "10.0",
    "NVIDIA GeForce RTX 5090": "12.0",
}
RELEASES = {
    "vllm": ["0.2.7", "0.6.6", "0.7.3", "0.8.5", "0.9.2", "0.11.2", "0.15.1", "0.19.1", "0.25.1", "0.33.0"],
    "sglang": ["0.4.9", "0.5.3", "0.5.9", "0.5.23"],
    "transformers": ["4.40.0", "4.51.0", "4.57.1", "5.24.0"],
    "tensorrt-llm": ["0.9.0", "1.2.1"],
    "ollama": ["0.5.11", "0.24.0", "0.30.11"],
    "llama.cpp": ["2026.10.11549"],
}
TYPES = [row.name for row in TABLES.weight_types]
gpus = st.lists(
    st.sampled_from([{"name": name, "compute_capability": cc} for name, cc in GPUS.items()]),
    max_size=2,
)
memory = st.sampled_from([None, 16 * 10**9, 80 * 10**9])


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    """A host and a stack of which all that decides is known."""
    engine = draw(st.sampled_from(sorted(RELEASES)))
    release = draw(st.sampled_from(RELEASES[engine]))
    size = draw(memory)
    torch = draw(st.sampled_from([row.version for row in TABLES.releases if row.package == "torch"]))
    by_torch = engine in ("vllm", "sglang", "transformers")
    return {
        "driver": draw(
            st.sampled_from(["450.80.02", "470.223.02", "510.85.02", "535.154.05", "570.86.15", "590.48.01"])
        ),
        "nvcc": None,
        "gpus": [{**gpu, "memory_bytes": size} for gpu in draw(gpus)],
        "glibc": draw(st.sampled_from(["2.17", "2.31", "2.39"])),
        "cpu": "x86_64",
        "engine": engine,
        "engine_version": release,
        "packages": {engine: release, "torch": torch, "numpy": "2.1.0"} if by_torch else {},
        "cuda_build": draw(st.sampled_from([None, "11.8", "12.4", "12.8", "13.0"])),
        "family": draw(
            st.sampled_from([None, "llama", "qwen3-moe", "deepseek-v2", "deepseek-v3", "gpt-oss"])
        ),
        "dtype": draw(st.sampled_from([None, "float16", *TYPES])),
        "weights_bytes": draw(st.sampled_from([None, 14 * 10**9, 140 * 10**9])),
        "forward_compat": False,
    }


def stack(**changes: Any) -> dict[str, Any]:
    return {
        "driver": "535.154.05",
        "nvcc": None,
        "gpus": [{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}],
        "glibc": "2.35",
        "cpu": "x86_64",
        "engine": "vllm",
        "engine_version": "0.7.3",
        "packages": {"vllm": "0.7.3", "torch": "2.5.1"},
        "cuda_build": "12.4",
        "family": "llama",
        "dtype": "awq",
        "weights_bytes": 8 * 10**9,
        "forward_compat": False,
        **changes,
    }


@given(stacks())
@example(stack())
@example(stack(dtype="float16", weights_bytes=None))
@example(
    stack(gpus=[{"name": "Tesla T4", "compute_capability": "7.5", "memory_bytes": 16 * 10**9}], dtype="fp8")
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_way_that_is_told_passes_the_same_judge(values: dict[str, Any]) -> None:
    before = Facts.model_validate(values)
    survey = Survey(facts=before)
    result = judge(survey)
    unknown = {one.rule for one in result.findings if one.rule.startswith("NOT-KNOWN")}
    for way, after in ways_with_facts(result, survey, TABLES):
        again = judge(Survey(facts=after))
        assert again.verdict == way.verdict
        assert way.verdict in PASSES
        assert way.changes
        assert way.why
        assert after.model_fields_set >= before.model_fields_set
        assert {one.rule for one in again.findings if one.rule.startswith("NOT-KNOWN")} <= unknown
        assert (after.gpus, after.family, after.glibc) == (before.gpus, before.family, before.glibc)
        assert after != before
