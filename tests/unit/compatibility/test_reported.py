"""Images, environments and options: what each says of a host, and what stays unknown."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.compatibility.models import Survey
from tasks.compatibility.reported import merge, of_environment, of_image, of_options, of_packages
from tasks.compatibility.rules import load_tables
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts, Gpu

TABLES = load_tables()

IMAGES: list[tuple[str, dict[str, Any]]] = [
    (
        "vllm/vllm-openai:v0.10.2",
        {"engine": "vllm", "engine_version": "0.10.2", "packages": {"vllm": "0.10.2", "torch": "2.8.0"}},
    ),
    (
        "docker.io/vllm/vllm-openai:v0.20.2-cu129",
        {
            "engine": "vllm",
            "engine_version": "0.20.2+cu129",
            "packages": {"vllm": "0.20.2+cu129", "torch": "2.11.0+cu129"},
            "cuda_build": "12.9",
        },
    ),
    ("vllm/vllm-openai:v0.1.7@sha256:ab", {"engine": "vllm", "engine_version": "0.1.7"}),
    ("vllm/vllm-openai", {}),
    ("vllm/vllm-openai:latest-rocm", {}),
    (
        "lmsysorg/sglang:v0.5.9.post1-cu126",
        {
            "engine": "sglang",
            "engine_version": "0.5.9.post1+cu126",
            "packages": {"sglang": "0.5.9.post1+cu126", "torch": "2.9.1+cu126"},
            "cuda_build": "12.6",
        },
    ),
    ("lmsysorg/sglang:v0.5.5.post3-rocm700-mi30x", {}),
    ("ollama/ollama:0.12.3", {"engine": "ollama", "engine_version": "0.12.3"}),
    ("ollama/ollama:0.12.3-rocm", {}),
    ("ghcr.io/ggml-org/llama.cpp:server-cuda-b6000", {"engine": "llama.cpp"}),
    ("ghcr.io/ggml-org/llama.cpp:server-cuda13", {"engine": "llama.cpp"}),
    ("ghcr.io/ggml-org/llama.cpp:server", {"engine": "llama.cpp", "cuda_build": None}),
    ("ghcr.io/ggml-org/llama.cpp:server-vulkan", {}),
    ("nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3", {"engine": "triton-vllm"}),
    ("nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3", {"engine": "triton-tensorrt-llm"}),
    ("nvcr.io/nvidia/tensorrt-llm/release:1.2.1", {"engine": "tensorrt-llm", "engine_version": "1.2.1"}),
    ("registry.here:5000/vllm:1", {}),
]


@pytest.mark.parametrize(("name", "wanted"), IMAGES, ids=[name for name, _ in IMAGES])
def test_an_image_says_what_its_maker_put_into_its_name(name: str, wanted: dict[str, Any]) -> None:
    assert of_image(name, TABLES).facts == Facts.model_validate({"target": "docker", **wanted})


@pytest.mark.parametrize("name", ["", "two words", "a:b:c:d", ":tag", "x" * 300 + "\n"])
def test_what_is_not_an_image_is_refused(name: str) -> None:
    with pytest.raises(WrongUseError, match="not the name of an image"):
        of_image(name, TABLES)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, {"image_requires": ()}),
        (
            {"NVIDIA_REQUIRE_CUDA": "cuda>=12.6", "CUDA_VERSION": "12.6.3"},
            {"image_requires": ("cuda>=12.6",), "cuda_build": "12.6"},
        ),
        ({"NVIDIA_REQUIRE_CUDA": "cuda>=12.6", "NVIDIA_DISABLE_REQUIRE": "true"}, {"image_requires": ()}),
        (
            {"NVIDIA_REQUIRE_CUDA": "cuda>=12.6", "NVIDIA_DISABLE_REQUIRE": "0"},
            {"image_requires": ("cuda>=12.6",)},
        ),
        ({"NV_CUDA_LIB_VERSION": "13.0.1-1"}, {"image_requires": (), "cuda_build": "13.0"}),
        ({"NV_CUDA_CUDART_VERSION": "12.4.127-1"}, {"image_requires": (), "cuda_build": "12.4"}),
        ({"CUDA_VERSION": "latest"}, {"image_requires": ()}),
    ],
)
def test_an_environment_says_what_the_image_demands(
    variables: dict[str, str], wanted: dict[str, Any]
) -> None:
    assert of_environment(variables).facts == Facts.model_validate({"target": "docker", **wanted})


@pytest.mark.parametrize(
    ("packages", "wanted"),
    [
        ({"vllm": "0.10.2", "torch": "2.8.0+cu126"}, {"engine": "vllm", "cuda_build": "12.6"}),
        (
            {"torch": "2.8.0", "nvidia-cuda-runtime-cu12": "12.8.90"},
            {"cuda_build": "12.8"},
        ),
        ({"vllm": "0.10.2", "torch": "2.8.0"}, {"engine": "vllm"}),
        ({"torch": "2.8.0+cpu"}, {"cuda_build": None}),
        ({"xllamacpp": "2026.10.1"}, {"engine": "llama.cpp", "cuda_build": None}),
        ({"sglang": "0.5.3"}, {"engine": "sglang"}),
        ({"numpy": "2.1"}, {}),
    ],
)
def test_packages_say_what_they_were_built_for(packages: dict[str, str], wanted: dict[str, Any]) -> None:
    """A list that was cut leaves the build unknown."""
    assert of_packages(packages, TABLES).facts == Facts.model_validate({"packages": packages, **wanted})


def test_the_later_report_counts() -> None:
    base = Survey(facts=Facts(driver="535.1", glibc="2.35"), fault="NVML: x")
    merged = merge(base, Survey(facts=Facts(driver="550.1")), Survey(facts=Facts(cuda_build=None)))
    assert merged == Survey(facts=Facts(driver="550.1", glibc="2.35", cuda_build=None), fault="NVML: x")


def test_options_complete_a_report() -> None:
    two = Facts(gpus=(Gpu(name="NVIDIA GeForce"), Gpu(name="NVIDIA GeForce")))
    assert of_options(TABLES, two, gpus=["RTX 4090"]).facts.gpus == (Gpu(name="RTX 4090"),) * 2
    assert of_options(TABLES, two, gpus=["T4", "L4"]).facts.gpus == (Gpu(name="T4"), Gpu(name="L4"))
    assert of_options(TABLES, Facts(), engine="vLLM==0.19.1").facts == Facts(
        engine="vllm", engine_version="0.19.1", packages={"vllm": "0.19.1", "torch": "2.10.0"}
    )
    assert of_options(TABLES, Facts(packages={"torch": "2.9.0"}), engine="vllm==0.19.1").facts == Facts(
        engine="vllm", engine_version="0.19.1"
    )
    assert of_options(TABLES, Facts(), engine="trtllm").facts == Facts(engine="tensorrt-llm")
    assert of_options(TABLES, Facts(), engine="llama.cpp==b4574").facts.engine_version == "4574"
    assert (
        of_options(TABLES, Facts(), engine="vllm==v0.19.1").facts
        == of_options(TABLES, Facts(), engine="vllm==0.19.1").facts
    )


@pytest.mark.parametrize(
    ("known", "options", "said"),
    [
        (Facts(), {"engine": "vlm"}, "'vlm' is not an engine in the tables"),
        (Facts(), {"engine": "vllm==new"}, "'new' is not a version of vllm"),
        (Facts(), {"driver": "R580"}, "'R580' is not the version of a driver"),
        (
            Facts(engine="sglang"),
            {"engine": "vllm"},
            "the facts are for the engine 'sglang', but --engine is vllm",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(known: Facts, options: dict[str, str], said: str) -> None:
    with pytest.raises(WrongUseError) as error:
        of_options(TABLES, known, **options)
    assert error.value.what == said
