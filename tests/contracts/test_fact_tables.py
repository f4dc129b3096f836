"""The contract on the fact tables, by the real Great Expectations: the shipped ones keep it, damaged copies break it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from blocks.expectations import fact_contract
from blocks.expectations.data_docs import render
from blocks.expectations.fact_contract import FactContract, check_sheet
from blocks.expectations.table_contract import Validator
from blocks.processes.process import Finished
from deployments.cli.main import main
from tasks.compatibility import fact_tables
from tasks.core.contract import ContractResult
from tasks.core.settings import Settings

TODAY = date(2026, 12, 1)
CONTRACT = fact_tables.read_contract()

Tables = dict[str, list[dict[str, Any]]]
Damage = Callable[[Tables], object]


def damaged(damage: Damage) -> Tables:
    tables = copy.deepcopy(
        {name: [dict(row) for row in rows] for name, rows in fact_tables.read_rows().items()}
    )
    damage(tables)
    return tables


def held(tables: Tables, names: list[str]) -> tuple[Validator, dict[str, ContractResult]]:
    validator = Validator(fact_tables.parameters(tables, TODAY))
    sheets = fact_tables.sheets(tables)
    return validator, {name: check_sheet(validator, name, sheets[name], CONTRACT) for name in names}


def broken(damage: Damage, table: str) -> set[tuple[str | None, str]]:
    _, checks = held(damaged(damage), [table])
    return {
        (breach.column, breach.expectation.removeprefix("expect_").removeprefix("column_values_to_"))
        for breach in checks[table].breaches
    }


def row(table: str, which: int | str = 0, **changes: Any) -> Damage:
    """Change keys of one row, named by its place or its id; None takes a key away."""

    def damage(tables: Tables) -> None:
        rows = tables[table]
        found = rows[which] if isinstance(which, int) else next(one for one in rows if one["id"] == which)
        for name, value in changes.items():
            found.pop(name, None)
            if value is not None:
                found[name] = value

    return damage


def test_the_shipped_tables_keep_it() -> None:
    tables = damaged(lambda _: None)
    _, checks = held(tables, [*fact_tables.FILES, "sources", "contradictions"])
    assert {name: check.breaches for name, check in checks.items() if check.breaches} == {}
    assert {name: checks[name].rows for name in tables} == {name: len(rows) for name, rows in tables.items()}
    assert checks["sources"].rows == sum(len(row["sources"]) for rows in tables.values() for row in rows)


COLUMNS = (None, "table_columns_to_match_set")


@pytest.mark.parametrize(
    ("table", "damage", "expected"),
    [
        pytest.param("branches", row("branches", status="guessed"), {("status", "be_in_set")}, id="status"),
        pytest.param("branches", row("branches", status=None), {("status", "not_be_null")}, id="no status"),
        pytest.param(
            "newest", row("newest", checked_on=date(2027, 1, 1)), {("checked_on", "be_between")}, id="future"
        ),
        pytest.param(
            "newest", row("newest", checked_on=date(2019, 1, 1)), {("checked_on", "be_between")}, id="ancient"
        ),
        pytest.param("gpus", row("gpus", checked_on="soon"), {("checked_on", "not_be_null")}, id="no date"),
        pytest.param("gpus", row("gpus", checked_on=None), {("checked_on", "not_be_null")}, id="undated"),
        pytest.param("engines", row("engines", sources=[]), {("sources", "be_between")}, id="no source"),
        pytest.param("engines", row("engines", sources=None), {("sources", "not_be_null")}, id="unsourced"),
        pytest.param(
            "engines", lambda tables: tables["engines"].clear(), {(None, "table_row_count_to_be_between")}, id="empty"
        ),
        pytest.param("gpus", row("gpus", ccc="8.0"), {COLUMNS}, id="unknown key"),
        pytest.param(
            "branches", lambda tables: tables["branches"].insert(1, tables["branches"][0]),
            {("place", "be_increasing"), ("cuda_number", "be_increasing")}, id="row twice",
        ),
        pytest.param(
            "capabilities", lambda tables: tables["capabilities"].reverse(), {("place", "be_increasing")}, id="order"
        ),
        pytest.param("branches", row("branches", branch="418"), {("branch", "be_of_type"), ("branch", "be_between")}, id="branch as text"),
        pytest.param("branches", row("branches", cuda="10"), {("cuda", "match_regex")}, id="CUDA version"),
        pytest.param("branches", row("branches", 1, cuda="9.0"), {("cuda_number", "be_increasing")}, id="CUDA falls"),
        pytest.param("capabilities", row("capabilities", cc=2.0), {("cc", "be_of_type")}, id="version as number"),
        pytest.param(
            "capabilities", row("capabilities", last_cuda="2.0"),
            {("last_cuda_number, min_cuda_number", "column_pair_values_a_to_be_greater_than_b")}, id="last before first",
        ),
        pytest.param("gpus", row("gpus", 5, cc="8.4"), {("cc", "be_in_set")}, id="unlisted capability"),
        pytest.param("gpus", row("gpus", 5, word="A30"), {("word", "be_unique")}, id="word twice"),
        pytest.param("gpus", row("gpus", forward_compat="maybe"), {("forward_compat", "be_in_set")}, id="forward"),
        pytest.param("engines", row("engines", needs_gpu="no"), {("needs_gpu", "be_of_type")}, id="text for a flag"),
        pytest.param("capabilities", row("capabilities", last_branch=58), {("last_branch", "be_between")}, id="last branch"),
        pytest.param("branches", row("branches", 2, major_from="new"), {("major_from", "match_regex")}, id="first driver"),
        pytest.param("compat", row("compat", 3, cuda="12.3.1"), {("cuda", "be_in_set")}, id="compat of no branch"),
        pytest.param("compat", row("compat", drivers=["R470"]), {("drivers", "match_regex")}, id="compat driver"),
        pytest.param("tegra", row("tegra", cuda="10"), {("cuda", "match_regex")}, id="CUDA of a JetPack"),
        pytest.param("tegra", row("tegra", capabilities=[]), {("capabilities", "match_regex")}, id="no board"),
        pytest.param("tegra", row("tegra", glibc="27"), {("glibc", "match_regex")}, id="glibc of a JetPack"),
        pytest.param(
            "tegra", row("tegra", 3, compat_cuda="11.4"),
            {("compat_cuda_number, cuda_number", "column_pair_values_a_to_be_greater_than_b")}, id="compat adds nothing",
        ),
        pytest.param("faults", row("faults", pattern="*Unknown*"), {("pattern", "match_regex")}, id="capitals"),
        pytest.param("faults", row("faults", fix="reboot"), {("fix", "column_value_lengths_to_be_between")}, id="short fix"),
        pytest.param("nvswitch", row("nvswitch", gpus=1), {("gpus", "be_between")}, id="board of one"),
        pytest.param("releases", row("releases", version="latest"), {("version", "match_regex")}, id="no version"),
        pytest.param("releases", row("releases", package="olama"), {("package", "be_in_set")}, id="no engine"),
        pytest.param("releases", row("releases", 2, torch="2.99.0"), {("torch_minor", "be_in_set")}, id="no torch"),
        pytest.param("releases", row("releases", 7, cuda=None), {("cuda", "not_be_null")}, id="torch without CUDA"),
        pytest.param("releases", row("releases", 7, cuda=["cu118"]), {("cuda", "match_regex")}, id="index for CUDA"),
        pytest.param("releases", row("releases", 2, transformers="4.57"), {("transformers", "match_regex")}, id="no comparison"),
        pytest.param("floors", row("floors", engine="lama.cpp"), {("engine", "be_in_set")}, id="floor of no engine"),
        pytest.param("floors", row("floors", cc="5.1"), {("cc", "be_in_set")}, id="floor of no capability"),
        pytest.param("floors", row("floors", cuda="12.8"), {("cuda", "match_regex")}, id="floor of one CUDA"),
        pytest.param("floors", row("floors", 3, releases="old"), {("releases", "match_regex")}, id="floor of old ones"),
        pytest.param("weight_types", row("weight_types", bits=64), {("bits", "be_between")}, id="64 bits a weight"),
        pytest.param("weight_types", row("weight_types", form="zip"), {("form", "be_in_set")}, id="form of weights"),
        pytest.param("weight_types", row("weight_types", name="AWQ"), {("name", "match_regex")}, id="name of weights"),
        pytest.param("weights", row("weights", serves="none"), {("serves", "be_in_set")}, id="served otherwise"),
        pytest.param("weights", row("weights", cc="8.0"), {("cc", "match_regex")}, id="one capability"),
        pytest.param("weights", row("weights", releases="0.9"), {("releases", "match_regex")}, id="one release"),
        pytest.param("weights", row("weights", types=["FP8"]), {("types", "match_regex")}, id="type in capitals"),
        pytest.param("builds", row("builds", releases="0.43"), {("releases", "match_regex")}, id="release for a range"),
        pytest.param("builds", row("builds", cuda=["cu118"]), {("cuda", "match_regex")}, id="build's index for CUDA"),
        pytest.param("builds", row("builds", -2, where="wheels"), {("where", "match_regex")}, id="no address"),
        pytest.param(
            "builds", lambda tables: tables["builds"].append(tables["builds"][0]),
            {("package, releases", "compound_columns_to_be_unique")}, id="build twice",
        ),
        pytest.param("pins", row("pins", requires=["torch 2.9"]), {("requires", "match_regex")}, id="no requirement"),
        pytest.param("pins", row("pins", releases=None), {("releases", "not_be_null")}, id="pin of no release"),
        pytest.param("glibc", row("glibc", glibc="2"), {("glibc", "match_regex")}, id="no glibc"),
        pytest.param("glibc", row("glibc", package="Flash_Attn"), {("package", "match_regex")}, id="name not normalized"),
        pytest.param("newest", row("newest", version="2.8 post2"), {("version", "match_regex")}, id="newest version"),
        pytest.param("releases", row("releases", 7, triton=None), {("triton", "not_be_null")}, id="torch without Triton"),
        pytest.param(
            "kernels", row("kernels", platform="arm64"), {("platform", "be_in_set"), ("place", "be_increasing")}, id="platform"
        ),
        pytest.param("kernels", row("kernels", machine_code=["sm_90"]), {("machine_code", "match_regex")}, id="no capability"),
        pytest.param(
            "kernels", row("kernels", until="2.3"),
            {("until_number, since_number", "column_pair_values_a_to_be_greater_than_b")}, id="until before since",
        ),
        pytest.param(
            "triton", row("triton", 4, blackwell_ptxas="12.3"),
            {("blackwell_ptxas_number, ptxas_number", "column_pair_values_a_to_be_greater_than_b")}, id="older for Blackwell",
        ),
        pytest.param("triton", row("triton", variable="PTXAS"), {("variable", "match_regex")}, id="no variable"),
        pytest.param("jit", row("jit", -1, engine="xllm"), {("engine", "be_in_set")}, id="jit of no engine"),
        pytest.param("jit", row("jit", capability="7.5"), {("capability", "match_regex")}, id="capability alone"),
        pytest.param("nvcc", row("nvcc", cc="9.9"), {("cc", "be_in_set")}, id="nvcc for no capability"),
        pytest.param("rules", row("rules", severity="fatal"), {("severity", "be_in_set")}, id="severity"),
        pytest.param("rules", row("rules", -1, severity="block"), {("severity", "not_be_in_set")}, id="P3 blocks"),
        pytest.param(
            "rules", row("rules", precedence="P9"), {("precedence", "be_in_set"), ("place", "be_increasing")}, id="precedence"
        ),
        pytest.param("rules", row("rules", when={}), {("when", "column_value_lengths_to_be_between")}, id="no condition"),
        pytest.param("rules", row("rules", fix=None), {("fix", "not_be_null")}, id="no way out"),
        pytest.param("rules", row("rules", cleared_by=["hope"]), {("cleared_by", "match_regex")}, id="measurement"),
        pytest.param("rules", row("rules", id=None), {("id", "not_be_null"), ("place", "be_increasing")}, id="no id"),
        pytest.param("rules", row("rules", "KB-02-A", sources=["hearsay"]), {("reports", "be_between")}, id="no report"),
        pytest.param(
            "contradictions", row("rules", -1, contradicts=["NO-SUCH"]), {("contradicts", "be_in_set")}, id="no such rule"
        ),
        pytest.param(
            "contradictions", row("rules", 0, contradicts=["KB-01"]),
            {("precedence, contradicts_precedence", "column_pair_values_a_to_be_greater_than_b")}, id="outranked",
        ),
        pytest.param("sources", row("gpus", sources=["a page of theirs "]), {("source", "match_regex")}, id="blanks"),
        pytest.param("sources", row("gpus", sources=["https://docs"]), {("source", "not_match_regex")}, id="host alone"),
        pytest.param("sources", row("gpus", sources=["TODO: find it"]), {("source", "not_match_regex")}, id="to do"),
        pytest.param("sources", row("gpus", sources=["owner/name#x1"]), {("source", "not_match_regex")}, id="no issue"),
        pytest.param(
            "sources", row("gpus", sources=["owner/name#1", "owner/name#1"]),
            {("table, row, source", "compound_columns_to_be_unique")}, id="source twice",
        ),
    ],
)  # fmt: skip
def test_what_breaks_it(table: str, damage: Damage, expected: set[tuple[str | None, str]]) -> None:
    assert broken(damage, table) == expected


def test_every_expectation_names_a_sheet_and_says_why() -> None:
    names = {fact_tables.EVERY, *fact_tables.sheets(fact_tables.read_rows())}
    assert [
        expected for expected in CONTRACT if expected["table"] not in names or not expected.get("why")
    ] == []


def test_the_page_needs_no_network_and_shows_each_breach_and_its_reason() -> None:
    tables = damaged(row("branches", cuda="<b>10</b>"))
    validator, checks = held(tables, ["branches", "newest"])
    page = render(validator, checks, {"digest of the tables": "sha256:00"})
    for loading in ("<link", "<script", "src=", "url(", "@import"):
        assert loading not in page
    assert "2 tables, 28 rows" in page
    assert "1 broken" in page
    assert "&lt;b&gt;10&lt;/b&gt;" in page
    assert "<b>10</b>" not in page
    assert "as nvidia-smi prints it" in page


def test_what_is_looked_up_when_the_tables_are_checked() -> None:
    found = fact_tables.parameters(fact_tables.read_rows(), TODAY)
    assert found["today"] == datetime(2026, 12, 1)
    assert {"vllm", "torch"} <= set(found["listed"])
    assert "2.9" in found["torch_minors"]


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the answers that were made anew; in this process, which has loaded Great Expectations."""
    made: list[Path] = []

    def in_process(argv: list[str | Path], *, timeout_s: float) -> Finished:
        data, folder = map(Path, argv[-2:])
        fact_contract.validate(data, folder)
        made.append(folder)
        return Finished(tuple(map(str, argv)), 0, "", "", 0)

    monkeypatch.setattr(fact_contract, "run", in_process)
    return made


