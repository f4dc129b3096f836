"""The lifecycle: from a spec to a running release, and its first health check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blocks.engine.engine_help import check_by_help
from blocks.engine.native_classes import check_native
from blocks.engine.torch_backend import decide_backend
from blocks.engine.trial import EnvironmentTrial
from blocks.expectations.fact_contract import FactContract
from blocks.host.host import ThisHost
from blocks.host.nvml import gpus_in_use, read_nvml
from blocks.packages.managers import open_manager
from blocks.prefect.artifacts import ProgressArtifact, flow_recorder
from blocks.prefect.asked_by_api import check_programs, programs_of_spec
from blocks.prefect.flows import flow, show_state, step
from blocks.prefect.progress import follow_subflows
from blocks.prefect.stale_runs import only_run_of
from blocks.services.door import open_service
from blocks.services.early_checks import check_inputs, type_without_code, weights_of
from blocks.services.kept_code import keep_script
from blocks.services.targets import check_target
from blocks.storage.sources import resolve
from flows.build_environment import build_environment
from flows.check_health import check_health
from flows.keep_running import look_under_lease
from flows.roll_out import roll_out
from flows.stage_model import stage_and_keep
from flows.tune_serving import tune_serving
from flows.verify_compatibility import verify_compatibility
from tasks.batching.models import BatchingResult
from tasks.compatibility.models import CompatibilityRequest
from tasks.core.asking import ask
from tasks.core.cancellation import begin
from tasks.core.concurrency import run_concurrently
from tasks.core.errors import EngineError, SlipwayError, StageCancelledError
from tasks.core.files import mount_of, sweep_dead_writers
from tasks.core.freshness import measure_anew
from tasks.core.leases import hold_service
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder
from tasks.core.result import StageResult
from tasks.core.serving import Loader, ServingConfig
from tasks.core.settings import Settings
from tasks.core.sources import ResolvedModel
from tasks.core.spec import DeploySpec
from tasks.core.stage import Outcome, need_work, raising, run_stage
from tasks.core.verdicts import CompatibilityVerdict, LifecycleVerdict, StageName
from tasks.engines.catalogue import get_engine
from tasks.engines.families import check_flags, config_at, family_of, served_as
from tasks.environment.apply import lock_for
from tasks.environment.integrity import doubt
from tasks.environment.models import EnvironmentRequest, EnvironmentResult, Locked
from tasks.lifecycle import report
from tasks.lifecycle.models import DeployResult, StageRow, deploy_inputs
from tasks.lifecycle.plan import STAGES, is_doubtful, make_release, refusal, wants_absent_gpu, warnings_of
from tasks.loading.plan import find_choice
from tasks.quantization.models import QuantizationResult
from tasks.rollout.damage import set_damage_aside
from tasks.rollout.models import RolloutResult
from tasks.staging.models import StagingRequest, StagingResult
from tasks.tuning.models import TuningRequest

K = TypeVar("K", bound=StageResult)


@flow(name="deploy-model", flow_run_name="deploy {spec.name}")
def deploy_model(spec: DeploySpec, fresh: tuple[StageName, ...] = ()) -> DeployResult:
    """Take a model from its source to a running, tuned service.

    Environment, compatibility and staging run at the same time. A verdict that says no ends the lifecycle, and the
    previous release keeps serving.

    Args:
        spec: what to deploy, where, and how good it has to be.
        fresh: stages that run again even if an earlier record could be used.
    """
    check_programs(programs_of_spec(spec))
    measure_anew(fresh)
    settings = Settings.load()
    with hold_service(settings, spec.name), only_run_of(spec.name):
        # This comes first: the service's releases decide which models may be removed to make room.
        set_damage_aside(ServiceFolder(settings.services, spec.name))
        for folder in (
            settings.home / "records",
            settings.locks,
            settings.tables,
            settings.services / spec.name,
        ):
            sweep_dead_writers(folder)
        with follow_subflows(StageName.LIFECYCLE):
            result = _deploy(spec, settings)
    show_state(result.verdict.capitalize(), report.headline(result), says_no=result.says_no)
    return result


def _deploy(spec: DeploySpec, settings: Settings) -> DeployResult:
    """Run the stages, and record the whole deploy, also one that fails: watch-registry counts those."""
    work: Callable[[], DeployResult]
    try:
        lifecycle = _Lifecycle(spec, settings, resolve(spec.model, settings))
        work = lifecycle.run
    except Exception as error:  # noqa: BLE001 - it is raised again, and recorded
        lifecycle = _Lifecycle(spec, settings, ResolvedModel(spec.model))
        work = raising(error)
    return run_stage(
        lifecycle.recorder,
        StageName.LIFECYCLE,
        subject=spec.name,
        inputs=deploy_inputs(spec, lifecycle.model.version),
        result_type=DeployResult,
        report=report,
        work=work,
        made_meanwhile=lifecycle.records,
    ).result


class _Lifecycle:
    """One deploy: the stages in their order, and a row for each."""

    def __init__(self, spec: DeploySpec, settings: Settings, model: ResolvedModel) -> None:
        self.spec = spec
        self.settings = settings
        self.model = model
        self.recorder = flow_recorder()
        self.rows: list[StageRow] = []
        self.progress = ProgressArtifact(StageName.LIFECYCLE, spec.name)

    def records(self) -> list[str]:
        """Ids of the records of the stages that have run."""
        return [row.record for row in self.rows if row.record]

    def run(self) -> DeployResult:
        """Everything from the check of this host to the first health check."""
        check_target(self.spec.target)
        refused = refusal(self.spec)
        judged = refused is not None or wants_absent_gpu(self.spec, len(read_nvml().gpus))
        if judged and self._is_ruled_out():
            return self._result(LifecycleVerdict.REFUSED)
        if refused is not None:
            raise refused
        # The alias is resolved already: the registry need not be asked once more.
        resolved = self.spec.model_copy(update={"model": self.model.source})
        for warning in (*warnings_of(self.spec), *check_inputs(resolved, self.settings)):
            say(StageName.LIFECYCLE, f"warning: {warning}")
        rollout = self._roll_out()
        if rollout is None:
            return self._result(LifecycleVerdict.REFUSED)
        if rollout.says_no:
            # `answers` was measured after the rollback: an address that does not answer is not reported.
            endpoint = rollout.result.endpoint if rollout.result.answers else None
            return self._result(LifecycleVerdict.REFUSED, endpoint=endpoint)
        endpoint = rollout.result.endpoint
        assert endpoint is not None  # a release that serves has an address
        health = check_health(self.spec.name)
        assert health is not None  # a check of one named service has an outcome
        self._keep(health)
        config = ServiceFolder(self.settings.services, self.spec.name).serving()[1].config
        return self._result(
            LifecycleVerdict.REFUSED if health.says_no else LifecycleVerdict.SERVING,
            endpoint=endpoint,
            release=rollout.result.release,
            completion=None if health.says_no else self._answer(endpoint, config),
            chat=config.chat is not None,
            task=config.task,
            locked=self.spec.serving.api_key is not None,
        )

    def _roll_out(self) -> Outcome[RolloutResult] | None:
        """From the source to a release in service; None when a stage before the rollout says no."""
        with ExitStack() as model_in_use:  # until a release names the model
            prepared = self._prepare(model_in_use)
            if prepared is None:
                return None
            environment, staging = prepared
            baseline, refused = self._stage_baseline(model_in_use)
            if refused:
                return None
            with self._doubting(environment):
                self._keep_running()
                tuned = self._tune(environment, staging, baseline)
                if tuned is None:
                    return None
                self._keep_running()
                return self._keep(roll_out(self._release(environment, staging, *tuned)))

    def _keep_running(self) -> None:
        """Restart the serving release if it is down: nothing else can while the deploy holds the lease. If that
        fails, the deploy continues, because it may repair the service."""
        folder = ServiceFolder(self.settings.services, self.spec.name)
        try:
            if folder.state_file.exists():
                look_under_lease(folder, self.settings, need_work)
        except StageCancelledError:
            raise
        except (SlipwayError, OSError) as error:
            say(StageName.LIFECYCLE, f"{folder.name} could not be checked: {error}")

    @contextmanager
    def _doubting(self, environment: EnvironmentResult) -> Iterator[None]:
        """After an engine fails, have the next deploy compare every file of its environment: some may be damaged."""
        try:
            yield
        except EngineError:
            doubt(environment.environment_path, self.settings)
            raise
        if is_doubtful(self.rows):
            doubt(environment.environment_path, self.settings)

    def _is_ruled_out(self) -> bool:
        """Whether the engine cannot run on this host, judged from its pinned versions before anything is locked."""
        FactContract(self.settings).check()
        card = get_engine(self.spec.engine).card
        pins = pinned_versions("\n".join(card.requirements_of(self.spec.engine_version)))
        verdict = verify_compatibility(self._compatibility(pins))
        blocked = verdict.verdict == CompatibilityVerdict.BLOCK
        if blocked:
            self._keep(verdict)
        return blocked

    def _answer(self, endpoint: str, config: ServingConfig) -> str:
        """An answer from the public address, as a user of the service gets it now."""
        gate = self.spec.rollout.gate
        with open_service(ServiceFolder(self.settings.services, self.spec.name))(endpoint) as api:
            return ask(api, config, gate.prompt, gate.max_tokens).text

    def _prepare(self, model_in_use: ExitStack) -> tuple[EnvironmentResult, StagingResult] | None:
        """Environment, compatibility and staging at the same time; None when one of them says no.

        With arguments of the spec's own, or code of the model's own that is not to be run, staging waits for the
        environment: the engine is asked about them before anything is copied.
        """
        request = EnvironmentRequest.of(self.spec)
        staging = StagingRequest.of(self.spec, convertible=get_engine(self.spec.engine).card.loads_gguf)
        engine = [partial(build_environment, request), partial(self._verify, request)]
        stage = partial(stage_and_keep, staging, model_in_use)
        model_type = type_without_code(self.model.source, self.spec, self.settings)
        if not self.spec.engine_args and model_type is None:
            found = self._run([*engine, stage])
        elif (found := self._run(engine)) is not None:
            self._ask_engine(found[0].result, model_type)
            staged = self._run([stage])
            found = None if staged is None else [*found, *staged]
        return None if found is None else (found[0].result, found[2].result)

    def _run(self, stages: Sequence[Callable[[], Outcome[Any]]]) -> list[Outcome[Any]] | None:
        """The outcomes of these stages, which run at the same time; None when one of them says no."""
        outcomes = run_concurrently(stages, begin())
        good = [self._keep(outcome) for outcome in outcomes if outcome is not None]
        return None if len(good) < len(outcomes) or any(one.says_no for one in good) else good

    def _ask_engine(self, environment: EnvironmentResult, model_type: str | None) -> None:
        """Whether the engine knows the spec's arguments, and a model of that type without its code: the serving
        release shows it for the same ones, else the engine is asked, which takes seconds."""
        asked = (self.spec.engine_args, self.spec.engine_env, self.spec.model)
        wanted = (environment.lock_digest, *asked, self.spec.serving.trust_remote_code)
        with suppress(SlipwayError):
            _, release = ServiceFolder(self.settings.services, self.spec.name).serving()
            if wanted == (
                release.environment_digest,
                release.config.engine_args,
                release.config.engine_env,
                release.spec.model,
                release.spec.serving.trust_remote_code,
            ):
                return
        assert environment.python_path is not None  # an environment that is good has one
        engine = get_engine(self.spec.engine)
        check_by_help(
            engine,
            environment.python_path,
            self.spec.engine_args,
            self.spec.engine_env,
            environment.engine_version,
        )
        if model_type is not None:
            check_native(engine, environment.python_path, model_type, self.model.source)

    def _verify(self, environment: EnvironmentRequest) -> Outcome[Any]:
        """Judge this host from the names and versions that the lock will install: the environment need not exist yet.
        An environment that exists already, such as the system's, is inspected."""
        # Checked here because it takes seconds the first time, while the environment stage waits for its resolver.
        contract = FactContract(self.settings)
        if not contract.is_checked:
            need_work()
        contract.check()
        tool = open_manager(environment.environment.manager)
        environment = decide_backend(environment, ThisHost())
        locked = step("lock-environment", lock_for)(environment, tool, EnvironmentTrial(), self.settings)
        packages = locked.packages if isinstance(locked, Locked) else {}
        adopted = environment.environment.path
        python = adopted / "bin" / "python" if adopted else None
        return verify_compatibility(self._compatibility(packages, python))

    def _compatibility(self, packages: Mapping[str, str], python: Path | None = None) -> CompatibilityRequest:
        """What is to run on this host. Family and type of a model in a folder here are read from `config.json`."""
        config = config_at(self.model.source)
        family = family_of(config)
        # llama.cpp serves a candidate in a type of its own, whatever the type of the model.
        typed = "hf-folder" in get_engine(self.spec.engine).card.layouts
        used = [one.gpu.compute_capability for one in gpus_in_use(self.spec.hardware.gpus)]
        capabilities = [capability for capability in used if capability]
        stored = weights_of(self.model.source, self.spec.tuning.candidates, self.settings)
        plain = served_as(family, capabilities) if family else None
        dtype = stored.weight_type if stored else plain
        named = str(config["model_type"]) if config.get("model_type") else None
        return CompatibilityRequest(
            engine=self.spec.engine,
            packages=dict(packages),
            target=self.spec.target,
            gpus=self.spec.hardware.gpus,
            family=family.name if family else named,
            dtype=dtype if typed else None,
            python_path=python,
        )

    def _stage_baseline(self, model_in_use: ExitStack) -> tuple[StagingResult | None, bool]:
        """Stage the model that the spec's quality is compared with, if it names one; and whether staging says no.

        The release does not include it.
        """
        if self.spec.tuning.baseline is None:
            return None, False
        request = StagingRequest.of(self.spec, convertible=False).of_baseline(self.spec.tuning.baseline)
        outcome = stage_and_keep(request, model_in_use)
        if outcome.says_no:
            self._keep(outcome)
        else:
            say(StageName.LIFECYCLE, f"baseline {outcome.verdict}: {outcome.headline}")
        return outcome.result, outcome.says_no

    def _tune(
        self, environment: EnvironmentResult, staging: StagingResult, baseline: StagingResult | None
    ) -> tuple[QuantizationResult, BatchingResult] | None:
        tuned = tune_serving(TuningRequest.of(self.spec, environment, staging, baseline))
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
        worker = get_engine(self.spec.engine).server_worker
        release = make_release(
            self.spec,
            environment,
            staging,
            quantization,
            batching,
            model_version=self.model.version,
            worker=keep_script(self.settings.home, worker) if worker else None,
            loader=self._loader(quantization.candidate.path),
            records=self.records(),
            now=datetime.now(UTC),
        )
        check_flags(staging.model_dir, release.launch.argv)
        return release

    def _loader(self, model_file: Path) -> tuple[Loader, str] | None:
        """The loader that this host's last comparison chose for such files, and its record.

        None if the engine needs no option for it: releases with the same command are the same release.
        """
        found = find_choice(
            self.recorder.store.list(StageName.LOADING),
            host=self.recorder.host_fingerprint,
            mount=mount_of(model_file),
            file_format="gguf" if get_engine(self.spec.engine).card.loads_gguf else "safetensors",
        )
        return found if found and get_engine(self.spec.engine).card.load_arguments(found[0]) else None

    def _keep(self, outcome: Outcome[K]) -> Outcome[K]:
        """Add a stage's row to the table, and print it to the deploy's log."""
        line = f"{outcome.stage} {outcome.verdict}: {outcome.headline}"
        say(StageName.LIFECYCLE, line)
        self.progress.show(100 * (len(self.rows) + 1) / STAGES, line)
        self.rows.append(StageRow.of(outcome))
        return outcome

    def _result(self, verdict: LifecycleVerdict, **service: Any) -> DeployResult:
        """`service` is what serves then: endpoint, release and completion, as far as there are any."""
        name, model, version = self.spec.name, self.spec.model, self.model.version
        rows = tuple(self.rows)
        return DeployResult(
            verdict=verdict, name=name, model=model, model_version=version, stages=rows, **service
        )
