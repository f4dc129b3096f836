"""The effects of the environment stage: lock, build, check, prove. Each is idempotent."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError

from tasks.core.digests import digest_of_file, short
from tasks.core.errors import SlipwayError, WrongUseError
from tasks.core.files import PART, file_lock, fsync_folder, write_atomically
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.engines.base import Engine
from tasks.environment import locks, plan, refusals
from tasks.environment.files import beside, discard, held, scratch, sweep_leftovers
from tasks.environment.libraries import bring
from tasks.environment.models import (
    Built,
    EnvironmentResult,
    Locked,
    LockRequest,
    Loosening,
    Marker,
    Proof,
    Refusal,
)
from tasks.environment.proof import Checker, Trial, prove, read_inventory

MARKER = "slipway-environment.json"
LOCK_COPY = "slipway-environment.lock"
MOST_TRIED = 8
"""Requirements that are tried without their versions after a refusal; each takes a resolution."""


class PackageTool(plan.Machine, Checker, Protocol):
    """What resolves and installs packages on this machine."""

    def resolve(self, request: LockRequest, requirements: Path) -> str | Refusal:
        """Pins with hashes, or why there are none."""

    def find_python(self, version: str) -> str:
        """An installed Python of that version."""

    def create(self, folder: Path, python: str) -> Path:
        """A new empty environment that may be renamed; its Python."""

    def sync(self, python: Path, lock: Path) -> None:
        """Install what the lock pins, nothing else."""


def lock(request: LockRequest, tool: PackageTool, settings: Settings) -> Locked | Refusal:
    """The lock of that name: the one that is there, else a new one. Without a new one, no network is needed.

    Of several callers at once one resolves; the others wait and read. Raises `NetworkError`.
    """
    name = short(request.digest)
    path = settings.locks / f"{name}.txt"
    with file_lock(settings.leases / f"lock-{name}", wait=True, holder=f"the lock {name}"):
        if (found := _existing_lock(path, request)) is not None:
            return found
        discard(*settings.locks.glob(f"{name}*{PART}"))
        say(StageName.ENVIRONMENT, f"resolving {len(request.requirements)} requirements")
        with scratch(settings.locks / f"{name}.{os.getpid()}{PART}") as folder:
            requirements = folder / "requirements.in"
            requirements.write_text("".join(f"{line}\n" for line in request.requirements))
            resolved = tool.resolve(request, requirements)
            if isinstance(resolved, Refusal):
                return _diagnosed(resolved, request, tool, requirements)
        write_atomically(path, locks.render_lock(request, resolved))
    return read_locked(path, python=request.python, platform=request.platform)


def _diagnosed(refusal: Refusal, request: LockRequest, tool: PackageTool, requirements: Path) -> Refusal:
    """The refusal with the chains that lead to it, and with each requirement that would help if it were loosened."""
    loosen = []
    versioned = [line for line in request.requirements if Requirement(line).specifier]
    for line in versioned[:MOST_TRIED]:
        say(StageName.ENVIRONMENT, f"no solution; trying without the version of {line}")
        name = Requirement(line).name
        rest = tuple(_without_version(other) if other == line else other for other in request.requirements)
        looser = request.model_copy(update={"requirements": rest})
        requirements.write_text("".join(f"{other}\n" for other in rest))
        resolved = tool.resolve(looser, requirements)
        if isinstance(resolved, str) and (version := pinned_versions(resolved).get(name)):
            loosen.append(Loosening(requirement=line, version=version))
    chains = refusals.chains(refusal.conflicts)
    return refusal.model_copy(update={"chains": chains, "loosen": tuple(loosen)})


def _without_version(line: str) -> str:
    requirement = Requirement(line)
    requirement.specifier = SpecifierSet()
    return str(requirement)


def _existing_lock(path: Path, request: LockRequest) -> Locked | None:
    """The lock on disk, unless it is damaged or some other request's."""
    try:
        content = locks.read_lock(path.read_text(), str(path))
    except (FileNotFoundError, UnicodeDecodeError, WrongUseError):
        return None
    if content.request != request:
        return None
    return read_locked(path, python=request.python, platform=request.platform)


def read_locked(path: Path, *, python: str, platform: str) -> Locked:
    """A lock file as a value; `python` and `platform` hold where the file itself does not say. Raises
    `WrongUseError`."""
    content = locks.read_lock(path.read_text(), str(path))
    asked = content.request
    return Locked(
        path=path,
        digest=digest_of_file(path),
        python=asked.python if asked else python,
        platform=asked.platform if asked else platform,
        packages=content.packages,
        libraries=asked.libraries if asked else (),
    )


