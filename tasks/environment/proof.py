"""Check an environment by inspecting it and by running it: the conflict check and the smoke test."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from tasks.core.errors import EngineError, SlipwayError
from tasks.core.progress import say
from tasks.core.serving import ServingConfig
from tasks.core.verdicts import StageName
from tasks.core.workers import WorkerAnswer, WorkerRunner
from tasks.engines.base import CommandLine, Engine
from tasks.environment import dependencies
from tasks.environment.binaries import glibc_needs
from tasks.environment.files import scratch
from tasks.environment.hidden_conflicts import hidden_conflicts
from tasks.environment.models import (
    Checked,
    Computation,
    Conflict,
    EngineProof,
    ImportProof,
    Inventory,
    Proof,
)

_WORKERS = Path(__file__).parent / "worker"
_SERVED_NAME = "proof"
_PROMPT, _TOKENS, _CONTEXT, _START_TIMEOUT_S = "Slipway", 8, 64, 120.0


class FirstCompletion(Protocol):
    """An engine's first answer, and the time from its start to that."""

    @property
    def start_s(self) -> float: ...

    @property
    def text(self) -> str: ...

    @property
    def output_tokens(self) -> int: ...


class Trial(WorkerRunner, Protocol):
    """What runs code inside an environment."""

    @property
    def has_gpu(self) -> bool:
        """Whether a framework built for CUDA should find a device on this host."""

    def alive(self, python: Path) -> bool:
        """Whether that Python runs at all."""

    def first_completion(
        self, command: CommandLine, *, served_name: str, log: Path, prompt: str, tokens: int, timeout_s: float
    ) -> FirstCompletion:
        """Start an engine, have it complete a prompt, end it. Raises `EngineError`."""


class Checker(Protocol):
    """Reads the metadata of an installed set, and knows this machine."""

    @property
    def glibc(self) -> str | None:
        """Version of this machine's glibc; None with another C library."""

    def complaints(self, python: Path) -> tuple[Conflict, ...]:
        """Installed packages whose requirements are not met."""


def read_inventory(python: Path, trial: Trial) -> Inventory:
    """Everything that is installed for that Python. Raises `SlipwayError` if it cannot tell."""
    answer = trial.run_worker(python, _WORKERS / "read_packages.py")
    try:
        return Inventory.model_validate_json(answer.stdout)
    except ValidationError:
        raise SlipwayError(
            f"{python} cannot list its packages (exit status {answer.code})",
            fix="name the folder of a Python environment",
            detail=answer.stderr.strip()[-2000:],
        ) from None


def check(python: Path, checker: Checker, trial: Trial) -> Checked:
    """Complaints about the installed set, conflicts that its metadata hides, and who requires whom."""
    say(StageName.ENVIRONMENT, "checking for conflicts")
    inventory = read_inventory(python, trial)
    edges = dependencies.dependencies(inventory)
    needs = glibc_needs(inventory.site_packages) if inventory.site_packages else {}
    return Checked(
        packages=inventory.packages,
        conflicts=(*checker.complaints(python), *hidden_conflicts(inventory, needs, checker.glibc)),
        dependencies=edges,
        modules=dependencies.roots(inventory, edges),
    )


def prove(
    python: Path, engine: Engine | None, modules: tuple[str, ...], trial: Trial, scratch_folder: Path
) -> Proof:
    """Import `modules` in that environment, compute a little with them, then start `engine` on a tiny random model
    and have it generate. An engine for which no tiny model can be written is proved by its modules alone.

    `scratch_folder` is for the model and the log; it is created and removed here. A failure is an answer.
    """
    say(StageName.ENVIRONMENT, f"importing {', '.join(modules) or 'nothing'}")
    imports = _prove_imports(python, modules, trial)
    if engine is None:
        # Modules that are never used together may conflict: one that fails after others is tried alone.
        imports = tuple(one if one.ok else _prove_imports(python, (one.module,), trial)[0] for one in imports)
    if not all(proof.ok for proof in imports):
        return Proof(imports=imports)
    computations = _compute(python, modules, trial)
    writer = engine.tiny_model if engine else None
    if engine is None or writer is None or not all(computation.ok for computation in computations):
        return Proof(imports=imports, computations=computations)
    with scratch(scratch_folder) as folder:
        proven = _prove_engine(python, engine, writer, trial, folder)
        return Proof(imports=imports, computations=computations, engine=proven)


def _prove_imports(python: Path, modules: Sequence[str], trial: Trial) -> tuple[ImportProof, ...]:
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


def _compute(python: Path, modules: Sequence[str], trial: Trial) -> tuple[Computation, ...]:
    hardware = "gpu" if trial.has_gpu else "cpu"
    answer = trial.run_worker(python, _WORKERS / "compute.py", hardware, *modules)
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    found = [Computation.model_validate(line) for line in lines if "ok" in line]
    if lines and lines[-1].keys() == {"what"}:
        found.append(Computation(what=lines[-1]["what"], ok=False, seconds=0, reason=_death(answer)))
    return tuple(found)


def _prove_engine(python: Path, engine: Engine, writer: Path, trial: Trial, folder: Path) -> EngineProof:
    """Start it on a tiny model, on the processor: a GPU may be another service's."""
    say(StageName.ENVIRONMENT, f"starting {engine.kind}")
    model = folder / "tiny.model"
    written = trial.run_worker(python, writer, str(model))
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
    """Why a worker ended early; the guard reports a signal as 128 plus the signal's number."""
    last = answer.stderr.strip().splitlines()[-1:]
    if answer.code > 128:
        with contextlib.suppress(ValueError):
            return ": ".join(
                [f"the interpreter was killed by {signal.Signals(answer.code - 128).name}", *last]
            )
    return ": ".join([f"the interpreter exited with {answer.code}", *last])
