"""What fits what: every cell is what the rules say of a host that has it, and of one that does not."""

from __future__ import annotations

import pytest
from packaging.version import Version

from tasks.compatibility.matrix import matrix_of
from tasks.compatibility.models import MatrixRow, Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.report import matrix_rows
from tasks.compatibility.rules import load_tables
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts

TABLES = load_tables()
PASSES = ("pass", "warn")


def verdict(engine: str, row: MatrixRow, **host: object) -> str:
    packages = {engine: row.release} | ({"torch": row.torch} if row.torch else {})
    stack = {"packages": packages, "cuda_build": row.cuda, "forward_compat": False, "cpu": "x86_64"}
    if engine == "torch":
        stack["engine"] = "transformers"
    else:
        stack |= {"engine": engine, "engine_version": row.release}
    gpu = {"name": "a GPU", "compute_capability": host.pop("cc")}
    return judge(Survey(facts=Facts.model_validate({**stack, "gpus": [gpu], **host}))).verdict.value


def before(driver: str) -> str:
    return f"{Version(driver).major - 1}.99"


@pytest.mark.parametrize("engine", sorted({row.package for row in TABLES.releases}))
def test_each_cell_is_what_the_rules_say(engine: str) -> None:
    for row in matrix_of(engine).rows:
        newest = {"cc": row.gpus[-1], "driver": "580.95.05"}
        assert any(verdict(engine, row, cc=cc, driver=row.driver) in PASSES for cc in row.gpus)
        assert all(verdict(engine, row, cc=cc, driver=before(row.driver)) not in PASSES for cc in row.gpus)
        for capability in TABLES.capabilities:
            runs = verdict(engine, row, cc=capability.cc, driver="580.95.05") in PASSES
            assert runs is (capability.cc in row.gpus), (row, capability.cc)
        if row.glibc:
            assert verdict(engine, row, **newest, glibc=row.glibc) in PASSES
            assert verdict(engine, row, **newest, glibc="2.5") == "block"


def test_a_row_for_each_build_with_the_verdict_of_a_host() -> None:
    host = Facts.model_validate(
        {
            "driver": "550.90.07",
            "glibc": "2.35",
            "gpus": [{"name": "NVIDIA H100", "compute_capability": "9.0"}],
        }
    )
    rows = {(row.release, row.cuda): row.here for row in matrix_of("torch", host).rows}
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
    assert matrix_of("VLLM").engine == "vllm"
    with pytest.raises(WrongUseError, match="list no releases of 'dify'"):
        matrix_of("dify")
