"""The way out of a block: the smallest change of driver, packages or weights that passes the tables. Pure.

Candidates come from the tables alone: releases with their pins, driver branches, types of weights, other engines, and
the versions at which rules begin or cease to apply. Each is judged like any host before it is proposed, with facts as
complete as before. GPUs and model family stay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations

from tasks.compatibility.conditions import GPU, Subject, any_holds, evaluate
from tasks.compatibility.engine_moves import EngineMoves
from tasks.compatibility.host_moves import HostMoves
from tasks.compatibility.models import PASSES, CompatibilityResult, Measurement, Survey, WayOut
from tasks.compatibility.moves import Move
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Rule, Tables, load_tables
from tasks.compatibility.software_moves import SoftwareMoves
from tasks.compatibility.subject import describe
from tasks.compatibility.wording import without_contradicted_fixes
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict

MOST = 3
"""Most ways out that are listed."""

_MEASURED = "P0"
_TRIES = 400
"""Most combinations that are judged, with this engine and with others: a few tenths of a second."""

_FROM_THE_STACK = frozenset({"NOT-KNOWN-ENGINE-VERSION", "NOT-KNOWN-WEIGHTS"})
"""What is not known of a stack: no way out leads from a known one to one of which more is unknown."""
_IN_PARTS = frozenset(
    {"build_odd", "build_odd_optional", "glibc_needed", "mixed_cuda", "pin_broken", "pin_near"}
)
"""Fields that tell of several packages: a move may mend one of them, and it takes more than one to lift the rule."""


def advise(
    survey: Survey, measurements: Sequence[Measurement] = (), tables: Tables | None = None
) -> CompatibilityResult:
    """The judgement of a host and what is to run there; a block comes with the nearest ways out."""
    tables = tables or load_tables()
    result = judge(survey, measurements, tables)
    return without_contradicted_fixes(
        result.model_copy(update={"ways_out": ways_out(result, survey, tables)})
    )


def ways_out(result: CompatibilityResult, survey: Survey, tables: Tables) -> tuple[WayOut, ...]:
    """The nearest changes that make the host pass, at most one of each kind.

    None if the host is not blocked, or if a measurement on it blocks."""
    return tuple(way for way, _ in ways_with_facts(result, survey, tables))


def ways_with_facts(
    result: CompatibilityResult, survey: Survey, tables: Tables
) -> tuple[tuple[WayOut, Facts], ...]:
    """The ways out, each with the facts that the host would then have."""
    blocks = [finding for finding in result.findings if finding.severity == "block"]
    if not blocks or any(finding.precedence == _MEASURED for finding in blocks):
        return ()
    # Without sightings: sources may disagree about facts that the moves change.
    unknown = {finding.rule for finding in result.findings} & _FROM_THE_STACK
    return _Search(survey.model_copy(update={"sightings": ()}), tables, unknown).run()


class _Search:
    """Looks for combinations of moves that pass.

    `_stuck` are the rules that block the host and that no move so far has lifted, or lifted in part."""

    def __init__(self, survey: Survey, tables: Tables, unknown: AbstractSet[str]) -> None:
        self._survey = survey
        self._unknown = unknown
        self._tables = tables
        rules = tuple(rule for rule in tables.rules if rule.severity in ("block", "unknown"))
        self._blocking = tables.model_copy(update={"rules": rules})
        self._order = [rule for rule in rules if rule.severity == "block"]
        self._here = describe(self._survey, tables)
        self._stuck = [rule for rule in self._order if _blocks(rule, self._here)]

    def run(self) -> tuple[tuple[WayOut, Facts], ...]:
        """Single moves first; if none helps, two, then three together; another engine last. What no single move
        lifts, no combination does."""
        candidates = _Candidates(self._survey.facts, self._tables, self._blocking)
        return self._nearest(candidates.of_this_engine(), 3) or self._nearest(
            candidates.of_other_engines(), 1
        )

    def _nearest(self, sides: Mapping[str, Sequence[Move]], most: int) -> tuple[tuple[WayOut, Facts], ...]:
        tries = iter(range(_TRIES))
        for together in range(1, most + 1):
            found: list[tuple[float, WayOut, Facts]] = []
            for names in combinations(sides, together):
                best = self._best([sides[name] for name in names], tries)
                if best is not None:
                    found.append(best)
            if found:
                found.sort(key=lambda way: (way[0], [change.what for change in way[1].changes]))
                ways = [(way, facts) for _, way, facts in found]
                return tuple(
                    (way, facts) for way, facts in ways if not any(_is_part(other, way) for other, _ in ways)
                )[:MOST]
            if self._stuck:
                break
        return ()

    def _best(
        self, sides: Sequence[Sequence[Move]], tries: Iterator[int]
    ) -> tuple[float, WayOut, Facts] | None:
        """The cheapest choice of one move from each side that passes, within the tries that are left."""
        for (price, moves), _ in zip(_by_price(sides), tries, strict=False):
            facts = self._survey.facts
            for move in moves:
                facts = move.apply(facts)
            survey = self._survey.model_copy(update={"facts": facts})
            if self._is_blocked(survey):
                continue
            if judge(survey, tables=self._blocking).verdict is not CompatibilityVerdict.PASS:
                continue
            result = judge(survey, tables=self._tables)
            unknown = {finding.rule for finding in result.findings} & _FROM_THE_STACK
            if result.verdict in PASSES and unknown <= self._unknown:
                changes = tuple(change for move in moves for change in move.changes)
                why = "; ".join(dict.fromkeys(move.why for move in moves))
                return price, WayOut(changes=changes, verdict=result.verdict, why=why), facts
        return None

    def _is_blocked(self, survey: Survey) -> bool:
        """Whether a rule is known to block. What blocked one candidate mostly blocks the next: it is asked first."""
        subject = describe(survey, self._tables)
        self._stuck = [rule for rule in self._stuck if not self._is_eased(rule, subject)]
        found = next((rule for rule in self._order if _blocks(rule, subject)), None)
        if found is not None:
            self._order.remove(found)
            self._order.insert(0, found)
        return found is not None

    def _is_eased(self, rule: Rule, subject: Subject) -> bool:
        """Where a field of the GPU exempts it from a rule, another rule speaks of that GPU."""
        asked = {*rule.when, *(str(wanted).partition("@")[2] for wanted in rule.when.values())}
        parts = _IN_PARTS.intersection(asked)
        changed = any(subject.values.get(field) != self._here.values.get(field) for field in parts)
        exempts = {field: wanted for field, wanted in rule.unless.items() if not field.startswith(GPU)}
        return changed or not evaluate(rule.when, subject).holds or any_holds(exempts, subject)


def _blocks(rule: Rule, subject: Subject) -> bool:
    return bool(evaluate(rule.when, subject).holds) and not any_holds(rule.unless, subject)


@dataclass(frozen=True)
class _Candidates:
    """What could be changed about one host and stack. `blocking` are the tables with only the rules that block."""

    facts: Facts
    tables: Tables
    blocking: Tables

    def of_this_engine(self) -> dict[str, list[Move]]:
        """Moves by side, the cheapest first."""
        given = (self.facts, self.tables, self.blocking)
        return _by_side([*HostMoves(*given).all(), *SoftwareMoves(*given).all()])

    def of_other_engines(self) -> dict[str, list[Move]]:
        """Engines that serve these GPUs: the listed releases, the newest first. Last the one that serves without."""
        return _by_side(EngineMoves(self.facts, self.tables, self.blocking).all())


def _is_part(one: WayOut, other: WayOut) -> bool:
    """Whether one way needs only some of the other's changes."""
    return len(one.changes) < len(other.changes) and set(one.changes) <= set(other.changes)


def _by_side(moves: Iterable[Move]) -> dict[str, list[Move]]:
    found: dict[str, list[Move]] = {}
    for move in sorted(moves, key=lambda move: move.price):
        found.setdefault(move.side, []).append(move)
    return found


def _by_price(sides: Sequence[Sequence[Move]]) -> Iterator[tuple[float, tuple[Move, ...]]]:
    """Choices of one move from each side (each sorted by price), the cheapest first."""
    first = (0,) * len(sides)
    waiting = [(sum(side[0].price for side in sides), first)]
    seen = {first}
    while waiting:
        price, places = heapq.heappop(waiting)
        yield price, tuple(side[place] for side, place in zip(sides, places, strict=True))
        for index, side in enumerate(sides):
            after = (*places[:index], places[index] + 1, *places[index + 1 :])
            if after[index] < len(side) and after not in seen:
                seen.add(after)
                more = side[after[index]].price - side[places[index]].price
                heapq.heappush(waiting, (price + more, after))
