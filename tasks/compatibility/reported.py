"""A host and what runs there, put together from reports of both. What no report states stays unknown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from packaging.version import Version

from tasks.compatibility.models import Survey
from tasks.compatibility.rules import ImageRow, Tables
from tasks.compatibility.subject import cuda_build_of, engine_of, find_engine, major_minor
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts, Gpu, release_number, version_or_none

_REGISTRIES = re.compile(r"^(?:docker\.io/|index\.docker\.io/|registry-1\.docker\.io/)")
_NAME = re.compile(r"([^@:\s]+(?::[0-9]+/[^@:\s]+)?)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@\S+)?")
_REQUIRE, _DISABLE = "NVIDIA_REQUIRE_", "NVIDIA_DISABLE_REQUIRE"
_CUDA_OF_IMAGE = ("CUDA_VERSION", "NV_CUDA_LIB_VERSION", "NV_CUDA_CUDART_VERSION")
_LEADING_VERSION = re.compile(r"[0-9]+\.[0-9]+(?:\.[0-9]+)*")


def merge(base: Survey, *reports: Survey) -> Survey:
    """The base with what each report states; of two that state a fact, the later counts."""
    values: dict[str, Any] = {}
    fault = None
    for survey in (base, *reports):
        values |= survey.facts.model_dump()
        fault = survey.fault or fault
    return base.model_copy(update={"facts": Facts.model_validate(values), "fault": fault})


def of_packages(packages: Mapping[str, str], tables: Tables) -> Survey:
    """What a list of packages says: the engine, its version, and the CUDA that they were built for.

    If there is a torch but none of its CUDA packages, the list was cut, or its torch brings CUDA itself: the build is
    then unknown.
    """
    known: dict[str, Any] = {"packages": dict(packages)}
    engine = engine_of(packages, tables)
    if engine is not None:
        known["engine"] = engine
    built = cuda_build_of(packages)
    local = Version(packages["torch"]).local if "torch" in packages else None
    row = find_engine(engine, tables)
    if built is not None or local == "cpu":
        known["cuda_build"] = built
    elif "torch" not in packages and row is not None and not row.needs_gpu:
        known["cuda_build"] = None
    return Survey(facts=Facts(**known))


def of_image(name: str, tables: Tables) -> Survey:
    """What the name of an image says: that it runs in Docker, and for images of the engines' makers, which engine.

    Raises `WrongUseError` for a text that is not the name of an image.
    """
    found = _NAME.fullmatch(_REGISTRIES.sub("", name))
    if found is None:
        raise WrongUseError(
            f"{name[:80]!r} is not the name of an image", fix="for example vllm/vllm-openai:v0.19.1"
        )
    known: dict[str, Any] = {"target": "docker"}
    repository, tag = found[1], found[2] or "latest"
    for row in tables.images:
        match = re.search(row.tag, tag)
        if row.image == repository and match:
            known |= _of_tag(row, match, tables)
            break
    return Survey(facts=Facts(**known))


def _of_tag(row: ImageRow, match: re.Match[str], tables: Tables) -> dict[str, Any]:
    groups = {name: value for name, value in match.groupdict().items() if value}
    known: dict[str, Any] = {"engine": row.engine}
    cuda = groups.get("cuda")
    if version := version_or_none(groups.get("version")):
        known |= _of_release(row.engine, version, tables, f"+cu{cuda}" if cuda else "")
    if cuda:
        known["cuda_build"] = f"{cuda[:2]}.{cuda[2]}"
    elif row.cpu:
        known["cuda_build"] = None
    return known


def _of_release(engine: str, version: str, tables: Tables, build: str = "") -> dict[str, Any]:
    """The release, with the torch that it pins; both in the `build` (`+cu129`) that the maker names."""
    release = Version(version).release
    listed = (row for row in tables.releases if row.package == engine)
    torch = next((row.torch for row in listed if Version(row.version).release == release), None)
    known: dict[str, Any] = {"engine_version": f"{version}{build}"}
    if torch:
        known["packages"] = {engine: f"{version}{build}", "torch": f"{torch}{build}"}
    return known


def of_environment(variables: Mapping[str, str]) -> Survey:
    """What the environment of an image says: its CUDA, and what it demands of the driver."""
    demands = [
        value for name, value in sorted(variables.items()) if name.startswith(_REQUIRE) and value.strip()
    ]
    disabled = variables.get(_DISABLE, "").strip().lower() in ("1", "t", "true")
    known: dict[str, Any] = {"target": "docker", "image_requires": () if disabled else tuple(demands)}
    for name in _CUDA_OF_IMAGE:
        if version := _LEADING_VERSION.match(variables.get(name, "")):
            known["cuda_build"] = major_minor(version[0])
            break
    return Survey(facts=Facts(**known))


def of_options(
    tables: Tables,
    known: Facts,
    *,
    gpus: Sequence[str] = (),
    driver: str | None = None,
    engine: str | None = None,
    target: str | None = None,
) -> Survey:
    """What the user adds. One name of a GPU names all those that a report counts. `engine` may be `vllm==0.19.1`.

    Raises `WrongUseError` for a driver or an engine that cannot be one.
    """
    added: dict[str, Any] = {}
    if target is not None:
        added["target"] = target
    if gpus:
        count = len(known.gpus) if len(gpus) == 1 and known.gpus else 1
        added["gpus"] = [Gpu(name=name) for name in gpus] * count
    if driver is not None:
        if version_or_none(driver) is None:
            raise WrongUseError(
                f"{driver[:80]!r} is not the version of a driver", fix="for example 535.154.05"
            )
        added["driver"] = driver
    if engine is not None:
        added |= _engine(engine, known, tables)
    return Survey(facts=Facts(**added))


def _engine(text: str, known: Facts, tables: Tables) -> dict[str, Any]:
    name, _, version = text.partition("==")
    version = release_number(version)
    row = find_engine(name, tables)
    if row is not None and known.engine is not None and find_engine(known.engine, tables) != row:
        raise WrongUseError(
            f"the facts are for the engine {known.engine!r}, but --engine is {row.name}",
            fix="omit --engine, or remove the engine from the facts",
        )
    if row is None:
        names = ", ".join(row.name for row in tables.engines)
        raise WrongUseError(f"{name[:80]!r} is not an engine in the tables", fix=f"use one of {names}")
    if not version:
        return {"engine": row.name}
    if version_or_none(version) is None:
        raise WrongUseError(
            f"{version[:80]!r} is not a version of {row.name}", fix=f"for example {row.name}==0.19.1"
        )
    of_release = _of_release(row.name, version, tables)
    return {"engine": row.name, **({"engine_version": version} if known.packages else of_release)}
