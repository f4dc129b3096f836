"""What neither `pip check` nor a tree of dependencies sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from tasks.compatibility.rules import load_tables
from tasks.environment.binaries import glibc_needs
from tasks.environment.hidden_conflicts import hidden_conflicts, mixed_cuda, newer_glibc, shared_files
from tasks.environment.models import Distribution, Inventory, SharedFile


def inventory(*shared: SharedFile, **packages: str) -> Inventory:
    distributions = tuple(Distribution(name=name, version=version) for name, version in packages.items())
    return Inventory(distributions=distributions, markers={}, shared=shared)


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        (
            {"nvidia-cudnn-cu11": "8.9.4.25", "nvidia-cudnn-cu12": "9.10.2.21"},
            "CUDA 11 and CUDA 12 in one environment: nvidia-cudnn-cu11 8.9.4.25 and nvidia-cudnn-cu12 9.10.2.21, "
            "which are the same library",
        ),
        (
            {"nvidia-cuda-runtime": "13.0.48", "nvidia-cuda-runtime-cu12": "12.8.90"},
            "CUDA 12 and CUDA 13 in one environment: nvidia-cuda-runtime-cu12 12.8.90 and "
            "nvidia-cuda-runtime 13.0.48, which are the same library",
        ),
        (
            {"torch": "2.6.0+cu118", "torchvision": "0.21.0+cu124"},
            "CUDA 11 and CUDA 12 in one environment: torch 2.6.0+cu118 and torchvision 0.21.0+cu124",
        ),
    ],
)
def test_two_majors_of_cuda_are_told(packages: dict[str, str], said: str) -> None:
    (found,) = mixed_cuda(packages)
    assert (found.reason, found.rule) == (said, "MIXED-CUDA")


@pytest.mark.parametrize(
    "packages",
    [
        {"nvidia-cudnn-cu12": "9.10.2.21", "nvidia-nccl-cu12": "2.27.5", "torch": "2.9.1"},
        {"nvidia-cudnn-cu13": "9.20.0.48", "nvidia-cuda-runtime": "13.0.48", "nvidia-cublas": "13.0.2"},
        {"nvidia-ml-py": "13.580.82", "torch": "2.13.0+cpu"},
        {"nvidia-cutlass-dsl-libs-cu12": "4.8.0", "nvidia-cutlass-dsl-libs-cu13": "4.8.0"},
        {},
    ],
)
def test_one_major_is_no_mixture(packages: dict[str, str]) -> None:
    assert mixed_cuda(packages) == ()


LOCKS: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "cuda_locks.json").read_text())


@pytest.mark.parametrize("name", LOCKS)
def test_what_the_index_resolves_to_is_no_mixture(name: str) -> None:
    """NVIDIA's packages of each torch from 2.9 to 2.15, and of serving engines, as the index resolves them."""
    assert mixed_cuda(LOCKS[name]) == ()
    runtime = next(package for package in LOCKS[name] if package.startswith("nvidia-cuda-runtime"))
    other = "nvidia-nccl-cu11"
    assert mixed_cuda({**LOCKS[name], other: "2.14.3"}) != (), f"{runtime} and {other}"


def test_every_torch_that_is_listed_from_2_9_on_was_resolved() -> None:
    listed = [
        row
        for row in load_tables().releases
        if row.package == "torch" and Version(row.version) >= Version("2.9")
    ]
    assert {f"torch {row.version}" for row in listed} <= LOCKS.keys()


def test_files_of_two_owners_are_told() -> None:
    shared = SharedFile(path="pynvml.py", owners=("nvidia-ml-py", "pynvml"), count=2)
    (found,) = shared_files(inventory(shared, pynvml="11.5.3"))
    assert found.reason == (
        "nvidia-ml-py and pynvml each installed a different pynvml.py: one has overwritten the other (2 files)"
    )


def test_the_newest_need_of_glibc_is_told() -> None:
    needs = {"a.so": "2.17", "fast/core.so": "2.38", "slow.so": "2.4"}
    (found,) = newer_glibc(needs, "2.36")
    assert found.reason == "fast/core.so needs glibc 2.38; this host has 2.36"
    assert found.package == "fast"
    assert newer_glibc(needs, "2.38") == newer_glibc(needs, None) == ()


def test_needs_are_read_from_the_files(tmp_path: Path) -> None:
    """What numpy's wheel promises by its tag is what its files ask for; a file that asks for more is seen."""
    packages = Path(numpy.__file__).parent.parent
    core = next((packages / "numpy").rglob("_multiarray_umath*.so"))
    target = tmp_path / "numpy" / core.name
    target.parent.mkdir()
    shutil.copy(core, target)
    (tmp_path / "text.so").write_text("no library")
    (honest,) = glibc_needs(tmp_path).values()
    assert tuple(map(int, honest.split("."))) <= (2, 28)
    old = f"GLIBC_{honest}".encode()
    lying = target.read_bytes().replace(old, b"GLIBC_" + b"9" * (len(old) - 8) + b".9")
    target.write_bytes(lying)
    assert glibc_needs(tmp_path) != {f"numpy/{core.name}": honest}
    (conflict,) = hidden_conflicts(inventory(), glibc_needs(tmp_path), "2.36")
    assert conflict.rule == "NEWER-GLIBC"


def test_what_is_no_library_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"\x7fELF" + b"\0" * 80)
    (tmp_path / "b.so").write_bytes(b"")
    (tmp_path / "c.so").symlink_to("/dev/zero")
    assert glibc_needs(tmp_path) == {}


names = st.from_regex(r"(nvidia-[a-z]{1,8}(-cu1[0-9])?|torch)", fullmatch=True)
versions = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){0,3}(\+cu1[0-9]{2}|\+cpu)?", fullmatch=True)


@given(st.dictionaries(names, versions, max_size=5))
def test_any_packages_get_at_most_one_answer(packages: dict[str, str]) -> None:
    assert len(mixed_cuda(packages)) <= 1


def test_the_worker_tells_whose_files_differ(tmp_path: Path, repository: Path) -> None:
    """Two distributions that install the same module: same content is harmless, other content is told."""
    worker = repository / "tasks/environment/worker/read_packages.py"
    for name, digest in (("one", "sha256=AAA"), ("two", "sha256=BBB")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"shared.py,{digest},1\nsame.py,sha256=CCC,1\n{name}.py,{digest},1\n")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(worker)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = Inventory.model_validate_json(done.stdout)
    assert SharedFile(path="shared/__init__.py", owners=("one", "two"), count=1) in found.shared
    assert not any(shared.path.startswith("same") for shared in found.shared)
