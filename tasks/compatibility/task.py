"""Thin tasks around the survey and the judgement."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.compatibility.apply import Host, survey_host
from tasks.compatibility.models import CompatibilityRequest, CompatibilityResult, Survey
from tasks.compatibility.plan import facts_of
from tasks.compatibility.way_out import advise
from tasks.core.progress import say
from tasks.core.verdicts import StageName


@task(name="survey-host", cache_policy=NO_CACHE)
def take_survey(host: Host) -> Survey:
    """What this host is, by every source there is."""
    survey = survey_host(host)
    gpus = ", ".join(gpu.name for gpu in survey.facts.gpus) or "no GPU"
    say(StageName.COMPATIBILITY, f"surveyed: {gpus}, driver {survey.facts.driver or 'none'}")
    return survey


@task(name="judge-compatibility", cache_policy=NO_CACHE)
def judge_compatibility(request: CompatibilityRequest, survey: Survey) -> CompatibilityResult:
    """The verdict on what is to run on the surveyed host."""
    facts = facts_of(request, survey)
    return advise(survey.model_copy(update={"facts": facts}), request.measurements)
