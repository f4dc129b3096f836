"""Great Expectations' own page about the checked tables, as one file that works without a network.

Its renderers and templates make the sections and cells. Its page template loads styles and icons from five hosts;
without them the page does not show which expectations are met. Our template contains the few styles that are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.expectations.table_contract import Validator
from tasks.core.contract import ContractResult

_SECTIONS = {
    "class_name": "ValidationResultsColumnSectionRenderer",
    "table_renderer": {"class_name": "WithReasons", "module_name": "blocks.expectations.data_docs_reasons"},
}
_OWN = Path(__file__).parent / "data_docs_page"


def render(validator: Validator, checks: Mapping[str, ContractResult], facts: Mapping[str, str]) -> str:
    """HTML about every table that `validator` has checked, with `facts` at the top."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view.view import DefaultJinjaPageView

    renderer: Any = ValidationResultsPageRenderer(column_section_renderer=_SECTIONS)
    documents = {name: renderer.render(answer) for name, answer in validator.results.items()}
    view: Any = DefaultJinjaPageView(custom_styles_directory=_OWN, custom_views_directory=_OWN)
    first = next(iter(documents.values()))
    tables = [_table(name, document, checks[name]) for name, document in documents.items()]
    page: str = view.render(first, template="fact_tables.j2", tables=tables, facts=facts)
    return page


def _table(name: str, document: Any, check: ContractResult) -> dict[str, Any]:
    """One table, with our heading instead of the overview."""
    sections = document.to_json_dict()["sections"][1:]
    return {"name": name, "sections": sections, "check": check}
