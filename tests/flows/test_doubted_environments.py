"""After an engine has failed, the next deploy compares every file of its environment."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from blocks.storage.model_registry import ResolvedModel
from flows.deploy_model import _Lifecycle
from tasks.core.errors import EngineStartError, NetworkError
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import EnvironmentVerdict, StageName
from tasks.environment.integrity import is_doubted
from tasks.environment.models import EnvironmentResult
from tasks.lifecycle.models import StageRow


@pytest.fixture
def environment(slipway_home: Path) -> EnvironmentResult:
    folder = slipway_home / "environments" / "aaaaaaaaaaaa"
    folder.mkdir(parents=True)
    return EnvironmentResult(verdict=EnvironmentVerdict.SOUND, environment_path=folder)


def doubted_after(
    environment: EnvironmentResult, error: Exception | None = None, row: StageRow | None = None
) -> bool:
    spec = DeploySpec.model_validate({"name": "tiny", "model": "file:/model"})
    lifecycle = _Lifecycle(spec, Settings.load(), ResolvedModel(spec.model))
    try:
        with lifecycle._doubting(environment):
            lifecycle.rows.append(row or row_of(StageName.BATCHING, "chosen"))
            if error:
                raise error
    except type(error or AssertionError()) as raised:
        assert raised is error
    assert environment.environment_path is not None
    return is_doubted(environment.environment_path)


def row_of(stage: StageName, verdict: str, log_tail: str | None = None) -> StageRow:
    return StageRow(
        stage=stage, verdict=verdict, cached=False, seconds=1, record=None, headline="", log_tail=log_tail
    )


def test_an_engine_that_fails_puts_its_environment_in_doubt(environment: EnvironmentResult) -> None:
    assert not doubted_after(environment)
    assert not doubted_after(environment, NetworkError("away"))
    assert doubted_after(environment, EngineStartError("died"))


@pytest.mark.parametrize(
    ("row", "doubted"),
    [
        (row_of(StageName.BATCHING, "none"), False),  # an objective that is not met
        (row_of(StageName.QUANTIZATION, "none"), False),
        (row_of(StageName.BATCHING, "none", log_tail="Segmentation fault"), True),
        (row_of(StageName.BATCHING, "chosen", log_tail="Segmentation fault"), False),
        (row_of(StageName.ROLLOUT, "rolled_back"), True),
    ],
)
def test_of_verdicts_those_do_in_which_an_engine_failed(
    environment: EnvironmentResult, row: StageRow, doubted: bool
) -> None:
    assert doubted_after(environment, row=row) is doubted


def test_an_engines_error_is_not_replaced_by_a_full_disks(
    environment: EnvironmentResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    assert not doubted_after(environment, EngineStartError("died"))
