"""Which formats an engine serves, and on which hardware it computes in them."""

from __future__ import annotations

import pytest

from tasks.core.errors import SpecError
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.engines.catalogue import get_engine
from tasks.engines.families import find_family
from tasks.engines.weights import KINDS, check_formats, why_not_here

BF16, F16, W8A8, W4A16, FP8 = (CandidateFormat(name) for name in ("bf16", "f16", "w8a8", "w4a16", "fp8"))
LLAMA, TRANSFORMERS = EngineKind.LLAMA_CPP, EngineKind.TRANSFORMERS


def test_formats_are_those_that_the_engine_loads() -> None:
    check_formats(LLAMA, [CandidateFormat.Q8_0, BF16])
    check_formats(TRANSFORMERS, [BF16, W8A8, W4A16, FP8])
    with pytest.raises(SpecError) as refused:
        check_formats(TRANSFORMERS, [BF16, CandidateFormat.Q8_0])
    assert str(refused.value) == (
        "transformers does not load q8_0 (choose tuning.candidates from bf16, f16, w8a8, w4a16, fp8, as-is)"
    )
    with pytest.raises(SpecError, match=r"llama\.cpp does not load w8a8, fp8"):
        check_formats(LLAMA, [W8A8, FP8])
    with pytest.raises(SpecError, match=r"for ollama yet \(use engine: llama.cpp or .*vllm\)"):
        check_formats(EngineKind.OLLAMA, [BF16])


@pytest.mark.parametrize("kind", [kind for kind in EngineKind if get_engine(kind).card.scored_by])
def test_every_format_that_needs_hardware_has_its_row(kind: EngineKind) -> None:
    card = get_engine(kind).card
    rows = {row.name for row in card.quantization}
    assert {KINDS[form] for form in card.formats if form in KINDS} <= rows


@pytest.mark.parametrize(
    ("form", "capabilities", "reason"),
    [
        (BF16, [], None),
        (W8A8, [], None),
        (W4A16, [], None),
        (FP8, [], "computes in fp8 from compute capability 8.9 on, and no GPU is used"),
        (FP8, ["8.9"], None),
        (FP8, ["9.0", "10.0"], None),
        (FP8, ["8.6"], "from compute capability 8.9 on, a GPU in use has 8.6"),
        (FP8, ["9.0", "8.0", "8.0"], "a GPU in use has 8.0"),
        (FP8, [None], "of a GPU in use is not known"),
        (W8A8, ["7.0"], "computes in int8 from compute capability 7.5 on, a GPU in use has 7.0"),
        (W8A8, ["7.5"], None),
    ],
)
def test_a_format_is_refused_where_the_hardware_cannot(
    form: CandidateFormat, capabilities: list[str | None], reason: str | None
) -> None:
    found = why_not_here(TRANSFORMERS, form, capabilities)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_plain_weights_are_computed_in_as_they_are() -> None:
    deepseek = find_family("deepseek-v2")
    assert why_not_here(EngineKind.VLLM, F16, ["9.0"], deepseek) == (
        "not made: DeepSeek V2 overflows in float16; serve it in bfloat16"
    )
    assert why_not_here(EngineKind.VLLM, F16, ["9.0"], find_family("llama")) is None
    assert why_not_here(EngineKind.VLLM, BF16, ["8.0"], deepseek) is None
    assert why_not_here(EngineKind.VLLM, BF16, [], deepseek) is None
    assert why_not_here(EngineKind.VLLM, BF16, ["9.0", "7.5"]) == (
        "not made: vllm computes in bfloat16 from compute capability 8.0 on, a GPU in use has 7.5"
    )
    assert why_not_here(TRANSFORMERS, BF16, ["7.5"]) is None
    assert why_not_here(LLAMA, F16, ["7.5"], find_family("gemma")) is None  # its types are the file's


def test_a_format_may_end_with_newer_hardware() -> None:
    assert why_not_here(EngineKind.VLLM, W8A8, ["9.0"]) is None
    assert why_not_here(EngineKind.VLLM, W8A8, ["9.0", "12.0"]) == (
        "not made: vllm computes in int8 from compute capability 7.5 on, below 10.0, a GPU in use has 12.0"
    )


def test_an_engine_without_a_row_is_not_known_to_load_it() -> None:
    assert why_not_here(LLAMA, FP8, ["9.0"]) == "not made: llama.cpp is not known to load fp8 weights"
