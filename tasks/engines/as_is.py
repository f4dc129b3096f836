"""Whether an engine serves a model that comes quantized, as it is. Pure: the facts are those of its card.

How a type of weights runs on a GPU is judged by the compatibility tables as well, for each release of an engine.
They do not know what is judged here: whether an engine loads a method, what it needs for it, what the CPU runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tasks.core.errors import ModelError, SpecError
from tasks.core.spec_kinds import DEFAULT_CANDIDATES, CandidateFormat, EngineKind
from tasks.core.weight_format import CONFIG_FILE, WeightFormat
from tasks.engines.card import Capability, EngineCard, Method
from tasks.engines.catalogue import get_engine


def check_as_is(
    kind: EngineKind,
    weights: WeightFormat,
    formats: Sequence[CandidateFormat],
    where: str,
    *,
    capabilities: Sequence[Capability | None],
    requirements: Sequence[str] | None,
) -> str | None:
    """Raise `ModelError` or `SpecError` if the engine cannot serve the model at `where` as it comes, or if other
    formats are to be made of it. Otherwise a remark about what is not known, if anything.

    `capabilities` are those of the GPUs in use, none for the CPU; `requirements` the spec's own for the engine's
    environment, None if that exists already.
    """
    card = get_engine(kind).card
    said = f"{where} comes quantized ({weights.describe()})"
    if card.loads_gguf:
        raise ModelError(
            f"{said}, which cannot be converted to GGUF for {kind}",
            fix=f"give its GGUF file or the model that is not quantized{_or_engines(kind, weights)}",
        )
    if tuple(formats) not in ((CandidateFormat.AS_IS,), DEFAULT_CANDIDATES):
        raise SpecError(
            f"{said}, so {', '.join(formats)} cannot be made of it",
            fix="set tuning.candidates to [as-is], or give the model that is not quantized",
        )
    if weights.found_in != CONFIG_FILE and not card.reads_hf_quant_config:
        raise ModelError(
            f"{said} by {weights.found_in} alone, which {kind} does not read: it would compute with numbers that "
            "lack their scales",
            fix=_other_engines(kind, weights),
        )
    row = card.method_for(weights)
    if row is None:
        return _unknown(card, weights, said)
    _check_row(card, row, weights, said, capabilities, requirements)
    if not capabilities and row.cpu is None:
        return f"whether {kind} computes in {weights.describe()} on the CPU is not known: its start will show"
    return None


def folder_engines() -> list[EngineKind]:
    """The engines that serve model folders and can be deployed."""
    cards = [get_engine(kind).card for kind in EngineKind]
    return [card.kind for card in cards if card.missing is None and not card.loads_gguf]


def _unknown(card: EngineCard, weights: WeightFormat, said: str) -> str:
    if card.skips_unknown_methods:
        raise ModelError(
            f"{said}, a method that {card.kind} {card.version} does not know: it would compute with the numbers as "
            "they are stored",
            fix=_other_engines(card.kind, weights),
        )
    return f"whether {card.kind} loads {weights.describe()} is not known: its start will show"


def _check_row(
    card: EngineCard,
    row: Method,
    weights: WeightFormat,
    said: str,
    capabilities: Sequence[Capability | None],
    requirements: Sequence[str] | None,
) -> None:
    if row.refused:
        raise ModelError(
            f"{said}, which {card.kind} does not serve: {row.refused}", fix=_other_engines(card.kind, weights)
        )
    if not capabilities and row.cpu is False:
        raise ModelError(
            f"{said}, which {card.kind} serves on GPUs only, and hardware.gpus is 0",
            fix="set hardware.gpus, or give the model in another format",
        )
    too_old = sorted({one for one in capabilities if one is not None and not row.runs_on(one)})
    if too_old:
        raise ModelError(
            f"{said}, which {card.kind} serves from compute capability {row.min_compute_capability} on; a GPU in use "
            f"has {', '.join(too_old)}",
            fix="use newer GPUs, or give the model in another format",
        )
    if requirements is not None and (lacking := _lacking(row.needs, requirements)):
        raise SpecError(
            f"{said}: to load that, {card.kind} needs {' and '.join(lacking)} in its environment",
            fix=f"add to environment.requirements: {', '.join(lacking)}",
        )


def _lacking(needs: Sequence[str], requirements: Sequence[str]) -> list[str]:
    there = {name for line in requirements if (name := _name_of(line))}
    return [one for one in needs if _name_of(one) not in there]


def _name_of(line: str) -> str | None:
    """The distribution; of a conda match spec the word in front."""
    try:
        return canonicalize_name(Requirement(line).name)
    except InvalidRequirement:
        return canonicalize_name(
            line.partition("::")[2].split("=")[0].split(" ")[0] or line.split("=")[0].strip()
        )


def _other_engines(kind: EngineKind, weights: WeightFormat) -> str:
    return f"give the model that is not quantized, or in another format{_or_engines(kind, weights)}"


def _or_engines(kind: EngineKind, weights: WeightFormat) -> str:
    """The other engines that are known to load such weights, if any."""
    others = []
    for other in folder_engines():
        card = get_engine(other).card
        row = card.method_for(weights)
        reads = weights.found_in == CONFIG_FILE or card.reads_hf_quant_config
        if other != kind and row is not None and not row.refused and reads:
            others.append(other)
    return f", or use engine: {' or '.join(others)}" if others else ""
