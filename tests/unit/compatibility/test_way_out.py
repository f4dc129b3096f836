"""After a block: the nearest change that the tables let pass."""

from __future__ import annotations

from typing import Any

import pytest
from compatibility_cases import CASES, CPU, CURRENT, GB10, GH200, GONE, P100, R535, V100, VLLM_085, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.compatibility import way_out
from tasks.compatibility.conditions import Subject
from tasks.compatibility.models import PASSES, CompatibilityResult, Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.report import markdown
from tasks.compatibility.rules import Tables, load_tables
from tasks.compatibility.subject import describe
from tasks.compatibility.way_out import advise, ways_out
from tasks.core.facts import Facts

BLOCKED = [case for case in CASES if case.verdict == "block"]
NO_WAY = {
    "driver-broken": "the driver was seen to fail: no table repairs it",
    "failed-measurement": "the import was seen to fail",
    "library-newer-than-module": "the driver's module is loaded anew, which changes no version",
    "library-older-than-module": "likewise",
    "block-beats-unknown": "a deciding fact is missing, whatever else is changed",
}


def survey_of(facts: dict[str, Any], case: Case | None = None) -> Survey:
    values = {key: value for key, value in {**CURRENT, **facts}.items() if value is not GONE}
    more = {"sightings": case.sightings, "fault": case.fault} if case else {}
    return Survey(facts=Facts.model_validate(values), **more)


def advice(facts: dict[str, Any]) -> list[str]:
    return [f"{way.text}: {way.verdict}" for way in advise(survey_of(facts)).ways_out]


@pytest.mark.parametrize("case", BLOCKED, ids=lambda case: case.name)
def test_every_block_has_a_way_out_or_a_reason_why_not(case: Case) -> None:
    result = advise(survey_of(case.facts, case), case.measurements)
    assert bool(result.ways_out) is (case.name not in NO_WAY), NO_WAY.get(case.name, "there should be one")
    assert all(way.verdict in PASSES for way in result.ways_out)


def test_what_is_not_blocked_needs_no_way_out() -> None:
    for case in CASES:
        if case.verdict != "block":
            assert advise(survey_of(case.facts, case), case.measurements).ways_out == ()


OTHER_BUILD = (
    "vllm 0.32.0 -> 0.31.0+cu129 (https://wheels.vllm.ai/0.31.0/cu129, or the image vllm/vllm-openai:v0.31.0-cu129), "
    "torch 2.13.0 -> 2.13.0+cu129: warn"
)