def harm(file: Path, text: str = "", instead: str = "{") -> None:
    content = file.read_text()
    file.write_text(content.replace(text, instead, 1) if text else instead)


def test_an_answer_is_made_once_for_each_state_of_the_tables(
    slipway_home: Path, tmp_path: Path, validations: list[Path], repository: Path
) -> None:
    data = shutil.copytree(repository / "tasks" / "compatibility" / "data", tmp_path / "data")
    settings = Settings.load()
    first = FactContract(settings, data).check()
    assert (FactContract(settings, data).check(), first.broken) == (first, ())
    folder = Path(first.page).parent
    assert validations == [folder]
    assert folder.parent == slipway_home / "tables"
    assert first.identity.digest.startswith(f"sha256:{folder.name}")

    harm(folder / "check.json", first.identity.great_expectations, "1.0.0")
    assert FactContract(settings, data).check() == first
    assert validations == [folder] * 2

    harm(data / "branches.toml", 'status = "verified"', 'status = "guessed"')
    for _ in range(2):
        (table,) = FactContract(settings, data).check().broken
        assert (table.table, [breach.column for breach in table.breaches]) == ("branches", ["status"])
    assert len(validations) == 4, "a breach is looked at anew"
    assert validations[-1] != folder


def slipway(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_checks_in_a_process_of_its_own(
    slipway_home: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(repository / "tasks" / "compatibility" / "data", tmp_path / "data")
    harm(data / "claims.toml", '"KB-19"]', '"KB-99"]')
    monkeypatch.setattr(fact_tables, "DATA", data)
    assert slipway("compat", "tables", "--json", "--docs", str(tmp_path)) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"digest", "contract", "great_expectations", "page", "tables"}
    assert answer["page"] == str(tmp_path / "index.html")
    assert "KB-99" in (tmp_path / "index.html").read_text()
    broken = {row["table"]: row["breaches"] for row in answer["tables"] if row["breaches"]}
    assert broken == {
        "contradictions": [
            {
                "expectation": "expect_column_values_to_be_in_set",
                "column": "contradicts",
                "observed": "1 of 10 values do not fit (KB-99)",
            }
        ]
    }
    assert {row["table"]: row["last_checked_on"] for row in answer["tables"]}["contradictions"] is None
    assert sorted(file.name for file in next((slipway_home / "tables").iterdir()).iterdir()) == [
        "check.json",
        "index.html",
    ]


def test_the_command_for_people(
    slipway_home: Path, validations: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("compat", "tables") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["table", "rows", "expectations", "breaches", "read", "until"]
    assert len(lines) == 2 + len(fact_tables.FILES) + 2 + 2
    assert lines[-2].endswith("expectations: all hold")
    assert lines[-1] == f"page  {validations[0] / 'index.html'}"
    assert slipway("compat", "tables", "--docs", str(tmp_path / "docs.html")) == 0
    assert (tmp_path / "docs.html").read_bytes() == (validations[0] / "index.html").read_bytes()
    assert slipway("compat", "tables", "--docs", "/proc/none") == 2
    assert "cannot write /proc/none" in capsys.readouterr().err
    assert len(validations) == 1
