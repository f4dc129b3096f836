"""The fact tables in `data/`, their digest, and the sheets that their contract checks. Pure.

A sheet is a table with one value in each cell: lists and conditions become text, and whatever else an
expectation needs (a row's place in the order, a version as a number) becomes a column. Two sheets unfold
lists inside rows: `sources` and `contradictions`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from tasks.core.digests import digest_of
from tasks.core.errors import SlipwayError

Row = Mapping[str, Any]
RawTables = Mapping[str, Sequence[Row]]
"""Rows by table, as TOML gives them."""
Sheet = Sequence[Row]

DATA = Path(__file__).parent / "data"

RULE_FILES = ("host.toml", "vendor.toml", "known_bad.toml", "claims.toml")
"""One per precedence, P0 to P3."""

FILES: Mapping[str, tuple[str, Sequence[str]]] = {
    "rules": ("rule", RULE_FILES),
    "engines": ("engine", ("engines.toml",)),
    "gpus": ("gpu", ("gpus.toml",)),
    "capabilities": ("capability", ("capabilities.toml",)),
    "branches": ("branch", ("branches.toml",)),
    "compat": ("compat", ("compat.toml",)),
    "tegra": ("tegra", ("tegra.toml",)),
    "faults": ("fault", ("faults.toml",)),
    "nvswitch": ("nvswitch", ("nvswitch.toml",)),
    "releases": ("release", ("releases.toml",)),
    "newest": ("newest", ("releases.toml",)),
    "builds": ("build", ("builds.toml",)),
    "pins": ("pin", ("pins.toml",)),
    "glibc": ("wheel", ("glibc.toml",)),
    "images": ("image", ("images.toml",)),
    "pythons": ("python", ("pythons.toml",)),
    "kernels": ("kernels", ("kernels.toml",)),
    "triton": ("triton", ("triton.toml",)),
    "jit": ("jit", ("jit.toml",)),
    "nvcc": ("nvcc", ("jit.toml",)),
    "floors": ("floor", ("floors.toml",)),
    "weight_types": ("weight_type", ("weight_types.toml",)),
    "weights": ("weights", ("weights.toml",)),
}
"""Each table's key in TOML, and the files that hold its rows."""

FRESH_DAYS = 120
"""How long a table can be trusted to know the current releases: drivers, torch and engines appear about as often."""