# Written from the tables before the first run: what an expert would tell.
EXPECTED: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "the newest vLLM on R535: the last one with a build for CUDA 12, cuda-compat on a data-center GPU, or R580",
        {**R535, "nvcc": None},
        [
            OTHER_BUILD,
            "cuda-compat none -> 13.0, installed and on the library path: warn",
            "driver 535.154.05 -> 580 or newer: pass",
        ],
    ),
    (
        "GeForce has no forward compatibility: software or driver",
        {**R535, "gpus": [{"name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}]},
        [OTHER_BUILD, "driver 535.154.05 -> 580 or newer: pass"],
    ),
    (
        "V100 with torch 2.11 of CUDA 13: the cu126 build of the same release",
        {
            "gpus": [V100],
            "engine": "transformers",
            "engine_version": "5.17.0",
            "packages": {"torch": "2.11.0"},
        },
        ["torch 2.11.0 -> 2.11.0+cu126: pass"],
    ),
    (
        "Docker that can give no GPU: serve from a process, or let it",
        {"target": "docker", "container_toolkit": None, "container_gpus": []},
        [
            "target docker -> process: pass",
            "container toolkit none -> installed, and configured for Docker: pass",
        ],
    ),
    (
        "V100 and driver 590: its last branch is R580",
        {
            "gpus": [V100],
            "driver": "590.48.01",
            "cuda_driver": "13.1",
            "engine": "transformers",
            "engine_version": "5.17.0",
            "packages": {"torch": "2.10.0"},
            "cuda_build": "12.6",
        },
        ["driver 590.48.01 -> of the R580 branch: pass"],
    ),
    (
        "numpy 2 with an old torch: either of the two",
        {
            "engine": "transformers",
            "engine_version": "4.40.0",
            "packages": {"torch": "2.2.2", "numpy": "2.1.0"},
            "cuda_build": "12.1",
        },
        ["numpy 2.1.0 -> <2: pass", "torch 2.2.2 -> 2.3.1+cu121: pass"],
    ),
    (
        "Ollama 0.30 on R535: the last that worked there, or a newer driver",
        {**R535, "engine": "ollama", "engine_version": "0.30.2", "packages": {}, "cuda_build": "12.8"},
        ["ollama 0.30.2 -> 0.24.0: warn", "driver 535.154.05 -> 550 or newer: warn"],
    ),
    (
        "DeepSeek in float16: bfloat16, nothing else",
        {"family": "deepseek-v2", "dtype": "float16"},
        ["dtype float16 -> bfloat16: pass"],
    ),
    (
        "bfloat16 for DeepSeek on a V100, which vLLM does not do: an engine that computes in 32 bits",
        {
            "gpus": [V100],
            "engine_version": "0.8.5",
            "packages": {"vllm": "0.8.5", "torch": "2.6.0"},
            "cuda_build": "12.4",
            "family": "deepseek-v2",
            "dtype": "bfloat16",
        },
        [
            "engine vllm -> transformers 5.24.0, torch 2.14.1+cu126: warn",
            "engine vllm -> ollama 0.24.0: pass",
            "engine vllm -> llama.cpp, built for CUDA 12.8: pass",
        ],
    ),
    (
        "an RTX 5090 with torch 2.6 of CUDA 12.4 on R550 takes a newer torch and a newer driver together",
        {
            "driver": "550.54.14",
            "cuda_driver": "12.4",
            "gpus": [{"name": "NVIDIA GeForce RTX 5090", "compute_capability": "12.0"}],
            "engine": "transformers",
            "engine_version": "4.57.0",
            "packages": {"torch": "2.6.0"},
            "cuda_build": "12.4",
        },
        ["torch 2.6.0 -> 2.7.1+cu128, driver 550.54.14 -> 570 or newer: pass"],
    ),
    (
        "a V100 with the newest torch: the last release with a build for it",
        {
            "gpus": [V100],
            "engine": "transformers",
            "engine_version": "5.17.0",
            "packages": {"torch": "2.15.0"},
            "cuda_build": "13.2",
        },
        ["torch 2.15.0 -> 2.14.1+cu126: pass"],
    ),
    (
        "GB10 with Triton 3.5: the first vLLM whose torch pins a Triton that knows it, in its build for Arm",
        {
            "gpus": [GB10],
            "engine_version": "0.11.2",
            "packages": {"torch": "2.9.0+cu130", "triton": "3.5.0", "transformers": "4.57.0"},
        },
        ["vllm 0.11.2 -> 0.18.0, torch 2.9.0+cu130 -> 2.10.0: pass"],
    ),
    (
        "Grace Hopper with a torch from PyPI: a CUDA build for Arm",
        {
            "gpus": [GH200],
            "engine_version": "0.11.2",
            "packages": {"torch": "2.9.0", "transformers": "4.57.0"},
            "cuda_build": None,
        },
        ["cuda_build none -> 12.8: pass"],
    ),
    (
        "a P100, for which vLLM has never held code: engines that hold some, on the GPU; no older vLLM",
        {
            **R535,
            "gpus": [{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}],
            "engine_version": "0.7.3",
            "packages": {"torch": "2.5.1"},
            "cuda_build": "12.1",
            "dtype": "float16",
        },
        [
            "engine vllm -> transformers 5.24.0, torch 2.14.1+cu126: warn",
            "engine vllm -> ollama 0.24.0: pass",
            "engine vllm -> llama.cpp, built for CUDA 12.4: warn",
        ],
    ),
    (
        "AWQ weights leave vLLM for GGUF of about as many bits",
        {
            "gpus": [{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}],
            "engine_version": "0.7.3",
            "packages": {},
            "cuda_build": "12.1",
            "dtype": "awq",
        },
        [
            "engine vllm -> ollama 0.24.0, dtype awq -> q4_k_m: pass",
            "engine vllm -> llama.cpp, built for CUDA 12.8, dtype awq -> q4_k_m: pass",
            "engine vllm -> llama.cpp on the CPU, dtype awq -> q4_k_m: pass",
        ],
    ),
    (
        "FP8 on Turing in vLLM 0.11: 16 bits, another file of 8, or the release that unpacks it",
        {
            "gpus": [{"name": "Tesla T4", "compute_capability": "7.5"}],
            "engine_version": "0.11.2",
            "packages": {"torch": "2.9.0", "transformers": "4.57.0"},
            "cuda_build": "12.8",
            "dtype": "fp8",
        },
        [
            "dtype fp8 -> float16: pass",
            "dtype fp8 -> int8: pass",
            "vllm 0.11.2 -> 0.16.0, torch 2.9.0 -> 2.9.1: warn",
        ],
    ),
    (
        "140 GB of bfloat16 on 80 GB: a file of 8 bits a weight fits, 16 bits do not",
        {
            "gpus": [
                {"name": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0", "memory_bytes": 85899345920}
            ],
            "dtype": "bfloat16",
            "weights_bytes": 140 * 10**9,
        },
        ["dtype bfloat16 -> fp8: warn"],
    ),
    (
        "TensorRT-LLM for CUDA 12 on R510: no build for CUDA 11 exists",
        {
            "driver": "510.85.02",
            "cuda_driver": "11.6",
            "gpus": [{"name": "NVIDIA GeForce RTX 3090", "compute_capability": "8.6"}],
            "engine": "tensorrt-llm",
            "engine_version": "0.5.0",
            "packages": {},
            "cuda_build": "12.2",
        },
        ["driver 510.85.02 -> 525.60.13 or newer: warn"],
    ),
    (
        "FlashAttention on Turing: without it",
        {
            "gpus": [{"name": "Tesla T4", "compute_capability": "7.5"}],
            "engine": "transformers",
            "engine_version": "5.17.0",
            "packages": {"torch": "2.10.0", "flash-attn": "2.8.3"},
            "cuda_build": "12.8",
        },
        ["flash-attn 2.8.3 -> removed: pass"],
    ),
    (
        "FlashAttention 2.8 with torch 2.6: an older one or another torch; there is no 2.9",
        {
            "engine": "transformers",
            "engine_version": "4.57.0",
            "packages": {"torch": "2.6.0", "flash-attn": "2.8.3"},
            "cuda_build": "12.4",
        },
        ["flash-attn 2.8.3 -> <2.7.4.post1: warn", "torch 2.6.0 -> 2.6.0+cu126: pass"],
    ),
    (
        "vLLM where there is no GPU: the engine that serves on the CPU",
        {"driver": None, "cuda_driver": None, "gpus": []},
        ["engine vllm -> llama.cpp on the CPU: pass"],
    ),
    (
        "vLLM's packages without a CUDA build on a GPU host: the CUDA build",
        {"packages": {}, "cuda_build": None},
        ["cuda_build none -> 13.0: pass"],
    ),
]


@pytest.mark.parametrize(
    ("why", "facts", "ways"), EXPECTED, ids=[why.partition(":")[0] for why, *_ in EXPECTED]
)
def test_the_nearest_ways_are_told(why: str, facts: dict[str, Any], ways: list[str]) -> None:
    assert advice(facts) == ways, why


def test_a_way_out_is_what_the_judge_lets_pass() -> None:
    """The same change made by hand gets the verdict that was promised."""
    packages = {"vllm": "0.31.0+cu129", "torch": "2.13.0+cu129"}
    facts = {**R535, "engine_version": "0.31.0+cu129", "packages": packages, "cuda_build": "12.9"}
    (software, *_) = advise(survey_of(R535)).ways_out
    assert [change.what for change in software.changes] == ["vllm", "torch"]
    assert judge(survey_of(facts)).verdict == software.verdict


def test_a_way_says_why_it_is_this_one() -> None:
    whys = [way.why for way in advise(survey_of({**R535, "nvcc": None})).ways_out]
    assert whys == [
        "the nearest release with such a build, built for CUDA 12.9",
        "its user-mode driver runs newer CUDA on driver 535.154.05",
        "it supports CUDA 13.0",
    ]
    (smaller, *_) = advise(
        survey_of(
            {
                "gpus": [{"name": "NVIDIA L4", "compute_capability": "8.9", "memory_bytes": 24 * 10**9}],
                "dtype": "bfloat16",
                "weights_bytes": 28 * 10**9,
            }
        )
    ).ways_out
    assert smaller.why == "8 bits a weight instead of 16, 14 GB"


def test_the_artifact_shows_the_ways() -> None:
    page = markdown(advise(survey_of(R535)))
    assert "## Ways out" in page
    assert "| driver 535.154.05 -> 580 or newer | **pass** |" in page


def test_a_rule_less_makes_the_way_shorter() -> None:
    """Ways follow the tables: without the minor-version floor of CUDA 13 nothing is blocked."""
    tables = load_tables()
    rest = tuple(rule for rule in tables.rules if rule.id not in ("DRV-FLOOR-13", "KB-03", "DRV-MINOR-13"))
    fewer = tables.model_copy(update={"rules": rest})
    assert advise(survey_of(R535), tables=fewer).ways_out == ()


versions = st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){0,2}\Z")
odd_facts = st.fixed_dictionaries(
    {
        "driver": st.none() | versions,
        "gpus": st.lists(
            st.sampled_from([{"name": "Tesla T4", "compute_capability": "7.5"}, {"name": "odd"}]), max_size=2
        ),
        "cuda_build": st.none() | st.sampled_from(["10.2", "11.8", "12.8", "13.0", "99.0"]),
        "engine": st.sampled_from(["vllm", "sglang", "ollama", "llama.cpp", "transformers", "odd"]),
        "engine_version": st.none() | versions,
        "packages": st.dictionaries(
            st.sampled_from(["torch", "numpy", "transformers", "flash-attn", "vllm"]), versions, max_size=3
        ),
        "dtype": st.sampled_from([None, "float16", "bfloat16", "fp8"]),
        "family": st.sampled_from([None, "deepseek-v2"]),
    }
)


@given(odd_facts)
@settings(max_examples=12, deadline=None)
def test_any_host_gets_ways_that_pass_or_none(facts: dict[str, Any]) -> None:
    survey = survey_of(facts)
    result: CompatibilityResult = judge(survey)
    for way in ways_out(result, survey, load_tables()):
        assert result.verdict == "block"
        assert way.verdict in PASSES
        assert way.changes
        assert all(change.current != change.wanted for change in way.changes)


def test_what_no_change_lifts_is_not_looked_for_among_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    """No release of vLLM serves a P100: after the single changes, the search goes on to other engines."""
    described = 0

    def counted(survey: Survey, tables: Tables) -> Subject:
        nonlocal described
        described += 1
        return describe(survey, tables)

    monkeypatch.setattr(way_out, "describe", counted)
    assert advice({**R535, **VLLM_085, "gpus": [P100], "cuda_build": "12.4"})[0].startswith("engine vllm -> ")
    assert described < 120, "of 400 combinations"


def test_what_takes_two_changes_is_found_though_neither_lifts_the_block() -> None:
    """One rule tells of both broken pins."""
    packages = {"torch": "2.10.0", "vllm": "0.18.0", "transformers": "4.50.0", "pydantic": "1.10.0"}
    assert advice({**CPU, "engine": "llama.cpp", "engine_version": GONE, "packages": packages}) == [
        "pydantic 1.10.0 -> >=2, transformers 4.50.0 -> >=4.56.0,<5: pass"
    ]
