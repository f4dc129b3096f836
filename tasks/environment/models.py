"""What the environment stage is asked for, what it finds, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name
from pydantic import Field

from tasks.core.digests import digest_of
from tasks.core.engine_options import EngineVersion
from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import DEFAULT_ENGINE, EngineKind, EnvironmentManager
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.card import SystemLibrary


class EnvironmentRequest(Frozen):
    """The engine, and what else its environment must contain."""

    engine: EngineKind = Field(DEFAULT_ENGINE, description="Serving engine.")
    engine_version: EngineVersion | None = Field(
        None, description="Release of the engine; the one that Slipway was tested with when empty."
    )
    environment: Environment = Field(Environment(), description="What makes it, and what else it contains.")

    @classmethod
    def of(cls, spec: DeploySpec) -> EnvironmentRequest:
        """The request of a deployment spec."""
        return cls(engine=spec.engine, engine_version=spec.engine_version, environment=spec.environment)


class LockRequest(Frozen):
    """Everything that names a lock: equal requests share one. `platform` is, for example, `linux-x86_64`.

    `torch_backend`, `wheels` and `channels` are those of the spec's `environment`; the first is never `auto` here.
    """

    requirements: tuple[str, ...]
    python: str
    platform: str
    manager: EnvironmentManager = EnvironmentManager.UV
    exclude_newer: str | None = None
    torch_backend: str | None = None
    wheels: Path | None = None
    channels: tuple[str, ...] = ()
    path: Path | None = None
    libraries: tuple[SystemLibrary, ...] = Field(
        (), description="Libraries that the host lacks and wheels contain."
    )

    @property
    def digest(self) -> str:
        """The lock's identity."""
        return digest_of(self)


class Conflict(Frozen):
    """`required_by` asks for `requirement`, which cannot be had; `installed` is what is there instead.

    `required_by` is None if the user asked, `installed` is None if nothing is there. `reason` is a sentence if
    there is more to say, `fix` says what to do, `rule` names the rule. A conflict that blocks refuses the set; one
    that warns flags it.
    """

    package: str
    required_by: str | None = None
    requirement: str | None = None
    installed: str | None = None
    reason: str | None = None
    fix: str | None = None
    rule: str | None = None
    severity: Literal["block", "warn"] = "warn"


class Locked(Frozen):
    """A lock on disk. `digest` is of its bytes; `packages` are name and version; `request` is what was asked for, as
    far as the file says."""

    path: Path
    digest: str
    packages: dict[str, str]
    request: LockRequest


class Loosening(Frozen):
    """A requirement that blocks by its version: without that, everything resolves, with `version`. It was tried.
    `back_to_major` if that goes back over a major version."""

    requirement: str
    version: str
    back_to_major: bool = False


class Refusal(Frozen):
    """The resolver's refusal: `reason` is its explanation, `conflicts` what requires what, `chains` the shortest ways
    from the user's requirements to the conflict, `loosen` what would help, `python` another Python with which
    everything resolves, and `remarks` what else is in the way."""

    reason: str
    conflicts: tuple[Conflict, ...] = ()
    chains: tuple[tuple[str, ...], ...] = ()
    loosen: tuple[Loosening, ...] = ()
    python: str | None = None
    remarks: tuple[str, ...] = ()


class Marker(Frozen):
    """Written into an environment last: it is complete, and this is its content."""

    lock_digest: str
    python_version: str
    packages: dict[str, str]
    size_bytes: int = Field(ge=0)
    build_s: float = Field(ge=0)


class Built(Marker):
    """A virtual environment under its final name."""

    path: Path
    python_path: Path


class Dependency(Frozen):
    """One edge of the installed set: `required_by` requires `package` as `requirement`."""

    package: str
    required_by: str
    requirement: str


class Distribution(Frozen):
    """One installed distribution as its own metadata describes it."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


class SharedFile(Frozen):
    """A file that several distributions installed, each with different content; the same distributions share `count`
    such files."""

    path: str
    owners: tuple[str, ...]
    count: int = 1


class Inventory(Frozen):
    """Everything installed in an environment, the marker values of its interpreter, and the folder of its
    packages."""

    distributions: tuple[Distribution, ...]
    markers: dict[str, str]
    shared: tuple[SharedFile, ...] = ()
    site_packages: Path | None = None

    @property
    def packages(self) -> dict[str, str]:
        """Name, in its canonical spelling, and version of each."""
        return {str(canonicalize_name(found.name)): found.version for found in self.distributions}


class Checked(Frozen):
    """The conflict check: conflicts in the installed set, and what requires what."""

    packages: dict[str, str]
    conflicts: tuple[Conflict, ...]
    dependencies: tuple[Dependency, ...]
    modules: tuple[str, ...] = Field(description="Modules of the distributions that nothing else requires.")


class ImportProof(Frozen):
    """The result of importing one module in the environment; `reason` says why it failed."""

    module: str
    ok: bool
    seconds: float = Field(ge=0)
    reason: str | None = None


class Computation(Frozen):
    """The result of a small computation with an imported module; `reason` says why it failed, `note` what it
    showed."""

    what: str
    ok: bool
    seconds: float = Field(ge=0)
    reason: str | None = None
    note: str | None = None


class EngineProof(Frozen):
    """The result of starting the engine with a tiny random model; `start_s` lasts until the first completion."""

    ok: bool
    start_s: float | None = None
    completion: str | None = None
    output_tokens: int | None = None
    reason: str | None = None


class Proof(Frozen):
    """The smoke test: imports first; computations and the engine only if they all worked."""

    imports: tuple[ImportProof, ...]
    computations: tuple[Computation, ...] = ()
    engine: EngineProof | None = None

    @property
    def failure(self) -> str | None:
        """The first thing that did not work, in one line; None for a sound set."""
        for proof in self.imports:
            if not proof.ok:
                return f"importing {proof.module} failed: {proof.reason}"
        for computation in self.computations:
            if not computation.ok:
                return f"{computation.what} failed: {computation.reason}"
        if self.engine is not None and not self.engine.ok:
            return f"the engine does not start: {self.engine.reason}"
        return None


class EnvironmentResult(StageResult):
    """The stage's answer. After a refusal there is no lock and no environment, only the conflicts."""

    verdict: EnvironmentVerdict
    reason: str | None = None
    lock_path: Path | None = None
    lock_digest: str | None = None
    environment_path: Path | None = None
    python_path: Path | None = None
    python_version: str | None = None
    engine_version: str | None = None
    packages: dict[str, str] = Field({})
    conflicts: tuple[Conflict, ...] = ()
    chains: tuple[tuple[str, ...], ...] = ()
    loosen: tuple[Loosening, ...] = ()
    python_instead: str | None = None
    remarks: tuple[str, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    proof: Proof | None = None
    size_bytes: int | None = None
    lock_s: float = 0.0
    build_s: float = 0.0

    @property
    def reasons(self) -> tuple[str, ...]:
        """The resolver's or the proof's own words (`StageResult.reasons`)."""
        return (self.reason,) if self.reason else ()
