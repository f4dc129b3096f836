"""`slipway bench load`, as people and programs call it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployments.cli.main import main


def slipway(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


@pytest.mark.disk
def test_loaders_are_compared_once_in_seven_days(
    random_model: Path,
    tmp_path: Path,
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flows.compare_loaders._disk_read_mb_s", lambda _: 2000.0)
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    assert slipway("bench", "load", folder, "--runs", "1", "--json") == 0
    first = answer(capsys)
    assert 0 < first["bytes"] <= (folder / "model.safetensors").stat().st_size
    assert first["loader"] in ("mmap", "prefetch")
    assert first["ratio_to_disk"] > 0
    assert [one["golden"] for one in first["loaders"]] == [True, True, None, None, None]
    assert not first["cached"]
    assert slipway("bench", "load", folder, "--runs", "1") == 0
    shown = capsys.readouterr().out
    assert "(measured before)" in shown
    assert "safetensors not installed: slipway bench load --install" in shown
    assert slipway("bench", "load", folder, "--runs", "1", "--fresh", "--json") == 0
    assert answer(capsys)["record"] != first["record"]


def test_a_folder_without_a_model_cannot_be_loaded(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("bench", "load", tmp_path, "--json") == 1
    assert "contains neither safetensors nor GGUF files" in answer(capsys)["what"]
