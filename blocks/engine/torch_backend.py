"""Which build of torch an environment gets, if the spec leaves it to this host."""

from __future__ import annotations

from tasks.compatibility.apply import Host, survey_host
from tasks.compatibility.backend import torch_backend
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.environment.models import EnvironmentRequest


def decide_backend(request: EnvironmentRequest, host: Host) -> EnvironmentRequest:
    """The request with `torch_backend: auto` replaced by the build that the host's driver and GPUs run best, and that
    fits the builds of what is pinned next to it, by the engine or by the spec.

    Raises `SpecError` if the tables know none.
    """
    environment = request.environment
    if environment.torch_backend != "auto":
        return request
    lines = (
        *get_engine(request.engine).card.requirements_of(request.engine_version),
        *environment.requirements,
    )
    pinned = pinned_versions("\n".join(lines))
    # What a folder of wheels offers is not what the index offers.
    others = {} if environment.wheels else pinned
    backend = torch_backend(survey_host(host).facts, pinned.get("torch"), packages=others)
    say(StageName.ENVIRONMENT, f"torch for this host: {backend}")
    decided = environment.model_copy(update={"torch_backend": backend})
    return request.model_copy(update={"environment": decided})
