"""What Slipway did not foresee: one line, an exit code, and a traceback in a file that says where to look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from deployments.cli.main import main, slipway


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.option("--json", "as_json", is_flag=True)
    def verb(as_json: bool) -> None:
        raise ZeroDivisionError("the first line\nthe second line")

    monkeypatch.setattr(type(slipway), "get_command", lambda *_: verb)


def faults(home: Path) -> list[Path]:
    return sorted((home / "faults").glob("*"))


def test_it_is_one_line_and_its_traceback_a_file(
    broken: None, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 1
    (file,) = faults(slipway_home)
    assert capsys.readouterr().err == (
        f"error: Slipway failed unexpectedly: ZeroDivisionError: the first line\n  fix: report it with {file}\n"
    )
    assert "Traceback (most recent call last)" in file.read_text()
    assert "the second line" in file.read_text()


def test_programs_get_a_document(
    broken: None, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["status", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["error"], answer["retryable"]) == ("UnexpectedError", False)


def test_developers_see_the_traceback(
    broken: None, slipway_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLIPWAY_DEBUG", "1")
    with pytest.raises(SystemExit):
        main(["status"])
    assert "  | Traceback (most recent call last):" in capsys.readouterr().err
    assert not faults(slipway_home)


def test_a_home_that_cannot_be_written_is_no_second_fault(
    broken: None, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slipway_home.write_text("a file")
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(
        "  fix: run it again with SLIPWAY_DEBUG=1, and report what it prints\n"
    )


def test_only_the_newest_are_kept(broken: None, slipway_home: Path) -> None:
    for _ in range(22):
        with pytest.raises(SystemExit):
            main(["status"])
    assert len(faults(slipway_home)) == 20


def test_a_reader_that_goes_away_is_no_fault(slipway_home: Path) -> None:
    """As `slipway engines --json | head -1`."""
    command = [str(Path(sys.executable).with_name("slipway")), "engines", "--json"]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert not slipway_home.exists()
