"""The quantization stage alone, with what it needs: an environment and a staged model."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from blocks.engine.engine_help import check_by_help
from blocks.prefect.asked_by_api import check_programs, programs_of_spec
from blocks.prefect.flows import flow
from blocks.services.early_checks import check_tuning_inputs
from flows.build_environment import build_environment
from flows.stage_model import stage_and_keep
from flows.tune_serving import quantized, read_facts
from tasks.core.cancellation import begin
from tasks.core.concurrency import run_concurrently
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.stage import Outcome
from tasks.engines.catalogue import get_engine
from tasks.environment.models import EnvironmentRequest
from tasks.staging.models import StagingRequest
from tasks.tuning.models import TuningRequest


@flow(name="quantize-model", flow_run_name="quantize {spec.name}")
def quantize_model(spec: DeploySpec) -> Outcome[Any]:
    """Make the spec's candidates and choose one, without serving it.

    Args:
        spec: which model and formats, and how much quality may be lost. Returns the outcome of quantization, or
            of the stage before it that said no.
    """
    check_programs(programs_of_spec(spec))
    staging = StagingRequest.of(spec, convertible=get_engine(spec.engine).card.loads_gguf)
    check_tuning_inputs(spec, Settings.load())
    environment = EnvironmentRequest.of(spec)
    with ExitStack() as model_in_use:
        outcomes = run_concurrently(
            [partial(build_environment, environment), partial(stage_and_keep, staging, model_in_use)], begin()
        )
        no = next((outcome for outcome in outcomes if outcome is not None and outcome.says_no), None)
        if no is not None:
            return no
        built, staged = outcomes
        assert built is not None
        assert staged is not None
        check_by_help(get_engine(spec.engine), built.result.python_path, spec.engine_args, spec.engine_env)
        compared = None
        if spec.tuning.baseline is not None:
            outcome = stage_and_keep(staging.of_baseline(spec.tuning.baseline), model_in_use)
            if outcome.says_no:
                return outcome
            compared = outcome.result
        request = TuningRequest.of(spec, built.result, staged.result, compared)
        return quantized(request, read_facts(request))
