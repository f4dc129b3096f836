"""What people see: tables in pipes and in narrow terminals, and the live board."""

from __future__ import annotations

import io

import pytest
from inline_snapshot import snapshot
from rich.console import Console

from deployments.cli import show
from deployments.cli.progress import show_progress

COLUMNS = ("name", "model", "since", "batch")
ROWS = [("tiny", "file:/models/a/folder/with/a/long/name", "2026-01-01 10:00:00", "4")]


def narrow(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(show, "console", lambda: Console(width=width, highlight=False))


def test_a_pipe_gets_every_column_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_table(COLUMNS, ROWS, title="all", right=("batch",), whole=("name", "since"), spare=("since",))
    assert capsys.readouterr().out.splitlines() == snapshot(
        [
            "all",
            "",
            " name  model                                   since                batch",
            " ────────────────────────────────────────────────────────────────────────",
            " tiny  file:/models/a/folder/with/a/long/name  2026-01-01 10:00:00      4",
        ]
    )


def test_a_narrow_terminal_goes_without_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(monkeypatch, 50)
    show.print_table(COLUMNS, ROWS, right=("batch",), whole=("name", "since"), spare=("since",))
    assert capsys.readouterr().out.splitlines() == snapshot(
        [
            " name  model                                batch",
            " ────────────────────────────────────────────────",
            " tiny  file:/models/a/folder/with/a/long/n      4",
            "       ame",
            "omitted: since (a wider terminal or --json shows them)",
        ]
    )


def test_facts_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    show.print_facts([("name", "tiny"), ("endpoint", "http://127.0.0.1:1")])
    assert capsys.readouterr().out == snapshot("""\
name      tiny
endpoint  http://127.0.0.1:1
""")


def test_a_verdict_has_one_colour() -> None:
    assert show.coloured("rolled_back") == "[red]rolled back[/red]"
    assert show.coloured("none") == "none"


def test_the_board_freezes_what_has_ended() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    with show_progress(terminal) as hear:
        hear("staging", "copying")
        hear("environment", "sound: 10 packages " + "and more " * 9)
        hear("rollout", "rolled_back: the engine [died]")
        hear("quantization", "measuring [f16]")
        board = hear.__self__  # type: ignore[attr-defined]
        drawn = Console(file=io.StringIO(), width=60)
        drawn.print(board)
    output = drawn.file
    assert isinstance(output, io.StringIO)
    marks = {line.split()[1]: line[0] for line in output.getvalue().splitlines() if line[0] != " "}
    assert (marks["environment"], marks["rollout"]) == ("✓", "✗")
    assert marks["staging"] not in "✓✗"
    assert "measuring [f16]" in output.getvalue()
    assert len(output.getvalue().splitlines()) == 5, "long lines are cut, not folded"


def test_without_a_terminal_each_event_is_a_line() -> None:
    output = io.StringIO()
    with show_progress(Console(file=output, width=40)) as hear:
        hear("staging", "copying [a] " + "b" * 60)
    assert output.getvalue().count("\n") == 1
    assert "staging: copying [a] bbb" in output.getvalue()
