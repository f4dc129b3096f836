"""The effects of the environment stage: lock, build, check, prove. Each can be repeated."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement
from pydantic import ValidationError

from tasks.core.digests import digest_of_file, short
from tasks.core.disk_faults import as_disk_fault
from tasks.core.errors import NotFoundError, SlipwayError, WrongUseError
from tasks.core.files import PART, discard, file_lock, fsync_folder, write_atomically
from tasks.core.pins import pinned_versions
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EnvironmentManager
from tasks.core.verdicts import StageName
from tasks.engines.base import Engine
from tasks.engines.catalogue import get_engine
from tasks.environment import locks, plan, refusals
from tasks.environment.files import MARKER, beside, held, scratch, sweep_leftovers, touch_used
from tasks.environment.integrity import changed_files, is_doubted, note_files, settle_doubt
from tasks.environment.libraries import bring
from tasks.environment.models import (
    Built,
    EnvironmentRequest,
    EnvironmentResult,
    Locked,
    LockRequest,
    Loosening,
    Marker,
    Proof,
    Refusal,
)
from tasks.environment.proof import Checker, Trial, prove, read_inventory

LOCK_COPY = "slipway-environment.lock"
MOST_TRIED = 8
"""Most requirements that are tried without their version after a refusal; each takes a resolution."""


class PackageTool(plan.Machine, Checker, Protocol):
    """A package manager: resolves and installs packages on this machine."""

    def resolve(self, request: LockRequest, scratch: Path) -> str | Refusal:
        """Pins with hashes, or why there are none. `scratch` is an empty folder that the caller owns."""

    def install(self, locked: Locked, folder: Path, final: Path) -> Path:
        """Make the environment of that lock in `folder`, ready to run once renamed to `final`; its Python.

        Raises `MissingToolError` if the Python is missing, `NetworkError`, `DiskFullError`.
        """


def lock_for(
    request: EnvironmentRequest, tool: PackageTool, trial: Trial, settings: Settings
) -> Locked | Refusal:
    """The lock of an engine's environment, or the resolver's no."""
    engine = get_engine(request.engine)
    asked = plan.lock_request(engine, request, tool)
    if asked.manager is EnvironmentManager.SYSTEM:
        return adopt(asked, trial, settings)
    return lock(asked, tool, settings, firm=plan.own_requirements(engine, request.engine_version))


def lock(
    request: LockRequest, tool: PackageTool, settings: Settings, *, firm: Collection[str] = ()
) -> Locked | Refusal:
    """The lock for this request: the existing one, else a new one. An existing one needs no network.

    If several callers ask at once, one resolves; the others wait and read. Requirements that are `firm` are not
    tried without their versions after a refusal. Raises `NetworkError`.
    """
    name = short(request.digest)
    path = settings.locks / lock_file(request)
    with file_lock(settings.leases / f"lock-{name}", wait=True, holder=f"the lock {name}"):
        if (found := _existing_lock(path, request)) is not None:
            return found
        discard(*settings.locks.glob(f"{name}*{PART}"))
        say(StageName.ENVIRONMENT, f"resolving {len(request.requirements)} requirements")
        with scratch(settings.locks / f"{name}.{os.getpid()}{PART}") as folder:
            resolved = tool.resolve(request, folder)
            if isinstance(resolved, Refusal):
                return _diagnosed(resolved, request, tool, folder, firm)
        write_atomically(path, locks.render_lock(request, resolved))
    return read_locked(path, request)


def lock_file(request: LockRequest) -> str:
    """Name of the lock's file."""
    return f"{short(request.digest)}.txt"


def adopt(request: LockRequest, trial: Trial, settings: Settings) -> Locked:
    """The packages of an environment that exists already, written down as a lock: other packages, another digest.

    Raises `NotFoundError` if there is no such environment.
    """
    python = _python_of(request)
    inventory = read_inventory(python, trial)
    pins = "\n".join(f"{name}=={version}" for name, version in sorted(inventory.packages.items()))
    path = settings.locks / f"{short(request.digest)}.txt"
    text = locks.render_lock(request, pins)
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, text)
    return read_locked(path, request)


def _python_of(request: LockRequest) -> Path:
    assert request.path is not None  # the spec asks for it
    python = request.path / "bin" / "python"
    if not python.exists():
        raise NotFoundError(
            f"{request.path} is not a Python environment", fix="give a folder that contains bin/python"
        )
    return python


