"""Every file of a service's folder, damaged in every way, while the service is under load.

It goes on serving without a failed request, and the next command heals the damage, or ends with one line whose way
out works when it is carried out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import home_at, services_of
from load import Load
from releases import make_release
from slipway_command import SlipwayCommand
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.sampler import sample_service, sampler_pid
from blocks.services.supervisor import SupervisedService
from tasks.core.errors import RecordError
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out
from tasks.rollout.damage import set_damage_aside

pytestmark = pytest.mark.engine


def empty(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()


def half(path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b'{"schema": "slipway'
    path.unlink(missing_ok=True)
    path.write_bytes(data[: len(data) // 2])


def garbage(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(range(255, 128, -1)) * 3)


def missing(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    (path / "inside").mkdir(parents=True)


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"not a folder")


Damage = Callable[[Path], None]
TO_FOLDERS: tuple[Damage, ...] = (missing, a_file)

FILES = (
    "current.json",
    "last.json",
    "releases/{serving}.json",
    "releases/{previous}.json",
    "supervisor.json",
    "supervisor.lock",
    "control.sock",
    "processes.json",
    "recovery.json",
    "samples/sampler.lock",
    "samples/sampler.log",
    "samples/{run}.csv",
    "logs/engine-{engine}.log",
    "logs/supervisor.log",
    "logs/supervisor.err",
    "proxy/{proxy}/haproxy.cfg",
    "proxy/{proxy}/admin.sock",
)
FOLDERS = ("releases", "logs", "samples", "proxy")


def cases(*damages: Damage, always: tuple[Damage, ...] = ()) -> list[tuple[str, Damage]]:
    """Each file with one of the damages in turn, and always with those; each folder with both of its own.

    Each document with each damage is in the unit tests of `tasks/rollout/damage.py`.
    """
    files = [
        (name, damage)
        for number, name in enumerate(FILES)
        for damage in (*always, damages[number % len(damages)])
    ]
    return files + [(name, damage) for name in FOLDERS for damage in TO_FOLDERS]


def name_of(value: str | Damage) -> str:
    return value if isinstance(value, str) else value.__name__


CLOSED = "Server disconnected without sending a response"


class Damaged:
    """A service that serves `second`, after `first`; both can be brought in again, as a deploy would."""

    def __init__(self, folder: ServiceFolder, releases: tuple[Release, Release]) -> None:
        self.folder = folder
        self.first, self.second = releases
        self.make_sound()

    def bring(self, release: Release) -> None:
        with SupervisedService(self.folder) as target:
            assert roll_out(release, self.folder, target, EngineApi).verdict is RolloutVerdict.SERVING
        sample_service(self.folder, *self.folder.serving())

    def make_sound(self) -> None:
        if not self.is_sound():
            set_damage_aside(self.folder)
            for release in (self.first, self.second):
                self.bring(release)
            assert self.is_sound()

    def is_sound(self) -> bool:
        try:
            kept = [self.folder.release(release.id) for release in (self.first, self.second)]
            state = self.folder.state()
        except RecordError:
            return False
        if state is None or None in kept or sampler_pid(self.folder) is None:
            return False
        return (state.release, state.previous) == (self.second.id, self.first.id)

    def path(self, name: str) -> Path:
        runs = sorted(self.folder.samples.glob("*.csv"))
        return self.folder.root / name.format(
            serving=self.second.id.removeprefix("sha256:")[:16],
            previous=self.first.id.removeprefix("sha256:")[:16],
            engine=self.second.id.removeprefix("sha256:")[:12],
            run=runs[-1].stem if runs else "17-1-1",
            proxy=f"127.0.0.1-{self.endpoint.rpartition(':')[2]}",
        )

    def damage(self, name: str, damage: Damage) -> None:
        """Do it once the supervisor has mended what was done to the proxy before, which needs two looks."""
        path = self.path(name)
        if name == "proxy":
            wait_until(path.exists, f"{path} is there")
        damage(path)

    @property
    def endpoint(self) -> str:
        state = self.folder.last()
        assert state is not None
        return state.endpoint


@pytest.fixture
def slipway(capsys: pytest.CaptureFixture[str]) -> SlipwayCommand:
    return SlipwayCommand(capsys)


@pytest.fixture(scope="module")
def service(
    engine_python: Path, random_ggufs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Damaged]:
    """One for all cases: each finds it sound."""
    with home_at(tmp_path_factory.mktemp("damaged") / "home") as home, services_of(home) as folder:
        candidates = home / "candidates"
        home.mkdir(mode=0o700)
        candidates.mkdir()
        first, second = (
            # What a lost socket of the proxy hides is waited for as long as requests may take to end.
            make_release(engine_python, Path(shutil.copy(file, candidates)), drain_s=5)
            for file in random_ggufs
        )
        yield Damaged(folder("chat"), (first, second))


def carry_out(slipway: SlipwayCommand, service: Damaged, wanted: Release) -> None:
    """One line and its way out; what that says works."""
    lines = slipway.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "  fix"], slipway.err
    if "slipway start" in lines[1]:
        slipway("start", "chat", code=None)
        if slipway.code == 0:
            return
    assert "deploy" in slipway.err
    service.bring(wanted)


@pytest.mark.parametrize(
    ("name", "damage"), cases(empty, half, garbage, missing, always=(a_folder,)), ids=name_of
)
def test_under_load_nothing_fails_and_start_and_deploy_heal(
    name: str, damage: Damage, service: Damaged, slipway: SlipwayCommand
) -> None:
    service.make_sound()
    with Load(service.endpoint, "chat", clients=2) as load:
        service.damage(name, damage)
        seen = load.good
        wait_until(lambda: load.good > seen + 5, "requests are answered")
        slipway("logs", "chat")
        for verb in ("status", "start"):
            slipway(verb, "chat", code=None)
            if slipway.code:
                carry_out(slipway, service, service.second)
        service.damage(name, damage)
        service.bring(service.second)
        assert service.folder.release(service.second.id) == service.second
        assert slipway.json("status", "chat")["release"] == service.second.id
        before = load.good
        wait_until(lambda: load.good > before + 5, "requests are answered")
    # A proxy that is replaced closes kept connections that are idle: a request may cross that on its way.
    crossed = [one for one in load.failures if name.startswith("proxy") and CLOSED in one]
    assert load.failures == crossed
    assert len(crossed) <= 2  # one of each client
    assert sampler_pid(service.folder) is not None


@pytest.mark.parametrize(("name", "damage"), cases(half, missing, a_folder), ids=name_of)
def test_rollback_and_stop_pass_it(
    name: str, damage: Damage, service: Damaged, slipway: SlipwayCommand
) -> None:
    service.make_sound()
    service.damage(name, damage)
    slipway("rollback", "chat", code=None)
    if slipway.code:
        carry_out(slipway, service, service.first)
    assert slipway.json("status", "chat")["state"] == "up"
    service.make_sound()
    service.damage(name, damage)
    slipway("stop", "chat")
    assert service.folder.state() is None
    assert sampler_pid(service.folder) is None
    slipway("start", "chat", code=None)
    if slipway.code:
        carry_out(slipway, service, service.second)
    assert slipway.json("status", "chat")["state"] == "up"


def test_a_supervisor_that_lost_both_its_lock_and_its_socket_is_found(
    service: Damaged, slipway: SlipwayCommand
) -> None:
    service.make_sound()
    for name in ("supervisor.lock", "control.sock"):
        service.damage(name, missing)
    slipway("start", "chat")
    assert slipway.json("status", "chat")["state"] == "up"
