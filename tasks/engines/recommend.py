"""Which engine, family and application for a need, and whether to buy the upkeep of a platform of one's own. Pure.

Choices that these facts rule out come last, with the reason. The others are ranked by the sum of their points from
the sourced advice. If this store's knowledge base contains measurements of several engines with the same model on
this hardware, these count more than all points. Tokens/s of different models are not compared.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Literal

from packaging.version import Version
from pydantic import Field, ValidationError

from tasks.core.facts import Facts
from tasks.core.frozen import Frozen
from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import EngineCard, Sourced, damaged, read_card, read_data
from tasks.engines.families import Family, families, host_findings
from tasks.engines.family_names import named_family

MEASURED = 10.0
"""Points of the engine that was the fastest on this hardware wherever another was measured on the same model; more
than advice can sum up to."""

_RAN = 2.0
"""Points of an engine that was measured here, but not on the same model as another one: it is known to run."""

_MEMORY_SHARE = 0.9

ChoiceKind = Literal["engine", "family", "application", "sourcing"]


class Need(StrEnum):
    """What a service is for."""

    EDGE = "edge"
    LONG_CONTEXT = "long-context"
    WORKFLOW = "workflow"
    THROUGHPUT = "throughput"


class Advice(Sourced):
    """One thing that speaks for a choice."""

    need: Need | Literal["any"]
    kind: ChoiceKind
    name: str
    points: float = Field(gt=0, lt=MEASURED / 2)
    families: tuple[str, ...] = ()
    reason: str


class Measured(Frozen):
    """What a record of this store says of an engine on this hardware: answers a second of that model, such as tokens,
    or why it failed."""

    record: str
    engine: str
    model: str = ""
    throughput: float | None = Field(None, gt=0)
    answers: str = "tokens"
    failed: str | None = None


class Reason(Frozen):
    """Why, and who says so: sources that were read, or a record of this store."""

    text: str
    sources: tuple[str, ...] = ()
    record: str | None = None

    @property
    def cites(self) -> tuple[str, ...]:
        """The record, else the sources."""
        return (self.record,) if self.record else self.sources


class Choice(Frozen):
    """One candidate. `against` is why it cannot be had here; without anything there, it can."""

    kind: ChoiceKind
    name: str
    points: float
    reasons: tuple[Reason, ...] = ()
    against: tuple[Reason, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether these facts allow it."""
        return not self.against


class Recommendation(Frozen):
    """All choices, of each kind the best first."""

    need: Need
    family: str | None
    choices: tuple[Choice, ...]

    def of(self, kind: ChoiceKind) -> tuple[Choice, ...]:
        """Those of one kind, the best first."""
        return tuple(choice for choice in self.choices if choice.kind == kind)

    def best(self, kind: ChoiceKind) -> Choice | None:
        """The best that fits; None if nothing does."""
        return next((choice for choice in self.of(kind) if choice.fits), None)


@functools.cache
def advice() -> tuple[Advice, ...]:
    """The sourced advice. Raises `SlipwayError` if the table is damaged."""
    try:
        return tuple(Advice.model_validate(row) for row in read_data("advice.toml")["advice"])
    except (KeyError, ValidationError) as error:
        raise damaged("advice.toml", " ".join(str(error).split())[:200]) from error


def recommend(
    need: Need, facts: Facts, records: Sequence[Measured] = (), *, family: str | None = None
) -> Recommendation:
    """Ranked choices for `need` on the host of `facts`; with `family`, for models of that family.

    A fact that is not known rules nothing out. A family that is not in the tables counts as one's own.
    """
    asked = named_family(family) if family is not None else None
    found_families = _families(need, facts, asked)
    own = family is not None and asked is None
    chosen = next((choice.name for choice in found_families if choice.fits), None)
    engines = _engines(need, facts, records, chosen, own=own)
    return Recommendation(
        need=need,
        family=asked.name if asked else family,
        choices=(*engines, *found_families, *_applications(need), *_sourcing(engines, own=own)),
    )


def _families(need: Need, facts: Facts, asked: Family | None) -> list[Choice]:
    found = []
    for family in families():
        reasons = _reasons(need, "family", family.name, None)
        more = MEASURED if family == asked else 0.0
        if more:
            reasons = [(0.0, Reason(text="asked for", sources=("--family",))), *reasons]
        if reasons:
            found.append(_choice("family", family.name, reasons, _against_family(family, facts), more))
    return _ranked(found)


def _against_family(family: Family, facts: Facts) -> list[Reason]:
    if not facts.known("gpus"):
        return []
    if facts.gpus:
        sizes = [gpu.memory_bytes for gpu in facts.gpus]
        memory = None if None in sizes else sum(size or 0 for size in sizes)
        capabilities = [gpu.compute_capability for gpu in facts.gpus if gpu.compute_capability]
    else:
        memory, capabilities = facts.memory_bytes, []
    return [
        Reason(text=f"{finding.message}: {finding.fix}", sources=finding.sources)
        for finding in host_findings(family, capabilities, memory, _MEMORY_SHARE)
    ]


