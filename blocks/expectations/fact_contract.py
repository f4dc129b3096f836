"""The contract on the fact tables, checked once for each state of the tables and remembered in `SLIPWAY_HOME`.

Great Expectations runs in its own process (`python -m blocks.expectations.fact_contract DATA FOLDER`): its
import takes seconds of CPU time, while this process may be measuring a disk.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from blocks.processes.process import run
from tasks.compatibility import fact_tables
from tasks.compatibility.fact_tables import RawTables, Row, Sheet
from tasks.compatibility.models import TableCheck, TablesCheck, TablesIdentity
from tasks.core.contract import ContractResult
from tasks.core.digests import digest_of, short
from tasks.core.files import discard, file_lock, write_atomically
from tasks.core.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from blocks.expectations.table_contract import Validator

_TIMEOUT_S = 300.0
_PAGE = "index.html"
_ANSWER = "check.json"


class FactContract:
    """The tables of a folder, by default those that come with Slipway, checked against their contract."""

    def __init__(self, settings: Settings, data: Path | None = None) -> None:
        self._settings = settings
        self._data = data or fact_tables.DATA

    @functools.cached_property
    def identity(self) -> TablesIdentity:
        """What the answer depends on. Raises `SlipwayError` if the tables cannot be read."""
        return _identity(fact_tables.read_rows(self._data), fact_tables.read_contract(self._data))

    @property
    def is_checked(self) -> bool:
        """Whether the answer is remembered."""
        found = self._remembered()
        return found is not None and not found.broken

    def check(self) -> TablesCheck:
        """The remembered answer, in milliseconds; the first time Great Expectations' answer, in seconds.

        Only success is remembered: a date that is in the future today will not be tomorrow.
        """
        found = self._remembered()
        if found is None or found.broken:
            with file_lock(self._settings.leases / "tables", wait=True, holder="the fact tables"):
                found = self._remembered()
                if found is None or found.broken:
                    found = self._anew()
        return found

    @property
    def _folder(self) -> Path:
        return self._settings.tables / short(self.identity.digest)

    def _remembered(self) -> TablesCheck | None:
        try:
            found = TablesCheck.model_validate_json((self._folder / _ANSWER).read_bytes())
        except (OSError, ValidationError):
            return None  # missing, damaged, or of another version: check again
        page = self._folder / _PAGE
        if found.identity != self.identity or not page.is_file():
            return None
        return found.model_copy(update={"page": str(page)})  # the home may have moved

    def _anew(self) -> TablesCheck:
        command: list[str | Path] = [
            sys.executable,
            "-I",
            "-m",
            "blocks.expectations.fact_contract",
            self._data,
            self._folder,
        ]
        discard(self._folder)  # damaged content may be in the way
        run(command, timeout_s=_TIMEOUT_S).check("checking the fact tables", writes=self._folder)
        found = self._remembered()
        if found is None:
            raise fact_tables.damaged(f"they changed while they were checked ({self._data})")
        return found


def main() -> None:
    """Check the tables of a folder; page and answer are written to another."""
    data, folder = map(Path, sys.argv[1:])
    validate(data, folder)


def validate(data: Path, folder: Path) -> None:
    """Check the tables in `data` against their contract, in this process; write the page to `folder`, the
    answer last."""
    from blocks.expectations.data_docs import render
    from blocks.expectations.table_contract import Validator

    tables, contract = fact_tables.read_rows(data), fact_tables.read_contract(data)
    identity = _identity(tables, contract)
    validator = Validator(fact_tables.parameters(tables, _today()))
    checks = {
        table: check_sheet(validator, table, sheet, contract)
        for table, sheet in fact_tables.sheets(tables).items()
    }
    facts = {"digest of the tables": identity.digest, "digest of the contract": identity.contract}
    write_atomically(folder / _PAGE, render(validator, checks, facts))
    rows = tuple(
        TableCheck(
            table=table,
            last_checked_on=fact_tables.last_checked_on(tables.get(table, ())),
            **check.model_dump(),
        )
        for table, check in checks.items()
    )
    answer = TablesCheck(identity=identity, page=str(folder / _PAGE), tables=rows)
    write_atomically(folder / _ANSWER, answer.model_dump_json(indent=1))


def check_sheet(validator: Validator, table: str, sheet: Sheet, contract: Sequence[Row]) -> ContractResult:
    """Check one sheet against the contract."""
    frame = _frame(sheet, fact_tables.columns(contract, table))
    return validator.check(table, frame, fact_tables.expectations(contract, table))


def _identity(tables: RawTables, contract: Sequence[Row]) -> TablesIdentity:
    return TablesIdentity(
        digest=fact_tables.digest(tables),
        contract=digest_of(contract),
        great_expectations=version("great-expectations"),  # from its metadata: no import
    )


def _today() -> date:
    """The latest date anywhere on Earth: authors date rows in their own time zone."""
    return (datetime.now(UTC) + timedelta(hours=14)).date()


def _frame(sheet: Sheet, columns: Sequence[str]) -> pd.DataFrame:
    """A sheet with the columns that it should have, and any extra ones."""
    import pandas as pd

    names = list(dict.fromkeys([*columns, *(name for row in sheet for name in row)]))
    frame = pd.DataFrame([[row.get(name) for name in names] for row in sheet], columns=names)
    if "checked_on" in frame:
        frame["checked_on"] = pd.to_datetime(frame["checked_on"])
    return frame


if __name__ == "__main__":
    main()
