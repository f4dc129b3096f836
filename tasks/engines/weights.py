"""Which candidates an engine serves on which hardware. Pure: the floors are those of its card, with their sources."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.version import Version

from tasks.core.errors import SpecError
from tasks.core.spec_kinds import DEFAULT_CANDIDATES, DEFAULT_ENGINE, CandidateFormat, EngineKind
from tasks.engines.card import Capability, EngineCard, Quantization
from tasks.engines.catalogue import get_engine
from tasks.engines.families import Family, dtype_finding

KINDS = {CandidateFormat.W8A8: "int8", CandidateFormat.W4A16: "gptq", CandidateFormat.FP8: "fp8"}
"""Formats with special hardware needs, and the card's name for such weights."""

_DTYPES = {CandidateFormat.BF16: "bfloat16", CandidateFormat.F16: "float16"}


def check_formats(kind: EngineKind, formats: Sequence[CandidateFormat]) -> None:
    """Raise `SpecError` for an engine without candidates, or for a format that it does not load."""
    card = get_engine(kind).card
    if card.scored_by is None:
        measured = " or ".join(one for one in EngineKind if get_engine(one).card.scored_by)
        raise SpecError(f"candidates cannot be measured for {kind} yet", fix=f"use engine: {measured}")
    unknown = [form for form in formats if form not in card.formats]
    if unknown:
        raise SpecError(
            f"{kind} does not load {', '.join(unknown)}",
            fix=f"choose tuning.candidates from {', '.join(card.formats)}",
        )


def gguf_engines() -> list[EngineKind]:
    """The engines that serve GGUF files and can be deployed."""
    cards = [get_engine(kind).card for kind in EngineKind]
    return [card.kind for card in cards if card.missing is None and card.loads_gguf]


def check_gguf(kind: EngineKind, formats: Sequence[CandidateFormat], stored_as: str, where: str) -> None:
    """Raise `SpecError` if the engine does not serve GGUF files, or if another format than that of the model at
    `where`, which comes as GGUF, is asked for. The default of `tuning.candidates` asks for none."""
    if not get_engine(kind).card.loads_gguf:
        raise SpecError(
            f"{where} is a GGUF model, which {kind} does not serve",
            fix=f"use engine: {' or '.join(gguf_engines())}, or give a folder with the model's safetensors",
        )
    if tuple(formats) not in ((CandidateFormat.AS_IS,), DEFAULT_CANDIDATES, (stored_as,)):
        raise SpecError(
            f"{where} is a GGUF model in {stored_as}, from which {', '.join(formats)} cannot be made",
            fix="set tuning.candidates to [as-is], or give a folder with the model's safetensors",
        )


def check_not_as_is(formats: Sequence[CandidateFormat], where: str) -> None:
    """Raise `SpecError` if a model in safetensors that is not quantized is to be served as it is."""
    if CandidateFormat.AS_IS in formats:
        raise SpecError(
            f"tuning.candidates: as-is is for models that come quantized or as GGUF, and {where} does not",
            fix="name formats to make, such as f16",
        )


def why_not_here(
    kind: EngineKind,
    form: CandidateFormat,
    capabilities: Sequence[Capability | None],
    family: Family | None = None,
) -> str | None:
    """Why the engine cannot compute in that format on GPUs of these capabilities, or without any on the CPU; or
    why a model of that family overflows in it.

    None if it can. A capability that is None is not known.
    """
    card = get_engine(kind).card
    if not card.loads_gguf and form in _DTYPES:
        return _why_not_in(_DTYPES[form], card, capabilities, family)
    name = KINDS.get(form)
    if name is None:
        return None
    row = next((one for one in card.quantization if one.name == name), None)
    if row is None:
        return f"not made: {kind} is not known to load {name} weights"
    needs = f"{kind} computes in {name} {_where(row)}"
    if not capabilities:
        return None if row.cpu else f"not made: {needs}, and no GPU is used (hardware.gpus)"
    if None in capabilities:
        return f"not made: {needs}, but the compute capability of a GPU in use is not known"
    other = sorted({one for one in capabilities if one and not row.runs_on(one)})
    return f"not made: {needs}, a GPU in use has {', '.join(other)}" if other else None


def _why_not_in(
    dtype: str, card: EngineCard, capabilities: Sequence[Capability | None], family: Family | None
) -> str | None:
    """Why plain weights of this type cannot be made; None if they can. They are computed in their own type."""
    if family and (finding := dtype_finding(family, dtype)):
        return f"not made: {finding.message}; {finding.fix}"
    floor = card.bfloat16_from
    if dtype != "bfloat16" or floor is None:
        return None
    below = sorted({one for one in capabilities if one and Version(one) < Version(floor)})
    needs = f"{card.kind} computes in bfloat16 from compute capability {floor} on"
    return f"not made: {needs}, a GPU in use has {', '.join(below)}" if below else None


def _where(row: Quantization) -> str:
    floor, end = row.min_compute_capability, row.not_from_compute_capability
    if floor is None:
        return "on no GPU"
    return f"from compute capability {floor} on" + (f", below {end}" if end else "")


def check_tunable(kind: EngineKind) -> None:
    """Raise `SpecError` for an engine that no candidates can be made and measured for yet."""
    missing = get_engine(kind).card.missing
    if missing is not None:
        raise SpecError(f"{kind} cannot be tuned yet: {missing}", fix=f"use engine: {DEFAULT_ENGINE}")
