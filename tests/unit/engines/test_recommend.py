"""The recommendation beyond the twelve needs: what records change, and what is not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.facts import Facts
from tasks.core.spec_kinds import EngineKind
from tasks.engines.families import find_family
from tasks.engines.recommend import MEASURED, Measured, Need, advice, recommend

GPU = {"name": "NVIDIA H100", "compute_capability": "9.0", "memory_bytes": 80_000_000_000}
ON_GPU = Facts.model_validate({"gpus": [GPU]})


def test_advice_names_what_there_is() -> None:
    engines = {kind.value for kind in EngineKind}
    for row in advice():
        if row.kind == "engine":
            assert row.name in engines
        if row.kind == "family":
            assert find_family(row.name) is not None
        assert all(find_family(name) for name in row.families)
    for need in Need:
        total = sum(row.points for row in advice() if row.need in (need, "any") and row.name == "sglang")
        assert total < MEASURED, "what was measured here counts more than all advice"


@pytest.mark.parametrize("need", list(Need))
def test_facts_that_are_not_known_rule_nothing_out(need: Need) -> None:
    found = recommend(need, Facts())
    assert all(choice.fits for choice in found.of("engine"))
    assert found.best("engine") is not None


def test_a_failure_seen_here_puts_an_engine_behind_all_others() -> None:
    records = [Measured(record="01F", engine="vllm", failed="out of memory")]
    found = recommend(Need.THROUGHPUT, ON_GPU, records)
    assert found.of("engine")[-1].name == "vllm"
    assert found.of("engine")[-1].reasons[0].record == "01F"
    again = [*records, Measured(record="01G", engine="vllm", throughput=100.0)]
    assert recommend(Need.THROUGHPUT, ON_GPU, again).of("engine")[0].name == "vllm"


@pytest.mark.parametrize("need", list(Need))
def test_tokens_of_different_models_compare_nothing(need: Need) -> None:
    """The demo's model on the processor is faster than 70 billion parameters on a GPU ever are."""
    demo = Measured(record="01D", engine="llama.cpp", model="tiny", throughput=4000.0)
    large = Measured(record="01L", engine="vllm", model="70b", throughput=900.0)
    by_advice = recommend(need, ON_GPU).best("engine")
    found = recommend(need, ON_GPU, [demo, large])
    points = {choice.name: choice.points for choice in found.of("engine")}
    bare = {choice.name: choice.points for choice in recommend(need, ON_GPU).of("engine")}
    assert points["llama.cpp"] - bare["llama.cpp"] == points["vllm"] - bare["vllm"] > 0
    assert by_advice is not None
    if by_advice.name == "vllm":
        assert found.of("engine")[0].name == "vllm"


def test_engines_are_compared_where_they_served_the_same_model() -> None:
    records = [
        Measured(record="01A", engine="sglang", model="8b", throughput=1000.0),
        Measured(record="01B", engine="vllm", model="8b", throughput=800.0),
        Measured(record="01C", engine="vllm", model="8b", throughput=500.0),
        Measured(record="01D", engine="vllm", model="tiny", throughput=90_000.0),
    ]
    first, second, *_ = recommend(Need.WORKFLOW, ON_GPU, records).of("engine")
    assert (first.name, first.reasons[0].record) == ("sglang", "01A")
    assert (second.name, second.reasons[0].record) == ("vllm", "01B")
    assert first.reasons[0].text == "1000 tokens/s measured here, compared with 1 other"


def test_capabilities_are_compared_as_versions() -> None:
    facts = Facts.model_validate({"gpus": [{"name": "B200", "compute_capability": "10.0"}, GPU]})
    assert recommend(Need.THROUGHPUT, facts).of("engine")[0].name == "vllm"


def test_a_family_asked_for_comes_first_where_it_fits() -> None:
    assert recommend(Need.EDGE, ON_GPU, family="gemma").of("family")[0].name == "gemma"
    found = recommend(Need.EDGE, ON_GPU, family="deepseek-v3")
    assert found.best("family") != found.of("family")[-1]
    assert found.of("family")[-1].name == "deepseek-v3"


@given(
    st.sampled_from(list(Need)),
    st.lists(
        st.builds(
            Measured,
            record=st.just("01R"),
            engine=st.sampled_from([kind.value for kind in EngineKind]),
            throughput=st.floats(0.1, 1e6),
        ),
        max_size=6,
    ),
)
def test_the_fastest_measured_engine_that_fits_is_recommended(need: Need, records: list[Measured]) -> None:
    found = recommend(need, ON_GPU, records)
    names = [choice.name for choice in found.of("engine")]
    assert sorted(names) == sorted(kind.value for kind in EngineKind)
    if len({record.engine for record in records}) > 1:
        fastest = max(record.throughput or 0 for record in records)
        best = found.best("engine")
        assert best is not None
        near = {record.engine for record in records if (record.throughput or 0) >= 0.5 * fastest}
        assert best.name in near
