"""What the environment stage decides: what names a lock, what requires what, and the verdict. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from tasks.core.errors import SpecError
from tasks.core.spec_kinds import EnvironmentManager
from tasks.core.spec_sections import Environment
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.base import Engine
from tasks.engines.card import SystemLibrary
from tasks.environment.models import (
    Conflict,
    EnvironmentRequest,
    LockRequest,
    Proof,
)


class Machine(Protocol):
    """The properties of a machine that a lock depends on."""

    @property
    def platform(self) -> str:
        """The platform of this machine's locks."""

    def lacks(self, soname: str) -> bool:
        """Whether there is no shared library of that name."""


def lock_request(engine: Engine, request: EnvironmentRequest, machine: Machine) -> LockRequest:
    """The request that names this environment's lock. Raises `SpecError` for an invalid requirement."""
    environment, own = request.environment, engine.card.requirements_of(request.engine_version)
    if not own:
        raise SpecError(
            f"{engine.kind} has no Python environment: its vendor ships it as a program or an image",
            fix="look at its card: slipway engines --json",
        )
    if environment.manager is EnvironmentManager.SYSTEM:
        return make_lock_request(own, machine.platform, environment)
    if environment.manager is EnvironmentManager.CONDA:
        specs = tuple(map(match_spec, own))
        return make_lock_request((*specs, *environment.requirements), machine.platform, environment)
    brought = tuple(
        library for library in engine.card.system_library if library.wheel and machine.lacks(library.soname)
    )
    requirements = (*own, *environment.requirements)
    return make_lock_request(requirements, machine.platform, environment, libraries=brought)


def make_lock_request(
    requirements: Iterable[str],
    platform: str,
    environment: Environment,
    *,
    libraries: tuple[SystemLibrary, ...] = (),
) -> LockRequest:
    """The same request for the same requirements, whatever their order and spelling. Raises `SpecError`."""
    if environment.torch_backend == "auto":
        raise SpecError("torch_backend auto is not decided yet", fix="name one, such as cpu or cu126")
    if not re.fullmatch(r"3\.\d+", environment.python):
        raise SpecError(f"{environment.python!r} is not a Python version", fix="write it as 3.11")
    wheels = [library.wheel for library in libraries if library.wheel]
    if environment.manager is EnvironmentManager.CONDA:
        parsed = {" ".join(line.split()) for line in requirements} | {f"python {environment.python}.*"}
    else:
        parsed = {_canonical(line) for line in (*requirements, *wheels)}
    if not parsed:
        raise SpecError("there are no requirements to lock", fix="name at least one package")
    return LockRequest(
        requirements=tuple(sorted(parsed)),
        platform=platform,
        libraries=libraries,
        **environment.model_dump(exclude={"requirements"}),
    )


def match_spec(line: str) -> str:
    """A PEP 508 requirement in conda's words: `numpy>=2,<3` is `numpy >=2,<3`, `a~=1.2` is `a ~=1.2`."""
    requirement = Requirement(line)
    return f"{canonicalize_name(requirement.name)} {requirement.specifier}".strip()


def parse_requirements(text: str, source: str) -> tuple[str, ...]:
    """Requirements of a file, one per line, without comments. Raises `SpecError` that names the line."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if not bare:
            continue
        try:
            found.append(_canonical(bare))
        except SpecError as error:
            raise SpecError(f"{source}, line {number}: {error.what}", fix=error.fix) from None
    return tuple(found)


_TORCH_INDEX = re.compile(r"download\.pytorch\.org/whl/(cpu|cu[0-9]{3})")
_OPTIONS = {
    (
        "--extra-index-url",
        "--index-url",
        "-i",
    ): "Slipway takes packages from the index that is configured for uv "
    "(UV_DEFAULT_INDEX), or from a folder of wheels: --wheels FOLDER",
    ("--find-links", "-f"): "download the wheels, and give their folder: --wheels FOLDER",
    ("-r", "--requirement"): "copy the lines of that file into this one",
    ("-c", "--constraint"): "write its versions into this file as requirements",
    ("-e", "--editable"): "build a wheel of it (`pip wheel`), and give its folder: --wheels FOLDER",
}


def _refuse_option(line: str) -> None:
    """Raise a `SpecError` that says what to give instead, for a line that is an option of pip."""
    name = re.split(r"[ =]", line, maxsplit=1)[0]
    if not name.startswith("-"):
        return
    fix = next((text for names, text in _OPTIONS.items() if name in names), "remove the line")
    if (build := _TORCH_INDEX.search(line)) is not None:
        fix = f"remove the line, and name torch's build instead: --torch-backend {build[1]}"
    raise SpecError(f"{line[:80]!r} is an option of pip, not a requirement", fix=fix)


def _canonical(line: str) -> str:
    _refuse_option(line)
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0].rstrip(".:")
        raise SpecError(
            f"{line[:80]!r} is not a requirement: {why[:200]}",
            fix="write it as PEP 508 says, for example numpy>=2,<3",
        ) from None
    if requirement.url and "@" in urlsplit(requirement.url).netloc:
        raise SpecError(
            f"the address of {requirement.name} contains credentials",
            fix="put them into a netrc file instead",
        )
    requirement.name = canonicalize_name(requirement.name)
    return str(requirement)


def own_requirements(engine: Engine, version: str | None = None) -> frozenset[str]:
    """The engine's own requirements at that release, as locks spell them."""
    return frozenset(map(_canonical, engine.card.requirements_of(version)))


def attribute(
    conflicts: Sequence[Conflict], engine: Engine, version: str | None = None
) -> tuple[Conflict, ...]:
    """The same conflicts; requirements of the engine name the engine instead of the user."""
    own = own_requirements(engine, version)
    return tuple(
        one.model_copy(update={"required_by": str(engine.kind)})
        if one.required_by is None and one.requirement and _is_one_of(one.requirement, own)
        else one
        for one in conflicts
    )


def _is_one_of(requirement: str, canonical: frozenset[str]) -> bool:
    try:
        return _canonical(requirement) in canonical
    except SpecError:
        return False  # the resolver's text is not always a requirement


def judge(conflicts: Sequence[Conflict], proof: Proof) -> tuple[EnvironmentVerdict, str | None]:
    """The verdict and its reason. A set that does not import, compute or start is not sound, whatever its
    metadata says. Neither is one that is known to fail, unless it was seen to work. Other conflicts only flag
    a set that works."""
    if proof.failure:
        return EnvironmentVerdict.CONFLICTING, proof.failure
    worst = min(conflicts, key=lambda conflict: conflict.severity != "block", default=None)
    if worst is None:
        return EnvironmentVerdict.SOUND, None
    more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    blocks = worst.severity == "block"
    verdict = EnvironmentVerdict.CONFLICTING if blocks else EnvironmentVerdict.FLAGGED
    return verdict, describe(worst) + more


def describe(conflict: Conflict) -> str:
    """A conflict in one line: what requires what, and what is installed."""
    if conflict.reason:
        return conflict.reason
    who = f"{conflict.required_by} requires" if conflict.required_by else "you require"
    there = f"{conflict.package} {conflict.installed} is" if conflict.installed else "it is not"
    wanted = conflict.requirement or conflict.package
    return f"{who} {wanted}, but {there} installed"
