"""Which build of torch a host gets. The answers were written before the first run; two were corrected by a source:
torch 2.10 built for CUDA 12.8 still holds code for Volta (pytorch PR #175253), 2.11 no more."""

from __future__ import annotations

from typing import Any

import pytest
from compatibility_cases import A100, B200, CPU, CURRENT, H200, R525, R535, RTX4090, T4, V100

from tasks.compatibility.backend import torch_backend
from tasks.core.errors import SpecError
from tasks.core.facts import Facts

R450 = {"driver": "450.80.02", "cuda_driver": "11.0"}
ANSWERS: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("no GPU", CPU, None, "cpu"),
    ("the newest release has one build, and CUDA 13.x runs on R580", {"gpus": [H200]}, None, "cu132"),
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
]


@pytest.mark.parametrize(("why", "facts", "version", "build"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_an_expert_would_choose(why: str, facts: dict[str, Any], version: str | None, build: str) -> None:
    assert torch_backend(Facts.model_validate({**CURRENT, **facts}), version) == build, why


@pytest.mark.parametrize(("facts", "version"), [(R535 | {"gpus": [RTX4090]}, "2.15.0"), ({}, "1.0.0")])
def test_where_no_build_runs_the_host_is_named(facts: dict[str, Any], version: str) -> None:
    with pytest.raises(SpecError, match=f"no listed build of torch {version} runs on driver 5"):
        torch_backend(Facts.model_validate({**CURRENT, **facts}), version)