EVERY = "*"
"""As an expectation's table: every table that has a file."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    "rules": ("precedence", "id"),
    "engines": ("name",),
    "gpus": ("word",),
    "capabilities": ("cc",),
    "branches": ("branch",),
    "compat": ("cuda",),
    "tegra": ("driver",),
    "faults": ("pattern",),
    "nvswitch": ("pattern",),
    "releases": ("package", "version"),
    "newest": ("package",),
    "builds": ("package", "releases"),
    "pins": ("package", "releases", "requires"),
    "glibc": ("package", "releases", "build", "platform"),
    "images": ("image", "tag"),
    "pythons": ("package", "version"),
    "kernels": ("platform", "cuda", "since"),
    "triton": ("since",),
    "jit": ("engine", "since", "part"),
    "nvcc": ("package", "since", "cc"),
    "floors": ("engine", "cc", "releases", "cuda"),
    "weight_types": ("name",),
    "weights": ("engines", "types", "releases", "families", "cc"),
}
_NUMBERED = {
    "branches": ("cuda",),
    "capabilities": ("min_cuda", "last_cuda"),
    "compat": ("cuda",),
    "tegra": ("cuda", "compat_cuda"),
    "kernels": ("since", "until"),
    "triton": ("ptxas", "blackwell_ptxas"),
}
_FIRST_COUNTS = ("faults", "gpus", "weights")
"""Tables in which the first row that matches counts: their order means something."""
_REPORT = re.compile(r"#\d+|https://|^run: ")
"""A source that shows a failure: an issue, a page, or our own run."""


def read_rows(data: Path | None = None) -> RawTables:
    """The tables that come with Slipway, or those of another folder.

    Raises `SlipwayError` if a file is missing or is not TOML.
    """
    return {
        table: [row for name in names for row in _read(data or DATA, name, key)]
        for table, (key, names) in FILES.items()
    }


def read_contract(data: Path | None = None) -> Sequence[Row]:
    """The contract on the tables, as data: `table`, `type` and its arguments, and why."""
    return _read(data or DATA, "contract.toml", "expectation")


def _read(data: Path, name: str, key: str) -> list[Row]:
    try:
        found = tomllib.loads((data / name).read_text())
        rows: list[Row] = found[key]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError(f"{key} is not a list of tables")
    except (OSError, KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise damaged(f"{name}: {type(error).__name__}: {error}") from error
    return rows


def damaged(what: str, *, fix: str = "reinstall Slipway") -> SlipwayError:
    """The tables are part of the program: if they cannot be read, the installation is incomplete."""
    return SlipwayError(f"the fact tables of this installation are damaged: {what}", fix=fix)


def digest(tables: RawTables) -> str:
    """A digest that changes whenever a judgement might."""
    return digest_of(tables)


def expectations(contract: Sequence[Row], table: str) -> list[Row]:
    """What is expected of one table: its own expectations, and those of every table that has a file."""
    own = {table, EVERY} if table in FILES else {table}
    return [
        {name: value for name, value in row.items() if name != "table"}
        for row in contract
        if row["table"] in own
    ]


def columns(contract: Sequence[Row], table: str) -> list[str]:
    """The columns that the contract says a table has."""
    rows = expectations(contract, table)
    return next(row["column_set"] for row in rows if row["type"] == "expect_table_columns_to_match_set")


def parameters(tables: RawTables, today: date) -> dict[str, Any]:
    """Values that expectations compare with (`$PARAMETER`) and that come from another table or the calendar."""
    return {
        "today": datetime.combine(today, time.min),
        "rule_ids": _column(tables, "rules", "id"),
        "capabilities": _column(tables, "capabilities", "cc"),
        "engines": _column(tables, "engines", "name"),
        "branch_cudas": _column(tables, "branches", "cuda"),
        "listed": [*_column(tables, "engines", "name"), "torch"],
        "torch_minors": [
            _minor(row.get("version")) for row in tables["releases"] if row.get("package") == "torch"
        ],
    }


def sheets(tables: RawTables) -> dict[str, Sheet]:
    """All sheets, those that unfold lists last."""
    found: dict[str, Sheet] = {table: _sheet(table, rows) for table, rows in tables.items()}
    return {**found, "sources": _sources(tables), "contradictions": list(_contradictions(tables["rules"]))}


def last_checked_on(rows: Sequence[Row]) -> date | None:
    """When a row of this table was last compared with its sources."""
    return max((day for row in rows if type(day := row.get("checked_on")) is date), default=None)


def stale(tables: RawTables, today: date) -> dict[str, date]:
    """Tables of which no row was compared with its sources in the last `FRESH_DAYS`, and when one last was."""
    read = {table: last_checked_on(rows) for table, rows in tables.items()}
    return {table: day for table, day in read.items() if day and (today - day).days > FRESH_DAYS}


def _sheet(table: str, rows: Sequence[Row]) -> Sheet:
    places = _places([tuple(_order(row.get(name)) for name in _KEYS[table]) for row in rows])
    return [
        {
            **{name: _cell(name, value) for name, value in row.items()},
            **({} if table in _FIRST_COUNTS else {"place": place}),
            **{f"{name}_number": _number(row.get(name)) for name in _NUMBERED.get(table, ())},
            **(_of_rule(row) if table == "rules" else {}),
            **({"torch_minor": _minor(row.get("torch"))} if table == "releases" else {}),
        }
        for row, place in zip(rows, places, strict=True)
    ]


def _of_rule(row: Row) -> Row:
    return {"reports": sum(bool(_REPORT.search(str(source))) for source in _list(row, "sources"))}


def _cell(name: str, value: Any) -> Any:
    if name == "sources":
        return len(value) if isinstance(value, list) else None
    if name == "checked_on":
        return value if type(value) is date else None
    if isinstance(value, Mapping):
        return ", ".join(f"{field} {wanted}" for field, wanted in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _sources(tables: RawTables) -> Sheet:
    return [
        {"table": table, "row": row_name(table, row), "source": source}
        for table, rows in tables.items()
        for row in rows
        for source in _list(row, "sources")
    ]


def _contradictions(rules: Sequence[Row]) -> Iterator[Row]:
    precedences = {rule.get("id"): rule.get("precedence") for rule in rules}
    for rule in rules:
        for other in _list(rule, "contradicts"):
            yield {
                "rule": rule.get("id"),
                "precedence": rule.get("precedence"),
                "contradicts": other,
                "contradicts_precedence": precedences.get(other),
            }


def row_name(table: str, row: Row) -> str:
    """The keys of a row: `P3 ART-1`, `vllm 0.19.1`."""
    return " ".join(str(row.get(name)) for name in _KEYS[table])


def _list(row: Row, name: str) -> Sequence[Any]:
    value = row.get(name, [])
    return value if isinstance(value, list) else [value]


def _column(tables: RawTables, table: str, name: str) -> list[str]:
    return [str(row[name]) for row in tables[table] if name in row]


def _places(keys: Sequence[tuple[Any, ...]]) -> list[int]:
    """The rank of each key among all: ascending if they are sorted, and equal for equal keys."""
    place = {key: number for number, key in enumerate(sorted(set(keys)), start=1)}
    return [place[key] for key in keys]


def _order(value: Any) -> tuple[int, Any]:
    """Versions in the order of versions, and before texts."""
    try:
        return (0, Version(str(value)))
    except InvalidVersion:
        return (1, str(value))


def _number(version: Any) -> int | None:
    """1204 for 12.4."""
    match = re.fullmatch(r"(\d+)\.(\d+)", str(version))
    return int(match[1]) * 100 + int(match[2]) if match else None


def _minor(version: Any) -> str | None:
    """2.9 of 2.9.1."""
    return ".".join(str(version).split(".")[:2]) if version else None
