"""The conda manager, on a channel of this machine's own: a repackaged Python and the engine's packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conda_channel import PYTHON, index, make_channel, write_package

from blocks.engine.trial import EnvironmentTrial
from blocks.packages.bill_of_materials import bill_of_materials
from blocks.packages.conda import Conda
from blocks.packages.managers import open_manager
from tasks.core.errors import CommandError, NetworkError, SpecError
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EngineKind, EnvironmentManager
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.catalogue import get_engine
from tasks.environment import apply, plan, proof
from tasks.environment.locks import read_lock
from tasks.environment.models import EnvironmentRequest, Locked, LockRequest, Refusal

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def channel(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with everything that the embedded engine needs, Python included."""
    (site_packages,) = (engine_python.parent.parent / "lib").glob("python*/site-packages")
    return make_channel(tmp_path_factory.mktemp("channel"), site_packages)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATTLER_CACHE_DIR", str(tmp_path / "rattler"))


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


def requested(*requirements: str, channel: str, **other: str) -> LockRequest:
    environment = Environment(
        manager=EnvironmentManager.CONDA,
        python=PYTHON,
        channels=(channel,),
        requirements=requirements,
        **other,
    )
    return plan.make_lock_request(requirements, Conda().platform, environment)


def test_the_engine_runs_in_an_environment_of_conda_packages(channel: str, settings: Settings) -> None:
    environment = Environment(manager=EnvironmentManager.CONDA, python=PYTHON, channels=(channel,))
    engine = get_engine(EngineKind.LLAMA_CPP)
    request = plan.lock_request(engine, EnvironmentRequest(environment=environment), Conda())
    locked = apply.lock(request, Conda(), settings)
    assert isinstance(locked, Locked)
    built = apply.build(locked, Conda(), EnvironmentTrial(), settings)
    assert {"numpy", "gguf", "xllamacpp"} <= built.packages.keys()
    # Its own Python, not one that it borrows.
    assert not (built.path / "pyvenv.cfg").exists()
    assert built.python_path.resolve().is_relative_to(built.path)
    checked = proof.check(built.python_path, Conda(), EnvironmentTrial())
    proven = apply.prove_built(built, engine, EnvironmentTrial(), settings)
    assert plan.judge(checked.conflicts, proven) == (EnvironmentVerdict.SOUND, None)
    assert proven.engine is not None
    assert proven.engine.output_tokens == 8
    assert apply.build(locked, Conda(), EnvironmentTrial(), settings) == built
    document = json.loads(bill_of_materials(read_lock(locked.path.read_text(), "lock")))
    assert any(one["purl"].startswith("pkg:conda/numpy@2.") for one in document["components"])


def test_a_lock_pins_files_by_hash_and_is_made_once(channel: str, settings: Settings) -> None:
    request = requested("idna", channel=channel)
    locked = apply.lock(request, Conda(), settings)
    assert isinstance(locked, Locked)
    assert set(locked.packages) == {"idna", "python"}
    assert all(pin.hashes for pin in read_lock(locked.path.read_text(), "lock").pins)
    assert apply.lock(request, Conda(), settings) == locked


def test_what_excludes_each_other_is_told(channel: str, settings: Settings) -> None:
    answer = apply.lock(requested("numpy <2", "gguf", channel=channel), Conda(), settings)
    assert isinstance(answer, Refusal)
    assert "numpy <2" in answer.reason
    assert "\n" not in answer.reason
    assert not list(settings.locks.glob("*"))


def test_a_changed_package_is_not_installed(channel: str, settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "channel"
    module = tmp_path / "module.py"
    module.write_text("value = 1\n")
    shutil.copytree(Path(channel.removeprefix("file://")), folder, copy_function=shutil.copy)
    inside = {f"lib/python{PYTHON}/site-packages/small.py": module}
    write_package(folder, "small", "1.0", inside, [f"python {PYTHON}.*"])
    index(folder)
    locked = apply.lock(requested("small", channel=folder.as_uri()), Conda(), settings)
    assert isinstance(locked, Locked)
    module.write_text("value = 2\n")
    write_package(folder, "small", "1.0", inside, [f"python {PYTHON}.*"])
    with pytest.raises(CommandError, match=r"small-1\.0-repackaged_0\.conda is not the one that was locked"):
        apply.build(locked, Conda(), EnvironmentTrial(), settings)
    assert not list(settings.environments.glob("*"))


@pytest.mark.parametrize(
    ("specs", "where", "error", "said"),
    [
        (("numpy >>2",), None, SpecError, "environment.requirements"),
        (("numpy",), "http://127.0.0.1:9/channel", NetworkError, "cannot reach a channel"),
        (("numpy",), "file:///no/such/channel", NetworkError, "cannot reach a channel"),
    ],
)
def test_bad_input_is_one_line(
    specs: tuple[str, ...],
    where: str | None,
    error: type[Exception],
    said: str,
    channel: str,
    settings: Settings,
) -> None:
    with pytest.raises(error, match=said):
        apply.lock(
            requested(*specs, channel=where or channel), open_manager(EnvironmentManager.CONDA), settings
        )
    assert not list(settings.locks.glob("*"))
