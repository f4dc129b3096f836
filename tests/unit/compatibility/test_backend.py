"""Which build of torch a host gets. The answers were written before the first run; two were corrected by a source:
torch 2.10 built for CUDA 12.8 still holds code for Volta (pytorch PR #175253), 2.11 no more."""

from __future__ import annotations

from typing import Any

import pytest
from compatibility_cases import (
    A10,
    A100,
    B200,
    CPU,
    CURRENT,
    GB10,
    GH200,
    H200,
    L4,
    P100,
    R525,
    R535,
    RTX4090,
    RTX5090,
    T4,
    THOR,
    V100,
    gpu,
)

from tasks.compatibility.backend import torch_backend
from tasks.compatibility.models import Survey
from tasks.compatibility.rules import load_tables
from tasks.compatibility.subject import describe
from tasks.core.errors import SpecError
from tasks.core.facts import Facts

R575 = {"driver": "575.57.08", "cuda_driver": "12.9"}
P40, B300 = gpu("Tesla P40", "6.1"), gpu("NVIDIA B300", "10.3")
R450 = {"driver": "450.80.02", "cuda_driver": "11.0"}
ANSWERS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("no GPU", CPU, None, "cpu"),
    ("the newest release on R580: its own CUDA, 13.2 only by minor version", {"gpus": [H200]}, None, "cu130"),
    ("CUDA 13 asks for R580: the last release built for CUDA 12", R535 | {"gpus": [A100]}, None, "cu126"),
    ("R525 is the first that runs any 12.x", R525 | {"gpus": [T4]}, None, "cu126"),
    ("CUDA 12.8 and 12.6 both run by minor version: the newer", R535 | {"gpus": [A100]}, "2.10.0", "cu128"),
    (
        "CUDA 13 has no Volta, the builds for 12.6 kept it",
        {"gpus": [V100]},
        None,
        "cu126",
    ),
    ("torch 2.11 for 12.8 has no Volta any more", {"gpus": [V100]}, "2.11.0", "cu126"),
    ("torch 2.10 for 12.8 has it", {"gpus": [V100]}, "2.10.0", "cu128"),
    ("Blackwell begins with CUDA 12.8", {"gpus": [B200]}, "2.7.1", "cu128"),
    ("all GPUs must run it", {"gpus": [B200, V100]}, "2.10.0", "cu128"),
    ("CUDA 11 runs from R450 on", R450 | {"gpus": [V100]}, None, "cu118"),
    ("Pascal: the last release with CUDA 12.6", {"gpus": [P100]}, None, "cu126"),
    ("Pascal is not in torch's builds of CUDA 12.8", {"gpus": [P100]}, "2.10.0", "cu126"),
    ("nor is its consumer variant", {"gpus": [P40]}, "2.9.1", "cu126"),
    ("Maxwell, Pascal and CUDA 11", {"gpus": [P40]}, "2.5.1", "cu124"),
    ("Turing", {"gpus": [T4]}, None, "cu130"),
    ("Ampere with 2.13: the default of the index", {"gpus": [A10]}, "2.13.0", "cu130"),
    ("Ampere on R535 with 2.14: a CUDA 12 build is offered", R535 | {"gpus": [A10]}, "2.14.1", "cu126"),
    ("Ada with 2.6", {"gpus": [L4]}, "2.6.0", "cu126"),
    (
        "Blackwell on R575 with 2.13: CUDA 12.9, as 12.6 has no code for it",
        R575 | {"gpus": [B200]},
        "2.13.0",
        "cu129",
    ),
    ("Blackwell Ultra runs the code for 10.0", R575 | {"gpus": [B300]}, "2.10.0", "cu128"),
    ("Blackwell Ultra", {"gpus": [B300]}, None, "cu130"),
    ("RTX 50", {"gpus": [RTX5090]}, "2.9.1", "cu130"),
    ("GB10 runs the code for 12.0", {"gpus": [GB10]}, None, "cu130"),
    ("Thor's code is in the wheels of CUDA 13 for Arm", {"gpus": [THOR]}, "2.10.0", "cu130"),
    ("Grace Hopper with 2.5: one CUDA build for Arm", {"gpus": [GH200]}, "2.5.1", "cu124"),
    ("Grace Hopper with 2.8: again one", {"gpus": [GH200]}, "2.8.0", "cu129"),
]


