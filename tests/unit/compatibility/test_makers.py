"""The fact tables say what their makers published, and a table that says something else is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tasks.compatibility.fact_tables import read_rows
from tasks.compatibility.makers import _READERS, MAKERS, compare, main, read_pages
from tasks.core.errors import SlipwayError

PAGES = read_pages()
Tables = dict[str, list[dict[str, Any]]]


def test_the_tables_agree_with_every_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert [str(one) for one in compare(read_rows(), PAGES)] == []
    assert main() == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == sorted(_READERS)


def set_row(table: str, values: dict[str, Any], **changes: Any) -> Callable[[Tables], None]:
    """Change the rows of `table` that have these values; None removes a key, no change the row."""

    def damage(tables: Tables) -> None:
        for row in [one for one in tables[table] if values.items() <= one.items()]:
            if not changes:
                tables[table].remove(row)
            row.update(changes)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            set_row("branches", {"branch": 550}, cuda="12.5"),
            "cuda_toolkits: branch 550: cuda is 12.5, published is 12.4",
        ),
        (set_row("branches", {"branch": 610}), "cuda_toolkits: branch 610: cuda is None, published is 13.3"),
        (
            set_row("releases", {"package": "torch", "version": "2.9.1"}, cuda=["12.8", "13.0"]),
            "torch_matrix: torch 2.9: cuda is ['12.8', '13.0'], published is ['12.6', '12.8', '13.0']",
        ),
        (
            set_row("releases", {"package": "vllm", "version": "0.19.1"}, torch="2.11.0"),
            "engine_metadata: vllm 0.19.1: torch is 2.11.0, published is 2.10.0",
        ),
        (
            set_row("pythons", {"package": "vllm", "version": "0.19.1"}),
            "engine_metadata: vllm 0.19.1: python is None, published is <3.14,>=3.10",
        ),
        (
            set_row("releases", {"package": "sglang", "version": "0.5.9"}, transformers="==4.57.0"),
            "engine_metadata: sglang 0.5.9: transformers is ==4.57.0, published is ==4.57.1",
        ),
        (
            lambda tables: tables["releases"].append({"package": "vllm", "version": "0.99.0"}),
            "engine_metadata: vllm 0.99.0 is listed, published is not recorded",
        ),
    ],
)
def test_a_row_that_says_something_else_is_named(damage: Callable[[Tables], None], said: str) -> None:
    tables = copy.deepcopy({name: [dict(row) for row in rows] for name, rows in read_rows().items()})
    damage(tables)
    assert said in [str(one) for one in compare(tables, PAGES)]


def test_every_page_has_a_reader_a_source_and_a_day() -> None:
    assert {page.name for page in PAGES} == _READERS.keys() == {file.stem for file in MAKERS.iterdir()}
    assert all(page.source and page.read_on and page.rows for page in PAGES)


def test_a_damaged_page_is_one_line(tmp_path: Any) -> None:
    (tmp_path / "torch_matrix.toml").write_text("source = 1")
    with pytest.raises(SlipwayError, match=r"torch_matrix\.toml: KeyError"):
        read_pages(tmp_path)
