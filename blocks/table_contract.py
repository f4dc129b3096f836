"""Contracts on tables by Great Expectations. Its import takes seconds, so it happens in the call."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.core.contract import ContractBreach, ContractResult

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 3


def check_table(frame: pd.DataFrame, expectations: Sequence[Mapping[str, Any]]) -> ContractResult:
    """Validate `frame` against expectations given as data: `type` is an expectation's name, `why` is for people,
    the other keys are its arguments. A column that is not there is a breach, too.

    Raises `KeyError` for an expectation that Great Expectations does not know.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    import great_expectations as gx
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.registry import get_expectation_impl

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    present = [row for row in expectations if row.get("column") in {None, *frame.columns}]
    suite = ExpectationSuite("contract")
    for row in present:
        arguments = {key: value for key, value in row.items() if key not in ("type", "why")}
        suite.add_expectation(get_expectation_impl(row["type"])(**arguments))
    batch = (
        context.data_sources.add_pandas("frame")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": frame})
    )
    answer = batch.validate(suite, result_format="SUMMARY")
    missing = [
        ContractBreach(expectation=row["type"], column=row["column"], observed="the column is missing")
        for row in expectations
        if row not in present
    ]
    failed = [_breach(result) for result in answer.results if not result.success]
    return ContractResult(rows=len(frame), expectations=len(expectations), breaches=(*missing, *failed))


def _breach(result: Any) -> ContractBreach:
    config = result.expectation_config
    return ContractBreach(
        expectation=config.type, column=config.kwargs.get("column"), observed=_observed(result)
    )


def _observed(result: Any) -> str:
    """What was there instead, in a few words."""
    found = result.result
    if "unexpected_count" in found:
        examples = ", ".join(str(value) for value in found.get("partial_unexpected_list", [])[:_SHOWN])
        shown = f" ({examples})" if examples else ""
        return f"{found['unexpected_count']} of {found['element_count']} values do not fit{shown}"
    if "observed_value" in found:
        return f"observed {found['observed_value']}"
    raised = result.exception_info or {}
    return f"could not be evaluated: {raised.get('exception_message') or 'no result'}"
