"""Which models that come quantized an engine serves as they are, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from inline_snapshot import snapshot

from tasks.core.errors import SlipwayError
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.core.weight_format import HF_QUANT_FILE, WeightFormat
from tasks.engines.as_is import check_as_is
from tasks.engines.card import Capability, EngineCard
from tasks.engines.catalogue import get_engine

TRANSFORMERS, VLLM, LLAMA_CPP = (EngineKind(name) for name in ("transformers", "vllm", "llama.cpp"))
F16, AS_IS, W8A8 = (CandidateFormat(name) for name in ("f16", "as-is", "w8a8"))


def weights(method: str, weight_type: str | None, **more: Any) -> WeightFormat:
    return WeightFormat(method=method, weight_type=weight_type, **more)


INT8 = weights("compressed-tensors", "int8")
FP8 = weights("fp8", "fp8-block", detail="blocks of 128x128")
GPTQ = weights("gptq", "gptq", detail="4 bits")
AWQ = weights("awq", "awq")
NF4 = weights("bitsandbytes", "bnb-nf4")
MXFP4 = weights("mxfp4", "mxfp4")
NVFP4 = weights("modelopt", "nvfp4")
ALONE = weights("modelopt", "fp8", found_in=HF_QUANT_FILE)
TORCHAO = weights("torchao", None)
OURS = weights("of-ours", None)


def told(
    kind: EngineKind,
    one: WeightFormat,
    capabilities: Sequence[Capability | None] = (),
    *,
    formats: Sequence[CandidateFormat] = (AS_IS,),
    requirements: Sequence[str] | None = (),
) -> str:
    """`serves`, the remark, or the error with its way out."""
    try:
        remark = check_as_is(kind, one, formats, "m", capabilities=capabilities, requirements=requirements)
    except SlipwayError as error:
        return f"{error.what} ({error.fix})"
    return remark or "serves"


@pytest.mark.parametrize(
    ("kind", "one", "capabilities"),
    [
        (TRANSFORMERS, INT8, ()),
        (TRANSFORMERS, INT8, ("7.5",)),
        (TRANSFORMERS, FP8, ()),  # unpacked to bfloat16
        (TRANSFORMERS, FP8, ("8.0",)),
        (TRANSFORMERS, MXFP4, ()),
        (VLLM, INT8, ()),
        (VLLM, GPTQ, ()),
        (VLLM, AWQ, ("8.0",)),
        (VLLM, FP8, ("9.0",)),
        (VLLM, MXFP4, ("10.0",)),
        (VLLM, NVFP4, ("10.0",)),
        (VLLM, ALONE, ("9.0",)),
        (VLLM, AWQ, (None,)),  # not known: the start will show
    ],
)
def test_what_is_served(
    kind: EngineKind, one: WeightFormat, capabilities: Sequence[Capability | None]
) -> None:
    assert told(kind, one, capabilities) == "serves"
    assert told(kind, one, capabilities, formats=(F16,)) == "serves"  # the default asks for nothing


def test_what_is_refused_with_the_way_out() -> None:
    found = {
        "to GGUF": told(LLAMA_CPP, INT8),
        "to GGUF, alone": told(LLAMA_CPP, ALONE),
        "another format": told(TRANSFORMERS, INT8, formats=(W8A8,)),
        "two formats": told(VLLM, FP8, formats=(F16, W8A8)),
        "not read": told(TRANSFORMERS, ALONE),
        "skipped": told(TRANSFORMERS, NVFP4, ("10.0",)),
        "of ours": told(TRANSFORMERS, OURS),
        "GPUs only": told(VLLM, FP8),
        "an old GPU": told(VLLM, AWQ, ("7.0", "8.0")),
        "a package": told(TRANSFORMERS, GPTQ),
    }
    assert found == snapshot(
        {
            "to GGUF": "m comes quantized (compressed-tensors, int8), which cannot be converted to GGUF for llama.cpp (give its GGUF file or the model that is not quantized, or use engine: transformers or vllm)",
            "to GGUF, alone": "m comes quantized (modelopt, fp8), which cannot be converted to GGUF for llama.cpp (give its GGUF file or the model that is not quantized, or use engine: vllm)",
            "another format": "m comes quantized (compressed-tensors, int8), so w8a8 cannot be made of it (set tuning.candidates to [as-is], or give the model that is not quantized)",
            "two formats": "m comes quantized (fp8, blocks of 128x128), so f16, w8a8 cannot be made of it (set tuning.candidates to [as-is], or give the model that is not quantized)",
            "not read": "m comes quantized (modelopt, fp8) by hf_quant_config.json alone, which transformers does not read: it would compute with numbers that lack their scales (give the model that is not quantized, or in another format, or use engine: vllm)",
            "skipped": "m comes quantized (modelopt, nvfp4), a method that transformers 5.23.0 does not know: it would compute with the numbers as they are stored (give the model that is not quantized, or in another format, or use engine: vllm)",
            "of ours": "m comes quantized (of-ours), a method that transformers 5.23.0 does not know: it would compute with the numbers as they are stored (give the model that is not quantized, or in another format)",
            "GPUs only": "m comes quantized (fp8, blocks of 128x128), which vllm serves on GPUs only, and hardware.gpus is 0 (set hardware.gpus, or give the model in another format)",
            "an old GPU": "m comes quantized (awq), which vllm serves from compute capability 7.5 on; a GPU in use has 7.0 (use newer GPUs, or give the model in another format)",
            "a package": "m comes quantized (gptq, 4 bits): to load that, transformers needs gptqmodel and optimum in its environment (add to environment.requirements: gptqmodel, optimum)",
        }
    )


def test_what_the_engine_decides() -> None:
    assert [
        told(VLLM, TORCHAO),
        told(VLLM, OURS, ("9.0",)),
        told(TRANSFORMERS, weights("quark", None), (), requirements=None),
    ] == snapshot(
        [
            "whether vllm loads torchao is not known: its start will show",
            "whether vllm loads of-ours is not known: its start will show",
            "whether transformers computes in quark on the CPU is not known: its start will show",
        ]
    )


def test_requirements_of_the_spec_count() -> None:
    assert (
        told(TRANSFORMERS, NF4, ("8.0",), requirements=("bitsandbytes>=0.50 ; python_version > '3'",))
        == "serves"
    )
    assert told(TRANSFORMERS, NF4, ("8.0",), requirements=("conda-forge::bitsandbytes=0.50",)) == "serves"
    assert (
        told(TRANSFORMERS, NF4, ("8.0",), requirements=None) == "serves"
    )  # an environment of the user's own
    assert "needs optimum in its environment" in told(TRANSFORMERS, GPTQ, (), requirements=("GPTQModel",))


def test_rows_are_sorted_and_name_what_the_tables_know() -> None:
    for kind in EngineKind:
        card: EngineCard = get_engine(kind).card
        names = [row.name for row in card.method]
        assert names == sorted(names)
        assert all(row.sources for row in card.method)
        assert not card.method or CandidateFormat.AS_IS in card.formats
