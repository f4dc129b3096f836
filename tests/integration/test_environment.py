"""Locking, building, checking and proving with the real uv, the real index and the real engine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from package_index import package_index

from blocks.engine.trial import EnvironmentTrial
from blocks.packages.uv import Uv
from tasks.core.digests import digest_of, short
from tasks.core.errors import NetworkError, WrongUseError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.catalogue import get_engine
from tasks.engines.llama_cpp import LlamaCpp
from tasks.environment import apply, dependencies, files, plan, proof
from tasks.environment.models import (
    Built,
    EnvironmentRequest,
    EnvironmentResult,
    Locked,
    LockRequest,
    Refusal,
)

ENGINE = get_engine(EngineKind.LLAMA_CPP)
SMALL = ("idna==3.10",)


class CountingUv(Uv):
    """The real uv; counts how often it resolved."""

    def __init__(self) -> None:
        super().__init__()
        self.resolved = 0

    def resolve(self, request: LockRequest, scratch: Path) -> str | Refusal:
        self.resolved += 1
        return super().resolve(request, scratch)


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


@pytest.fixture
def trial() -> EnvironmentTrial:
    return EnvironmentTrial()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An index that nobody serves: a port of the loopback that is bound, but not listened on."""
    for name in ("UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://{place}/simple")
        yield place


@pytest.fixture(scope="session")
def engine_environment(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The engine's environment as the stage builds it. Never changed by a test: see `copied`."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home, str(home / "records"), "", None)
    uv = Uv()
    locked = apply.lock(requested(*ENGINE.card.requirements), uv, settings)
    assert isinstance(locked, Locked)
    return apply.build(locked, uv, EnvironmentTrial(), settings)


@pytest.fixture
def copied(engine_environment: Built, tmp_path: Path) -> Path:
    """A copy that a test may break: files are links to the same bytes, so they are removed, never written."""
    return Path(
        shutil.copytree(engine_environment.path, tmp_path / "copy", symlinks=True, copy_function=os.link)
    )


def requested(*requirements: str, **environment: Any) -> LockRequest:
    return plan.make_lock_request(
        requirements, Uv().platform, Environment(**{"python": "3.11", **environment})
    )


def locked_small(uv: Uv, settings: Settings) -> Locked:
    locked = apply.lock(requested(*SMALL), uv, settings)
    assert isinstance(locked, Locked)
    return locked


def site_packages(environment: Path) -> Path:
    return environment / "lib" / "python3.11" / "site-packages"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        threading.Event().wait(0.002)


def parts(settings: Settings) -> list[Path]:
    return list(settings.home.rglob("*.part"))


# Locking


def test_a_lock_is_made_once_and_then_needs_no_network(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    uv = CountingUv()
    asked = requested(*SMALL)
    first = apply.lock(asked, uv, settings)
    request.getfixturevalue("no_network")
    again = apply.lock(asked, uv, settings)
    assert first == again
    assert uv.resolved == 1
    assert isinstance(first, Locked)
    assert first.path == settings.locks / f"{short(asked.digest)}.txt"
    assert first.packages == {"idna": "3.10"}
    text = first.path.read_text()
    assert "--hash=sha256:" in text
    assert "http" not in text
    assert not parts(settings)


@pytest.mark.parametrize("damage", ["", "idna==3.10\n", "# slipway-lock: {\n"])
def test_a_damaged_lock_is_made_again(settings: Settings, damage: str) -> None:
    uv = CountingUv()
    first = locked_small(uv, settings)
    whole = first.path.read_text()
    first.path.write_text(damage)
    assert locked_small(uv, settings) == first
    assert first.path.read_text() == whole
    assert uv.resolved == 2


def test_a_lock_of_another_request_is_not_taken_for_this_one(settings: Settings) -> None:
    uv = CountingUv()
    first = locked_small(uv, settings)
    other = apply.lock(requested("idna==3.9"), uv, settings)
    assert isinstance(other, Locked)
    shutil.copy(other.path, first.path)
    assert locked_small(uv, settings) == first


def test_of_many_at_once_one_resolves(settings: Settings) -> None:
    uv = CountingUv()
    start = threading.Barrier(4)

    def lock(_: int) -> Locked:
        start.wait()
        return locked_small(uv, settings)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lock, range(4)))
    assert uv.resolved == 1
    assert len(set(map(str, answers))) == 1


def test_versions_that_exclude_each_other_are_a_refusal(settings: Settings) -> None:
    answer = apply.lock(requested("gguf==0.19.0", "numpy<1.10"), Uv(), settings)
    assert isinstance(answer, Refusal)
    assert "gguf>=0.19.0 depends on numpy>=1.17" in answer.reason
    asked = {(one.required_by, one.requirement) for one in answer.conflicts}
    assert {(None, "numpy<1.10"), ("gguf>=0.19.0", "numpy>=1.17")} <= asked
    assert not list(settings.locks.iterdir())


