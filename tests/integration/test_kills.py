"""A seeded tenth of `make prove-lifecycle`: a deploy is killed in each stage, and finished by the same command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.killed_deploy import STAGES
from benchmarks.prove_lifecycle import QUICK, Proof, proof, run_kills
from blocks.prefect.server import temporary_server
from tasks.core.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.server]

SEED = 7


@pytest.fixture
def own_api_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that no other test's interrupted runs are left on."""
    home = tmp_path / "prefect"
    with temporary_server(
        Settings(home=home, records=str(home), registry=str(home), s3_endpoint=None)
    ) as server:
        server.wait()
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", server.key)
        yield server.url


@pytest.fixture
def measured(examples: Path, own_api_url: str) -> Iterator[Proof]:
    """A proof whose first deploy, which nobody killed, went well."""
    overrides = (*QUICK, "tuning.candidates=[f16]", "tuning.max_batch=1", "staging.disk_benchmark=false")
    with proof(examples / "tiny" / "slipway.yaml", overrides=overrides, api_url=own_api_url) as run:
        run.measure()
        yield run


def test_a_deploy_killed_in_any_stage_is_finished_by_the_same_command(measured: Proof) -> None:
    kills = list(run_kills(measured, len(STAGES), SEED))
    assert [str(kill) for kill in kills if kill.faults] == []
    assert {kill.wanted for kill in kills} == set(STAGES)
    assert sum(kill.hit != "the end" for kill in kills) > len(STAGES) // 2