@pytest.mark.parametrize(("why", "facts", "version", "build"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_an_expert_would_choose(why: str, facts: dict[str, Any], version: str | None, build: str) -> None:
    assert torch_backend(Facts.model_validate({**CURRENT, **facts}), version) == build, why


WITH_ENGINE: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("vLLM from 0.20 on is a CUDA 13 build, and pins its torch", {}, {"vllm": "0.32.0"}, "cu130"),
    ("before that one for CUDA 12", {}, {"vllm": "0.12.0"}, "cu128"),
    ("SGLang's kernels are for CUDA 13 from 0.5.11 on", {}, {"sglang": "0.5.16"}, "cu130"),
    ("and for CUDA 12 before", {}, {"sglang": "0.5.9"}, "cu128"),
    ("its kernels say more than SGLang", {}, {"sglang": "0.5.9", "sgl-kernel": "0.3.21+cu130"}, "cu130"),
    ("an old vLLM on an old driver", R535 | {"gpus": [A100]}, {"vllm": "0.19.1"}, "cu128"),
]


@pytest.mark.parametrize(
    ("why", "facts", "packages", "build"), WITH_ENGINE, ids=[row[0] for row in WITH_ENGINE]
)
def test_the_build_fits_the_engines(
    why: str, facts: dict[str, Any], packages: dict[str, str], build: str
) -> None:
    known = Facts.model_validate({**CURRENT, **facts})
    assert torch_backend(known, packages=packages) == build, why


def test_an_engine_whose_build_does_not_run_here_is_refused_with_the_build_that_does() -> None:
    """Torch for CUDA 12 next to vLLM for CUDA 13 would end in `libcudart.so.13: cannot open shared object file`."""
    facts = Facts.model_validate({**CURRENT, **R535, "gpus": [A100]})
    with pytest.raises(SpecError, match=r"vllm 0\.30\.0 is a CUDA 13\.0 build") as caught:
        torch_backend(facts, packages={"vllm": "0.30.0"})
    assert "https://wheels.vllm.ai/0.30.0/cu129" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("facts", "version"),
    [
        (R535 | {"gpus": [RTX4090]}, "2.15.0"),
        ({"gpus": [V100]}, "2.15.0"),
        ({"gpus": [P100]}, "2.15.0"),
        ({"gpus": [P100, B200]}, "2.10.0"),
        ({"gpus": [RTX5090]}, "2.6.0"),
        ({"gpus": [GB10]}, "2.6.0"),
        ({"gpus": [GH200]}, "2.3.1"),
        ({"gpus": [T4], "cpu": "aarch64"}, "2.10.0"),
        ({}, "1.0.0"),
    ],
)
def test_where_no_build_runs_the_host_is_named(facts: dict[str, Any], version: str) -> None:
    with pytest.raises(SpecError, match=f"no listed build of torch {version} runs on driver 5"):
        torch_backend(Facts.model_validate({**CURRENT, **facts}), version)


RELEASES = [row.version for row in load_tables().releases if row.package == "torch"]


@pytest.mark.parametrize(
    "found", [P100, P40, V100, T4, A100, A10, L4, H200, GH200, B200, B300, GB10, THOR, RTX5090]
)
def test_the_chosen_build_has_code_for_the_gpu(found: dict[str, Any]) -> None:
    chosen = 0
    for version in RELEASES:
        facts = Facts.model_validate({**CURRENT, "gpus": [found]})
        try:
            build = torch_backend(facts, version)
        except SpecError:
            continue
        cuda = f"{build[2:4]}.{build[4:]}"
        known = {**facts.model_dump(), "packages": {"torch": f"{version}+{build}"}, "cuda_build": cuda}
        subject = describe(Survey(facts=Facts.model_validate(known)), load_tables())
        assert [one["gpu.torch_kernels"] for one in subject.gpus or ()] == ["machine code"], (version, build)
        chosen += 1
    assert chosen >= 5
