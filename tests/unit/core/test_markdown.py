"""Artifacts' pages, tables and figures."""

from __future__ import annotations

from xml.etree import ElementTree

from figures import svg_of
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.figures import bars, line
from tasks.core.markdown import bullets, fenced, page, section, table

NUMBERS = st.floats(0, 1e12)


def test_every_page_has_the_same_head() -> None:
    assert page("rollout", "rolled_back", "the engine <died>", "", section("Empty", ""), "more") == snapshot(
        """\
# Rollout: rolled back

the engine &lt;died>.

more
"""
    )


def test_a_cell_cannot_end_its_table() -> None:
    assert table(("name", "size"), [("a|b\nc", "1 MB")], right=("size",)) == snapshot(
        "| name | size |\n|---|---:|\n| a\\|b c | 1 MB |"
    )
    assert bullets(["one\ntwo", "a|b"]) == "- one two\n- a|b"
    assert fenced("a ``` b").startswith("````\n")


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=["C"])), NUMBERS), max_size=9)
)
def test_bars_of_anything_are_a_figure(rows: list[tuple[str, float]]) -> None:
    root = ElementTree.fromstring(svg_of(bars("Speed", "tokens/s", rows, marked="b")))
    drawn = [float(node.get("width", "")) for node in root.iter() if node.get("rx") == "3"]
    assert len(drawn) == len(rows)
    assert all(0 < width <= float(root.get("width", "")) for width in drawn)


@given(st.lists(st.tuples(NUMBERS, st.floats(-1e12, 1e12)), min_size=1, max_size=50))
def test_a_line_stays_in_its_figure(points: list[tuple[float, float]]) -> None:
    points.sort()
    root = ElementTree.fromstring(svg_of(line("Floor", "h", "MB", points)))
    (path,) = (node.get("points", "") for node in root.iter() if node.get("points"))
    places = [tuple(map(float, place.split(","))) for place in path.split()]
    assert len(places) == len(points)
    height, width = float(root.get("height", "")), float(root.get("width", ""))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_the_chosen_bar_stands_out() -> None:
    svg = svg_of(bars("Speed", "tokens/s", [("a", 1.0), ("b", 2000.0)], marked="b"))
    assert svg.count("#2ea44f") == 1
    assert "2,000 tokens/s" in svg