def _engines(
    need: Need, facts: Facts, records: Sequence[Measured], family: str | None, *, own: bool
) -> list[Choice]:
    found = []
    for kind in EngineKind:
        card = read_card(kind)
        reasons = [*_reasons(need, "engine", kind.value, family), *_from_records(kind, records)]
        found.append(_choice("engine", kind.value, reasons, _against_engine(card, facts, own=own)))
    return _ranked(found)


def _from_records(kind: EngineKind, records: Sequence[Measured]) -> list[tuple[float, Reason]]:
    """What was measured of an engine; if nothing was, a failure counts against it."""
    fastest = _fastest(records)
    own = {model: found[kind] for model, found in fastest.items() if kind in found}
    if not own:
        failed = next((one for one in records if one.engine == kind and one.failed), None)
        if failed is None:
            return []
        return [(-MEASURED, Reason(text=f"failed here: {failed.failed}", record=failed.record))]
    shares = {model: _share(one, fastest[model]) for model, one in own.items() if len(fastest[model]) > 1}
    if not shares:
        one = max(own.values(), key=_speed)
        return [(_RAN, Reason(text=f"{_speed(one):.0f} {one.answers}/s measured here", record=one.record))]
    shown = own[max(shares, key=lambda model: shares[model])]
    others = len(fastest[shown.model]) - 1
    text = (
        f"{_speed(shown):.0f} {shown.answers}/s measured here, compared with {others} "
        f"other{'s' if others > 1 else ''}"
    )
    return [(MEASURED * statistics.fmean(shares.values()), Reason(text=text, record=shown.record))]


def _fastest(records: Iterable[Measured]) -> dict[str, dict[str, Measured]]:
    """The fastest measurement of each model and engine."""
    found: dict[str, dict[str, Measured]] = {}
    for one in records:
        of_model = found.setdefault(one.model, {})
        if one.throughput and (one.engine not in of_model or _speed(one) > _speed(of_model[one.engine])):
            of_model[one.engine] = one
    return found


def _speed(one: Measured) -> float:
    return one.throughput or 0.0


def _share(one: Measured, of_model: Mapping[str, Measured]) -> float:
    return _speed(one) / max(map(_speed, of_model.values()))


def _against_engine(card: EngineCard, facts: Facts, *, own: bool) -> list[Reason]:
    found = []
    if own and not card.own_architectures:
        text = "is not known to serve the architecture"
        found.append(
            Reason(text=text, sources=("https://docs.vllm.ai/en/stable/contributing/model/registration/",))
        )
    if facts.known("gpus"):
        capabilities = [gpu.compute_capability for gpu in facts.gpus if gpu.compute_capability]
        if not facts.gpus and card.needs_gpu:
            found.append(Reason(text="needs a GPU, and there is none", sources=card.sources))
        elif not card.serves_on(capabilities) and capabilities:
            floor, lowest = card.min_compute_capability, min(capabilities, key=Version)
            text = f"needs compute capability {floor}; the GPUs have {lowest}"
            found.append(Reason(text=text, sources=card.sources))
    return found


def _applications(need: Need) -> list[Choice]:
    names = {row.name for row in advice() if row.kind == "application" and row.need in (need, "any")}
    found = []
    for name in sorted(names):
        found.append(_choice("application", name, _reasons(need, "application", name, None)))
    return _ranked(found)


def _sourcing(engines: Sequence[Choice], *, own: bool) -> list[Choice]:
    """Open source wherever an engine fits that knows the architecture."""
    fitting = [choice.name for choice in engines if choice.fits]
    found = []
    for name in ("open-source", "in-house"):
        reasons = _reasons("any", "sourcing", name, None)
        against = []
        if name == "open-source":
            if own or not fitting:
                text = "no engine knows the architecture" if own else "no engine serves on this host"
                against.append(Reason(text=text, sources=reasons[0][1].sources))
            else:
                card = read_card(EngineKind(fitting[0]))
                text = f"{len(fitting)} engines fit, {card.title} first"
                reasons = [(0.0, Reason(text=text, sources=card.sources)), *reasons]
        found.append(_choice("sourcing", name, reasons, against))
    return _ranked(found)


def _reasons(
    need: Need | Literal["any"], kind: ChoiceKind, name: str, family: str | None
) -> list[tuple[float, Reason]]:
    return [
        (row.points, Reason(text=row.reason, sources=row.sources))
        for row in advice()
        if row.kind == kind
        and row.name == name
        and row.need in (need, "any")
        and (not row.families or family in row.families)
    ]


def _choice(
    kind: ChoiceKind,
    name: str,
    reasons: Sequence[tuple[float, Reason]],
    against: Iterable[Reason] = (),
    more: float = 0.0,
) -> Choice:
    """Its heaviest reason first; it has the points of all of them, and `more`."""
    ordered = sorted(reasons, key=lambda pair: -abs(pair[0]))
    return Choice(
        kind=kind,
        name=name,
        points=round(more + sum(points for points, _ in reasons), 1),
        reasons=tuple(reason for _, reason in ordered),
        against=tuple(against),
    )


def _ranked(choices: Iterable[Choice]) -> list[Choice]:
    return sorted(choices, key=lambda choice: (not choice.fits, -choice.points, choice.name))