def test_a_package_that_does_not_exist_is_a_refusal(settings: Settings) -> None:
    answer = apply.lock(requested("slipway-has-no-such-package"), Uv(), settings)
    assert isinstance(answer, Refusal)
    assert "slipway-has-no-such-package was not found" in answer.reason


def test_without_network_nothing_is_locked_and_one_line_says_so(settings: Settings, no_network: str) -> None:
    with pytest.raises(NetworkError) as caught:
        apply.lock(requested(*SMALL), Uv(), settings)
    assert caught.value.retryable
    assert str(caught.value).startswith(f"cannot reach the package index {no_network} while locking")
    assert "\n" not in str(caught.value)
    assert not list(settings.locks.iterdir())


def test_settings_of_uv_that_are_not_in_the_name_do_not_change_the_lock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2001-01-01")
    monkeypatch.setenv("UV_PYTHON", "3.99")
    assert locked_small(Uv(), settings).packages == {"idna": "3.10"}


# Building


def test_an_environment_is_built_once_and_runs_after_its_rename(
    settings: Settings, trial: EnvironmentTrial, request: pytest.FixtureRequest
) -> None:
    uv = Uv()
    locked = locked_small(uv, settings)
    built = apply.build(locked, uv, trial, settings)
    request.getfixturevalue("no_network")
    assert apply.build(locked, uv, trial, settings) == built
    assert built.path == settings.environments / short(locked.digest)
    assert built.packages == {"idna": "3.10"}
    assert built.python_version.startswith("3.11.")
    assert (built.path / apply.LOCK_COPY).read_bytes() == locked.path.read_bytes()
    assert not parts(settings)


@pytest.mark.parametrize("broken", [files.MARKER, apply.LOCK_COPY, "bin/python"])
def test_a_broken_environment_is_built_again(
    settings: Settings, trial: EnvironmentTrial, broken: str
) -> None:
    uv = Uv()
    locked = locked_small(uv, settings)
    built = apply.build(locked, uv, trial, settings)
    (built.path / broken).unlink()
    assert apply.standing_environment(built.path, locked.digest, trial) is None
    assert apply.build(locked, uv, trial, settings).packages == built.packages
    assert trial.alive(built.python_path)
    assert not parts(settings)


