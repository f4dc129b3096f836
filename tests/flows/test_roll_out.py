"""The rollout as a flow, against a real Prefect server and with the real engine."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from prefect import get_client
from releases import make_release
from strays import processes_of

from blocks.engine.api import EngineApi
from blocks.host.page_cache import cached_share, evict
from blocks.services.sampler import stop_sampler
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from flows.roll_out import roll_out
from tasks.core.errors import BusyError, ModelError, SlipwayError
from tasks.core.files import file_lock
from tasks.core.leases import hold_service
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.models import RolloutAction

pytestmark = pytest.mark.server


@pytest.mark.engine
def test_a_release_is_rolled_out_once_and_found_again(
    engine_python: Path, random_ggufs: tuple[Path, Path], slipway_home: Path
) -> None:
    gguf = slipway_home / "model.gguf"
    gguf.parent.mkdir()
    shutil.copy(random_ggufs[0], gguf)
    release = make_release(engine_python, gguf, "found-again")
    folder = ServiceFolder(slipway_home / "services", "found-again")
    with contextlib.suppress(SlipwayError):
        evict(gguf)
    cold = cached_share(gguf) == 0  # not where the tests' folder is in memory
    try:
        first = roll_out(release)
        assert first.result.prefetched_bytes == (gguf.stat().st_size if cold else None)
        assert (first.verdict, first.cached, first.says_no) == ("serving", False, False)
        again = roll_out(release)
        assert (again.verdict, again.cached, again.record) == ("serving", True, first.record)
        # As after a rollout of it that was killed before it was written down: the record does not hide that.
        state = folder.state()
        assert state is not None
        killed = state.model_copy(update={"release": "sha256:previous", "previous": "sha256:before that"})
        folder.state_file.write_text(killed.model_dump_json(by_alias=True))
        adopted = roll_out(release)
        assert (adopted.cached, adopted.result.action) == (False, RolloutAction.ADOPT)
        state = folder.state()
        assert state is not None
        assert (state.release, state.previous) == (release.id, "sha256:previous")
        # A release's document that is lost is written again, though the rollout's record is as good as before.
        for file in (folder.release_file(release.id), folder.state_file):
            file.write_bytes(b"{")
            assert roll_out(release).verdict == "serving"
            assert folder.serving()[1].id == release.id
        with EngineApi(first.result.endpoint or "") as api:
            assert api.complete("found-again", "The", 2).text
        with get_client(sync_client=True) as client:
            artifacts = [a for a in client.read_artifacts() if a.key == "rollout-found-again"]
            names = {run.state_name for run in client.read_flow_runs() if run.state_name}
        assert len(artifacts) == 3
        assert "# Rollout: serving" in str(artifacts[0].data)
        assert {"Serving", "Cached"} <= names
    finally:
        with SupervisedService(folder) as service:
            service.stop(drain_s=0)
        stop_sampler(folder)
    assert processes_of(slipway_home) == []
    # What was recorded does not stand in for a service that was ended.
    gguf.write_bytes(b"broken")
    broken = roll_out(make_release(engine_python, gguf, "found-again"))
    assert (broken.verdict, broken.says_no) == (RolloutVerdict.ROLLED_BACK, True)
    outcomes = [record.outcome for record in FolderRecordStore(slipway_home / "records").list()]
    assert outcomes == ["serving", "serving", "serving", "rolled_back"]


def test_a_rollout_of_its_own_takes_turns_with_deploys(
    tmp_path: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    release = make_release(tmp_path / "bin" / "python", gguf)
    gguf.unlink()
    lease = Settings.load().service_lease("chat")
    with file_lock(lease, wait=False, holder="the service chat"):
        with pytest.raises(BusyError) as busy:
            roll_out(release)
        assert str(busy.value) == snapshot(
            "another run is already working on the service chat (wait for it to end, then try again)"
        )
        assert not (slipway_home / "services").exists()
    settings = Settings.load()
    with (
        hold_service(settings, "chat"),  # as a deploy calls it: it goes to work
        pytest.raises(ModelError, match="is gone"),
    ):
        roll_out(release)
    with pytest.raises(ModelError, match="is gone"):
        roll_out(release)
