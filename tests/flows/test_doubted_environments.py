"""After an engine has failed, the next deploy compares every file of its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.deploy_model import _Lifecycle
from tasks.core.deployment import StageRow
from tasks.core.errors import EngineStartError, NetworkError
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import EnvironmentVerdict, StageName
from tasks.environment.integrity import is_doubted
from tasks.environment.models import EnvironmentResult


@pytest.fixture
def environment(slipway_home: Path) -> EnvironmentResult:
    folder = slipway_home / "environments" / "aaaaaaaaaaaa"
    folder.mkdir(parents=True)
    return EnvironmentResult(verdict=EnvironmentVerdict.SOUND, environment_path=folder)


def doubted_after(environment: EnvironmentResult, error: Exception | None, verdict: str = "chosen") -> bool:
    lifecycle = _Lifecycle(
        DeploySpec.model_validate({"name": "tiny", "model": "file:/model"}), Settings.load()
    )
    row = StageRow(
        stage=StageName.BATCHING, verdict=verdict, cached=False, seconds=1, record=None, headline=""
    )
    try:
        with lifecycle._doubting(environment):
            lifecycle.rows.append(row)
            if error:
                raise error
    except type(error or AssertionError()):
        assert error
    assert environment.environment_path is not None
    return is_doubted(environment.environment_path)


def test_an_engine_that_fails_or_finds_no_size_puts_its_environment_in_doubt(
    environment: EnvironmentResult,
) -> None:
    assert not doubted_after(environment, None)
    assert not doubted_after(environment, NetworkError("away"))
    assert doubted_after(environment, EngineStartError("died"))


def test_so_does_a_verdict_that_says_no(environment: EnvironmentResult) -> None:
    assert doubted_after(environment, None, verdict="none")
