"""Which build of torch an environment gets, if the spec leaves it to this host."""

from __future__ import annotations

from tasks.compatibility.apply import Host, survey_host
from tasks.compatibility.backend import torch_backend
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.environment.models import EnvironmentRequest


def decide_backend(request: EnvironmentRequest, host: Host) -> EnvironmentRequest:
    """The request with `torch_backend: auto` replaced by the build that the host's driver and GPUs run best.

    Raises `SpecError` if the tables know none.
    """
    environment = request.environment
    if environment.torch_backend != "auto":
        return request
    pinned = pinned_versions("\n".join(environment.requirements)).get("torch")
    backend = torch_backend(survey_host(host).facts, pinned)
    say(StageName.ENVIRONMENT, f"torch for this host: {backend}")
    decided = environment.model_copy(update={"torch_backend": backend})
    return request.model_copy(update={"environment": decided})
