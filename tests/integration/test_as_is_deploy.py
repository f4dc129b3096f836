"""`slipway deploy` of a model that comes quantized, and with code of its own, by transformers serve.

It is int8 as compressed-tensors stores it.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import yaml
from commands import Desk
from quantized_model import say_quantized, write_int8_model

from blocks.storage.record_store import FolderRecordStore
from tasks.core.digests import digest_of_file
from tasks.core.release import ServiceFolder
from tasks.core.verdicts import StageName

CODE = """from pathlib import Path
import sys
from transformers import {base}

with Path({trace!r}).open("a") as file:
    print(sys.executable, file=file)


class Own({base}):
    pass
"""
pytestmark = [pytest.mark.engine, pytest.mark.server]


def with_code(model: Path, trace: Path) -> Path:
    """The model with a class of its own, in a file that says in `trace` which Python runs it."""
    config = json.loads((model / "config.json").read_text())
    say_quantized(model, None, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    (model / "modeling_own.py").write_text(CODE.format(base=config["architectures"][0], trace=str(trace)))
    return model


def test_a_quantized_model_is_served_as_it_is_and_compared_with_its_baseline(
    transformers_python: Path, examples: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "home", prefect_api_url)
    tiny = examples / "tiny"
    trace = tmp_path / "trace"
    model = with_code(write_int8_model(tiny / "model", tmp_path / "int8"), trace)
    env = {"HF_HOME": str(tmp_path / "hf")}  # where Transformers copies code to
    spec = tmp_path / "spec.yaml"
    values = {
        "name": "int8",
        "model": f"file:{model}",
        "engine": "transformers",
        "hardware": {"cpus": 1},
        "environment": {"manager": "system", "path": str(transformers_python.parent.parent)},
        "staging": {"disk_benchmark": False},
        "serving": {"trust_remote_code": True},
        "objectives": {"quality_tolerance": 0.05},
        "tuning": {
            "baseline": f"file:{tiny / 'model'}",
            "quality_text": str(tiny / "heldout.txt"),
            "quality_tokens": 512,
            "max_batch": 1,
            "context": 128,
            "output_tokens": 8,
        },
    }
    spec.write_text(yaml.safe_dump(values))
    try:
        answer = desk.deploy(spec, env=env).answer
        rows = {row["stage"]: row for row in answer["stages"]}
        assert {stage: row["verdict"] for stage, row in rows.items()} == {
            "environment": "sound",
            "compatibility": "pass",
            "staging": "verified",
            "quantization": "chosen",
            "batching": "chosen",
            "rollout": "serving",
            "health": "healthy",
        }
        assert rows["quantization"]["headline"].startswith("as-is (compressed-tensors, int8), ")
        (record,) = FolderRecordStore(desk.home / "records").list(StageName.QUANTIZATION)
        base, own = record.evidence["result"]["measured"]
        assert (base["format"], own["format"], base["compared_only"]) == ("bf16", "as-is", True)
        assert 0 < own["quality"]["divergence"]["value"] < 0.01  # its own numbers, and with their scales
        release = ServiceFolder(desk.home / "services", "int8").serving()[1]
        assert release.candidate_format == "as-is (compressed-tensors, int8)"
        assert release.launch.model_file.is_dir()
        (digest,) = release.config.remote_code.items()
        assert digest == ("modeling_own.py", digest_of_file(model / "modeling_own.py"))
        assert "--trust-remote-code" in release.launch.argv
        assert set(trace.read_text().split()) == {str(transformers_python)}  # never by Slipway's own
        body = {"model": "int8", "prompt": "If the file", "max_tokens": 4}
        told = httpx.post(f"{answer['endpoint']}/v1/completions", json=body, trust_env=False, timeout=60)
        assert told.json()["usage"]["completion_tokens"] == 4
        again = desk.deploy(spec, env=env).answer
        assert again["release"] == answer["release"]
        assert {row["stage"] for row in again["stages"] if row["cached"]} >= {"quantization", "batching"}
    finally:
        desk.run("stop", "int8")
