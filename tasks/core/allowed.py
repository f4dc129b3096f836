"""What a run requested through the API may start: what Slipway built, and what is on a list (docs/adr/0080).

This does not apply to a deploy from a terminal. A request to the API may come from a form, an event or a program with
the key, and must not choose programs: an existing environment, wheels, channels, the base image, arguments and
variables that have an engine load code. Each must be on the administrator's list, `allowed.toml` in the home, or it
is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import ValidationError, field_validator

from tasks.core.errors import SpecError, WrongUseError
from tasks.core.frozen import Frozen, first_wrong
from tasks.core.given_files import check_path
from tasks.core.home import ALLOWED
from tasks.core.paths import shown
from tasks.core.spec_kinds import EnvironmentManager, Target
from tasks.core.spec_sections import Environment, Rollout, Serving

FILE = ALLOWED
"""Name of the list in `SLIPWAY_HOME`."""

_PLAIN_CHANNEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_.-]+)*")


class Kind(StrEnum):
    """The kind of thing; also the name of its list."""

    FOLDER = "folders"
    ADDRESS = "addresses"
    IMAGE = "images"
    ARGUMENT = "arguments"
    VARIABLE = "variables"


class Program(Frozen):
    """Something that would be run, or installed and then run; `key` is the request's key for it."""

    key: str
    kind: Kind
    value: str


