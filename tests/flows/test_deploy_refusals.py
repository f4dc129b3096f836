"""A deploy with an engine that cannot be deployed yet: this host's verdict or one line, and nothing is built."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect import get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from blocks.expectations.fact_contract import FactContract
from blocks.host.host import ThisHost
from blocks.prefect.bootstrap import TOLD_STATES
from blocks.storage.record_store import open_record_store
from flows.deploy_model import deploy_model
from flows.redeploy_model import redeploy_model
from tasks.compatibility.models import NvmlReading, TableCheck, TablesCheck, TablesIdentity
from tasks.core.errors import MissingToolError, NotFoundError, SpecError
from tasks.core.facts import Gpu
from tasks.core.records import inputs_digest
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.verdicts import StageName
from tasks.lifecycle.models import deploy_inputs

CHECK = TablesCheck(
    identity=TablesIdentity(digest="sha256:0", contract="sha256:1", great_expectations="1"),
    page="",
    tables=(TableCheck(table="branches", rows=2, expectations=1),),
)
V100 = Gpu(name="Tesla V100", compute_capability="7.0", memory_bytes=32_000_000_000)


@pytest.fixture(autouse=True)
def host(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU; the contract on the tables is another test's."""
    monkeypatch.setattr(ThisHost, "nvml", lambda _: NvmlReading())
    monkeypatch.setattr("flows.deploy_model.read_nvml", NvmlReading)
    monkeypatch.setattr(ThisHost, "nvidia_smi", lambda _: None)
    monkeypatch.setattr(FactContract, "check", lambda _: CHECK)


def spec(model: Path, engine: str) -> DeploySpec:
    return parse_spec({"name": "big", "model": f"file:{model}", "engine": engine})


def built() -> set[str]:
    """What lies in the home beside records and leases."""
    return {path.name for path in Settings.load().home.iterdir()} - {"records", "leases", "logs", "tables"}


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_an_engine_that_needs_a_gpu_is_blocked_here(engine: str, random_model: Path) -> None:
    """Whether or not it could be deployed elsewhere: gigabytes for a GPU are not installed first."""
    result = deploy_model(spec(random_model, engine))
    assert result.verdict == "refused"
    assert [(row.stage, row.verdict, row.headline) for row in result.stages] == [
        ("compatibility", "block", f"CPU only: {engine} needs a GPU, and this host has none")
    ]
    assert [record.outcome for record in open_record_store(Settings.load()).list(StageName.LIFECYCLE)] == [
        "refused"
    ]
    assert not built()


def test_what_is_missing_is_one_line(random_model: Path) -> None:
    with pytest.raises(SpecError, match="ollama cannot be deployed yet: Ollama is not"):
        deploy_model(spec(random_model, "ollama"))
    (record,) = open_record_store(Settings.load()).list(StageName.LIFECYCLE)
    assert record.outcome == "fault"
    assert not built()


def test_a_store_that_is_down_does_not_hide_what_is_missing(
    random_model: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.deploy_model._Lifecycle._is_ruled_out", lambda _: False)  # would be recorded
    slipway_home.mkdir(exist_ok=True)
    (slipway_home / "records").write_text("in the way: no folder can be made here")
    with pytest.raises(SpecError, match="ollama cannot be deployed yet"):
        deploy_model(spec(random_model, "ollama"))


def test_a_deploy_that_cannot_begin_leaves_a_record_of_its_version(
    slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, watch-registry would take the event that asked for it for a lost one, and ask without end."""
    alias = slipway_home / "registry" / "m" / "aliases" / "champion"
    alias.parent.mkdir(parents=True)
    alias.write_text("2")
    followed = parse_spec({"name": "big", "model": "models:/m@champion"})

    def down(_: object) -> None:
        raise MissingToolError("no Docker engine answers")

    monkeypatch.setattr("flows.deploy_model.check_target", down)
    with pytest.raises(MissingToolError, match="no Docker engine answers"):
        deploy_model(followed)
    alias.unlink()
    with pytest.raises(NotFoundError, match="does not have m@champion"):
        deploy_model(followed)
    down_, unknown = open_record_store(Settings.load()).list(StageName.LIFECYCLE)
    assert (down_.outcome, down_.evidence["error"]["what"]) == ("fault", "no Docker engine answers")
    assert down_.inputs_digest == inputs_digest(StageName.LIFECYCLE, deploy_inputs(followed, "2"))
    assert (unknown.outcome, unknown.evidence["inputs"]) == ("fault", deploy_inputs(followed, None))


def test_the_family_of_a_model_in_a_folder_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma overflows in the only type that this GPU computes in. Judged before anything is locked, built or copied."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForCausalLM"]}))
    reading = NvmlReading(available=True, driver="550.54.14", cuda_driver="12.4", gpus=(V100,))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: reading)
    monkeypatch.setattr("flows.deploy_model.read_nvml", lambda: reading)
    result = deploy_model(spec(tmp_path, "sglang"))
    (row,) = result.stages
    assert row.verdict == "block"
    (record,) = open_record_store(Settings.load()).list(StageName.COMPATIBILITY)
    findings = record.evidence["result"]["findings"]
    assert "WEIGHTS-NONE" in {finding["rule"] for finding in findings}
    assert record.evidence["inputs"]["request"]["family"] == "gemma"


def test_a_redeploy_that_is_refused_is_told_of_by_the_deploy_alone(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = SimpleNamespace(spec=spec(random_model, "vllm"))
    monkeypatch.setattr(ServiceFolder, "serving", lambda _: (None, serving))
    state = redeploy_model("big", return_state=True)
    assert (state.name, state.type) == ("Not redeployed", StateType.FAILED)
    with get_client(sync_client=True) as client:
        names = [run.state_name for run in client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=3)]
    assert [name for name in names if name in TOLD_STATES] == ["Refused"]


def test_the_quantization_of_a_model_in_a_folder_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family that is not listed goes by its `model_type`, and weights by what `config.json` says of them."""
    config = {"model_type": "qwen3_moe", "quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reading = NvmlReading(available=True, driver="550.54.14", cuda_driver="12.4", gpus=(V100,))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: reading)
    monkeypatch.setattr("flows.deploy_model.read_nvml", lambda: reading)
    assert deploy_model(spec(tmp_path, "sglang")).stages[0].verdict == "block"
    (record,) = open_record_store(Settings.load()).list(StageName.COMPATIBILITY)
    request = record.evidence["inputs"]["request"]
    assert (request["family"], request["dtype"]) == ("qwen3_moe", "awq")
    assert "WEIGHTS-NONE" in {one["rule"] for one in record.evidence["result"]["findings"]}
