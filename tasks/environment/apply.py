"""The effects of the environment stage: lock, build, check, prove. Each is idempotent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from tasks.core.digests import digest_of, digest_of_file, short
from tasks.core.errors import BusyError, EngineError, SlipwayError, WrongUseError
from tasks.core.files import PART, file_lock, fsync_folder, write_atomically
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.spec import EngineKind
from tasks.core.verdicts import StageName
from tasks.engines.base import CommandLine, Engine, ServingConfig
from tasks.environment import plan
from tasks.environment.libraries import bring
from tasks.environment.models import (
    Built,
    Checked,
    Conflict,
    EngineProof,
    EnvironmentResult,
    ImportProof,
    Inventory,
    Locked,
    LockRequest,
    Marker,
    Proof,
    Refusal,
)

MARKER = "slipway-environment.json"
LOCK_COPY = "slipway-environment.lock"
_WORKERS = Path(__file__).parent / "worker"
_TINY_MODEL: dict[EngineKind, Path] = {EngineKind.LLAMA_CPP: _WORKERS / "prove_llama_cpp.py"}
"""The worker that writes the model an engine is started on, by kind."""

_LAST_WRITES_S = 5.0
_SERVED_NAME = "proof"
_PROMPT, _TOKENS, _CONTEXT, _START_TIMEOUT_S = "Slipway", 8, 64, 120.0


class PackageTool(plan.Machine, Protocol):
    """What resolves and installs packages on this machine."""

    def resolve(self, request: LockRequest, requirements: Path) -> str | Refusal:
        """Pins with hashes, or why there are none."""

    def find_python(self, version: str) -> str:
        """An installed Python of that version."""

    def create(self, folder: Path, python: str) -> Path:
        """A new empty environment that may be renamed; its Python."""

    def sync(self, python: Path, lock: Path) -> None:
        """Install what the lock pins, nothing else."""

    def complaints(self, python: Path) -> tuple[Conflict, ...]:
        """Installed packages whose requirements are not met."""


class WorkerAnswer(Protocol):
    """What a worker did."""

    @property
    def code(self) -> int: ...

    @property
    def stdout(self) -> str: ...

    @property
    def stderr(self) -> str: ...


class FirstCompletion(Protocol):
    """What an engine answered first, and how long that took from its start."""

    @property
    def start_s(self) -> float: ...

    @property
    def text(self) -> str: ...

    @property
    def output_tokens(self) -> int: ...


class Trial(Protocol):
    """What runs code inside an environment."""

    def alive(self, python: Path) -> bool:
        """Whether that Python runs at all."""

    def run_worker(self, python: Path, worker: Path, *arguments: str) -> WorkerAnswer:
        """Run a script to its end."""

    def first_completion(
        self, command: CommandLine, *, served_name: str, log: Path, prompt: str, tokens: int, timeout_s: float
    ) -> FirstCompletion:
        """Start an engine, let it complete a prompt, end it. Raises `EngineError`."""


def lock(request: LockRequest, tool: PackageTool, settings: Settings) -> Locked | Refusal:
    """The lock of that name: the one that is there, else a new one. Without a new one, no network is needed.

    Of several callers at once one resolves; the others wait and read. Raises `NetworkError`.
    """
    name = short(request.digest)
    path = settings.locks / f"{name}.txt"
    with file_lock(settings.leases / f"lock-{name}", wait=True, holder=f"the lock {name}"):
        if (found := _existing_lock(path, request)) is not None:
            return found
        _discard(*settings.locks.glob(f"{name}*{PART}"))
        say(StageName.ENVIRONMENT, f"resolving {len(request.requirements)} requirements")
        with _scratch(settings.locks / f"{name}.{os.getpid()}{PART}") as folder:
            requirements = folder / "requirements.in"
            requirements.write_text("".join(f"{line}\n" for line in request.requirements))
            resolved = tool.resolve(request, requirements)
        if isinstance(resolved, Refusal):
            return resolved
        write_atomically(path, plan.render_lock(request, resolved))
    return read_locked(path, python=request.python, platform=request.platform)


def _existing_lock(path: Path, request: LockRequest) -> Locked | None:
    """The lock on disk, unless it is damaged or some other request's."""
    try:
        content = plan.read_lock(path.read_text(), str(path))
    except (FileNotFoundError, UnicodeDecodeError, WrongUseError):
        return None
    if content.request != request:
        return None
    return read_locked(path, python=request.python, platform=request.platform)


def read_locked(path: Path, *, python: str, platform: str) -> Locked:
    """A lock file as a value; `python` and `platform` hold where the file itself does not say. Raises
    `WrongUseError`."""
    content = plan.read_lock(path.read_text(), str(path))
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
        _discard(*folder.parent.glob(f"{folder.name}.*{PART}"))
        start = time.monotonic()
        # Of this process alone: what a killed run's installer still writes in its last moment goes elsewhere.
        part = _beside(folder, f".{os.getpid()}")
        try:
            marker = _fill(part, locked, tool, trial, start)
            _put_in_place(part, folder)
        finally:
            _discard(part, _beside(folder, ".old"))
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
        folder.rename(_beside(folder, ".old"))
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


def read_inventory(python: Path, trial: Trial) -> Inventory:
    """All that is installed beside that Python. Raises `SlipwayError` if it cannot say."""
    answer = trial.run_worker(python, _WORKERS / "read_packages.py")
    try:
        return Inventory.model_validate_json(answer.stdout)
    except ValidationError:
        raise SlipwayError(
            f"{python} cannot say what is installed beside it (exit status {answer.code})",
            fix="name the folder of a Python environment",
            detail=answer.stderr.strip()[-2000:],
        ) from None