class Allowed(Frozen):
    """The administrator's list. A folder allows everything below it, an address everything that begins with it, an
    image without tag and digest all its tags and digests. Arguments and variables of engines are allowed by name,
    with any value."""

    folders: tuple[Path, ...] = ()
    addresses: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @field_validator("folders")
    @classmethod
    def _absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for folder in value:
            if not folder.is_absolute():
                raise ValueError(f"{str(folder)!r} is not an absolute path")
            check_path(str(folder))
        return value

    @field_validator("addresses")
    @classmethod
    def _of_a_host(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """`https://example.org` would also allow `https://example.org.evil.example`."""
        for address in value:
            parts = urlsplit(address)
            if not parts.netloc or not address.endswith("/"):
                raise ValueError(
                    f"{address!r} is not an address that ends with /, such as https://example.org/wheels/"
                )
        return value

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """The list in a file. Raises a `WrongUseError` that names the problem: a damaged list allows nothing."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            reason = first_wrong(error)
        except (ValueError, RecursionError) as error:  # thousands of digits in a number, or of brackets
            reason = f"not TOML: {error}"
        names = ", ".join(f"`{kind.value}`" for kind in Kind)
        raise WrongUseError(
            f"{source}: {reason}",
            fix=f"write lists named {names}, or remove the file",
        )

    def holds(self, program: Program) -> bool:
        """Whether the list contains it. A folder's path must have no links and no `..`."""
        match program.kind:
            case Kind.FOLDER:
                # Installers turn a backslash in a file: address into a slash.
                return "\\" not in program.value and any(
                    Path(program.value).is_relative_to(folder) for folder in self.folders
                )
            case Kind.ADDRESS:
                return any(_begins_with(program.value, address) for address in self.addresses)
            case Kind.IMAGE:
                alike = (
                    image for image in self.images if program.value.startswith((f"{image}:", f"{image}@"))
                )
                return program.value in self.images or any(alike)
            case Kind.ARGUMENT:
                return program.value in self.arguments
            case Kind.VARIABLE:
                return program.value in self.variables


def _begins_with(address: str, allowed: str) -> bool:
    """Whether an address leads to a place below an allowed one, however an installer reads it.

    Installers turn backslashes into slashes, drop spaces, and follow `..`, even if it is percent-encoded.
    """
    try:
        here, there = urlsplit(address), urlsplit(allowed)
    except ValueError:
        return False
    if "\\" in address or not address.isprintable() or " " in address or _walks(here.path):
        return False
    return (
        here.scheme == there.scheme
        and _host_and_user(here) == _host_and_user(there)
        and here.path.startswith(there.path)
    )


def _walks(path: str) -> bool:
    """Whether a path has `.` or `..` components, or a backslash, after all percent-decoding."""
    while (decoded := unquote(path)) != path:
        path = decoded
    return "\\" in path or not {".", ".."}.isdisjoint(path.split("/"))


def _host_and_user(parts: SplitResult) -> tuple[str, str, str]:
    """Credentials and host of an address. Only the host ignores case."""
    user, at, host = parts.netloc.rpartition("@")
    return user, at, host.lower()


def check_allowed(programs: Iterable[Program], allowed: Allowed, source: str) -> None:
    """Raise `WrongUseError` for the first that the list does not contain. `source` is the list's path."""
    for program in programs:
        if not allowed.holds(program):
            raise WrongUseError(
                f"{program.key} is {program.value}, which a run requested through the API may not use",
                fix=f"deploy it from a terminal, or have the administrator add it to `{program.kind}` in {source}",
            )


def programs_of_environment(environment: Environment, key: str) -> list[Program]:
    """What an environment would run, other than packages from the configured index."""
    found = [
        Program(key=f"{key}.{name}", kind=Kind.FOLDER, value=str(path))
        for name, path in (("path", environment.path), ("wheels", environment.wheels))
        if path is not None
    ]
    conda = environment.manager is EnvironmentManager.CONDA
    for channel in environment.channels:
        if not _PLAIN_CHANNEL.fullmatch(channel):
            found.append(_located(f"{key}.channels", channel))
    for line in environment.requirements:
        place = _place_in_match_spec(line) if conda else _place_in_requirement(line)
        if place is not None:
            found.append(_located(f"{key}.requirements", place))
    return found


def programs_of_rollout(rollout: Rollout, target: Target, key: str) -> list[Program]:
    """The base image, unless it is the default."""
    if rollout.image is not None:
        return [Program(key=f"{key}.image", kind=Kind.IMAGE, value=rollout.image)]
    usual = Rollout.model_fields["base_image"].default
    if not target.in_image or rollout.base_image == usual:
        return []
    return [Program(key=f"{key}.base_image", kind=Kind.IMAGE, value=rollout.base_image)]


def programs_of_serving(serving: Serving, key: str) -> list[Program]:
    """The chat template: engines show it to their users, so it must not be any file of this host."""
    path = serving.chat_template
    return [] if path is None else [Program(key=f"{key}.chat_template", kind=Kind.FOLDER, value=str(path))]


def programs_of_code(serving: Serving, model: str, key: str) -> list[Program]:
    """The model, if the engine may run the code that it brings along."""
    return [_located(f"{key}.trust_remote_code", model)] if serving.trust_remote_code else []


def _located(key: str, place: str) -> Program:
    """A folder or an address. Raises `SpecError` for anything else."""
    try:
        parts = urlsplit(place)
    except ValueError:
        raise SpecError(f"{shown(place)} is not an address", fix=f"correct {key}") from None
    scheme = parts.scheme.rpartition("+")[2]
    if scheme in ("", "file") and parts.netloc in ("", "localhost"):
        return Program(key=key, kind=Kind.FOLDER, value=unquote(parts.path) or place)
    return Program(key=key, kind=Kind.ADDRESS, value=place)


def _place_in_requirement(line: str) -> str | None:
    """The address that a requirement names for its package; None if it uses the index. Raises `SpecError`."""
    try:
        return Requirement(line).url
    except InvalidRequirement:
        raise SpecError(
            f"{line!r} is not a requirement", fix="write it as PEP 508 says: numpy>=2,<3"
        ) from None


def _place_in_match_spec(line: str) -> str | None:
    """The place that a conda match spec names: `channel::package`, `package[channel=…]`, or the address of a file."""
    channel = re.search(r"""(?:channel|url|subdir)\s*=\s*['"]?([^'",\]\s]+)""", line)
    if channel:
        return channel[1]
    place, separator, _ = line.partition("::")
    if separator:
        return None if _PLAIN_CHANNEL.fullmatch(place.strip()) else place.strip()
    text = line.strip()
    return (
        text
        if "://" in text or text.startswith(("/", ".", "~")) or text.endswith((".conda", ".tar.bz2"))
        else None
    )