def _diagnosed(
    refusal: Refusal, request: LockRequest, tool: PackageTool, folder: Path, firm: Collection[str]
) -> Refusal:
    """The refusal with the chains that lead to it, another Python that would help, else the requirements that would
    help if they were loosened, and what is offered as source only."""
    if request.manager is not EnvironmentManager.UV:
        return refusal  # conda's solver reports both itself
    chains = refusals.chains(refusal.conflicts)
    without_wheels = refusals.without_wheels(refusal.reason)
    remarks = [refusals.source_only(name, request.python) for name in without_wheels]
    python = (
        _other_python(request, tool, folder)
        if without_wheels or refusals.blames_python(refusal.reason)
        else None
    )
    loosen: list[Loosening] = []
    versioned = [line for line in request.requirements if line not in firm and Requirement(line).specifier]
    for line in versioned[:MOST_TRIED] if python is None else ():
        say(StageName.ENVIRONMENT, f"no solution; trying other versions than {line}")
        for looser in refusals.looser(line):
            rest = tuple(looser if other == line else other for other in request.requirements)
            resolved = tool.resolve(request.model_copy(update={"requirements": rest}), folder)
            if isinstance(resolved, Refusal):
                missing = [
                    name for name in refusals.without_wheels(resolved.reason) if name not in without_wheels
                ]
                remarks += [refusals.not_enough(line, name, chains, request.python) for name in missing]
                continue
            if (version := pinned_versions(resolved).get(Requirement(line).name)) is not None:
                loosen.append(refusals.loosening(line, version))
            break
    others = () if python else tuple(dict.fromkeys(remarks))
    return refusal.model_copy(
        update={"chains": chains, "loosen": tuple(loosen), "python": python, "remarks": others}
    )


def _other_python(request: LockRequest, tool: PackageTool, folder: Path) -> str | None:
    """The nearest Python with which the same requirements resolve: older ones first, as wheels come late."""
    for python in refusals.other_pythons(request.python):
        say(StageName.ENVIRONMENT, f"no solution; trying Python {python}")
        if isinstance(tool.resolve(request.model_copy(update={"python": python}), folder), str):
            return python
    return None


def _existing_lock(path: Path, request: LockRequest) -> Locked | None:
    """The lock on disk, unless it is damaged or belongs to another request."""
    try:
        content = locks.read_lock(path.read_text(), str(path))
    except (FileNotFoundError, UnicodeDecodeError, WrongUseError):
        return None
    except IsADirectoryError as error:
        raise as_disk_fault(error, path) from error
    if content.request != request:
        return None
    return read_locked(path, request)


def read_locked(path: Path, otherwise: LockRequest) -> Locked:
    """A lock file as a value; `otherwise` is the request if the file names none. Raises `WrongUseError`."""
    content = locks.read_lock(path.read_text(), str(path))
    return Locked(
        path=path,
        digest=digest_of_file(path),
        packages=content.packages,
        request=content.request or otherwise,
    )


def environment_folder(locked: Locked, settings: Settings) -> Path:
    """Folder of a lock's environment."""
    return settings.environments / short(locked.digest)


def build(
    locked: Locked, tool: PackageTool, trial: Trial, settings: Settings, into: Path | None = None
) -> Built:
    """The environment of that lock: the existing one, else a new one, built next to it and renamed into place.

    Raises `MissingToolError` if the Python is missing, `NetworkError`, `DiskFullError`, and `WrongUseError` for a
    lock of another platform or a folder with other content.
    """
    if locked.request.manager is EnvironmentManager.SYSTEM:
        return _adopted(locked, trial)
    folder = into.absolute() if into else environment_folder(locked, settings)
    if locked.request.platform != tool.platform:
        raise WrongUseError(
            f"the lock {locked.path} is for {locked.request.platform}, this machine is {tool.platform}",
            fix="make a lock on this machine: slipway env lock",
        )
    sweep_leftovers(settings.environments, settings.leases)
    with held(folder, settings):
        if (standing := standing_environment(folder, locked.digest, trial)) is not None:
            return standing
        if into and folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
            raise WrongUseError(f"{folder} contains something else", fix="name a new folder")
        discard(*folder.parent.glob(f"{folder.name}.*{PART}"))
        start = time.monotonic()
        # Unique to this process: the installer of a killed run may still write into its own.
        part = beside(folder, f".{os.getpid()}")
        try:
            marker = _fill(part, folder, locked, tool, trial, start)
            _put_in_place(part, folder)
        finally:
            discard(part, beside(folder, ".old"))
        if not trial.alive(folder / "bin" / "python"):
            raise SlipwayError(
                f"the Python of {folder} does not run after it was moved into place",
                fix="look at the log of this run, then try again",
            )
        return _built(folder, marker)


