"""What the tests with real servers share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from homes import services_of
from small_disk import small_disk_at
from uncovered import uncovered

from tasks.core.release import ServiceFolder
from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import read_card
from tasks.quantization.recipe import QUANTIZER


@pytest.fixture(autouse=True, scope="module")
def not_followed() -> Iterator[None]:
    """Coverage is of what runs in this process, here and in the tests of units and flows."""
    with uncovered():
        yield


@pytest.fixture(scope="session")
def examples(repository: Path) -> Path:
    """The examples' folder."""
    return repository / "examples"


@pytest.fixture(scope="session")
def torch_wheels() -> Path:
    """A folder with a build of torch for the processor: the index has one for GPUs, of gigabytes."""
    folders = [Path(part) for part in os.environ.get("PIP_FIND_LINKS", "").split() if Path(part).is_dir()]
    wheels = [wheel for folder in folders for wheel in folder.glob("torch-2.13.0+cpu-cp311-*.whl")]
    if not wheels:
        pytest.skip("no build of torch 2.13.0 for the processor in PIP_FIND_LINKS")
    return wheels[0].parent


@pytest.fixture(scope="session")
def transformers_python(torch_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with transformers serve."""
    requirements = read_card(EngineKind.TRANSFORMERS).requirements
    return _installed(requirements, torch_wheels, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="session")
def quantizer_python(torch_wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with llmcompressor."""
    return _installed(QUANTIZER, torch_wheels, tmp_path_factory.mktemp("quantizer"))


def _installed(requirements: tuple[str, ...], wheels: Path, folder: Path) -> Path:
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    own = [line for line in requirements if not line.startswith("torch==")]
    subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", folder], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--find-links", wheels]
    subprocess.run([*install, *own, "torch==2.13.0+cpu"], check=True)
    return python


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    with small_disk_at(tmp_path / "disk", "256k") as place:
        yield place


@pytest.fixture
def services(slipway_home: Path) -> Iterator[Callable[[str], ServiceFolder]]:
    """Folders of services by name. Whatever runs at the end of the test is stopped; nothing may be left."""
    with services_of(slipway_home) as folder:
        yield folder
