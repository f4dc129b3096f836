"""`slipway tune quantization` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.server]


def test_the_stage_alone(examples: Path, slipway_home: Path, prefect_api_url: str) -> None:
    slipway = Path(sys.executable).with_name("slipway")
    command = [
        slipway,
        "tune",
        "quantization",
        examples / "tiny" / "slipway.yaml",
        "--set",
        "staging.disk_benchmark=false",
    ]
    command += ["--set", "tuning.candidates=[f16, q8_0]", "--set", "tuning.quality_tokens=256"]
    environment = {**os.environ, "SLIPWAY_HOME": str(slipway_home), "PREFECT_API_URL": prefect_api_url}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert "quantization: measuring q8_0" in first.stdout
    assert "perplexity" in first.stdout
    assert "quantization chosen: " in first.stdout.splitlines()[-1]

    again = run("--json")
    answer = json.loads(again.stdout)
    assert (answer["stage"], answer["verdict"], answer["cached"]) == ("quantization", "chosen", True)
    assert [row["format"] for row in answer["result"]["measured"]] == ["f16", "q8_0"]

    # The verdict of the stage before it ends the command too.
    refused = run("--set", "environment.requirements=['numpy<2']")
    assert refused.returncode == 3
    assert refused.stdout.splitlines()[-1].startswith("environment conflicting: ")

    wrong = run("--set", "tuning.quality_text=null")
    assert wrong.returncode == 2
    assert "cannot be compared without a text" in wrong.stderr
    assert "Traceback" not in wrong.stderr