def _adopted(locked: Locked, trial: Trial) -> Built:
    start = time.monotonic()
    python = _python_of(locked.request)
    inventory = read_inventory(python, trial)
    return Built(
        path=python.parent.parent,
        python_path=python,
        lock_digest=locked.digest,
        python_version=inventory.markers["python_full_version"],
        packages=inventory.packages,
        size_bytes=0,  # none of it belongs to Slipway
        build_s=time.monotonic() - start,
    )


def _fill(part: Path, folder: Path, locked: Locked, tool: PackageTool, trial: Trial, start: float) -> Marker:
    """Fill the environment, the marker last."""
    part.parent.mkdir(parents=True, exist_ok=True)
    python_version = locked.request.python
    say(StageName.ENVIRONMENT, f"installing {len(locked.packages)} packages for Python {python_version}")
    python = tool.install(locked, part, folder)
    bring(part, locked.request.libraries)
    write_atomically(part / LOCK_COPY, locked.path.read_bytes())
    inventory = read_inventory(python, trial)
    os.sync()  # one flush of everything takes milliseconds, an fsync of each file takes seconds
    marker = Marker(
        lock_digest=locked.digest,
        python_version=inventory.markers["python_full_version"],
        packages=inventory.packages,
        size_bytes=sum(path.lstat().st_size for path in part.rglob("*")),
        build_s=time.monotonic() - start,
    )
    note_files(part)
    write_atomically(part / MARKER, marker.model_dump_json(indent=1) + "\n")
    return marker


def _put_in_place(part: Path, folder: Path) -> None:
    """Rename; a broken environment of the same name is moved aside first."""
    if folder.exists():
        folder.rename(beside(folder, ".old"))
    part.rename(folder)
    fsync_folder(folder.parent)


def standing_environment(folder: Path, lock_digest: str, trial: Trial) -> Built | None:
    """The finished environment in `folder`, if it belongs to that lock, its files are unchanged and its
    Python runs."""
    try:
        marker = Marker.model_validate_json((folder / MARKER).read_bytes())
        copy_digest = digest_of_file(folder / LOCK_COPY)
    except (OSError, ValidationError):
        return None
    if not marker.lock_digest == copy_digest == lock_digest or not _is_unharmed(folder):
        return None
    if not trial.alive(folder / "bin" / "python"):
        return None
    touch_used(folder)
    return _built(folder, marker)


def _is_unharmed(folder: Path) -> bool:
    doubted = is_doubted(folder)
    changed = changed_files(folder, deep=doubted)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        say(
            StageName.ENVIRONMENT,
            f"{folder / changed[0]}{more} changed since it was installed: rebuilding",
        )
        return False
    if doubted:
        settle_doubt(folder)
    return True


def _built(folder: Path, marker: Marker) -> Built:
    return Built(path=folder, python_path=folder / "bin" / "python", **marker.model_dump())


def still_good(result: EnvironmentResult, trial: Trial) -> bool:
    """Whether a recorded result's lock and environment exist unharmed, and its Python runs."""
    if result.lock_path is None or result.lock_digest is None or result.environment_path is None:
        return False
    if not result.lock_path.is_file() or digest_of_file(result.lock_path) != result.lock_digest:
        return False
    content = locks.read_lock(result.lock_path.read_text(), str(result.lock_path))
    if content.request is not None and content.request.manager is EnvironmentManager.SYSTEM:
        return read_inventory(_python_of(content.request), trial).packages == content.packages
    return standing_environment(result.environment_path, result.lock_digest, trial) is not None


def prove_built(built: Built, engine: Engine, trial: Trial, settings: Settings) -> Proof:
    """The proof of a built environment; one at a time, so that no other run removes its model."""
    with held(built.path, settings):
        return prove(built.python_path, engine, engine.card.imports, trial, beside(built.path, ".proof"))
