"""Find what is wrong with an environment, from its metadata and files, a run of it, and facts about its packages."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tasks.compatibility.models import Measurement
from tasks.compatibility.plan import known_bad
from tasks.engines.base import Engine
from tasks.engines.catalogue import deployable_engines
from tasks.environment.hidden_conflicts import mixed_cuda
from tasks.environment.models import Checked, Conflict, Proof
from tasks.environment.proof import Checker, Trial, check, prove


def inspect_environment(python: Path, checker: Checker, trial: Trial) -> tuple[Checked, Proof]:
    """The conflicts of the environment of that Python, and the proof of the engine in it, else of what
    nothing else in it requires."""
    checked = check(python, checker, trial)
    required = {canonicalize_name(edge.package) for edge in checked.dependencies}
    whole = (engine for engine in deployable_engines() if _is_whole(engine, checked.packages))
    # vLLM brings along all that Transformers serve needs: the engine is what nothing else requires.
    engine = min(whole, key=lambda one: canonicalize_name(one.card.package) in required, default=None)
    modules = engine.card.imports if engine else checked.modules
    with tempfile.TemporaryDirectory(prefix="slipway-proof-") as scratch:
        proof = prove(python, engine, modules, trial, Path(scratch) / "proof")
    conflicts = (*checked.conflicts, *known_conflicts(checked.packages, proof))
    return checked.model_copy(update={"conflicts": conflicts}), proof


def _is_whole(engine: Engine, packages: Mapping[str, str]) -> bool:
    """Whether all that serving needs is there: Transformers alone is a library of many environments."""
    needed = engine.card.server_packages or (engine.card.package,)
    return all(canonicalize_name(Requirement(line).name) in packages for line in needed)


def known_conflicts(
    packages: Mapping[str, str], proof: Proof | None, glibc: str | None = None
) -> tuple[Conflict, ...]:
    """Combinations that are known to fail, on a host with this glibc if it is given. What the proof saw working there
    only flags the set."""
    return tuple(
        Conflict(
            package=known.package,
            installed=packages.get(known.package),
            reason=known.finding.message,
            fix=known.finding.fix,
            rule=known.finding.rule,
            severity="block" if known.finding.severity == "block" else "warn",
        )
        for known in known_bad(packages, _measured(proof) if proof else (), glibc=glibc)
    )


def conflicts_of_lock(packages: Mapping[str, str], glibc: str | None) -> tuple[Conflict, ...]:
    """What is known to fail among the packages of a lock, before any of them is installed."""
    return (*known_conflicts(packages, None, glibc), *mixed_cuda(packages))


def _measured(proof: Proof) -> tuple[Measurement, ...]:
    found = []
    if proof.failure is None:
        found.append(
            Measurement(kind="import", passed=True, evidence="its modules were imported, and compute")
        )
    if proof.engine is not None and proof.engine.ok:
        found.append(Measurement(kind="engine-start", passed=True, evidence="it completed a prompt"))
    return tuple(found)
