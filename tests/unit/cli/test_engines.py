"""`slipway engines`, and what `slipway deploy` answers for engines that it cannot deploy yet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from deployments.cli.engines import measured
from deployments.cli.main import main
from tasks.compatibility.models import NvmlReading
from tasks.core.digests import digest_of
from tasks.core.facts import Facts
from tasks.core.records import Record, new_record
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.core.verdicts import StageName
from tasks.engines.weights import KINDS

EIGHT_H100 = {"gpus": [{"name": "H100", "compute_capability": "9.0", "memory_bytes": 80_000_000_000}] * 8}


def slipway(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def facts(tmp_path: Path, slipway_home: Path) -> Path:
    file = tmp_path / "facts.json"
    file.write_text(json.dumps(EIGHT_H100))
    return file


def batching(engine: str, throughput: float | None, facts: Facts, fit: str = "failed") -> Record:
    chosen = {"batch": 4, "throughput": throughput} if throughput else None
    return new_record(
        stage=StageName.BATCHING,
        subject="chat",
        host_fingerprint=facts.fingerprint,
        inputs_digest=digest_of([engine, throughput, fit]),
        outcome="chosen" if throughput else "none",
        seconds=1,
        numbers={},
        evidence={
            "inputs": {"engine": engine, "model_digest": "sha256:m"},
            "result": {
                "chosen": chosen,
                "reason": "nothing fits",
                "sizes": [{"fit": "fits" if chosen else fit}],
            },
        },
    )


def test_the_list_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("engines", "--json") == 0
    found = json.loads(capsys.readouterr().out)["engines"]
    assert [row["engine"] for row in found] == list(EngineKind)
    assert {row["engine"]: row["version"] for row in found if row["deploys"]}.keys() >= {"llama.cpp", "vllm"}
    assert not any(row["deploys"] for row in found if row["engine"] in ("ollama", "triton-vllm"))
    llama = found[0]
    assert llama["requirements"] == ["xllamacpp==2026.10.11549", "gguf==0.19.0", "numpy>=2,<3"]
    assert llama["formats"] == [form.value for form in CandidateFormat if form not in KINDS]
    assert llama["max_batch"] == 256
    assert all(row["sources"] and row["quantization"] for row in found)


def test_the_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("engines") == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "engine version GPU capability model quantized weights deploys"
    assert "llama.cpp 2026.10.11549 not needed 5.0 gguf-file gguf yes" in shown
    assert "vllm 0.32.0 needed 7.5 hf-folder awq, bitsandbytes, fp8, gptq, int8 yes" in shown


def test_a_recommendation_for_programs(facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("engines", "--need", "throughput", "--facts", str(facts), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] == {"engine": "vllm", "family": "llama", "sourcing": "open-source"}
    assert [row["name"] for row in found["choices"] if row["kind"] == "engine"][:3] == [
        "vllm",
        "sglang",
        "tensorrt-llm",
    ]
    assert not facts.parent.joinpath("home").exists()


def test_a_recommendation_for_people(facts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("engines", "--need", "workflow", "--facts", str(facts)) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[-1:] == snapshot(
        [
            "recommended engine vllm, family qwen3, application dify, sourcing open-source",
        ]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "llama"], "--family only applies to a recommendation"),
        (["--facts", "x.json"], "--facts only applies to a recommendation"),
        (["--need", "edge", "--facts", "/none.json"], "no facts file /none.json"),
        (["--need", "edge", "--family", "lama"], "did you mean llama?"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("engines", *arguments) == 2
    assert message in capsys.readouterr().err


def test_records_of_this_hardware_are_what_was_measured() -> None:
    here, there = Facts.model_validate(EIGHT_H100), Facts(cpu="other")
    records = [
        batching("vllm", 100.0, here),
        batching("vllm", 120.0, here),
        batching("sglang", None, here),
        batching("sglang", 900.0, there),
        batching("ollama", None, here, fit="too slow"),  # of which its objectives are to blame
    ]
    found = measured(records, here.fingerprint)
    assert [(one.engine, one.model, one.throughput, one.failed) for one in found] == [
        ("vllm", "sha256:m", 120.0, None),
        ("sglang", "sha256:m", None, "nothing fits"),
    ]
    assert {one.record for one in found} == {records[1].id, records[2].id}


def spec_of(folder: Path, model: Path, engine: str) -> str:
    file = folder / "spec.yaml"
    file.write_text(f"name: big\nmodel: file:{model}\nengine: {engine}\n")
    return str(file)


def test_a_dry_run_gives_the_verdict_on_an_engine_that_needs_a_gpu(
    random_model: Path,
    tmp_path: Path,
    slipway_home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deployments.cli.deploy.read_nvml", NvmlReading)
    monkeypatch.setattr("deployments.cli.deploy._judge", lambda spec: (True, "block: vllm needs a GPU"))
    assert slipway("deploy", spec_of(tmp_path, random_model, "vllm"), "--dry-run", "--json") == 3
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [(step["stage"], step["does"][:30]) for step in plan] == [
        ("compatibility", "block: vllm needs a GPU"),
        ("environment", "stop before anything is built:"),
    ]
    assert not slipway_home.exists()


def test_a_deploy_that_lacks_something_says_so_before_a_server_starts(
    random_model: Path, tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(tmp_path, random_model, "ollama")
    for arguments in (["deploy", spec], ["deploy", spec, "--dry-run"]):
        assert slipway(*arguments) == 2
        assert "error: ollama cannot be deployed yet: Ollama is not" in capsys.readouterr().err
    assert not slipway_home.exists()


def test_the_catalogue_loads_nothing_heavy() -> None:
    code = "import sys, deployments.cli.engines; print([n for n in ('prefect', 'pandas', 'httpx', 'docker') if n in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