def check(python: Path, tool: PackageTool, trial: Trial) -> Checked:
    """Complaints about the installed set, and who requires whom in it."""
    say(StageName.ENVIRONMENT, "checking for conflicts")
    inventory = read_inventory(python, trial)
    edges = plan.dependencies(inventory)
    return Checked(
        packages=inventory.packages,
        conflicts=tool.complaints(python),
        dependencies=edges,
        modules=plan.roots(inventory, edges),
    )


def prove(
    python: Path, engine: Engine | None, modules: tuple[str, ...], trial: Trial, scratch: Path
) -> Proof:
    """Import `modules` in that environment, then start `engine` on a tiny random model and let it generate.

    `scratch` is a folder for the model and the log; it is made and removed here. A failure is an answer.
    """
    say(StageName.ENVIRONMENT, f"importing {', '.join(modules) or 'nothing'}")
    imports = _prove_imports(python, modules, trial)
    if engine is None:
        # Modules that nothing uses together may not stand each other: what fails in company is tried alone.
        imports = tuple(one if one.ok else _prove_imports(python, (one.module,), trial)[0] for one in imports)
    if engine is None or not all(proof.ok for proof in imports):
        return Proof(imports=imports)
    with _scratch(scratch) as folder:
        return Proof(imports=imports, engine=_prove_engine(python, engine, trial, folder))


def prove_built(built: Built, engine: Engine, trial: Trial, settings: Settings) -> Proof:
    """The proof of a built environment; one at a time, so that no other run sweeps its model away."""
    with held(built.path, settings):
        scratch = _beside(built.path, ".proof")
        return prove(built.python_path, engine, engine.imports, trial, scratch)


def _prove_imports(python: Path, modules: tuple[str, ...], trial: Trial) -> tuple[ImportProof, ...]:
    answer = trial.run_worker(python, _WORKERS / "import_modules.py", *modules)
    proofs = [ImportProof.model_validate(json.loads(line)) for line in answer.stdout.splitlines()]
    if len(proofs) < len(modules):
        guilty, *unseen = modules[len(proofs) :]
        proofs.append(ImportProof(module=guilty, ok=False, seconds=0, reason=_death(answer)))
        proofs += [
            ImportProof(module=module, ok=False, seconds=0, reason=f"not reached after {guilty}")
            for module in unseen
        ]
    return tuple(proofs)


def _prove_engine(python: Path, engine: Engine, trial: Trial, folder: Path) -> EngineProof:
    say(StageName.ENVIRONMENT, f"starting {engine.kind}")
    model = folder / "tiny.model"
    written = trial.run_worker(python, _TINY_MODEL[engine.kind], str(model))
    if written.code != 0:
        return EngineProof(ok=False, reason=f"no model could be written for it: {_death(written)}")
    config = ServingConfig(served_name=_SERVED_NAME, batch=1, context=_CONTEXT, threads=1)
    command = engine.command(str(python), str(engine.server_worker), str(model), config)
    try:
        answer = trial.first_completion(
            command,
            served_name=_SERVED_NAME,
            log=folder / "engine.log",
            prompt=_PROMPT,
            tokens=_TOKENS,
            timeout_s=_START_TIMEOUT_S,
        )
    except EngineError as error:
        last = error.detail.strip().splitlines()[-1:] if error.detail else []
        return EngineProof(ok=False, reason=": ".join([error.what, *last]))
    return EngineProof(
        ok=True, start_s=answer.start_s, completion=answer.text, output_tokens=answer.output_tokens
    )


def _death(answer: WorkerAnswer) -> str:
    """Why a worker ended early; the leash gives a death by signal as 128 and the signal's number."""
    last = answer.stderr.strip().splitlines()[-1:]
    if answer.code > 128:
        with contextlib.suppress(ValueError):
            return ": ".join(
                [f"the interpreter was killed by {signal.Signals(answer.code - 128).name}", *last]
            )
    return ": ".join([f"the interpreter ended with {answer.code}", *last])


def still_good(result: EnvironmentResult, trial: Trial) -> bool:
    """Whether a recorded result's lock and environment are there unharmed and its Python runs."""
    if result.lock_path is None or result.lock_digest is None or result.environment_path is None:
        return False
    if not result.lock_path.is_file() or digest_of_file(result.lock_path) != result.lock_digest:
        return False
    return standing_environment(result.environment_path, result.lock_digest, trial) is not None


def sweep_leftovers(folder: Path, leases: Path) -> list[Path]:
    """Remove unfinished environments that killed runs left; those that somebody builds now stay."""
    removed = []
    for part in sorted(folder.glob(f"*{PART}")):
        name = part.name.partition(".")[0]
        with (
            contextlib.suppress(BusyError),
            file_lock(leases / f"environment-{name}", wait=False, holder=f"the environment {name}"),
        ):
            _discard(part)
            removed.append(part)
    return removed


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f"{folder.name}{kind}{PART}")


@contextlib.contextmanager
def held(folder: Path, settings: Settings) -> Iterator[None]:
    """Only this run changes that environment, or what is beside it, meanwhile."""
    own = folder.parent == settings.environments
    name = folder.name if own else short(digest_of(str(folder)))
    with file_lock(settings.leases / f"environment-{name}", wait=True, holder=f"the environment {folder}"):
        yield


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    _discard(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _discard(folder)


def _discard(*paths: Path) -> None:
    """Remove files and folders. A folder is tried again for a moment: the children of a killed run die just
    after it, and one may still be writing there."""
    for path in paths:
        deadline = time.monotonic() + _LAST_WRITES_S
        while path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=time.monotonic() < deadline)
        path.unlink(missing_ok=True)
