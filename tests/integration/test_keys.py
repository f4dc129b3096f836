"""A service with keys, with the real engine: rollouts, rotation, restarts, and where the secret is not."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from inline_snapshot import snapshot
from load import Load
from releases import make_release
from slipway_command import SlipwayCommand
from strays import proxies_of, supervisors_of
from waiting import wait_until

from blocks.services.door import open_service, read_keys
from blocks.services.supervisor import SupervisedService
from tasks.core.api_keys import digest_of_key
from tasks.core.release import Release, ServiceFolder
from tasks.core.spec_sections import Serving
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out
from tasks.rollout.models import RolloutAction, RolloutResult

pytestmark = pytest.mark.engine

KEY, NEXT = "the-key-of-today-12", "the-key-of-tomorrow-34"

Services = Callable[[str], ServiceFolder]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# today\n{KEY}\n")
    return file


@pytest.fixture
def releases(
    engine_python: Path, random_ggufs: tuple[Path, Path], slipway_home: Path, key_file: Path
) -> list[Release]:
    """Two that need a key, and one that needs none."""
    folder = slipway_home / "candidates"
    folder.mkdir(parents=True)
    first, second = (make_release(engine_python, Path(shutil.copy(file, folder))) for file in random_ggufs)
    return [locked(first, key_file), locked(second, key_file), second]


@pytest.fixture
def slipway(capsys: pytest.CaptureFixture[str], slipway_home: Path) -> SlipwayCommand:
    return SlipwayCommand(capsys)


def locked(release: Release, key_file: Path) -> Release:
    spec = release.spec.model_copy(update={"serving": Serving(api_key=f"file:{key_file}")})
    return release.model_copy(update={"spec": spec})


def bring(release: Release, folder: ServiceFolder) -> RolloutResult:
    with SupervisedService(folder) as target:
        return roll_out(release, folder, target, open_service(folder), read_keys=read_keys)


def status(endpoint: str | None, key: str | None = None, path: str = "/v1/models") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{endpoint}{path}", headers=headers, trust_env=False, timeout=30).status_code


def test_a_service_is_locked_from_its_first_rollout_and_slipway_has_a_key(
    releases: list[Release], services: Services, slipway: SlipwayCommand
) -> None:
    folder = services("chat")
    result = bring(releases[0], folder)
    assert result.verdict is RolloutVerdict.SERVING
    assert [status(result.endpoint, key) for key in (None, KEY, NEXT)] == [401, 200, 401]
    assert status(result.endpoint, path="/health") == 200
    assert bring(releases[0], folder).action is RolloutAction.NOTHING
    assert slipway.json("health", "chat")["verdict"] == "healthy"
    row = slipway.json("status", "chat")
    assert (row["state"], row["locked"], row["warning"]) == ("up", True, None)
    second = bring(releases[1], folder)
    assert (second.verdict, second.endpoint) == (RolloutVerdict.SERVING, result.endpoint)
    slipway("rollback", "chat")
    assert [status(result.endpoint, key) for key in (None, KEY)] == [401, 200]


def test_keys_rotate_under_load_without_a_failed_request(
    releases: list[Release], services: Services, slipway: SlipwayCommand, key_file: Path
) -> None:
    folder = services("chat")
    endpoint = bring(releases[0], folder).endpoint or ""
    supervisor = supervisors_of(folder.root.parent.parent)
    proxy = proxies_of(folder.root.parent.parent)
    with Load(endpoint, "chat", clients=4, key=KEY) as load:
        for _ in range(5):
            key_file.write_text(f"{KEY}\n{NEXT}\n")
            assert slipway("keys", "chat") == f"chat: 2 keys from file:{key_file} (1 new, 0 removed)\n"
            assert [status(endpoint, key) for key in (KEY, NEXT)] == [200, 200]
            key_file.write_text(f"{KEY}\n")
            counts = {"keys": 1, "added": 0, "removed": 1}
            expected = {"name": "chat", "source": f"file:{key_file}", **counts, "running": True}
            assert slipway.json("keys", "chat") == expected
            assert [status(endpoint, key) for key in (KEY, NEXT)] == [200, 401]
        seen = load.good
        wait_until(lambda: load.good > seen + 4, "requests are answered after the last change")
    assert load.failures == []
    assert (supervisors_of(folder.root.parent.parent), proxies_of(folder.root.parent.parent)) == (
        supervisor,
        proxy,
    )
    key_file.write_text(f"{NEXT}\n")
    assert bring(releases[0], folder).action is RolloutAction.NOTHING  # a deploy reads the keys too
    assert [status(endpoint, key) for key in (KEY, NEXT)] == [401, 200]


@pytest.mark.parametrize("content", ["", "short\n", None])
def test_a_damaged_file_changes_nothing(
    releases: list[Release], services: Services, slipway: SlipwayCommand, key_file: Path, content: str | None
) -> None:
    endpoint = bring(releases[0], services("chat")).endpoint
    if content is None:
        key_file.unlink()
    else:
        key_file.write_text(content)
    slipway("keys", "chat", code=2)
    assert status(endpoint, KEY) == 200


def test_a_service_starts_from_the_disk_alone(
    releases: list[Release], services: Services, slipway: SlipwayCommand, key_file: Path, slipway_home: Path
) -> None:
    folder = services("chat")
    endpoint = bring(releases[0], folder).endpoint
    key_file.unlink()
    for process in supervisors_of(slipway_home):  # as in a power cut
        process.kill()
    wait_until(lambda: not proxies_of(slipway_home), "the proxy ended with its supervisor")
    slipway("start", "chat")
    assert [status(endpoint, key) for key in (None, KEY)] == [401, 200]
    slipway("stop", "chat")
    slipway("start", "chat")
    assert [status(endpoint, key) for key in (None, KEY)] == [401, 200]


def test_only_a_deploy_opens_a_locked_door(
    releases: list[Release], services: Services, slipway: SlipwayCommand, key_file: Path
) -> None:
    first, _, without_key = releases
    folder = services("chat")
    endpoint = bring(without_key, folder).endpoint
    assert status(endpoint) == 200
    assert bring(first, folder).endpoint == endpoint
    assert [status(endpoint, key) for key in (None, KEY)] == [401, 200]
    slipway("rollback", "chat")
    assert slipway.json("status", "chat")["release"] == without_key.id
    assert [status(endpoint, key) for key in (None, KEY)] == [401, 200]
    key_file.write_text(f"{NEXT}\n")
    slipway("keys", "chat")
    assert [status(endpoint, key) for key in (KEY, NEXT)] == [401, 200]
    bring(without_key, folder)
    assert status(endpoint) == 200
    assert not folder.door_file.exists()
    slipway("keys", "chat", code=2)
    assert "error: chat has no keys" in slipway.err


def test_a_rollout_that_fails_leaves_the_door_as_it_was(
    releases: list[Release], services: Services, key_file: Path
) -> None:
    folder = services("chat")
    endpoint = bring(releases[2], folder).endpoint
    launch = releases[0].launch.model_copy(update={"argv": ("false",)})
    broken = releases[0].model_copy(update={"launch": launch})
    assert bring(broken, folder).verdict is RolloutVerdict.ROLLED_BACK
    assert status(endpoint) == 200
    bring(releases[0], folder)
    other = key_file.with_name("other")
    other.touch(0o600)
    other.write_text(f"{NEXT}\n")
    assert bring(locked(broken, other), folder).verdict is RolloutVerdict.ROLLED_BACK
    assert [status(endpoint, key) for key in (None, KEY, NEXT)] == [401, 200, 401]


def test_a_lost_key_of_slipways_own_is_made_anew(releases: list[Release], services: Services) -> None:
    folder = services("chat")
    endpoint = bring(releases[0], folder).endpoint
    folder.own_key_file.unlink()
    assert bring(releases[0], folder).action is RolloutAction.NOTHING
    own = folder.own_key_file.read_text().strip()
    assert [status(endpoint, key) for key in (own, KEY)] == [200, 200]


def test_the_secret_is_nowhere(
    releases: list[Release],
    services: Services,
    slipway: SlipwayCommand,
    slipway_home: Path,
    key_file: Path,
) -> None:
    """In the home and in the processes there are digests only, for this user alone."""
    folder = services("chat")
    endpoint = bring(releases[0], folder).endpoint
    assert status(endpoint, KEY) == 200
    printed = slipway("logs", "chat") + slipway("logs", "chat", "--requests") + slipway("status", "chat")
    slipway("health", "chat")
    places = {"printed": printed + slipway.out + slipway.err}
    for path in slipway_home.rglob("*"):
        if path.is_file():
            places[str(path)] = path.read_bytes().decode(errors="replace")
    for process in psutil.process_iter():
        try:
            places[f"process {process.pid}"] = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
    assert not [place for place, text in places.items() if KEY in text]
    digest = digest_of_key(KEY)
    holding = {Path(place) for place, text in places.items() if digest in text}
    assert {path.name for path in holding} == snapshot({"door.json", "keys", "supervisor.json"})
    assert {stat.S_IMODE(path.stat().st_mode) for path in (*holding, folder.own_key_file)} == {0o600}
