"""The environment stage as a flow: recorded, published, reused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from blocks.storage.record_store import open_record_store
from flows.build_environment import build_environment
from tasks.core.errors import SpecError
from tasks.core.settings import Settings
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict, StageName
from tasks.environment.models import EnvironmentRequest

pytestmark = pytest.mark.engine


def artifact_texts(key: str) -> list[str]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return [str(one.data) for one in found]


def records() -> list[str]:
    return [record.outcome for record in open_record_store(Settings.load()).list(StageName.ENVIRONMENT)]


def test_an_environment_is_built_recorded_and_reused(slipway_home: Path) -> None:
    request = EnvironmentRequest(environment=Environment(python="3.11"))
    first = build_environment(request)
    assert (first.verdict, first.cached) == (EnvironmentVerdict.SOUND, False)
    result = first.result
    assert result.engine_version == result.packages["xllamacpp"]
    assert result.proof is not None
    assert result.proof.engine is not None
    assert result.proof.engine.output_tokens == 8
    assert result.python_path is not None
    assert result.python_path.is_relative_to(slipway_home)
    assert any("# Environment: sound" in text for text in artifact_texts("environment-llama-cpp"))

    state = build_environment(request, return_state=True)
    assert state.name == "Cached"
    again = state.result()
    assert again.cached
    assert again.result == result
    assert records() == ["sound"]

    assert result.environment_path is not None
    shutil.rmtree(result.environment_path)
    rebuilt = build_environment(request)
    assert not rebuilt.cached
    assert rebuilt.result.packages == result.packages
    assert rebuilt.result.lock_digest == result.lock_digest
    assert not list(slipway_home.rglob("*.part"))


def test_requirements_that_exclude_the_engine_are_a_recorded_verdict(slipway_home: Path) -> None:
    request = EnvironmentRequest(environment=Environment(python="3.11", requirements=("numpy<2",)))
    state = build_environment(request, return_state=True)
    assert state.name == "Conflicting"
    outcome = state.result()
    assert outcome.says_no
    assert "numpy" in outcome.result.reason
    asked = {(one.required_by, one.requirement) for one in outcome.result.conflicts}
    assert asked == {(None, "numpy<2"), ("llama.cpp", "numpy>=2,<3")}
    assert [way.requirement for way in outcome.result.loosen] == ["numpy<2"]
    assert ("numpy<2",) in outcome.result.chains
    assert outcome.result.environment_path is None
    assert records() == ["conflicting"]
    assert not Settings.load().environments.exists()


def test_what_is_no_requirement_fails_before_anything_runs(slipway_home: Path) -> None:
    request = EnvironmentRequest(environment=Environment(python="3.11", requirements=("not a thing",)))
    with pytest.raises(SpecError, match="'not a thing' is not a requirement"):
        build_environment(request)
    assert not slipway_home.exists()
