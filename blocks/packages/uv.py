"""uv, the installer. Here it never downloads a Python and never builds a package from source."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from blocks.packages.uv_messages import complaints, fault, refusal
from blocks.processes.process import Finished, find_tool, run
from tasks.core.child_environment import Needs
from tasks.core.errors import MissingToolError, NetworkError, NotFoundError
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.environment.integrity import unlike_record
from tasks.environment.models import Conflict, Locked, LockRequest, Refusal

_TIMEOUT_S = 1800.0

# Variables that would change the resolution without being part of the lock's name.
_FOREIGN = (
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_EXCLUDE_NEWER_PACKAGE",
    "UV_FORK_STRATEGY",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_OVERRIDE",
    "UV_PRERELEASE",
    "UV_PYTHON",
    "UV_RESOLUTION",
    "UV_TORCH_BACKEND",
    "VIRTUAL_ENV",
)


def compile_arguments(request: LockRequest, requirements: str) -> list[str]:
    """Resolve a requirements file to pins with hashes on standard output; wheels only."""
    date = ["--exclude-newer", request.exclude_newer] if request.exclude_newer else []
    return [
        *("pip", "compile", "--quiet", "--color", "never", "--no-python-downloads"),
        *("--generate-hashes", "--no-emit-index-url", "--no-header", "--only-binary", ":all:"),
        *("--python-version", request.python, *date, *source_arguments(request), requirements),
    ]


def source_arguments(request: LockRequest) -> list[str]:
    """Where packages come from: only a folder of wheels, or an index, and for torch the index of its build."""
    backend = ["--torch-backend", request.torch_backend] if request.torch_backend else []
    return ["--no-index", "--find-links", str(request.wheels)] if request.wheels else backend


def venv_arguments(folder: Path, python: str) -> list[str]:
    """Create an environment that may be renamed afterwards."""
    return [
        *("venv", "--quiet", "--color", "never", "--no-project", "--no-python-downloads"),
        *("--relocatable", "--python", python, str(folder)),
    ]


def sync_arguments(
    python: Path, locked: Locked, *, offline: bool = False, refresh: Sequence[str] = ()
) -> list[str]:
    """Install exactly the lock, each file with a hash it names.

    Files are copied (with shared blocks if the file system can): if they were links to uv's cache, damage in one
    environment would be damage in all. Packages to `refresh` are fetched again.
    """
    again = (("--refresh-package", name, "--reinstall-package", name) for name in refresh)
    return [
        *(["--offline"] if offline else []),
        *("pip", "sync", "--quiet", "--color", "never", "--no-python-downloads", "--link-mode", "copy"),
        *chain.from_iterable(again),
        *("--require-hashes", "--only-binary", ":all:", *source_arguments(locked.request)),
        *("--python", str(python), str(locked.path)),
    ]


def check_arguments(python: Path) -> list[str]:
    """Find installed packages whose requirements are not met."""
    return ["pip", "check", "--color", "never", "--no-python-downloads", "--python", str(python)]


def _check_wheels(request: LockRequest) -> None:
    """Raise `NotFoundError` for anything but a folder: uv would read a file whole into memory, whatever its size."""
    if request.wheels is not None and not request.wheels.is_dir():
        raise NotFoundError(f"{request.wheels} is not a folder of wheels", fix="give the path of a folder")


class Uv:
    """The uv next to Slipway's own Python, else the one on the path."""

    def __init__(self, *, find_links: str | None = None) -> None:
        """`find_links` is a folder or page of wheels, used in addition to the index."""
        self._links = {"UV_FIND_LINKS": find_links} if find_links else {}
        self._program = find_tool("uv", install="install it: pip install uv")

    @property
    def platform(self) -> str:
        """The platform of this machine's locks, such as `linux-x86_64`."""
        return f"{sys.platform}-{platform.machine()}"

    @property
    def glibc(self) -> str | None:
        """Version of this machine's C library."""
        return platform.libc_ver()[1] or None

    def lacks(self, soname: str) -> bool:
        """Whether this machine has no shared library of that name."""
        try:
            ctypes.CDLL(soname)
        except OSError:
            return True
        return False

    def resolve(self, request: LockRequest, scratch: Path) -> str | Refusal:
        """Pins with hashes, or the refusal. Raises `NetworkError`, `NotFoundError` if a folder is missing."""
        _check_wheels(request)
        requirements = scratch / "requirements.in"
        requirements.write_text("".join(f"{line}\n" for line in request.requirements))
        done = self._run(compile_arguments(request, requirements.name), cwd=scratch)
        if done.code == 0:
            return done.stdout
        said_no = refusal(done.stderr, done.code)
        if said_no is None:
            raise fault("locking the environment", done.stderr, done.code)
        return said_no

    def find_python(self, version: str) -> str:
        """An installed Python of that version, such as `3.11`; Slipway's own if that matches.

        Raises a `MissingToolError` that names the installed versions.
        """
        own = Path(sys.base_prefix) / "bin" / f"python{version}"
        if own.exists():
            return str(own)
        listing = ["python", "list", "--only-installed", "--no-python-downloads", "--output-format", "json"]
        done = self._run(listing).check("looking for Python")
        found = {
            f"{one['version_parts']['major']}.{one['version_parts']['minor']}": one["path"]
            for one in reversed(json.loads(done.stdout))
            if one["implementation"] == "cpython" and one["variant"] == "default"
        }
        if version in found:
            return str(found[version])
        raise MissingToolError(
            f"Python {version} is not installed on this machine",
            fix=f"install it (`uv python install {version}`), or use one of {', '.join(sorted(found))}",
        )

    def install(self, locked: Locked, folder: Path, final: Path) -> Path:
        """Make a virtual environment in `folder` with exactly the lock's packages; returns its Python.

        Without a network, packages come from uv's cache alone. The folder may be renamed afterwards. Raises
        `MissingToolError` if the Python version is not installed, `NetworkError` if the cache lacks a package,
        `NotFoundError` if the folder of wheels is missing, and `DiskFullError`.
        """
        _check_wheels(locked.request)
        done = self._run(venv_arguments(folder, self.find_python(locked.request.python)))
        if done.code != 0:
            raise fault("creating the environment", done.stderr, done.code)
        python = folder / "bin" / "python"
        self._sync(python, locked)
        if damaged := unlike_record(folder):
            say(
                StageName.ENVIRONMENT,
                f"uv's cache has damaged files of {', '.join(damaged)}: fetching them again",
            )
            self._refresh(python, locked, tuple(damaged))
        return python

    def _sync(self, python: Path, locked: Locked) -> None:
        done = self._run(sync_arguments(python, locked), cwd=locked.path.parent)
        if done.code == 0:
            return
        error = fault("installing the environment", done.stderr, done.code)
        if isinstance(error, NetworkError):
            say(StageName.ENVIRONMENT, f"{error.what}; trying uv's cache")
            if self._run(sync_arguments(python, locked, offline=True), cwd=locked.path.parent).code == 0:
                return
        raise error

    def _refresh(self, python: Path, locked: Locked, packages: tuple[str, ...]) -> None:
        """Fetch packages again. If files still differ from their record, they were published that way."""
        done = self._run(sync_arguments(python, locked, refresh=packages), cwd=locked.path.parent)
        if done.code != 0:
            raise fault(f"replacing the damaged {', '.join(packages)} in uv's cache", done.stderr, done.code)

    def complaints(self, python: Path) -> tuple[Conflict, ...]:
        """Installed packages whose requirements are not met."""
        done = self._run(check_arguments(python))
        found = complaints(done.stderr + done.stdout)
        if done.code != 0 and not found:
            raise fault("checking the environment", done.stderr, done.code)
        return found

    def _run(self, arguments: list[str], *, cwd: Path | None = None) -> Finished:
        env = {**dict.fromkeys(_FOREIGN), **self._links}
        return run(
            [self._program, *arguments], timeout_s=_TIMEOUT_S, needs=(Needs.PACKAGES,), env=env, cwd=cwd
        )
