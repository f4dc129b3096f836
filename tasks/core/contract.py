"""The result of checking a table against a contract: how much was checked, and which expectations are not met."""

from __future__ import annotations

from tasks.core.frozen import Frozen


class ContractBreach(Frozen):
    """An expectation about a table that is not met. `expectation` is its name, `observed` what was found instead."""

    expectation: str
    column: str | None
    observed: str


class ContractResult(Frozen):
    """Whether a table keeps its contract."""

    rows: int
    expectations: int
    breaches: tuple[ContractBreach, ...] = ()
