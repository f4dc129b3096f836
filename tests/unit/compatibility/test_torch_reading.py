"""The CUDA of an environment's torch, asked in a real child process of a real environment; torch is a few files."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from blocks.engine.trial import EnvironmentTrial
from tasks.compatibility.apply import read_torch
from tasks.compatibility.models import TorchReading
from tasks.core.errors import CommandError
from tasks.core.workers import WorkerAnswer

VERSION = """from typing import Optional
__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip']
__version__ = '2.9.0+cu128'
debug = False
cuda: Optional[str] = {cuda!r}
git_version = '0fabc3ba44823f257e70ce397d989c8de5e362c1'
hip: Optional[str] = None
print('a torch that talks')
"""
HELD = {"torch": "2.9.0"}


@pytest.fixture
def torch(tmp_path: Path) -> Path:
    """The folder of torch in a new environment: its import fails, as where a library of CUDA is missing."""
    venv.create(tmp_path / "env", symlinks=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    folder = packages / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file')\n"
    )
    return folder


def asked(torch: Path) -> TorchReading | None:
    return read_torch(torch.parents[3] / "bin" / "python", HELD, EnvironmentTrial())


@pytest.mark.parametrize("cuda", ["12.8", None])
def test_the_constant_is_read_although_torch_cannot_be_imported(torch: Path, cuda: str | None) -> None:
    (torch / "version.py").write_text(VERSION.format(cuda=cuda))
    assert asked(torch) == TorchReading(version="2.9.0+cu128", cuda=cuda)


def test_what_cannot_be_read_says_why(torch: Path) -> None:
    assert "FileNotFoundError" in str(asked(torch))
    (torch / "version.py").write_text("__version__ = '2.9.0'\n")
    assert asked(torch) == TorchReading(fault="KeyError: 'cuda'")
    (torch / "version.py").write_text("__version__, cuda = '2.9.0', 'the newest'\n")
    assert asked(torch) == snapshot(TorchReading(fault="the answer cannot be read, and python exited with 0"))
    (torch / "version.py").write_text("import os; os.abort()\n")
    assert asked(torch) == snapshot(
        TorchReading(fault="the answer cannot be read, and python exited with 134")
    )
    (torch / "__init__.py").unlink()
    assert "cannot be found" in str(asked(torch))


class NoTrial:
    """Starts nothing."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run_worker(self, *_: object) -> WorkerAnswer:
        raise self.error


def test_without_torch_nothing_is_started() -> None:
    assert read_torch(Path("python"), {"numpy": "2.3.1"}, NoTrial(AssertionError())) is None


def test_one_that_hangs_is_a_fault() -> None:
    late = NoTrial(CommandError("python did not end within 300 s"))
    assert read_torch(Path("python"), HELD, late) == TorchReading(fault="python did not end within 300 s")
