"""The flow surveys this host, judges, records, and does not judge twice what has not changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.fact_contract import FactContract
from blocks.host import ThisHost
from blocks.record_store import open_record_store
from flows.verify_compatibility import verify_compatibility
from tasks.compatibility.models import (
    CompatibilityRequest,
    NvmlReading,
    TableCheck,
    TablesCheck,
    TablesIdentity,
)
from tasks.core.contract import ContractBreach
from tasks.core.facts import Gpu
from tasks.core.settings import Settings
from tasks.core.spec import EngineKind
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
