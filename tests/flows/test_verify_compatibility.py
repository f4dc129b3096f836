"""The flow surveys this host, judges, records, and does not judge twice what has not changed."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest

from blocks.expectations.fact_contract import FactContract
from blocks.host.host import ThisHost
from blocks.storage.record_store import open_record_store
from flows.verify_compatibility import verify_compatibility
from tasks.compatibility.models import (
    CompatibilityRequest,
    NvmlReading,
    TableCheck,
    TablesCheck,
    TablesIdentity,
)
from tasks.core.contract import ContractBreach
from tasks.core.facts import Disk, Gpu
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind
from tasks.core.verdicts import StageName

CHECK = TablesCheck(
    identity=TablesIdentity(digest="sha256:0", contract="sha256:1", great_expectations="1"),
    page="",
    tables=(TableCheck(table="branches", rows=2, expectations=1),),
)
REQUEST = CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages={"xllamacpp": "2026.10.11549"})


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU-only host that every machine can be; its other sources stay real."""
    monkeypatch.setattr(ThisHost, "nvml", lambda _: NvmlReading())
    monkeypatch.setattr(ThisHost, "nvidia_smi", lambda _: None)


def test_what_becomes_free_on_a_disk_judges_nothing_anew(
    slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter(range(2))
    monkeypatch.setattr(ThisHost, "disks", lambda _: (Disk(mount="/", free_bytes=next(free)),))
    first, second = verify_compatibility(REQUEST), verify_compatibility(REQUEST)
    assert (first.cached, second.cached) == (False, True)
    assert [disk.free_bytes for disk in first.result.facts.disks] == [0]


def test_an_environment_that_stands_is_asked(slipway_home: Path, tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    (packages,) = tmp_path.glob("lib/python3*/site-packages")
    (packages / "torch").mkdir()
    for name, text in (("__init__", ""), ("version", "__version__ = '2.9.0+cu126'\ncuda = '12.6'\n")):
        (packages / "torch" / f"{name}.py").write_text(text)
    packages_of_the_lock = {"torch": "2.9.0", "nvidia-cuda-runtime-cu12": "12.8.90"}
    request = REQUEST.model_copy(update={"packages": packages_of_the_lock})
    standing = request.model_copy(update={"python_path": tmp_path / "bin" / "python"})
    by_lock, by_torch = verify_compatibility(request), verify_compatibility(standing)
    assert (by_lock.result.facts.cuda_build, by_torch.result.facts.cuda_build) == ("12.8", "12.6")
    assert (by_lock.verdict, by_torch.verdict) == ("pass", "warn")
    (packages / "torch" / "version.py").write_text("__version__ = '2.9.0+cu128'\ncuda = '12.8'\n")
    assert (verify_compatibility(standing).verdict, verify_compatibility(standing).cached) == ("pass", True)


def test_verdict_record_and_cache(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = verify_compatibility(REQUEST), verify_compatibility(REQUEST)
    assert (first.verdict, first.headline, first.cached) == ("pass", "CPU only, 0 findings", False)
    assert (second.cached, second.record) == (True, first.record)
    assert second.result.facts == first.result.facts

    v100 = Gpu(name="Tesla V100-SXM2-32GB", compute_capability="7.0")
    changed = NvmlReading(available=True, driver="580.95.05", cuda_driver="13.0", gpus=(v100,))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: changed)
    cuda_13 = REQUEST.model_copy(update={"packages": {"nvidia-cuda-runtime": "13.0.96"}})
    third = verify_compatibility(cuda_13, return_state=True)
    outcome = third.result()
    assert (third.name, outcome.says_no, outcome.headline) == (
        "Block",
        True,
        "Tesla V100-SXM2-32GB, driver 580.95.05, CUDA 13.0 build: block",
    )
    assert first.result.tables == second.result.tables == outcome.result.tables
    records = open_record_store(Settings.load()).list(StageName.COMPATIBILITY)
    assert [record.outcome for record in records] == ["pass", "block"]
    assert records[1].numbers["findings_block"].value == 1


def test_the_tables_are_part_of_the_answer(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CHECK.model_copy(update={"page": str(slipway_home / "index.html")})
    monkeypatch.setattr(FactContract, "check", lambda _: kept)
    slipway_home.mkdir()
    Path(kept.page).touch()
    assert [verify_compatibility(REQUEST).cached for _ in range(2)] == [False, True]
    Path(kept.page).unlink()
    assert not verify_compatibility(REQUEST).cached, (
        "without the page that the artifact names, it is made anew"
    )

    breach = ContractBreach(expectation="expect_x", column="cuda", observed="1 of 2 values do not fit (x)")
    table = kept.tables[0].model_copy(update={"breaches": (breach,)})
    monkeypatch.setattr(FactContract, "check", lambda _: kept.model_copy(update={"tables": (table,)}))
    other = REQUEST.model_copy(update={"packages": {}})
    outcome = verify_compatibility(other)
    assert (outcome.verdict, outcome.says_no, outcome.cached) == ("block", True, False)
    assert [finding.rule for finding in outcome.result.findings if finding.severity != "info"] == [
        "FACT-TABLE-BRANCHES"
    ]
    Path(kept.page).touch()
    assert not verify_compatibility(other).cached, "a breach is looked at anew"
