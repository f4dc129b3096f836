"""What fits what: every cell is what the rules say of a host that has it, and of one that does not."""

from __future__ import annotations

import functools

import pytest
from packaging.version import Version

from tasks.compatibility import matrix
from tasks.compatibility.matrix import capabilities_of_cards
from tasks.compatibility.models import MatrixRow, Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.report import matrix_rows
from tasks.compatibility.rules import CapabilityRow, load_tables
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts

TABLES = load_tables()
CARDS = capabilities_of_cards(TABLES)
GLIBCS = ["2.0", *sorted({row.glibc for row in TABLES.glibc}, key=Version)]
PASSES = ("pass", "warn")
matrix_of = functools.cache(matrix.matrix_of)


def runs(engine: str, row: MatrixRow, **host: object) -> bool:
    """Whether the host passes, and the engine serves on its GPU."""
    packages = {engine: row.release} | ({"torch": row.torch} if row.torch else {})
    stack = {"packages": packages, "cuda_build": row.cuda, "forward_compat": False, "cpu": "x86_64"}
    if engine == "torch":
        stack["engine"] = "transformers"
    else:
        stack |= {"engine": engine, "engine_version": row.release}
    gpu = {"name": "a GPU", "compute_capability": host.pop("cc")}
    result = judge(Survey(facts=Facts.model_validate({**stack, "gpus": [gpu], **host})))
    beside = "ENG-FLOOR-PROCESSOR" in {finding.rule for finding in result.findings}
    return result.verdict.value in PASSES and not beside


def before(driver: str) -> str:
    return f"{Version(driver).major - 1}.99"


def newest_driver(capability: CapabilityRow) -> str:
    """R580, or the last branch that drives the GPU."""
    return f"{min(capability.last_branch or 580, 580)}.256.02"


@pytest.mark.parametrize("engine", sorted({row.package for row in TABLES.releases}))
def test_each_cell_is_what_the_rules_say(engine: str) -> None:
    for row in matrix_of(engine).rows:
        assert any(runs(engine, row, cc=cc, driver=row.driver) for cc in row.gpus)
        assert not any(runs(engine, row, cc=cc, driver=before(row.driver)) for cc in row.gpus)
        for capability in CARDS:
            here = runs(engine, row, cc=capability.cc, driver=newest_driver(capability))
            assert here is (capability.cc in row.gpus), (row, capability.cc)
        newest = {"cc": row.gpus[-1], "driver": "580.95.05"}
        assert runs(engine, row, **newest, glibc=row.glibc or "2.0")
        if row.glibc:
            assert not runs(engine, row, **newest, glibc=GLIBCS[GLIBCS.index(row.glibc) - 1])


def test_the_gpus_of_a_jetson_are_left_out() -> None:
    """Its driver has numbers of its own, and its processor is an Arm."""
    own = {"5.3", "6.2", "7.2", "8.7", "11.0"}
    assert {row.cc for row in TABLES.capabilities} - {row.cc for row in CARDS} == own
    assert not any(own.intersection(row.gpus) for row in matrix_of("torch").rows)


def test_an_engine_comes_in_the_build_that_goes_with_the_cuda() -> None:
    """One row for each CUDA of its torch: with the wheel on the index if it can be loaded, else with another build."""
    rows = [(row.release, row.torch, row.cuda, row.driver, row.glibc) for row in matrix_of("vllm").rows]
    assert [row for row in rows if row[0].startswith(("0.33.0", "0.31.0", "0.19.1"))] == [
        ("0.33.0", "2.14.0", "13.0", "580", "2.28"),
        ("0.33.0", "2.14.0", "13.2", "580", "2.28"),
        ("0.31.0", "2.13.0", "13.0", "580", "2.28"),
        ("0.31.0+cu129", "2.13.0", "12.6", "525.60.13", "2.28"),
        ("0.31.0+cu129", "2.13.0", "12.9", "525.60.13", "2.28"),
        ("0.31.0", "2.13.0", "13.2", "580", "2.28"),
        ("0.19.1", "2.10.0", "12.8", "525.60.13", "2.31"),
        ("0.19.1", "2.10.0", "12.6", "525.60.13", "2.31"),
        ("0.19.1+cu130", "2.10.0", "13.0", "580", "2.35"),
    ]


def test_a_gpu_is_listed_if_the_engine_serves_on_it() -> None:
    """Below its floor Ollama serves on the processor, which is a pass with a warning."""
    (row,) = matrix_of("ollama").rows
    assert (row.gpus[0], row.driver) == ("5.0", "531")


def test_a_row_for_each_build_with_the_verdict_of_a_host() -> None:
    host = Facts.model_validate(
        {
            "driver": "550.90.07",
            "glibc": "2.35",
            "gpus": [{"name": "NVIDIA H100", "compute_capability": "9.0"}],
        }
    )
    rows = {(row.release, row.cuda): row.here for row in matrix.matrix_of("torch", host).rows}
    assert rows["2.9.1", "12.8"] == "warn", "by minor-version compatibility"
    assert rows["2.9.1", "13.0"] == "block"
    assert rows["2.4.1", "12.1"] == "pass"
    assert list(rows) == sorted(rows, key=lambda key: [key[0] != row for row, _ in rows])


def test_people_read_generations_and_what_is_not_known_is_empty() -> None:
    rows = {(row[0], row[2]): row for row in matrix_rows(matrix_of("torch"), TABLES)}
    assert rows["2.0.1", "11.7"][1] == ""
    assert rows["2.0.1", "11.7"][-1] == ""
    assert rows["2.11.0", "13.0"][4] == "Turing 7.5 to GB10 12.1"


def test_an_alias_is_the_engine_and_others_are_refused() -> None:
    assert matrix_of("Ollama").engine == "ollama"
    with pytest.raises(WrongUseError, match="list no releases of 'dify'"):
        matrix_of("dify")
