"""What the compatibility stage's table knows against a set of packages, as the environment stage tells conflicts."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.compatibility.models import Measurement
from tasks.compatibility.plan import known_bad
from tasks.environment.models import Conflict, Proof


def known_conflicts(packages: Mapping[str, str], proof: Proof | None) -> tuple[Conflict, ...]:
    """Combinations that are known to fail. What the proof saw working there only flags the set."""
    return tuple(
        Conflict(
            package=known.package,
            installed=packages.get(known.package),
            reason=known.finding.message,
            fix=known.finding.fix,
            rule=known.finding.rule,
            severity="block" if known.finding.severity == "block" else "warn",
        )
        for known in known_bad(packages, _measured(proof) if proof else ())
    )


def _measured(proof: Proof) -> tuple[Measurement, ...]:
    found = []
    if proof.failure is None:
        found.append(
            Measurement(kind="import", passed=True, evidence="its modules were imported, and compute")
        )
    if proof.engine is not None and proof.engine.ok:
        found.append(Measurement(kind="engine-start", passed=True, evidence="it completed a prompt"))
    return tuple(found)
