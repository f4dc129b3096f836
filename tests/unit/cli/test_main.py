"""The command: quick help, errors as one line, exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from deployments.cli.main import VERBS, main, slipway


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("slipway")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_verb_and_imports_none() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.stdout
    code = (
        "import sys; from deployments.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'pydantic', 'prefect', 'rich', 'httpx'} & set(sys.modules), 'loaded for help'"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_exists_and_has_help(verb: str) -> None:
    module, _, attribute = VERBS[verb][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.help
    shown = CliRunner().invoke(slipway, [verb, "--help"])
    assert shown.exit_code == 0, shown.output


def test_an_unknown_verb_is_wrong_use() -> None:
    shown = run("deplyo")
    assert shown.returncode == 2
    assert "No such command 'deplyo'" in shown.stderr


def test_a_fault_is_one_line_and_its_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "/no/such/spec.yaml", "--dry-run"])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.err == "error: no spec file /no/such/spec.yaml\n  fix: give the path of a YAML file\n"


def test_a_fault_is_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "/no/such/spec.yaml", "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["error"] == "SpecError"


def test_an_open_home_is_closed_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("SLIPWAY_HOME", str(home))
    first, second = run("status"), run("status")
    assert first.stderr == f"{home} was open to other users of this machine; it is closed to them now\n"
    assert second.stderr == ""
    assert home.stat().st_mode & 0o777 == 0o700