def test_no_file_of_an_environment_is_shared_with_the_cache(
    settings: Settings, trial: EnvironmentTrial
) -> None:
    """A file that is damaged in one of them would be damaged in all."""
    built = apply.build(locked_small(Uv(), settings), Uv(), trial, settings)
    shared = [path for path in built.path.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert shared == []


def test_a_file_that_was_changed_is_found_and_the_environment_built_again(
    settings: Settings, trial: EnvironmentTrial
) -> None:
    locked = locked_small(Uv(), settings)
    built = apply.build(locked, Uv(), trial, settings)
    module = site_packages(built.path) / "idna" / "core.py"
    text = module.read_text()
    module.write_text(text + "raise SystemExit\n")
    assert apply.standing_environment(built.path, locked.digest, trial) is None
    again = apply.build(locked, Uv(), trial, settings)
    assert module.read_text() == text
    assert apply.build(locked, Uv(), trial, settings) == again


def test_a_file_that_is_damaged_in_the_cache_reaches_no_environment(
    settings: Settings, trial: EnvironmentTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    locked = locked_small(Uv(), settings)
    built = apply.build(locked, Uv(), trial, settings)
    text = (site_packages(built.path) / "idna" / "core.py").read_text()
    (cached,) = (tmp_path / "cache").rglob("idna/core.py")
    cached.write_text("raise SystemExit\n")
    shutil.rmtree(built.path)
    again = apply.build(locked, Uv(), trial, settings)
    assert (site_packages(again.path) / "idna" / "core.py").read_text() == text


def test_a_killed_build_is_swept_and_finished_by_the_next(settings: Settings, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("\n".join(ENGINE.card.requirements))
    lock = tmp_path / "engine.lock"
    slipway = Path(sys.executable).with_name("slipway")
    subprocess.run([slipway, "env", "lock", requirements, "-o", lock], check=True, capture_output=True)
    build = subprocess.Popen([slipway, "env", "build", lock], stdout=subprocess.DEVNULL)
    wait_for(lambda: any(site_packages(part).exists() for part in settings.environments.glob("*.part")))
    build.send_signal(signal.SIGKILL)
    build.wait()
    left = parts(settings)
    assert left, "the build was over before it could be killed"
    other = settings.environments / "0123456789ab.part"
    other.mkdir()
    done = subprocess.run([slipway, "env", "build", lock], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("sound\n")
    assert not parts(settings)


def test_what_somebody_builds_now_is_not_swept(settings: Settings) -> None:
    mine = settings.environments / "aaaaaaaaaaaa.part"
    mine.mkdir(parents=True)
    with files.held(settings.environments / "aaaaaaaaaaaa", settings):
        assert files.sweep_leftovers(settings.environments, settings.leases) == []
    assert files.sweep_leftovers(settings.environments, settings.leases) == [mine]
    assert not mine.exists()


def test_without_network_nothing_is_built(
    settings: Settings, trial: EnvironmentTrial, request: pytest.FixtureRequest
) -> None:
    locked = locked_small(Uv(), settings)
    request.getfixturevalue("no_network")
    with pytest.raises(NetworkError, match="while installing the environment"):
        apply.build(locked, Uv(), trial, settings)
    assert list(settings.environments.iterdir()) == []


def test_with_a_lock_and_a_warm_cache_nothing_else_is_needed(
    settings: Settings, trial: EnvironmentTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with package_index(tmp_path / "index", "slipway-probe") as address:
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        locked = apply.lock(requested("slipway-probe"), Uv(), settings)
        assert isinstance(locked, Locked)
        built = apply.build(locked, Uv(), trial, settings)
    shutil.rmtree(built.path)
    assert apply.build(locked, Uv(), trial, settings).packages == {"slipway-probe": "1.0"}


@pytest.mark.mount
def test_a_full_disk_is_named_and_nothing_stays(
    settings: Settings, engine_environment: Built, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    slipway = Path(sys.executable).with_name("slipway")
    lock = engine_environment.path / apply.LOCK_COPY
    script = f"""
        mount -t tmpfs -o size=16m none {disk} || exit
        SLIPWAY_HOME={disk}/home {slipway} env build {lock}; code=$?
        find {disk} -name '*.part'
        exit $code
    """
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no space left on the disk while installing the environment: ")
    assert done.stdout == ""


def test_a_package_that_changed_since_it_was_locked_is_refused(
    settings: Settings, trial: EnvironmentTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    locked = locked_small(Uv(), settings)
    text = locked.path.read_text()
    for digit in "0123456789abcdef":
        text = text.replace(f"sha256:{digit}", f"sha256:{'1' if digit == '0' else '0'}")
    body, seal, _ = text.rpartition("# slipway-seal: ")
    locked.path.write_text(
        f"{body}{seal}{digest_of(body)}\n"
    )  # as whoever changes a lock on purpose would seal it
    changed = apply.read_locked(locked.path, locked.request)
    with pytest.raises(Exception, match="the hash of a package differs"):
        apply.build(changed, Uv(), trial, settings)
    assert list(settings.environments.iterdir()) == []


def test_a_lock_of_another_machine_is_refused(settings: Settings, trial: EnvironmentTrial) -> None:
    locked = locked_small(Uv(), settings)
    elsewhere = locked.request.model_copy(update={"platform": "darwin-arm64"})
    locked = locked.model_copy(update={"request": elsewhere})
    with pytest.raises(WrongUseError, match="is for darwin-arm64"):
        apply.build(locked, Uv(), trial, settings)


def test_a_folder_of_somebody_else_is_left_alone(
    settings: Settings, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    locked = locked_small(Uv(), settings)
    with pytest.raises(WrongUseError, match="contains something else"):
        apply.build(locked, Uv(), trial, settings, theirs)
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]


# Checking and proving


def test_the_engine_is_really_started(
    engine_environment: Built, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    script = engine_environment.path / "bin" / "gguf-dump"
    assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0
    checked = proof.check(engine_environment.python_path, Uv(), trial)
    assert checked.conflicts == ()
    assert {"gguf"} <= {
        edge.required_by for _, edge in dependencies.dependents(checked.dependencies, "numpy")
    }
    settings = Settings(engine_environment.path.parent.parent, "", "", None)
    proven = apply.prove_built(engine_environment, ENGINE, trial, settings)
    assert proven.failure is None
    assert [one.module for one in proven.imports] == list(ENGINE.card.imports)
    assert proven.engine is not None
    assert proven.engine.output_tokens == 8
    assert proven.engine.start_s is not None
    assert not parts(settings)


def test_a_missing_module_is_found_though_the_metadata_is_whole(
    copied: Path, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    (site_packages(copied) / "gguf" / "constants.py").unlink()
    python = copied / "bin" / "python"
    checked = proof.check(python, Uv(), trial)
    proven = proof.prove(python, ENGINE, ENGINE.card.imports, trial, tmp_path / "scratch")
    verdict, reason = plan.judge(checked.conflicts, proven)
    assert checked.conflicts == (), "the check by metadata alone passes this broken set"
    assert verdict is EnvironmentVerdict.CONFLICTING
    assert reason == "importing gguf failed: ModuleNotFoundError: No module named 'gguf.constants'"
    assert proven.engine is None


def test_a_missing_package_only_flags_a_set_that_works(
    copied: Path, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    for found in site_packages(copied).glob("certifi*"):
        shutil.rmtree(found)
    python = copied / "bin" / "python"
    checked = proof.check(python, Uv(), trial)
    proven = proof.prove(python, ENGINE, ENGINE.card.imports, trial, tmp_path / "scratch")
    verdict, reason = plan.judge(checked.conflicts, proven)
    assert (verdict, reason) == (
        EnvironmentVerdict.FLAGGED,
        "requests requires certifi>=2023.5.7, but it is not installed",
    )


def test_a_module_that_kills_the_interpreter_is_named(
    copied: Path, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    (site_packages(copied) / "crasher.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    python = copied / "bin" / "python"
    proven = proof.prove(python, ENGINE, ("json", "crasher", "numpy"), trial, tmp_path / "scratch")
    assert [(one.module, one.ok) for one in proven.imports] == [
        ("json", True),
        ("crasher", False),
        ("numpy", False),
    ]
    assert proven.failure == "importing crasher failed: the interpreter was killed by SIGSEGV"
    assert proven.imports[2].reason == "not reached after crasher"
    alone = proof.prove(python, None, ("json", "crasher", "numpy"), trial, tmp_path / "scratch")
    assert [one.ok for one in alone.imports] == [True, False, True]


def test_modules_may_print_and_exit_while_they_are_imported(
    copied: Path, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    (site_packages(copied) / "chatty.py").write_text("print('{}'); import os; os.write(1, b'hello')")
    (site_packages(copied) / "quitter.py").write_text("import sys; sys.exit('no licence')")
    proven = proof.prove(copied / "bin" / "python", None, ("chatty", "quitter"), trial, tmp_path / "scratch")
    assert [one.reason for one in proven.imports] == [None, "SystemExit: no licence"]


def test_an_engine_that_dies_during_start_is_told_with_its_last_words(
    engine_environment: Built, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    class Dying(LlamaCpp):
        server_worker = tmp_path / "dying.py"

    Dying.server_worker.write_text("import sys; sys.exit('no libcuda.so.1')")
    proven = proof.prove(engine_environment.python_path, Dying(), ("gguf",), trial, tmp_path / "scratch")
    assert proven.failure == (
        "the engine does not start: the engine died while starting (exit status 1): no libcuda.so.1"
    )


def test_an_environment_that_cannot_write_the_model_is_told(
    copied: Path, trial: EnvironmentTrial, tmp_path: Path
) -> None:
    shutil.rmtree(site_packages(copied) / "gguf")
    proven = proof.prove(copied / "bin" / "python", ENGINE, ("xllamacpp",), trial, tmp_path / "scratch")
    assert proven.failure is not None
    assert "no model could be written for it" in proven.failure
    assert "No module named 'gguf'" in proven.failure


def test_what_is_no_python_cannot_say_what_is_installed(trial: EnvironmentTrial) -> None:
    with pytest.raises(Exception, match="cannot list its packages"):
        proof.read_inventory(Path("/bin/false"), trial)


# Reuse


def test_a_result_is_good_while_its_lock_and_its_environment_stand(
    settings: Settings, trial: EnvironmentTrial
) -> None:
    uv = Uv()
    locked = locked_small(uv, settings)
    built = apply.build(locked, uv, trial, settings)
    result = EnvironmentResult(
        verdict=EnvironmentVerdict.SOUND,
        lock_path=locked.path,
        lock_digest=locked.digest,
        environment_path=built.path,
        python_path=built.python_path,
    )
    assert apply.still_good(result, trial)
    assert not apply.still_good(result.model_copy(update={"lock_path": None}), trial)
    whole = locked.path.read_text()
    locked.path.write_text(whole + "# touched\n")
    assert not apply.still_good(result, trial)
    locked.path.write_text(whole)
    (built.path / files.MARKER).unlink()
    assert not apply.still_good(result, trial)


# Libraries of the system


@pytest.mark.engine
def test_an_engine_runs_where_the_system_has_no_openmp(settings: Settings, trial: EnvironmentTrial) -> None:
    """The library that a wheel brings is the one that the engine uses, whatever this machine has."""

    class Bare(Uv):
        def lacks(self, soname: str) -> bool:
            return soname == "libgomp.so.1"

    uv = Bare()
    locked = apply.lock(plan.lock_request(ENGINE, EnvironmentRequest(), uv), uv, settings)
    assert isinstance(locked, Locked)
    built = apply.build(locked, uv, trial, settings)
    assert apply.prove_built(built, ENGINE, trial, settings).failure is None
    look = (
        "import xllamacpp; print([line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line][0])"
    )
    used = subprocess.run([built.python_path, "-I", "-c", look], capture_output=True, text=True, check=True)
    assert used.stdout.strip() == str(built.path / "lib" / "slipway" / "libgomp.so.1")
