"""What a contract on a table answers: how much was held against it, and what does not hold."""

from __future__ import annotations

from tasks.core.frozen import Frozen


class ContractBreach(Frozen):
    """An expectation on a table that does not hold. `expectation` is its name, `observed` what was there instead."""

    expectation: str
    column: str | None
    observed: str


class ContractResult(Frozen):
    """Whether a table is what its readers rely on."""

    rows: int
    expectations: int
    breaches: tuple[ContractBreach, ...] = ()
