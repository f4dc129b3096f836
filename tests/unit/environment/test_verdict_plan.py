"""Who requires whom in an installed set, and the verdict on it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.spec_kinds import EngineKind
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.catalogue import get_engine
from tasks.environment import dependencies, plan
from tasks.environment.models import (
    Conflict,
    Dependency,
    Distribution,
    EngineProof,
    ImportProof,
    Inventory,
    Proof,
)

WORKS = ImportProof(module="gguf", ok=True, seconds=0.1)
FAILS = ImportProof(module="numpy", ok=False, seconds=0.1, reason="ImportError: no libgomp.so.1")


def installed(**requires: tuple[str, ...]) -> Inventory:
    return Inventory(
        distributions=tuple(
            Distribution(name=name, version="1.0", requires=wanted, modules=(name, f"_{name}"))
            for name, wanted in requires.items()
        ),
        markers={"python_version": "3.11", "sys_platform": "linux"},
    )


def edges_of(inventory: Inventory) -> set[tuple[str, str]]:
    return {(edge.required_by, edge.package) for edge in dependencies.dependencies(inventory)}


def test_markers_decide_who_requires_whom() -> None:
    inventory = installed(
        a=("b>=1", "c; python_version < '3.9'", "d; sys_platform == 'linux'", "e; extra == 'all'", "= broken")
    )
    assert edges_of(inventory) == {("a", "b"), ("a", "d")}


def test_an_extra_counts_where_someone_asks_for_it() -> None:
    inventory = installed(
        b=("c; extra == 'fast'", "d[deep]; extra == 'fast'"), a=("b[fast]",), d=("e; extra == 'deep'",)
    )
    assert edges_of(inventory) == {("a", "b"), ("b", "c"), ("b", "d"), ("d", "e")}


def test_dependents_are_followed_three_levels_up() -> None:
    edges = dependencies.dependencies(installed(a=("b",), b=("c",), c=("d",), d=("e>2",), other=("e",)))
    assert [
        (level, edge.required_by, edge.requirement) for level, edge in dependencies.dependents(edges, "e")
    ] == snapshot([(1, "d", "e>2"), (1, "other", "e"), (2, "c", "d"), (3, "b", "c")])


@given(st.sets(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde"))), st.integers(1, 6))
def test_dependents_end_even_in_a_circle(pairs: set[tuple[str, str]], depth: int) -> None:
    edges = [Dependency(package=one, required_by=by, requirement=one) for one, by in sorted(pairs)]
    found = dependencies.dependents(edges, "a", depth)
    assert all(1 <= level <= depth for level, _ in found)
    assert len(found) <= len(edges)
    assert {edge.required_by for level, edge in found if level == 1} == {
        by for one, by in pairs if one == "a"
    }


def test_modules_to_import_are_those_that_nothing_else_requires() -> None:
    inventory = Inventory(
        distributions=(
            Distribution(name="Py-Yaml", version="1", modules=("_yaml", "yaml")),
            Distribution(name="tool", version="1", requires=("lib",), modules=("tests", "tool")),
            Distribution(name="lib", version="1", modules=("lib",)),
        ),
        markers={},
    )
    assert dependencies.roots(inventory, dependencies.dependencies(inventory)) == ("yaml", "tool")


@pytest.mark.parametrize(
    ("conflicts", "proof", "expected"),
    [
        ((), Proof(imports=(WORKS,)), snapshot((EnvironmentVerdict.SOUND, None))),
        ((Conflict(package="a", required_by="b", requirement="a>2", installed="1"),), Proof(imports=(WORKS,)), snapshot((EnvironmentVerdict.FLAGGED, 'b requires a>2, but a 1 is installed'))),
        ((Conflict(package="a", reason="a is twice there"), Conflict(package="c")), Proof(imports=(WORKS,)), snapshot((EnvironmentVerdict.FLAGGED, 'a is twice there (and 1 more)'))),
        ((), Proof(imports=(WORKS, FAILS)), snapshot((EnvironmentVerdict.CONFLICTING, 'importing numpy failed: ImportError: no libgomp.so.1'))),
        ((), Proof(imports=(WORKS,), engine=EngineProof(ok=False, reason="it died")), snapshot((EnvironmentVerdict.CONFLICTING, 'the engine does not start: it died'))),
        ((Conflict(package="a"),), Proof(imports=(FAILS,)), snapshot((EnvironmentVerdict.CONFLICTING, 'importing numpy failed: ImportError: no libgomp.so.1'))),
    ],
)  # fmt: skip
def test_the_proof_outweighs_the_metadata(
    conflicts: tuple[Conflict, ...], proof: Proof, expected: tuple[EnvironmentVerdict, str | None]
) -> None:
    assert plan.judge(conflicts, proof) == expected


def test_a_conflict_is_told_in_one_line() -> None:
    told = [
        plan.describe(conflict)
        for conflict in (
            Conflict(package="a", required_by="b", requirement="a>2", installed="1"),
            Conflict(package="a", required_by="b", requirement="a>2"),
            Conflict(package="a", requirement="a>2"),
        )
    ]
    assert told == snapshot(
        [
            "b requires a>2, but a 1 is installed",
            "b requires a>2, but it is not installed",
            "you require a>2, but it is not installed",
        ]
    )


def test_the_engine_is_named_where_it_asked() -> None:
    conflicts = [
        Conflict(package="numpy", requirement="numpy>=2,<3"),
        Conflict(package="numpy", requirement="numpy<2"),
        Conflict(package="numpy", required_by="gguf", requirement="numpy>=2,<3"),
        Conflict(package="x", requirement="no requirement at all"),
        Conflict(package="x"),
    ]
    found = plan.attribute(conflicts, get_engine(EngineKind.LLAMA_CPP))
    assert [one.required_by for one in found] == ["llama.cpp", None, "gguf", None, None]
