"""The lifecycle: from a spec to a release that serves, and a first health check of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, tags

from blocks.engine.api import EngineApi
from blocks.engine.trial import EnvironmentTrial
from blocks.expectations.fact_contract import FactContract
from blocks.host.host import ThisHost, fingerprint_here
from blocks.host.nvml import gpus_in_use, read_nvml
from blocks.packages.managers import open_manager
from blocks.services.kept_code import keep_script
from blocks.services.targets import check_target
from blocks.storage.record_store import open_record_store
from blocks.storage.sources import resolve
from flows.artifacts import ProgressArtifact
from flows.asked_by_api import hold_to_list, programs_of_spec
from flows.build_environment import build_environment
from flows.check_health import check_health
from flows.early_checks import check_inputs
from flows.keep_running import look_under_lease
from flows.named_states import answer_of, named
from flows.recording import Outcome, artifact_key, publish
from flows.roll_out import roll_out_under_lease
from flows.run_logs import follow_subflows
from flows.side_by_side import side_by_side
from flows.stage_model import stage_and_keep
from flows.stale_runs import end_stale_runs, end_stale_tasks, service_tag
from flows.torch_backend import decide_backend
from flows.tune_serving import TuningRequest, tune_serving
from flows.verify_compatibility import verify_compatibility
from tasks.batching.models import BatchingResult
from tasks.compatibility.models import CompatibilityRequest
from tasks.core import deployment
from tasks.core.cancellation import begin
from tasks.core.deployment import DeployResult, StageRow
from tasks.core.digests import digest_of
from tasks.core.disk_faults import unforeseen_fault
from tasks.core.errors import EngineError, SlipwayError, StageCancelledError
from tasks.core.files import mount_of, sweep_dead_writers
from tasks.core.freshness import measure_anew
from tasks.core.leases import hold_service
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.records import new_record
from tasks.core.release import Launch, Release, ServiceFolder
from tasks.core.result import StageResult
from tasks.core.serving import Loader
from tasks.core.settings import Settings
from tasks.core.sources import ResolvedModel
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import FAULT, CompatibilityVerdict, LifecycleVerdict, StageName, says_no
from tasks.engines.catalogue import get_engine
from tasks.engines.deployable import refusal, wants_absent_gpu
from tasks.engines.families import check_flags, family_at, served_as
from tasks.environment.integrity import doubt
from tasks.environment.models import EnvironmentRequest, EnvironmentResult, Locked
from tasks.environment.task import lock_environment
from tasks.loading.plan import find_choice
from tasks.quantization.models import QuantizationResult
from tasks.rollout.damage import set_damage_aside
from tasks.staging.models import StagingRequest, StagingResult

STAGES = 7
"""Of a deploy that no verdict ends: environment, compatibility, staging, quantization, batching, rollout, health."""

K = TypeVar("K", bound=StageResult)


@flow(name="deploy-model", flow_run_name="deploy {spec.name}")
def deploy_model(spec: DeploySpec, fresh: tuple[StageName, ...] = ()) -> DeployResult:
    """Take a model from its source to a running, tuned service.

    Environment, compatibility and staging run at the same time; a verdict that says no ends the lifecycle and
    leaves what served before serving.

    Args:
        spec: what to deploy, where, and how good it has to be.
        fresh: stages that measure anew, whatever earlier records say.
    """
    hold_to_list(programs_of_spec(spec))
    measure_anew(fresh)
    settings = Settings.load()
    with hold_service(settings, spec.name), tags(service_tag(spec.name)):
        end_stale_runs(spec.name)
        # First of all: what the service's releases need decides what may be removed to make room.
        set_damage_aside(ServiceFolder(settings.services, spec.name))
        for folder in (
            settings.home / "records",
            settings.locks,
            settings.tables,
            settings.services / spec.name,
        ):
            sweep_dead_writers(folder)
        with follow_subflows(StageName.LIFECYCLE):
            result = _Lifecycle(spec, settings).run()
        end_stale_tasks(spec.name)
    return answer_with(result)


def answer_with(result: DeployResult) -> DeployResult:
    """The state that a flow returns which deployed."""
    return named(
        result,
        result.verdict.capitalize(),
        deployment.headline(result),
        says_no=says_no(StageName.LIFECYCLE, result.verdict),
    )


class _Lifecycle:
    """One deploy: the stages in their order, a row for each, a record of the whole."""

    def __init__(self, spec: DeploySpec, settings: Settings) -> None:
        self.spec = spec
        self.settings = settings
        self.model = ResolvedModel(spec.model)  # until `run` has asked for it
        self.rows: list[StageRow] = []
        key = f"{artifact_key(StageName.LIFECYCLE, spec.name)}-progress"
        self.progress = ProgressArtifact(StageName.LIFECYCLE, key, spec.name)
        self.start = time.monotonic()

    def run(self) -> DeployResult:
        try:
            # Inside, so that what fails here leaves a record, too: watch-registry counts deploys that failed.
            self.model = resolve(self.spec.model, self.settings)
            check_target(self.spec.target)
            result = self._run_stages()
        except Exception as raised:
            # This is where the run is recorded: a fault is knowledge too. It goes on up.
            told = unforeseen_fault(raised, self.settings.home) if isinstance(raised, OSError) else None
            error = told or raised
            rows = [row.model_dump(mode="json") for row in self.rows]
            try:
                self._record(FAULT, {"error": str(error), "stages": rows}, None)
            except (SlipwayError, OSError) as lost:
                say(StageName.LIFECYCLE, f"{FAULT}: {error}; it could not be recorded: {lost}")
            if told:
                raise told from raised
            raise
        self._record(result.verdict, {"result": result.model_dump(mode="json")}, result)
        return result

    def _run_stages(self) -> DeployResult:
        refused = refusal(self.spec)
        judged = refused is not None or wants_absent_gpu(self.spec, len(read_nvml().gpus))
        if judged and self._is_ruled_out():
            return self._refused()
        if refused is not None:
            raise refused
        check_inputs(self.spec, self.settings)
        with ExitStack() as model_in_use:  # until a release names the model
            prepared = self._prepare(model_in_use)
            if prepared is None:
                return self._refused()
            environment, staging = prepared
            with self._doubting(environment):
                self._keep_running()
                tuned = self._tune(environment, staging)
                if tuned is None:
                    return self._refused()
                self._keep_running()
                release = self._release(environment, staging, *tuned)
                rollout = self._keep(answer_of(lambda: roll_out_under_lease(release)))
        if rollout.says_no:
            # Measured after the rollback: nothing is said to serve that does not answer.
            return self._refused(endpoint=rollout.result.endpoint if rollout.result.answers else None)
        endpoint = rollout.result.endpoint
        assert endpoint is not None  # a release that serves has an address
        health = self._keep(answer_of(lambda: check_health(self.spec.name)))
        return self._result(
            LifecycleVerdict.REFUSED if health.says_no else LifecycleVerdict.SERVING,
            endpoint=endpoint,
            release=rollout.result.release,
            completion=None if health.says_no else self._completion(endpoint),
        )

    def _keep_running(self) -> None:
        """Bring back what serves, if it is down: while the deploy holds the lease, nothing else can. A deploy goes on
        where that fails: it may be what mends the service."""
        folder = ServiceFolder(self.settings.services, self.spec.name)
        try:
            if folder.state_file.exists():
                look_under_lease(folder, self.settings)
        except StageCancelledError:
            raise
        except (SlipwayError, OSError) as error:
            say(StageName.LIFECYCLE, f"{folder.name} could not be looked at: {error}")

    @contextmanager
    def _doubting(self, environment: EnvironmentResult) -> Iterator[None]:
        """An engine that fails may have been damaged: then the next deploy compares every file of its environment.

        A no of tuning bears the lines of an engine that failed. Without them the engine worked, and did not do.
        """
        try:
            yield
        except EngineError:
            doubt(environment.environment_path, self.settings)
            raise
        if any(row.says_no and (row.log_tail or row.stage is StageName.ROLLOUT) for row in self.rows):
            doubt(environment.environment_path, self.settings)

    def _is_ruled_out(self) -> bool:
        """Whether this host blocks the engine, judged by its pins before anything is locked or built."""
        FactContract(self.settings).check()
        pins = pinned_versions("\n".join(get_engine(self.spec.engine).card.requirements))
        verdict = answer_of(lambda: verify_compatibility(self._compatibility(pins)))
        blocked = verdict.verdict == CompatibilityVerdict.BLOCK
        if blocked:
            self._keep(verdict)
        return blocked

    def _completion(self, endpoint: str) -> str:
        """What a user of the service gets now: asked of the public address, also when nothing was switched."""
        gate = self.spec.rollout.gate
        with EngineApi(endpoint) as api:
            return api.complete(self.spec.name, gate.prompt, gate.max_tokens).text

    def _prepare(self, model_in_use: ExitStack) -> tuple[EnvironmentResult, StagingResult] | None:
        """Environment, compatibility and staging at the same time; None when one of them says no."""
        request = EnvironmentRequest.of(self.spec.engine, self.spec.environment)
        staging = StagingRequest.of(self.spec, convertible=get_engine(self.spec.engine).card.loads_gguf)
        outcomes = side_by_side(
            [
                partial(build_environment, request),
                partial(self._verify, request),
                partial(stage_and_keep, staging, model_in_use),
            ],
            begin(),
        )
        for outcome in outcomes:
            if outcome is not None:
                self._keep(outcome)
        if any(outcome is None or outcome.says_no for outcome in outcomes):
            return None
        environment, _, staged = outcomes
        assert environment is not None
        assert staged is not None
        return environment.result, staged.result

    def _verify(self, environment: EnvironmentRequest) -> Outcome[Any]:
        """The survey needs no environment, only the names and versions that its lock will install. One that stands
        already, the system's, is asked."""
        # Takes seconds the first time, as does the resolver in the environment's stage; the flow below reads it.
        FactContract(self.settings).check()
        tool = open_manager(environment.environment.manager)
        environment = decide_backend(environment, ThisHost())
        locked = lock_environment(environment, tool, EnvironmentTrial(), self.settings)
        packages = locked.packages if isinstance(locked, Locked) else {}
        adopted = environment.environment.path
        python = adopted / "bin" / "python" if adopted else None
        return verify_compatibility(self._compatibility(packages, python))

    def _compatibility(self, packages: Mapping[str, str], python: Path | None = None) -> CompatibilityRequest:
        """What is to run on this host. A model in a folder here says its family by its `config.json`."""
        family = family_at(self.model.source)
        # What llama.cpp serves has the candidate's type, whatever the model's was.
        typed = family is not None and "hf-folder" in get_engine(self.spec.engine).card.layouts
        used = [one.gpu.compute_capability for one in gpus_in_use(self.spec.hardware.gpus)]
        capabilities = [capability for capability in used if capability]
        return CompatibilityRequest(
            engine=self.spec.engine,
            packages=dict(packages),
            target=self.spec.target,
            gpus=self.spec.hardware.gpus,
            family=family.name if family else None,
            dtype=served_as(family, capabilities) if family and typed else None,
            python_path=python,
        )

    def _tune(
        self, environment: EnvironmentResult, staging: StagingResult
    ) -> tuple[QuantizationResult, BatchingResult] | None:
        request = TuningRequest(
            name=self.spec.name,
            engine=self.spec.engine,
            python_path=environment.python_path,
            environment_digest=environment.lock_digest,
            model_dir=staging.model_dir,
            model_digest=staging.manifest_digest,
            tuning=self.spec.tuning,
            objectives=self.spec.objectives,
            hardware=self.spec.hardware,
            start_timeout_s=self.spec.rollout.gate.start_timeout_s,
        )
        tuned = answer_of(lambda: tune_serving(request))
        self._keep(tuned.quantization)
        if tuned.batching is None:
            return None
        self._keep(tuned.batching)
        if tuned.batching.says_no:
            return None
        return tuned.quantization.result, tuned.batching.result

    def _release(
        self,
        environment: EnvironmentResult,
        staging: StagingResult,
        quantization: QuantizationResult,
        batching: BatchingResult,
    ) -> Release:
        engine = get_engine(self.spec.engine)
        loader = self._loader(quantization.candidate.path)
        config = batching.config.model_copy(update={"loader": loader[0] if loader else None})
        worker = keep_script(self.settings.home, engine.server_worker) if engine.server_worker else None
        command = engine.command(
            str(environment.python_path), str(worker), str(quantization.candidate.path), config
        )
        check_flags(staging.model_dir, command.argv)
        return Release(
            at=datetime.now(UTC),
            spec=self.spec,
            engine=self.spec.engine,
            engine_version=environment.engine_version,
            target=self.spec.target,
            environment_digest=environment.lock_digest,
            environment_path=environment.environment_path,
            lock_path=environment.lock_path,
            model_source=staging.source,
            model_version=self.model.version,
            model_digest=staging.manifest_digest,
            candidate_format=quantization.candidate.format,
            candidate_digest=quantization.candidate.digest,
            config=config,
            launch=Launch(argv=command.argv, env=command.env, model_file=quantization.candidate.path),
            records=(*(row.record for row in self.rows if row.record), *([loader[1]] if loader else [])),
        )

    def _loader(self, model_file: Path) -> tuple[Loader, str] | None:
        """The loader that this host's last comparison chose for such files, and its record; None where the engine
        needs no telling: a release that would be started alike is the same release."""
        found = find_choice(
            open_record_store(self.settings).list(StageName.LOADING),
            host=fingerprint_here(),
            mount=mount_of(model_file),
            file_format="safetensors" if model_file.is_dir() else "gguf",
        )
        return found if found and get_engine(self.spec.engine).card.load_arguments(found[0]) else None

    def _keep(self, outcome: Outcome[K]) -> Outcome[K]:
        """Note a stage's row for the table, and say so in the deploy's own log."""
        line = f"{outcome.stage} {outcome.verdict}: {outcome.headline}"
        say(StageName.LIFECYCLE, line)
        self.progress.show(100 * (len(self.rows) + 1) / STAGES, line)
        self.rows.append(
            StageRow(
                stage=outcome.stage,
                verdict=outcome.verdict,
                cached=outcome.cached,
                seconds=round(outcome.seconds, 3),
                record=outcome.record,
                headline=outcome.headline,
                log_tail=outcome.result.log_tail,
                reasons=outcome.result.reasons if outcome.says_no else (),
            )
        )
        return outcome

    def _refused(self, endpoint: str | None = None) -> DeployResult:
        """A stage said no; what served before goes on serving."""
        return self._result(LifecycleVerdict.REFUSED, endpoint=endpoint)

    def _result(
        self,
        verdict: LifecycleVerdict,
        *,
        endpoint: str | None = None,
        release: str | None = None,
        completion: str | None = None,
    ) -> DeployResult:
        return DeployResult(
            verdict=verdict,
            name=self.spec.name,
            model=self.spec.model,
            model_version=self.model.version,
            endpoint=endpoint,
            release=release,
            completion=completion,
            stages=tuple(self.rows),
        )

    def _record(self, outcome: str, evidence: dict[str, Any], result: DeployResult | None) -> None:
        inputs = deployment.deploy_inputs(self.spec, self.model.version)
        store = open_record_store(self.settings)
        record = new_record(
            store=store,
            stage=StageName.LIFECYCLE,
            subject=self.spec.name,
            host_fingerprint=fingerprint_here(),
            inputs_digest=digest_of(inputs),
            outcome=outcome,
            seconds=time.monotonic() - self.start,
            numbers=deployment.numbers(result) if result else {},
            evidence={"inputs": inputs, **evidence},
            consulted=[row.record for row in self.rows if row.record],
        )
        store.put(record)
        if result is not None:
            description = f"{result.verdict}: {deployment.headline(result)}"
            publish(StageName.LIFECYCLE, self.spec.name, deployment.markdown(result), record.id, description)
