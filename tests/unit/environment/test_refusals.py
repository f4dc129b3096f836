"""A refusal as the shortest chains to what excludes each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.versions import satisfying
from tasks.environment.models import Conflict
from tasks.environment.refusals import chains, format_chain, source_only


def demand(by: str | None, requirement: str) -> Conflict:
    name = requirement.split("=")[0].split("<")[0].split(">")[0].split("!")[0]
    return Conflict(package=name, required_by=by, requirement=requirement)


def test_two_chains_of_one_and_two_links() -> None:
    found = chains(
        [demand("gguf==0.19.0", "numpy>=1.17"), demand(None, "gguf==0.19.0"), demand(None, "numpy<1.10")]
    )
    assert found == (("gguf==0.19.0", "numpy>=1.17"), ("numpy<1.10",))
    assert [format_chain(chain) for chain in found] == [
        "you require gguf==0.19.0, which requires numpy>=1.17",
        "you require numpy<1.10",
    ]


def test_the_shortest_way_is_told() -> None:
    asked = [
        demand(None, "a"),
        demand("a==1", "b"),
        demand("b==2", "c<2"),
        demand(None, "d"),
        demand("d==3", "c<2"),
        demand(None, "e==5"),
        demand("e==5", "c>=2"),
    ]
    assert chains(asked) == (("d", "c<2"), ("e==5", "c>=2"))


def test_demands_that_agree_exclude_nothing() -> None:
    assert chains([demand(None, "a>=1"), demand(None, "b"), demand("b==1", "a<3")]) == ()
    assert chains([demand(None, "nowhere")]) == ()


def test_a_demand_that_nobody_asks_for_is_no_chain() -> None:
    assert chains([demand("x==1", "a<2"), demand(None, "a>=2")]) == ()


def test_demands_in_a_circle_end() -> None:
    assert chains([demand("a==1", "b<1"), demand("b==1", "a<1"), demand(None, "b>=1")]) == ()


names = st.sampled_from("abcd")
texts = st.builds("{}{}{}".format, names, st.sampled_from(["<", ">=", "==", "!="]), st.integers(0, 9)) | names


@given(st.lists(st.builds(demand, st.none() | texts, texts), max_size=8))
def test_any_demands_give_two_chains_or_none(demands: list[Conflict]) -> None:
    found = chains(demands)
    assert len(found) in (0, 2)
    for chain in found:
        assert format_chain(chain).startswith("you require ")


@pytest.mark.parametrize(
    ("comparisons", "there_is"),
    [
        ([">=1", "<2"], True),
        (["<1", ">=1"], False),
        (["==2.3.*", ">=2.3.4"], True),
        (["==2.3.*", ">=2.4"], False),
        (["!=1", ">=1", "<=1"], False),
        ([""], True),
    ],
)
def test_what_can_be_satisfied_at_once(comparisons: list[str], there_is: bool) -> None:
    assert (satisfying(*comparisons) is not None) is there_is


def test_an_engine_whose_wheels_are_at_its_makers_is_told_where() -> None:
    assert "its project has wheels: https://pypi.nvidia.com (an index: UV_EXTRA_INDEX_URL=" in source_only(
        "tensorrt-llm", "3.12"
    )
    assert "build one (`pip wheel`)" in source_only("sglang", "3.12")