def environment_folder(locked: Locked, settings: Settings) -> Path:
    """Where the environment of a lock stands."""
    return settings.environments / short(locked.digest)


def build(
    locked: Locked, tool: PackageTool, trial: Trial, settings: Settings, into: Path | None = None
) -> Built:
    """The environment of that lock: the one that stands, else a new one, built beside and renamed into place.

    Raises `MissingToolError` without the Python, `NetworkError`, `DiskFullError`, and `WrongUseError` for a
    lock of another platform or a folder that holds something else.
    """
    folder = into.absolute() if into else environment_folder(locked, settings)
    if locked.platform != tool.platform:
        raise WrongUseError(
            f"the lock {locked.path} is for {locked.platform}, this machine is {tool.platform}",
            fix="make a lock on this machine: slipway env lock",
        )
    sweep_leftovers(settings.environments, settings.leases)
    with held(folder, settings):
        if (standing := standing_environment(folder, locked.digest, trial)) is not None:
            return standing
        if into and folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
            raise WrongUseError(f"{folder} holds something else", fix="name a new folder")
        discard(*folder.parent.glob(f"{folder.name}.*{PART}"))
        start = time.monotonic()
        # Of this process alone: what a killed run's installer still writes in its last moment goes elsewhere.
        part = beside(folder, f".{os.getpid()}")
        try:
            marker = _fill(part, locked, tool, trial, start)
            _put_in_place(part, folder)
        finally:
            discard(part, beside(folder, ".old"))
        if not trial.alive(folder / "bin" / "python"):
            raise SlipwayError(
                f"the Python of {folder} does not run after it was moved into place",
                fix="look at the log of this run, then try again",
            )
        return _built(folder, marker)


def _fill(part: Path, locked: Locked, tool: PackageTool, trial: Trial, start: float) -> Marker:
    """All of the environment, the marker last."""
    part.parent.mkdir(parents=True, exist_ok=True)
    say(StageName.ENVIRONMENT, f"installing {len(locked.packages)} packages for Python {locked.python}")
    python = tool.create(part, tool.find_python(locked.python))
    tool.sync(python, locked.path)
    bring(part, locked.libraries)
    write_atomically(part / LOCK_COPY, locked.path.read_bytes())
    inventory = read_inventory(python, trial)
    os.sync()  # one flush of everything: milliseconds, where an fsync of each file takes seconds
    marker = Marker(
        lock_digest=locked.digest,
        python_version=inventory.markers["python_full_version"],
        packages=inventory.packages,
        size_bytes=sum(path.lstat().st_size for path in part.rglob("*")),
        build_s=time.monotonic() - start,
    )
    write_atomically(part / MARKER, marker.model_dump_json(indent=1) + "\n")
    return marker


def _put_in_place(part: Path, folder: Path) -> None:
    """Rename; a broken environment of the same name is moved aside first."""
    if folder.exists():
        folder.rename(beside(folder, ".old"))
    part.rename(folder)
    fsync_folder(folder.parent)


def standing_environment(folder: Path, lock_digest: str, trial: Trial) -> Built | None:
    """The finished environment in `folder` if it is that lock's and its Python runs."""
    try:
        marker = Marker.model_validate_json((folder / MARKER).read_bytes())
        copy_digest = digest_of_file(folder / LOCK_COPY)
    except (OSError, ValidationError):
        return None
    if not marker.lock_digest == copy_digest == lock_digest or not trial.alive(folder / "bin" / "python"):
        return None
    return _built(folder, marker)


def _built(folder: Path, marker: Marker) -> Built:
    return Built(path=folder, python_path=folder / "bin" / "python", **marker.model_dump())


def still_good(result: EnvironmentResult, trial: Trial) -> bool:
    """Whether a recorded result's lock and environment are there unharmed and its Python runs."""
    if result.lock_path is None or result.lock_digest is None or result.environment_path is None:
        return False
    if not result.lock_path.is_file() or digest_of_file(result.lock_path) != result.lock_digest:
        return False
    return standing_environment(result.environment_path, result.lock_digest, trial) is not None


def prove_built(built: Built, engine: Engine, trial: Trial, settings: Settings) -> Proof:
    """The proof of a built environment; one at a time, so that no other run sweeps its model away."""
    with held(built.path, settings):
        return prove(built.python_path, engine, engine.imports, trial, beside(built.path, ".proof"))
