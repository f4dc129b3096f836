"""What a check of the fact tables means for the verdict, what is said of it, and the sheets it looks at."""

from __future__ import annotations

from datetime import date

from inline_snapshot import snapshot

from tasks.compatibility import fact_tables
from tasks.compatibility.models import (
    CompatibilityResult,
    Survey,
    TableCheck,
    TablesCheck,
    TablesIdentity,
)
from tasks.compatibility.plan import with_table_check
from tasks.compatibility.report import markdown
from tasks.compatibility.way_out import advise
from tasks.core.contract import ContractBreach
from tasks.core.facts import Facts

IDENTITY = TablesIdentity(digest=f"sha256:{'ab' * 32}", contract="sha256:c", great_expectations="1.24.1")
GOOD = TableCheck(table="gpus", rows=33, expectations=13, last_checked_on=date(2026, 11, 22))
BREACH = ContractBreach(expectation="expect_x", column="cuda", observed="1 of 26 values do not fit (a|b)")
BAD = TableCheck(table="branches", rows=26, expectations=14, breaches=(BREACH, BREACH))


def check(*tables: TableCheck) -> TablesCheck:
    return TablesCheck(identity=IDENTITY, page="/home/tables/abababababab/index.html", tables=tables)


def blocked() -> CompatibilityResult:
    facts = Facts(driver="535.154.05", gpus=(), cuda_build=None, engine="vllm")
    return advise(Survey(facts=facts))


def test_kept_tables_change_nothing_but_are_named() -> None:
    result = with_table_check(blocked(), check(GOOD))
    assert result == blocked().model_copy(update={"tables": check(GOOD)})
    assert "\n".join(markdown(result).splitlines()[-5:]) == snapshot("""\
## Fact tables

1 tables, 33 rows, 13 expectations: all hold (digest `abababababab`, by Great Expectations 1.24.1).

Data Docs, on the host of this run: `/home/tables/abababababab/index.html`\
""")


def test_broken_tables_block_and_lead_nowhere() -> None:
    before = blocked()
    result = with_table_check(before, check(GOOD, BAD))
    assert (before.verdict, bool(before.ways_out)) == ("block", True)
    assert (result.verdict, result.ways_out) == ("block", ())
    assert result.findings[1:] == before.findings
    assert result.findings[0].model_dump(
        include={"rule", "severity", "precedence", "message", "fix"}
    ) == snapshot(
        {
            "rule": "FACT-TABLE-BRANCHES",
            "severity": "block",
            "precedence": "P0",
            "message": "the fact table of branches breaks its contract: cuda: expect_x: 1 of 26 values do not fit (a|b), and 1 more",
            "fix": "reinstall Slipway (`slipway compat tables` lists the breaches); if a date is in the future, set this host's clock",
        }
    )
    text = markdown(result)
    assert "2 tables, 59 rows, 27 expectations: 2 broken" in text
    assert r"| branches | cuda | expect_x | 1 of 26 values do not fit (a\|b) |" in text


def test_no_section_where_the_tables_were_only_read() -> None:
    assert "Fact tables" not in markdown(blocked())


def test_sheets_hold_one_value_in_each_cell() -> None:
    sheets = fact_tables.sheets(fact_tables.read_rows())
    branch = dict(next(row for row in sheets["branches"] if row["branch"] == 580))
    assert branch == snapshot(
        {
            "branch": 580,
            "cuda": "13.0",
            "major_from": "580",
            "status": "verified",
            "checked_on": date(2026, 11, 22),
            "sources": 3,
            "place": 22,
            "cuda_number": 1300,
        }
    )
    torch = next(row for row in sheets["releases"] if row["package"] == "torch")
    assert (torch["cuda"], torch["torch_minor"]) == ("11.7, 11.8", None)
    assert [row["contradicts"] for row in sheets["contradictions"] if row["rule"] == "ART-1"] == [
        "DRV-VGPU",
        "KB-04",
        "KB-19",
    ]
    versions = [row["place"] for row in sheets["releases"]]
    assert versions == sorted(set(versions))


def test_columns_and_expectations_are_those_of_one_table() -> None:
    contract = fact_tables.read_contract()
    assert fact_tables.columns(contract, "sources") == ["table", "row", "source"]
    own = [row["type"] for row in fact_tables.expectations(contract, "sources")]
    everywhere = [row for row in contract if row["table"] == fact_tables.EVERY]
    assert "expect_table_row_count_to_be_between" not in own
    assert everywhere
    assert len(fact_tables.expectations(contract, "gpus")) == len(everywhere) + sum(
        row["table"] == "gpus" for row in contract
    )
