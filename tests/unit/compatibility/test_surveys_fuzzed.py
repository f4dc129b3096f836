"""Whatever the sources of a host say, and whatever facts a file holds: a verdict that can be shown, no exception."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_host import Readings, RecordedHost

from tasks.compatibility.apply import survey_host
from tasks.compatibility.models import PASSES, CompatibilityResult, Survey
from tasks.compatibility.plan import judge, run_on
from tasks.compatibility.report import answer, headline, markdown, survey_rows
from tasks.compatibility.way_out import advise
from tasks.core.errors import WrongUseError
from tasks.core.facts import parse_facts

SAID = {"block", "warn", "unknown", "pass"}

texts = st.none() | st.text(max_size=12)
strange = st.none() | st.text(st.characters(exclude_categories=()), max_size=12)
"""With halves of characters, as JSON may hold and no file or terminal takes."""

versions = st.none() | st.one_of(
    st.sampled_from(
        ["0", "12.8", "13.0", "11.8", "2.36", "535.154.05", "570.124.06", "999.1", "35.3.1", "540.4.0"]
    ),
    st.from_regex(
        r"\A([0-9]!)?[0-9]{1,5}(\.[0-9]{1,5}){0,3}((a|b|rc)[0-9])?(\.dev[0-9])?(\+[a-z0-9]{1,5})?\Z"
    ),
)
gpus = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=12)
            | st.sampled_from(
                ["NVIDIA H200", "Tesla V100", "NVIDIA GeForce RTX 4090", "Orin", "GRID P40-24Q"]
            )
        },
        optional={
            "compute_capability": st.sampled_from([None, "3.5", "7.0", "8.7", "9.0", "12.1", "99.9"]),
            "memory_bytes": st.none() | st.integers(0, 2**60),
            "mig": st.none() | st.lists(st.sampled_from(["1g.18gb", ""]), max_size=2),
            "virtual": st.sampled_from([None, "vgpu", "passthrough"]),
            "licensed": st.none() | st.booleans(),
            "driver_model": st.sampled_from([None, "TCC", "WDDM"]),
        },
    ),
    max_size=2,
)
disks = st.lists(
    st.fixed_dictionaries(
        {"mount": st.text(max_size=8)},
        optional={
            "device": texts,
            "file_system": texts,
            "size_bytes": st.none() | st.integers(0, 2**63 - 1),
            "free_bytes": st.none() | st.integers(0, 2**63 - 1),
            "rotational": st.none() | st.booleans(),
        },
    ),
    max_size=2,
)
readings = st.fixed_dictionaries(
    {
        "nvml": st.fixed_dictionaries(
            {"available": st.booleans()},
            optional={"driver": versions, "cuda_driver": versions, "gpus": gpus, "fault": texts},
        ),
        "nvidia_smi": st.none()
        | st.fixed_dictionaries(
            {
                "driver": versions,
                "cuda_driver": versions,
                "gpus": st.none() | st.integers(0, 99),
                "fault": texts,
            }
        ),
        "kernel_driver": st.fixed_dictionaries(
            {"driver": versions, "gpus": gpus}, optional={"listed": st.integers(0, 16)}
        ),
        "tegra": st.fixed_dictionaries({"model": texts, "chip": texts, "l4t": versions}),
        "fabric": st.fixed_dictionaries({"running": st.none() | st.booleans(), "version": versions}),
        "system": st.fixed_dictionaries(
            {"container": st.sampled_from([None, "docker"]), "kernel": st.sampled_from([None, "5.10-tegra"])}
        ),
        "nvcc": versions,
        "cuda_library": st.none() | st.fixed_dictionaries({"path": st.text(max_size=20), "cuda": versions}),
        "container_toolkit": st.fixed_dictionaries(
            {"program": texts, "version": versions, "cdi": st.booleans()}
        ),
        "docker_runtimes": st.none() | st.lists(st.sampled_from(["runc", "nvidia", ""]), max_size=3),
        "disks": disks,
    }
)
torches = st.none() | st.fixed_dictionaries({"version": texts, "cuda": versions, "fault": texts})
packages = st.dictionaries(
    st.sampled_from(
        ["torch", "vllm", "numpy", "transformers", "flash-attn", "nvidia-cuda-runtime-cu12", "xllamacpp"]
    ),
    versions.filter(bool),
    max_size=4,
)
engines = st.none() | st.sampled_from(["vllm", "llama.cpp", "ollama", "sglang", "transformers", "of-ours"])
targets = st.none() | st.sampled_from(["process", "docker", "Kubernetes", ""])


def shown(survey: Survey, result: CompatibilityResult) -> None:
    """Every way in which people and programs get to see it."""
    assert result.verdict.value in SAID
    assert headline(result)
    assert markdown(result).encode()
    assert json.dumps([answer(result), survey.lasting()])
    assert all(value.encode() for row in survey_rows(survey) for value in row if value)


@given(readings, torches, packages, engines, targets)
@settings(max_examples=40, deadline=None)
def test_any_host_is_surveyed_and_judged(
    said: dict[str, Any], torch: Any, held: dict[str, str], engine: str | None, target: str | None
) -> None:
    survey = survey_host(RecordedHost(Readings.model_validate(said)))
    assert parse_facts(survey.facts.model_dump_json()) == survey.facts
    survey = Survey.model_validate({**survey.model_dump(), "torch": torch})
    completed = run_on(survey, held, engine=engine, target=target)
    shown(completed, judge(completed))


facts = st.fixed_dictionaries(
    {"driver": versions, "cuda_build": versions, "gpus": gpus},
    optional={
        **dict.fromkeys(("cuda_driver", "nvcc", "glibc", "engine_version", "container_toolkit"), versions),
        **dict.fromkeys(("distribution", "kernel", "cpu", "container"), strange),
        "packages": packages,
        "engine": engines,
        "target": targets,
        "disks": disks,
        "gpus_wanted": st.none() | st.integers(0, 99),
        "container_gpus": st.none() | st.lists(st.sampled_from(["cdi", "nvidia-runtime"])),
        "family": st.sampled_from([None, "deepseek", ""]),
        "dtype": st.sampled_from(
            [None, "float16", "fp8", "nvfp4", "mxfp4", "awq", "fp4", "bf16", "q4_k_m", ""]
        ),
        "weights_bytes": st.none() | st.integers(0, 2**63 - 1),
        "forward_compat": st.none() | st.booleans(),
        "cuda_library": versions,
        "fabric_manager": st.sampled_from([None, "running", "stopped"]),
        "fabric_manager_version": versions,
    },
)


@given(facts)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_facts_of_a_file_get_advice(values: dict[str, Any]) -> None:
    try:
        survey = Survey(facts=parse_facts(json.dumps(values)))
    except WrongUseError as error:
        assert "surrogates not allowed" in error.what
        return
    result = advise(survey)
    shown(survey, result)
    assert all(way.verdict in PASSES and way.changes for way in result.ways_out)
    assert result.facts == survey.facts
