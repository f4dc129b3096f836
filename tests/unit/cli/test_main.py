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

from deployments.cli.main import VERBS, main, print_json, slipway
from slipway import import_own_packages


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


@pytest.mark.parametrize("shadow", ["tasks/__init__.py", "flows.py", "deployments/__init__.py", "blocks.py"])
def test_packages_of_the_same_names_on_the_users_path_are_left_alone(shadow: str, tmp_path: Path) -> None:
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("raise RuntimeError('the wrong package was imported')")
    command = [Path(sys.executable).with_name("slipway"), "engines", "--json"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_other_folders_stay_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `tasks` that is no package hides nothing."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "other.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = list(sys.path)
    import_own_packages()
    assert sys.path == before


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
    assert first.stderr == f"{home} was readable for other users of this machine; it no longer is\n"
    assert second.stderr == ""
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_document_shows_secrets_only_where_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "slipway:its-own-key")
    print_json({"key": "slipway:its-own-key", "password": "x"})
    assert json.loads(capsys.readouterr().out) == {"key": "***", "password": "***"}
    print_json({"key": "slipway:its-own-key"}, with_secrets=True)
    assert json.loads(capsys.readouterr().out) == {"key": "slipway:its-own-key"}
