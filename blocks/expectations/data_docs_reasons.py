"""Great Expectations' table of results with the reasons of expectations, which its page shows for suites only.

Imports Great Expectations: loaded by its own loader of renderers only.
"""

from __future__ import annotations

import html
from typing import Any

from great_expectations.render.components import RenderedTableContent
from great_expectations.render.renderer.content_block.validation_results_table_content_block import (
    ValidationResultsTableContentBlockRenderer,
)


class WithReasons(ValidationResultsTableContentBlockRenderer):
    """Adds a column for `notes`, and escapes observed values, which the templates do not."""

    @classmethod
    def _process_content_block(
        cls, content_block: Any, has_failed_evr: bool, render_object: Any = None
    ) -> None:
        super()._process_content_block(content_block, has_failed_evr, render_object)
        content_block.header_row.append("Why")
        for row, result in zip(content_block.table, render_object or (), strict=True):
            status, expected, *observed = row
            for part in expected if isinstance(expected, list) else ():
                if isinstance(part, RenderedTableContent):
                    part.table = [list(map(_escaped, cells)) for cells in part.table]
            reason = result.expectation_config.notes or ""
            row[:] = [status, expected, *map(_escaped, observed), _escaped(reason)]


def _escaped(cell: Any) -> Any:
    return html.escape(cell) if isinstance(cell, str) else cell
