"""Queues made from a seed: requests that arrive, a number of servers that take them in order, and what each waited."""

from __future__ import annotations

import heapq
import random

from tasks.core.load import Arrivals, OpenLoad, Wait


def wait_in_queue(
    *,
    servers: int,
    service_s: float,
    rate_per_s: float,
    requests: int = 100,
    arrivals: Arrivals = Arrivals.POISSON,
    spread: float = 0.0,
    seed: int = 0,
    drain_s: float = 10,
) -> list[Wait]:
    """An open loop through a queue M/D/c (or D/D/c). `spread` is that of the service time, as
    a share of it. The first token comes after a tenth of it; what is not done by the end has no end."""
    load = OpenLoad(
        prompt_tokens=1,
        output_tokens=2,
        rate_per_s=rate_per_s,
        requests=requests,
        arrivals=arrivals,
        seed=seed,
    )
    draw = random.Random(f"{seed} service")
    times = load.send_times()
    free = [0.0] * servers
    found = []
    for at in times:
        begins = max(at, heapq.heappop(free))
        takes = service_s * (1 + draw.uniform(-spread, spread))
        heapq.heappush(free, begins + takes)
        found.append((at, begins + takes / 10, begins + takes))
    end = min(times[-1] + drain_s, max(done for _, _, done in found))
    return [
        Wait(arrived=at, first=first if first <= end else None, done=done if done <= end else None)
        for at, first, done in found
    ]
