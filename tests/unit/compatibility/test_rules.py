"""The tables that come with Slipway are whole, in order and sourced; a table that is not is refused."""

from __future__ import annotations

import shutil
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from pydantic import ValidationError

from tasks.compatibility import fact_tables
from tasks.compatibility.fact_tables import FILES, RULE_FILES
from tasks.compatibility.rules import Rule, Tables, load_tables
from tasks.core.errors import SlipwayError

DATA = Path("tasks/compatibility/data")


@pytest.mark.parametrize(("name", "precedence"), list(zip(RULE_FILES, ("P0", "P1", "P2", "P3"), strict=True)))
def test_rule_files_are_sorted_and_of_one_precedence(repository: Path, name: str, precedence: str) -> None:
    rows = tomllib.loads((repository / DATA / name).read_text())["rule"]
    ids = [row["id"] for row in rows]
    assert ids == sorted(ids)
    assert {row["precedence"] for row in rows} == {precedence}


def test_every_data_file_is_read(repository: Path) -> None:
    read = {name for _, names in FILES.values() for name in names}
    assert {file.name for file in (repository / DATA).iterdir()} == {*read, "contract.toml", "makers"}


def test_every_row_is_dated_and_sourced() -> None:
    tables = load_tables()
    rows = [row for name in Tables.model_fields for row in getattr(tables, name)]
    assert all(source.strip() for row in rows for source in row.sources)
    assert all(date(2026, 1, 1) <= row.checked_on for row in rows)


def test_the_articles_rows_are_claims_that_never_block() -> None:
    article = [rule for rule in load_tables().rules if any("article" in source for source in rule.sources)]
    assert {(rule.id, rule.precedence, rule.status) for rule in article} == {
        (name, "P3", "claim")
        for name in ("ART-1", "ART-1-ELSE", "ART-2", "ART-2-ELSE", "ART-KB-1", "ART-KB-2")
    }
    assert all(rule.severity in ("pass", "warn") and rule.contradicts for rule in article)


def test_driver_branches_never_lose_cuda() -> None:
    cudas = [tuple(map(int, row.cuda.split("."))) for row in load_tables().branches]
    assert cudas == sorted(cudas)


ROW: dict[str, Any] = {
    "id": "DRV-1",
    "precedence": "P1",
    "severity": "block",
    "when": {"driver": "<580"},
    "message": "driver {driver}",
    "fix": "upgrade",
    "status": "verified",
    "checked_on": date(2026, 11, 22),
    "sources": ["a page"],
}


def refused(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Rule.model_validate({**ROW, **changes})
    return str(caught.value.errors()[0]["msg"])


def test_a_rule_that_cannot_be_judged_is_refused() -> None:
    assert Rule.model_validate(ROW).unless == {}
    assert refused(when={"drivr": "<580"}) == snapshot(
        "Value error, 'drivr' is not a field, or takes only none or present"
    )
    assert refused(message="for {nothing}") == snapshot(
        "Value error, DRV-1: the message names {nothing}, which is not a field"
    )
    assert refused(cleared_by=["hope"]) == snapshot("Value error, DRV-1: no measurement is called ['hope']")
    assert refused(precedence="P3") == snapshot("Value error, DRV-1: a P3 row must not block")
    assert refused(sources=[]) == snapshot("Tuple should have at least 1 item after validation, not 0")
    assert refused(sevrity="block") == snapshot("Extra inputs are not permitted")


def test_a_table_with_doubles_disorder_or_loose_ends_is_refused() -> None:
    full = load_tables()
    rule = Rule.model_validate(ROW)
    loose = Rule.model_validate({**ROW, "contradicts": ["NO-SUCH"]})
    parts = {name: getattr(full, name) for name in Tables.model_fields}
    for changes, complaint in (
        ({"rules": (rule, rule)}, "occurs twice"),
        ({"rules": (loose,)}, "which are not rules"),
        ({"branches": full.branches[::-1]}, "branches is not sorted"),
        ({"engines": (full.engines[0], full.engines[0])}, "engines is not sorted"),
        ({"kernels": full.kernels[::-1]}, "kernels is not sorted"),
        ({"triton": full.triton[::-1]}, "triton is not sorted"),
        ({"jit": full.jit[::-1]}, "jit is not sorted"),
        ({"nvcc": full.nvcc[::-1]}, "nvcc is not sorted"),
    ):
        with pytest.raises(ValidationError, match=complaint):
            Tables(**{**parts, **changes})


def test_the_digest_follows_the_rows() -> None:
    rows = fact_tables.read_rows()
    assert fact_tables.digest(rows) == fact_tables.digest(fact_tables.read_rows())
    assert fact_tables.digest({**rows, "rules": rows["rules"][1:]}) != fact_tables.digest(rows)


@pytest.mark.parametrize(
    ("file", "text", "instead", "complaint"),
    [
        ("branches.toml", "branch = 418", "branch =", "branches.toml: TOMLDecodeError"),
        ("branches.toml", "[[branch]]", "[[brunch]]", "branches.toml: KeyError: 'branch'"),
        (
            "claims.toml",
            'status = "claim"',
            'status = "hearsay"',
            "rules P3 ART-1 status: Input should be 'verified', 'partly-verified', 'derived' or 'claim', not 'hearsay'",
        ),
        (
            "claims.toml",
            '"KB-19"]',
            '"KB-99"]',
            "Tables: Value error, ART-1 contradicts ['KB-99'], which are not rules",
        ),
    ],
)
def test_damaged_files_are_one_clear_fault(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    text: str,
    instead: str,
    complaint: str,
) -> None:
    data = shutil.copytree(repository / DATA, tmp_path / "data")
    damaged = data / file
    damaged.write_text(damaged.read_text().replace(text, instead))
    monkeypatch.setattr(fact_tables, "DATA", data)
    with pytest.raises(SlipwayError, match="the fact tables of this installation are damaged") as caught:
        load_tables.__wrapped__()
    assert complaint in caught.value.what
    assert "reinstall Slipway" in str(caught.value.fix)
