"""`slipway deploy` with an engine that loads model folders: transformers serve, for real, on the processor."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import httpx
import pytest
import yaml
from commands import Desk
from waiting import wait_until

from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from tasks.core.digests import is_digest_of_model
from tasks.core.release import ServiceFolder
from tasks.core.verdicts import StageName

pytestmark = [pytest.mark.engine, pytest.mark.server]


def links() -> set[Path]:
    """Folders in which the engine's worker gives a model its name."""
    return set(Path(tempfile.gettempdir()).glob("slipway-name-*/folder-tiny"))


def test_a_model_folder_is_tuned_served_and_served_again(
    torch_wheels: Path, examples: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "home", prefect_api_url)
    env = {"UV_FIND_LINKS": str(torch_wheels)}
    spec = tmp_path / "spec.yaml"
    values = {
        "name": "folder-tiny",
        "model": f"file:{examples / 'tiny' / 'model'}",
        "engine": "transformers",
        "hardware": {"cpus": 1},
        "staging": {"disk_benchmark": False},
        "tuning": {"candidates": ["bf16"], "max_batch": 1, "context": 128, "output_tokens": 8},
    }
    spec.write_text(yaml.safe_dump(values))
    try:
        first = desk.deploy(spec, env=env).answer
        verdicts = {row["stage"]: row["verdict"] for row in first["stages"]}
        (proved,) = FolderRecordStore(desk.home / "records").list(StageName.ENVIRONMENT)
        assert proved.evidence["result"]["proof"]["engine"]["ok"]
        assert verdicts == {
            "environment": "sound",
            "compatibility": "pass",
            "staging": "verified",
            "quantization": "chosen",
            "batching": "chosen",
            "rollout": "serving",
            "health": "healthy",
        }
        completions = f"{first['endpoint']}/v1/completions"
        body = {"model": "folder-tiny", "prompt": "If the file", "max_tokens": 4}
        answer = httpx.post(completions, json=body, trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] == 4
        refused = httpx.post(completions, json=body | {"model": "another"}, trust_env=False)
        assert refused.status_code == 400
        for closed in ("reset", "load_model"):
            assert httpx.post(f"{first['endpoint']}/{closed}", json={}, trust_env=False).status_code == 404

        (candidate,) = (desk.home / "candidates").iterdir()
        with SupervisedService(ServiceFolder(desk.home / "services", "folder-tiny")) as service:
            running = service.running()
            assert running is not None
            assert running.pid is not None
            os.kill(running.pid, signal.SIGKILL)
            wait_until(
                lambda: (now := service.running()) is not None and now.restarts == 1 and now.up,
                "the supervisor starts the engine again",
            )
        again = desk.deploy(spec, env=env).answer
        assert again["release"] == first["release"]
        assert {row["stage"] for row in again["stages"] if row["cached"]} >= {"quantization", "batching"}

        (weights,) = (candidate / "model").glob("*.safetensors")
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        # What a rollout looks at before it starts an engine on a folder.
        release = ServiceFolder(desk.home / "services", "folder-tiny").serving()[1]
        assert not is_digest_of_model(release.candidate_digest, release.launch.model_file)
    finally:
        desk.run("stop", "folder-tiny")
    desk.left_nothing_but([])
    assert not links()
