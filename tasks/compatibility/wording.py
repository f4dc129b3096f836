"""The words of a finding: only what is known is said, and no fix that the ways out contradict. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from tasks.compatibility.conditions import GPU, PACKAGE, Subject, Value
from tasks.compatibility.models import Change, CompatibilityResult, WayOut
from tasks.compatibility.rules import PLACEHOLDER, UPGRADE

_ASIDE = re.compile(r" ?\([^()]*\)")
_CLAUSE_END = re.compile(r"(?<=[;,:]) ")
_LEFT_OVER = re.compile(r"^(?:or|and) |[;,:]$")


def fill_advice(template: str, subject: Subject, gpu: Mapping[str, Value] | None) -> str:
    """Like `fill`; empty if nothing can be advised without a value that is not known."""
    return fill(template, subject, gpu, alone=False)


def fill(template: str, subject: Subject, gpu: Mapping[str, Value] | None, *, alone: bool = True) -> str:
    """The template with the values of its fields. What would need a value that is not known is left out: the
    parenthesis, else the clause. If no clause is left, only the values are left out, or everything unless `alone`."""

    def value_of(name: str) -> Value:
        if name.startswith(PACKAGE):
            return (subject.packages or {}).get(name.removeprefix(PACKAGE))
        return (gpu or {}).get(name) if name.startswith(GPU) else subject.values.get(name)

    def known(name: str) -> Value:
        if name.startswith(UPGRADE):
            return _driver_advice(subject, name.removeprefix(UPGRADE), value_of)
        if name == "driver_builds":
            return subject.drivers.builds() if subject.drivers else None
        return value_of(name)

    names = set(PLACEHOLDER.findall(template))
    values = {name: value for name in names if (value := known(name))}
    if names - values.keys():
        template = _without(template, [f"{{{name}}}" for name in names - values.keys()], alone)

    def text(match: re.Match[str]) -> str:
        value = values[match[1]]
        return ", ".join(value) if isinstance(value, tuple) else str(value)

    return PLACEHOLDER.sub(text, template)


def _driver_advice(subject: Subject, wanted: str, value_of: Callable[[str], Value]) -> str | None:
    """How to get a driver of a version, or of the CUDA that a field names (`@cuda_build`)."""
    if subject.drivers is None:
        return None
    if not wanted.startswith("@"):
        return subject.drivers.upgrade(wanted)
    cuda = value_of(wanted[1:])
    return subject.drivers.upgrade_to_cuda(str(cuda)) if cuda else "upgrade the driver"


def _without(template: str, unknown: Sequence[str], alone: bool) -> str:
    def says(part: str) -> bool:
        return any(placeholder in part for placeholder in unknown)

    template = _ASIDE.sub(lambda aside: "" if says(aside[0]) else aside[0], template)
    clauses = _CLAUSE_END.split(template)
    kept = " ".join(clause for clause in clauses if not says(clause))
    if kept or not alone:
        return _LEFT_OVER.sub("", kept)
    for placeholder in unknown:
        template = template.replace(placeholder, "")
    return re.sub(r" +(?=[ ;,:.)]|$)", "", template).strip()


class _Bound(NamedTuple):
    """A version of something that a text asks for."""

    thing: str
    relation: str
    version: str


_DRIVER_BRANCH = re.compile(r"\bR([0-9]{3}) branch")
_OR = re.compile(r"\b([A-Za-z][A-Za-z.-]*)(?: to)? v?([0-9]+(?:\.[0-9]+)*)(?: \([^)]*\))? or (newer|older)\b")
_BELOW = re.compile(r"\b([A-Za-z][A-Za-z.-]*) (?:below|older than) ([0-9]+(?:\.[0-9]+)*)\b")
_CUDA_INDEX = re.compile(r"\+cu([0-9]{2})([0-9])\b")
_FIRST_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def without_contradicted_fixes(result: CompatibilityResult) -> CompatibilityResult:
    """The result without a block's fix that asks for other versions than the ways out, each of which was judged."""
    wanted = {bound for way in result.ways_out for bound in _of_way(way)}
    findings = tuple(
        finding.model_copy(update={"fix": ""})
        if finding.severity == "block" and _contradicted(finding.fix, wanted)
        else finding
        for finding in result.findings
    )
    return result.model_copy(update={"findings": findings})


def _contradicted(fix: str, wanted: Iterable[_Bound]) -> bool:
    bounds = list(_of_text(fix))
    return any(not _agree(bound, other) for bound in bounds for other in wanted if bound.thing == other.thing)


def _of_text(text: str) -> Iterator[_Bound]:
    for thing, version, relation in _OR.findall(text):
        yield _Bound(thing.lower(), relation, version)
    for thing, version in _BELOW.findall(text):
        yield _Bound(thing.lower(), "below", version)
    for branch in _DRIVER_BRANCH.findall(text):
        yield _Bound("driver", "branch", branch)


def _of_way(way: WayOut) -> Iterator[_Bound]:
    for change in way.changes:
        yield from _of_change(change)


def _of_change(change: Change) -> Iterator[_Bound]:
    if cuda := _CUDA_INDEX.search(change.wanted):
        yield _Bound("cuda", "is", f"{cuda[1]}.{cuda[2]}")
    if number := _FIRST_NUMBER.search(change.wanted):
        yield _Bound("cuda" if change.what == "cuda_build" else change.what, "is", number[0])


def _agree(bound: _Bound, way: _Bound) -> bool:
    try:
        asked, judged = Version(bound.version), Version(way.version)
    except InvalidVersion:
        return True
    if bound.thing == "driver":
        return asked.major == judged.major
    same = judged.release[: len(asked.release)] == asked.release
    if bound.relation == "newer":
        return judged >= asked
    return judged < asked or (bound.relation == "older" and same)
