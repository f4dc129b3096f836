"""The environment stage's steps as Prefect tasks. They make files named by digests, so Prefect need not cache
them."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.core.settings import Settings
from tasks.core.spec import EnvironmentManager
from tasks.engines.catalogue import get_engine
from tasks.environment import apply, plan, proof
from tasks.environment.apply import PackageTool
from tasks.environment.models import Built, Checked, EnvironmentRequest, Locked, Proof, Refusal
from tasks.environment.proof import Trial


@task(name="lock-environment", cache_policy=NO_CACHE)
def lock_environment(
    request: EnvironmentRequest, tool: PackageTool, trial: Trial, settings: Settings
) -> Locked | Refusal:
    """The lock of an engine's environment, or the resolver's refusal.

    Flows may call it at the same time: one resolves, the others wait and read.
    """
    engine = get_engine(request.engine)
    asked = plan.lock_request(engine, request, tool)
    if asked.manager is EnvironmentManager.SYSTEM:
        return apply.adopt(asked, trial, settings)
    return apply.lock(asked, tool, settings, firm=plan.own_requirements(engine))


@task(name="build-environment", cache_policy=NO_CACHE)
def build_locked(locked: Locked, tool: PackageTool, trial: Trial, settings: Settings) -> Built:
    """The virtual environment of a lock."""
    return apply.build(locked, tool, trial, settings)


@task(name="check-environment", cache_policy=NO_CACHE)
def check_built(python: Path, tool: PackageTool, trial: Trial) -> Checked:
    """Conflicts in the installed set, and what requires what."""
    return proof.check(python, tool, trial)


@task(name="prove-environment", cache_policy=NO_CACHE)
def prove_built(request: EnvironmentRequest, built: Built, trial: Trial, settings: Settings) -> Proof:
    """Import the engine's modules and start it."""
    return apply.prove_built(built, get_engine(request.engine), trial, settings)
