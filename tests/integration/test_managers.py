"""Environments from a folder of wheels, and those that are there already; the reverse tree beside pipdeptree's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from package_index import write_wheel
from packaging.utils import canonicalize_name

from blocks.engine.trial import EnvironmentTrial
from blocks.packages.uv import Uv
from tasks.core.errors import NotFoundError, SpecError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind, EnvironmentManager
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.catalogue import get_engine
from tasks.environment import apply, dependencies, plan, proof
from tasks.environment.models import Built, EnvironmentRequest, EnvironmentResult, Locked, Refusal


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever asks an index gets no answer."""
    for name in ("UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")


def lock_from(folder: Path, settings: Settings, *requirements: str) -> Locked | Refusal:
    environment = Environment(python="3.11", wheels=folder)
    return apply.lock(plan.make_lock_request(requirements, Uv().platform, environment), Uv(), settings)


# A folder of wheels


@pytest.mark.usefixtures("no_index")
def test_a_folder_of_wheels_is_enough(settings: Settings, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "probe", "1.0", "needed>=2")
    write_wheel(tmp_path / "wheels", "needed", "2.1")
    locked = lock_from(tmp_path / "wheels", settings, "probe")
    assert isinstance(locked, Locked)
    built = apply.build(locked, Uv(), EnvironmentTrial(), settings)
    assert built.packages == {"needed": "2.1", "probe": "1.0"}


@pytest.mark.usefixtures("no_index")
def test_what_the_folder_lacks_is_refused(settings: Settings, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "probe", "1.0", "needed>=2")
    answer = lock_from(tmp_path / "wheels", settings, "probe")
    assert isinstance(answer, Refusal)
    assert "needed" in answer.reason


def test_a_folder_that_is_not_there_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"{tmp_path}/none is not a folder of wheels"):
        lock_from(tmp_path / "none", settings, "probe")


# An environment that is there already


def system_request(folder: Path) -> EnvironmentRequest:
    environment = Environment(manager=EnvironmentManager.SYSTEM, path=folder)
    return EnvironmentRequest(engine=EngineKind.LLAMA_CPP, environment=environment)


def adopted(request: EnvironmentRequest, settings: Settings) -> Built:
    asked = plan.lock_request(get_engine(request.engine), request, Uv())
    locked = apply.adopt(asked, EnvironmentTrial(), settings)
    return apply.build(locked, Uv(), EnvironmentTrial(), settings)


@pytest.mark.engine
def test_an_environment_of_the_system_passes_the_same_proof(engine_python: Path, settings: Settings) -> None:
    folder = engine_python.parent.parent
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    built = adopted(system_request(folder), settings)
    assert (built.path, built.python_path) == (folder, engine_python)
    checked = proof.check(built.python_path, Uv(), EnvironmentTrial())
    proven = apply.prove_built(built, get_engine(EngineKind.LLAMA_CPP), EnvironmentTrial(), settings)
    assert plan.judge(checked.conflicts, proven) == (EnvironmentVerdict.SOUND, None)
    after = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    assert after == before, "nothing is installed into it, nothing removed"


def test_what_changed_in_it_is_another_environment(settings: Settings, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "probe", "1.0")
    locked = lock_from(tmp_path / "wheels", settings, "probe")
    assert isinstance(locked, Locked)
    folder = apply.build(locked, Uv(), EnvironmentTrial(), settings, tmp_path / "theirs").path
    built = adopted(system_request(folder), settings)
    (lock_path,) = [path for path in settings.locks.glob("*.txt") if path != locked.path]
    result = EnvironmentResult(
        verdict=EnvironmentVerdict.SOUND,
        lock_path=lock_path,
        lock_digest=built.lock_digest,
        environment_path=built.path,
        python_path=built.python_path,
    )
    assert apply.still_good(result, EnvironmentTrial())
    (info,) = folder.rglob("probe-1.0.dist-info")
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").unlink()
    (info / "METADATA").write_text(metadata.replace("Version: 1.0", "Version: 1.1"))
    assert not apply.still_good(result, EnvironmentTrial())
    assert adopted(system_request(folder), settings).lock_digest != built.lock_digest


def test_a_folder_without_python_is_no_environment(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a Python environment"):
        adopted(system_request(tmp_path), settings)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"manager": "conda"}, "channels"),
        ({"manager": "system"}, "path"),
        ({"manager": "uv", "channels": ["x"]}, "channels"),
        ({"manager": "conda", "channels": ["x"], "wheels": "w"}, "wheels"),
        ({"manager": "system", "path": "p", "torch_backend": "cpu"}, "torch_backend"),
    ],
)
def test_keys_go_with_their_manager(environment: dict[str, Any], said: str) -> None:
    from tasks.core.spec import parse_spec

    with pytest.raises(SpecError, match=said):
        parse_spec({"name": "a", "model": "file:m", "environment": environment})


# Who requires whom


@pytest.mark.engine
def test_pipdeptree_sees_the_same_reverse_tree(engine_python: Path) -> None:
    pipdeptree = Path(sys.executable).with_name("pipdeptree")
    done = subprocess.run(
        [pipdeptree, "--python", engine_python, "--reverse", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = {
        (canonicalize_name(one["package"]["package_name"]), canonicalize_name(above["package_name"]))
        for one in json.loads(done.stdout)
        for above in one["dependencies"]
    }
    ours = {
        (edge.package, edge.required_by)
        for edge in dependencies.dependencies(proof.read_inventory(engine_python, EnvironmentTrial()))
    }
    assert theirs
    assert ours == theirs
