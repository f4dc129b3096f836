"""The user-mode driver by the real dynamic loader, in a child process. A library of another kind stands in for it."""

from __future__ import annotations

import ctypes.util
import shutil
from pathlib import Path

import pytest

from blocks.host.cuda_library import parse_cuda_library, read_cuda_library
from tasks.compatibility.models import CudaLibraryReading


@pytest.fixture
def compat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like that of cuda-compat, on the library path, with links as packages lay them."""
    folder = tmp_path / "cuda-12.8" / "compat"
    folder.mkdir(parents=True)
    ctypes.CDLL("libm.so.6")
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split(maxsplit=5)[5] for line in maps if "/libm.so" in line or "/libm-" in line)
    shutil.copy(library, folder / "libcuda.so.570.86.10")
    (folder / "libcuda.so.1").symlink_to("libcuda.so.570.86.10")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    return folder


def test_the_loaders_choice_is_told_by_its_real_path(compat: Path) -> None:
    found = read_cuda_library()
    assert found == CudaLibraryReading(path=str(compat / "libcuda.so.570.86.10"), cuda=None)


def test_what_cannot_be_loaded_is_not_there(compat: Path) -> None:
    (compat / "libcuda.so.570.86.10").write_text("no library")
    if ctypes.util.find_library("cuda") is None:
        assert read_cuda_library() is None


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ('{"path": "/usr/lib/libcuda.so.580.95.05", "cuda": 13000}', "13.0"),
        ('{"path": "/usr/lib/libcuda.so.570.86.10", "cuda": 12080}', "12.8"),
        ('{"path": "/usr/lib/libcuda.so", "cuda": 0}', None),
        ('{"path": "/usr/lib/libcuda.so", "cuda": "new"}', None),
    ],
)
def test_the_answer(text: str, cuda: str | None) -> None:
    found = parse_cuda_library(text)
    assert found is not None
    assert found.cuda == cuda


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"path": null}', "Segmentation fault"])
def test_anything_else_is_no_answer(text: str) -> None:
    assert parse_cuda_library(text) is None
