"""Thin tasks around the survey and the judgement."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.compatibility.apply import Host, TableContract, read_torch, survey_host
from tasks.compatibility.models import CompatibilityRequest, CompatibilityResult, Survey, TablesCheck
from tasks.compatibility.plan import complete
from tasks.compatibility.way_out import advise
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.core.workers import WorkerRunner


@task(name="survey-host", cache_policy=NO_CACHE)
def take_survey(host: Host, request: CompatibilityRequest, runner: WorkerRunner) -> Survey:
    """What this host is, from every source, and the torch of the environment if there is one already."""
    survey = survey_host(host)
    if request.python_path is not None:
        torch = read_torch(request.python_path, request.packages, runner)
        survey = survey.model_copy(update={"torch": torch})
    gpus = ", ".join(gpu.name for gpu in survey.facts.gpus) or "no GPU"
    say(StageName.COMPATIBILITY, f"surveyed: {gpus}, driver {survey.facts.driver or 'none'}")
    return survey


@task(name="judge-compatibility", cache_policy=NO_CACHE)
def judge_compatibility(request: CompatibilityRequest, survey: Survey) -> CompatibilityResult:
    """The verdict on what is to run on the surveyed host."""
    return advise(complete(request, survey), request.measurements)


@task(name="check-fact-tables", cache_policy=NO_CACHE)
def check_tables(contract: TableContract) -> TablesCheck:
    """Whether the tables behind the verdict keep their contract."""
    check = contract.check()
    broken = ", ".join(table.table for table in check.broken)
    said = f"broken by {broken}" if broken else "kept"
    say(StageName.COMPATIBILITY, f"contract on {len(check.tables)} fact tables: {said}")
    return check
