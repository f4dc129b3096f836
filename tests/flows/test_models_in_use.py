"""What a flow works with stays until it has ended, however long it takes and whoever asks for room meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from releases import make_release
from waiting import wait_until

from flows.compare_loaders import compare_loaders
from flows.deploy_model import deploy_model
from flows.quantize_model import quantize_model
from flows.roll_out import roll_out
from flows.stage_model import stage_model
from flows.tune_serving import tune_serving
from tasks.core.result import StageResult
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.spec_kinds import EngineKind
from tasks.core.stage import Outcome
from tasks.core.verdicts import CompatibilityVerdict, EnvironmentVerdict, StageName
from tasks.environment.models import EnvironmentResult
from tasks.loading.models import LoadingRequest
from tasks.staging import apply
from tasks.staging.apply import lock_of
from tasks.staging.models import StagingRequest, StagingResult
from tasks.staging.store import collect, list_models
from tasks.tuning.models import TuningRequest

pytestmark = pytest.mark.server


class EndsHereError(Exception):
    """What is to be seen has been seen."""


def holder_after_hours() -> str:
    """What needs the one staged model when its last use was long ago by its time."""
    settings = Settings.load()
    (folder,) = settings.models.iterdir()
    os.utime(lock_of(folder, settings.leases).with_suffix(".used"), (1, 1))
    (found,) = list_models(settings, lambda _: [])
    return found.holder


def ends_if_in_use(*_: object, **__: object) -> NoReturn:
    """Stands for work that takes hours."""
    assert holder_after_hours() == "a run uses it"
    assert not collect(Settings.load(), lambda _: [], limit_bytes=0)
    raise EndsHereError


def request(model: Path) -> StagingRequest:
    return StagingRequest(model=f"file:{model}", disk_benchmark=False)


@pytest.fixture
def model(random_model: Path, slipway_home: Path) -> Path:
    """A staged model."""
    return stage_model.plain(request(random_model)).result.model_dir


def test_a_model_that_took_hours_to_copy_was_used_when_it_was_there(
    random_model: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> apply.Staged:
        done = apply.stage_model(*arguments, **options)
        assert holder_after_hours() == "a run uses it"
        return done

    monkeypatch.setattr("flows.stage_model.copy_shards", slow)
    outcome = stage_model.plain(request(random_model))
    (found,) = list_models(Settings.load(), lambda _: [])
    assert (found.folder, found.holder) == (outcome.result.model_dir, "it was used within the last hour")


def sound(stage: StageName, result: StageResult) -> Outcome[Any]:
    return Outcome[Any](
        stage=stage, verdict=result.verdict, cached=False, seconds=0, record="", headline="", result=result
    )


@pytest.fixture
def slow_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Outcome[Any]]:
    """Stands for the stage beside staging: it takes hours longer, and ends only where the model is kept meanwhile."""
    is_staged = threading.Event()

    def stage(request: StagingRequest) -> Outcome[StagingResult]:
        outcome = stage_model(request)
        is_staged.set()
        return outcome

    def build(_: object) -> Outcome[Any]:
        assert is_staged.wait(20)
        wait_until(lambda: holder_after_hours() == "a run uses it", "the model is kept")
        built = EnvironmentResult(
            verdict=EnvironmentVerdict.SOUND, python_path=Path("python"), lock_digest=""
        )
        return sound(StageName.ENVIRONMENT, built)

    monkeypatch.setattr("flows.stage_model.stage_model", stage)
    return build


def spec(model: Path) -> DeploySpec:
    values = {"name": "slow", "model": f"file:{model}", "engine": "llama.cpp"}
    return parse_spec({**values, "staging": {"disk_benchmark": False}, "tuning": {"candidates": ["f16"]}})


def test_a_deploy_keeps_its_model_until_a_release_names_it(
    random_model: Path,
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow_environment: Callable[[object], Outcome[Any]],
) -> None:
    def verify(*_: object) -> Outcome[Any]:
        return sound(StageName.COMPATIBILITY, StageResult(verdict=CompatibilityVerdict.PASS))

    def takes_hours(*_: object) -> tuple[None, None]:
        assert holder_after_hours() == "a run uses it"
        return None, None

    monkeypatch.setattr("flows.deploy_model.build_environment", slow_environment)
    monkeypatch.setattr("flows.deploy_model._Lifecycle._verify", verify)
    monkeypatch.setattr("flows.deploy_model._Lifecycle._tune", takes_hours)
    monkeypatch.setattr("flows.deploy_model._Lifecycle._release", takes_hours)
    monkeypatch.setattr("flows.deploy_model.roll_out", ends_if_in_use)
    with pytest.raises(EndsHereError):
        deploy_model(spec(random_model))
    (left,) = list_models(Settings.load(), lambda _: [])
    assert left.holder == "it was used within the last hour"


def test_quantizing_keeps_the_model(
    random_model: Path,
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    slow_environment: Callable[[object], Outcome[Any]],
) -> None:
    monkeypatch.setattr("flows.quantize_model.build_environment", slow_environment)
    monkeypatch.setattr("flows.quantize_model.quantized", ends_if_in_use)
    with pytest.raises(EndsHereError):
        quantize_model(spec(random_model))


def test_flows_that_are_given_a_staged_model_keep_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.tune_serving.read_facts", ends_if_in_use)
    request = TuningRequest(
        name="slow",
        engine=EngineKind.LLAMA_CPP,
        python_path=Path("python"),
        environment_digest="",
        model_dir=model,
        model_digest="",
    )
    with pytest.raises(EndsHereError):
        tune_serving(request)
    monkeypatch.setattr("flows.compare_loaders.loaders_python", ends_if_in_use)
    with pytest.raises(EndsHereError):
        compare_loaders(LoadingRequest(folder=model))
    monkeypatch.setattr("flows.roll_out.prepare", ends_if_in_use)
    with pytest.raises(EndsHereError):
        roll_out(make_release(Path("python"), next(model.glob("*.safetensors"))))
