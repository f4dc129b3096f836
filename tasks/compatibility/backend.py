"""Which build of torch a host runs: chosen by the same tables as the verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from tasks.compatibility.builds import (
    TORCH,
    builds,
    in_words,
    index_name,
    mismatched,
    nearest_build,
    torch_release,
)
from tasks.compatibility.engines import cuda_build_of
from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import PASSES, Survey
from tasks.compatibility.pins import wanted_of
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Tables, load_tables
from tasks.core.errors import SpecError
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict
from tasks.core.versions import same_minor

_ENGINE = "transformers"
"""Any engine that computes with torch: rules about single engines do not apply here."""


def torch_backend(
    facts: Facts,
    version: str | None = None,
    tables: Tables | None = None,
    *,
    packages: Mapping[str, str] | None = None,
) -> str:
    """`cpu` without a GPU; else the CUDA build, such as `cu126`, of the newest release that runs on the host, or of
    `version`: a pass is preferred to a warning, then the newer CUDA. Of `packages` that come with it from the index
    (an engine and its version, say), torch must fit the builds. Raises `SpecError` if the tables know none.
    """
    tables = tables or load_tables()
    if not facts.gpus or facts.driver is None:
        return "cpu"
    others = {name: version for name, version in (packages or {}).items() if name != TORCH}
    version = version or _pinned(others, tables)
    releases = [row for row in tables.releases if row.package == TORCH]
    for release in reversed([row for row in releases if version is None or same_minor(row.version, version)]):
        offered = cuda_builds(tables, release, platform_of(facts))
        fitting = [cuda for cuda in offered if not mismatched(others, cuda, tables)]
        judged = [(_verdict(facts, release.version, cuda, tables), Version(cuda)) for cuda in fitting]
        runs = [(verdict is CompatibilityVerdict.PASS, cuda) for verdict, cuda in judged if verdict in PASSES]
        if runs:
            _, cuda = max(runs)
            return index_name(str(cuda))
    raise _none_runs(facts, version, others, tables)


def _none_runs(facts: Facts, version: str | None, packages: Mapping[str, str], tables: Tables) -> SpecError:
    named = f"torch {version}" if version else "torch"
    host = f"driver {facts.driver} with {facts.gpus[0].name}"
    for build in builds(packages, tables):
        for major in map(str, range(int(max(build.majors)) - 1, 10, -1)):
            wheel = nearest_build(build.package, build.version, major, facts, tables)
            if wheel is None:
                continue
            what = "the wheel of " if wheel.is_other else ""
            return SpecError(
                f"{build.package} {build.version} is a CUDA {build.cuda[-1]} build, and no {named} for "
                f"that CUDA runs on {host}",
                fix=f"take {what}{in_words(build.package, wheel)}: put it into a folder of `wheels` with torch "
                f"for {index_name(wheel.cuda)}, or upgrade the driver",
            )
    return SpecError(
        f"no listed build of {named} runs on {host}", fix="look for a way out: slipway compat check"
    )


def _pinned(packages: Mapping[str, str], tables: Tables) -> str | None:
    """The torch that one of these packages asks for exactly."""
    asked = (wanted_of(name, version, tables).get(TORCH, "") for name, version in packages.items())
    return next((wanted.removeprefix("==") for wanted in asked if wanted.startswith("==")), None)


def build_of_pins(facts: Facts, pins: Mapping[str, str], tables: Tables | None = None) -> str | None:
    """The CUDA build that a host with GPUs gets of pinned packages whose torch does not name one: the best that runs
    there, else the package index's own. None on other hosts, and where the pins name it or know no torch."""
    tables = tables or load_tables()
    if not facts.gpus or TORCH not in pins or Version(pins[TORCH]).local or cuda_build_of(pins):
        return None
    release = torch_release(pins[TORCH], tables)
    default = release.cuda[0] if release else None
    if facts.driver is None:
        return default
    try:
        backend = torch_backend(facts, pins[TORCH], tables)
    except SpecError:
        return default
    return f"{backend[2:4]}.{backend[4:]}"


def _verdict(facts: Facts, release: str, cuda: str, tables: Tables) -> CompatibilityVerdict:
    known = {**facts.model_dump(), "engine": _ENGINE, "packages": {TORCH: release}, "cuda_build": cuda}
    return judge(Survey(facts=Facts.model_validate(known)), tables=tables).verdict
