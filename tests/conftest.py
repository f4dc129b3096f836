"""Fixtures that many tests share, and what tests may require of the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from homes import home_at
from local_place import NOBODY
from random_model import write_random_model
from swift_server import SwiftServer, running
from tool_environment import REQUIRED, UnavailableError, give_up
from uncovered import uncovered

from blocks.prefect.server import TemporaryServer, temporary_server
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine

REPOSITORY = Path(__file__).parent.parent
# How long one example takes says more of the machine's other work than of the code. The same examples each time: what
# a change broke is seen with that change, and nothing else is.
hypothesis.settings.register_profile("here", hypothesis.settings(), deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")


def docker_missing() -> str | None:
    """Why there is no Docker engine to test with; None if there is."""
    if shutil.which("docker") is None:
        return "the program docker is not installed"
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return None if answer.returncode == 0 else f"no Docker engine answers: {answer.stderr.strip()[:200]}"


def haproxy_missing() -> str | None:
    """Why there is no HAProxy to test with; None if there is."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return None if found else "the program haproxy is not installed"


def disk_missing() -> str | None:
    """Why files below the folder for temporary ones cannot be cold. Asks the kernel, not the code under test."""
    folder = Path(tempfile.gettempdir())
    kinds = {row.mountpoint: row.fstype for row in psutil.disk_partitions(all=True)}
    kind = next(kinds[str(place)] for place in (folder, *folder.parents) if str(place) in kinds)
    return f"{folder} is in memory ({kind})" if kind in ("tmpfs", "ramfs") else None


# Other tests run beside: what they use would have figures measured again in the middle of one that counts on records.
os.environ.setdefault("SLIPWAY_BUSY_SHARE", "1")


def browser_missing() -> str | None:
    """Why there is no browser to test with; None if there is."""
    return None if shutil.which("chromium") else "the program chromium is not installed"


def another_user_missing() -> str | None:
    """Why no command can be run as another user; None if it can."""
    if os.geteuid() != 0:
        return "only root may run commands as another user"
    reads = subprocess.run(["cat", __file__], user=NOBODY, extra_groups=[], capture_output=True, check=False)
    return f"no other user may read {REPOSITORY}" if reads.returncode else None


def fio_missing() -> str | None:
    """Why disks cannot be measured with fio; None if they can."""
    return None if shutil.which("fio") else "the program fio is not installed"


def mount_missing() -> str | None:
    """Why nothing can be mounted; None if it can."""
    answer = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return None if answer.returncode == 0 else f"nothing can be mounted: {answer.stderr.strip()}"


LONGEST = ("doors", "deploy", "docker_target", "readme", "damaged_service", "kills", "surroundings")
"""Files of integration tests that take a minute or more, the longest first; `doors` begins its whole folder."""

SHARED = ("tests/flows/", "tests/integration/local/")
"""Folders whose tests share a server."""

MISSING = {
    "docker": docker_missing,
    "haproxy": haproxy_missing,
    "disk": disk_missing,
    "browser": browser_missing,
    "another_user": another_user_missing,
    "fio": fio_missing,
    "mount": mount_missing,
}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    """Run each test in a context of its own: a cancellation or listener set by one never reaches the next."""
    names = pyfuncitem._fixtureinfo.argnames
    copy_context().run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that none is left to one process while the others are done.

    Coverage is of examples: hundreds of generated ones would take twice as long, and cover the same.
    """
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("no_cover")
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            rank.get(item.path.stem, len(rank)) if "integration" in item.path.parts else len(rank)
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share a server share a process, too (`pytest -n`): a file's, and those of some folders."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in SHARED if file.startswith(folder)), file)

    return ByServer(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine lacks, with the reason; fail instead where SLIPWAY_REQUIRE names it."""
    for need, why_missing in MISSING.items():
        if item.get_closest_marker(need) and (reason := why_missing()):
            if need in REQUIRED:
                pytest.fail(f"SLIPWAY_REQUIRE={need}, but {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture
def slipway_home(tmp_path: Path) -> Iterator[Path]:
    """An empty `SLIPWAY_HOME`."""
    with home_at(tmp_path / "home") as home:
        yield home


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporaryServer]:
    """A Prefect server for many tests, so that each does not start its own."""
    home = tmp_path_factory.mktemp("prefect")
    settings = Settings(home=home, records=str(home), registry=str(home), s3_endpoint=None)
    with contextlib.ExitStack() as stack:
        with uncovered():
            server = stack.enter_context(temporary_server(settings))
        server.wait()
        with pytest.MonkeyPatch.context() as environment:  # for commands that tests start
            environment.setenv("PREFECT_API_AUTH_STRING", server.key)
            yield server


@pytest.fixture(scope="session")
def prefect_api_url(prefect_server: TemporaryServer) -> str:
    """The address of its API."""
    return prefect_server.url


@pytest.fixture(scope="session")
def engine_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the embedded engine is installed."""
    folder = tmp_path_factory.mktemp("engine")
    uv = Path(sys.executable).with_name("uv")
    python = folder / "bin" / "python"
    requirements = get_engine(EngineKind.LLAMA_CPP).card.requirements
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", folder], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *requirements], check=True)
    return python


@pytest.fixture(scope="session")
def random_ggufs(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small GGUF files with different random weights."""
    folder = tmp_path_factory.mktemp("gguf")
    script = REPOSITORY / "tests" / "support" / "random_gguf.py"
    files = (folder / "first.gguf", folder / "second.gguf")
    for seed, file in enumerate(files):
        subprocess.run([engine_python, script, file, str(seed)], check=True)
    return files


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 model with random weights."""
    return write_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """A real S3 server with no buckets. Mark the test `s3`."""
    try:
        with running(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except UnavailableError as error:
        give_up("s3", error)


@pytest.fixture
def s3(swift: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> SwiftServer:
    """The same server, with the settings and credentials that reach it."""
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", swift.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", swift.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", swift.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    return swift


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
