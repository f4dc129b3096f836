"""Contracts on tables by Great Expectations. Its import takes seconds, so it happens in the call."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.core.contract import ContractBreach, ContractResult

if TYPE_CHECKING:
    import pandas as pd

Expectations = Sequence[Mapping[str, Any]]
"""`type` is an expectation's name, `where` the value of a column to which it is restricted, `why` is for people, the
other keys are its arguments."""

_SHOWN = 3
_NOT_ARGUMENTS = ("type", "where", "why")


class Validator:
    """Validates tables one after the other, and keeps Great Expectations' results for its page.

    `parameters` are the values of `$PARAMETER` in expectations.
    """

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self.results: dict[str, Any] = {}
        self._parameters = dict(parameters or {})
        self._source = context.data_sources.add_pandas("frames")

    def check(self, name: str, frame: pd.DataFrame, expectations: Expectations) -> ContractResult:
        """Validate `frame`, a table called `name`. A missing column is also a breach.

        Raises `KeyError` for an expectation that Great Expectations does not know.
        """
        present = [row for row in expectations if row.get("column") in {None, *frame.columns}]
        missing = [
            ContractBreach(expectation=row["type"], column=row["column"], observed="the column is missing")
            for row in expectations
            if row not in present
        ]
        batch = (
            self._source.add_dataframe_asset(name)
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": frame})
        )
        answer = batch.validate(
            self._suite(name, present), result_format="SUMMARY", expectation_parameters=self._parameters
        )
        self.results[name] = answer
        failed = [_breach(result) for result in answer.results if not result.success]
        return ContractResult(rows=len(frame), expectations=len(expectations), breaches=(*missing, *failed))

    def _suite(self, name: str, expectations: Expectations) -> Any:
        from great_expectations.core import ExpectationSuite
        from great_expectations.expectations.registry import get_expectation_impl
        from great_expectations.expectations.row_conditions import Column

        suite = ExpectationSuite(name)
        for row in expectations:
            arguments = {key: value for key, value in row.items() if key not in _NOT_ARGUMENTS}
            for column, value in row.get("where", {}).items():
                arguments["row_condition"] = Column(column) == value
            suite.add_expectation(get_expectation_impl(row["type"])(**arguments, notes=row.get("why")))
        return suite


def _breach(result: Any) -> ContractBreach:
    config = result.expectation_config
    return ContractBreach(expectation=config.type, column=_columns(config.kwargs), observed=_observed(result))


def _columns(arguments: Mapping[str, Any]) -> str | None:
    """The column that an expectation is about, or the columns."""
    pair = [arguments[name] for name in ("column_A", "column_B") if name in arguments]
    return arguments.get("column") or ", ".join(arguments.get("column_list", pair)) or None


def _observed(result: Any) -> str:
    """What was observed instead, in a few words."""
    found = result.result
    if "unexpected_count" in found:
        examples = ", ".join(str(value) for value in found.get("partial_unexpected_list", [])[:_SHOWN])
        shown = f" ({examples})" if examples else ""
        return f"{found['unexpected_count']} of {found['element_count']} values do not fit{shown}"
    if "observed_value" in found:
        return f"observed {found['observed_value']}"
    raised = result.exception_info or {}
    return f"could not be evaluated: {raised.get('exception_message') or 'no result'}"
