"""Lock, build, check and prove an engine's own environment."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow

from blocks.engine.trial import EnvironmentTrial
from blocks.host.host import ThisHost
from blocks.packages.managers import open_manager
from flows.asked_by_api import hold_to_list
from flows.examination import known_conflicts
from flows.named_states import unless_cancelled
from flows.recording import Outcome, run_stage
from flows.torch_backend import decide_backend
from tasks.core.allowed import programs_of_environment
from tasks.core.settings import Settings
from tasks.core.spec import EnvironmentManager
from tasks.core.verdicts import EnvironmentVerdict, StageName
from tasks.engines.catalogue import get_engine
from tasks.environment import plan, report
from tasks.environment.apply import PackageTool, still_good
from tasks.environment.models import EnvironmentRequest, EnvironmentResult, Locked, Refusal
from tasks.environment.task import build_locked, check_built, lock_environment, prove_built


@flow(name="build-environment", flow_run_name="environment of {request.engine}")
def build_environment(request: EnvironmentRequest) -> Outcome[EnvironmentResult]:
    """Build the isolated environment in which an engine runs.

    Args:
        request: The engine, its Python version, and what else must be installed.
    """
    hold_to_list(programs_of_environment(request.environment, "request.environment"))
    return unless_cancelled(lambda: _build(request).as_state())


def _build(request: EnvironmentRequest) -> Outcome[EnvironmentResult]:
    tool, trial = open_manager(request.environment.manager), EnvironmentTrial()
    request = decide_backend(request, ThisHost())
    asked = plan.lock_request(get_engine(request.engine), request, tool)
    inputs = {"engine": request.engine, **asked.model_dump(mode="json")}
    if asked.manager is EnvironmentManager.SYSTEM:  # what is installed there decides, not what was asked for
        adopted = lock_environment(request, tool, trial, Settings.load())
        inputs["packages"] = adopted.packages if isinstance(adopted, Locked) else {}
    return run_stage(
        StageName.ENVIRONMENT,
        subject=request.engine,
        inputs=inputs,
        result_type=EnvironmentResult,
        report=report,
        work=lambda: _work(request, tool, trial),
        still_good=lambda result: still_good(result, trial),
    )


def _work(request: EnvironmentRequest, tool: PackageTool, trial: EnvironmentTrial) -> EnvironmentResult:
    settings = Settings.load()
    start = time.monotonic()
    locked = lock_environment(request, tool, trial, settings)
    lock_s = time.monotonic() - start
    if isinstance(locked, Refusal):
        return EnvironmentResult(
            verdict=EnvironmentVerdict.CONFLICTING,
            reason=locked.reason,
            conflicts=plan.attribute(locked.conflicts, get_engine(request.engine)),
            chains=locked.chains,
            loosen=locked.loosen,
            lock_s=lock_s,
        )
    built = build_locked(locked, tool, trial, settings)
    checked = check_built(built.python_path, tool, trial)
    proof = prove_built(request, built, trial, settings)
    conflicts = (*checked.conflicts, *known_conflicts(checked.packages, proof))
    verdict, reason = plan.judge(conflicts, proof)
    found: dict[str, Any] = {
        "lock_path": locked.path,
        "lock_digest": locked.digest,
        "environment_path": built.path,
        **built.model_dump(include={"python_path", "python_version", "size_bytes", "build_s"}),
        **checked.model_dump(include={"packages", "dependencies"}),
        "conflicts": conflicts,
    }
    version = checked.packages.get(get_engine(request.engine).card.package)
    return EnvironmentResult(
        verdict=verdict, reason=reason, engine_version=version, proof=proof, lock_s=lock_s, **found
    )
