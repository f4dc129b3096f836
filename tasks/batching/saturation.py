"""Whether an engine keeps up with the requests that arrive, told from how long each of them waited. Pure.

Where arrivals outpace completions, the backlog grows through the run and every request waits longer than the one
before it: at `x` times what the engine can do, waits grow by x - 1 seconds a second, whatever the engine, the load
and the number of slots. Where the engine keeps up, waits go up and down and do not grow.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.load import Wait

FEWEST = 20
"""Fewer requests tell nothing."""

GROWTH = 0.08
"""Waits that grow by more seconds a second are those of an engine that is asked for 1.08 times what it can do."""

LATER = 0.95
"""How surely a request of the last third must have waited longer than one of the first."""

BEGUN = 0.5
"""An engine that has not begun to answer this share of the requests by the end does not keep up."""

LONGEST = 1.0
"""Waits beyond this share of the time in which requests came: most of them still wait when the last one comes, so
that the queue has grown all the while. No trend shows if all come nearly at once."""

_RAMP = 0.1
"""Share of the requests at the beginning that find the engine emptier than it will be."""


class Saturation(Frozen):
    """How waits went through a run.

    `growth` is in seconds a second; `later` the share of pairs in which a request of the last third waited longer
    than one of the first; `backlog` counts what was sent and not yet answered when the last request was sent;
    `begun` is the share of requests that had their first token by the end; `wait` the median wait for it, as a share
    of the time in which requests came.
    """

    growth: float
    later: float = Field(ge=0, le=1)
    backlog: int = Field(ge=0)
    begun: float = Field(ge=0, le=1)
    wait: float = Field(0.0, ge=0)

    @property
    def saturated(self) -> bool:
        """Whether arrivals outpace completions."""
        return self.begun < BEGUN or self.wait > LONGEST or (self.growth > GROWTH and self.later > LATER)

    @property
    def why(self) -> str:
        """What was seen, in words."""
        unanswered = f"{self.backlog} requests were unanswered when the last one was sent"
        if self.begun < BEGUN:
            return f"{unanswered}, and only {self.begun:.0%} were begun by the end"
        if self.wait > LONGEST:
            return f"{unanswered}, and most waited longer than all took to come"
        return f"waits grow by {self.growth:.2f} s a second, {unanswered}"


def judge_waits(waits: Sequence[Wait]) -> Saturation:
    """How waits went in a run; they are in order of arrival.

    Waits for the first token and for the complete answer are both checked, as an engine may begin every answer and
    end none. What had not come by the end shows no trend: it had the less time to wait the later it was sent.
    """
    last = waits[-1].arrived
    steady = waits[int(len(waits) * _RAMP) :] if len(waits) >= FEWEST else []
    firsts = [(wait.arrived, wait.first - wait.arrived) for wait in steady if wait.first is not None]
    wholes = [(wait.arrived, wait.done - wait.arrived) for wait in steady if wait.done is not None]
    growth, later = max(_trend(firsts), _trend(wholes))
    span, begun = last - waits[0].arrived, [one.first - one.arrived for one in waits if one.first is not None]
    return Saturation(
        growth=growth,
        later=later,
        backlog=sum(wait.done is None or wait.done > last for wait in waits),
        begun=len(begun) / len(waits),
        wait=statistics.median(begun) / span if begun and steady and span > 0 else 0.0,
    )


def _trend(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Growth of waits over the time of arrival, and how surely later ones are longer; 0 if too few can tell."""
    if len(points) < FEWEST // 2 or points[0][0] == points[-1][0]:
        return 0.0, 0.0
    arrived, waited = zip(*points, strict=True)
    growth = statistics.linear_regression(arrived, waited).slope
    third = max(1, len(waited) // 3)
    pairs = [(late > early) + (late == early) / 2 for late in waited[-third:] for early in waited[:third]]
    return growth, statistics.fmean(pairs)
