"""Which build of torch a host runs: chosen by the same tables as the verdict. Pure."""

from __future__ import annotations

from packaging.version import Version

from tasks.compatibility.kernels import builds, index_name, platform_of
from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Tables, load_tables
from tasks.core.errors import SpecError
from tasks.core.facts import Facts
from tasks.core.verdicts import CompatibilityVerdict
from tasks.core.versions import same_minor

_ENGINE = "transformers"
"""Any engine that computes with torch: rules about single engines do not apply here."""
_RUNS = (CompatibilityVerdict.PASS, CompatibilityVerdict.WARN)


def torch_backend(facts: Facts, version: str | None = None, tables: Tables | None = None) -> str:
    """`cpu` without a GPU; else the CUDA build, such as `cu126`, of the newest release that runs on the host, or of
    `version`: a pass is preferred to a warning, then the newer CUDA. Raises `SpecError` if the tables
    know none.
    """
    tables = tables or load_tables()
    if not facts.gpus or facts.driver is None:
        return "cpu"
    releases = [row for row in tables.releases if row.package == "torch"]
    for release in reversed([row for row in releases if version is None or same_minor(row.version, version)]):
        offered = builds(tables, release, platform_of(facts))
        judged = [(_verdict(facts, release.version, cuda, tables), Version(cuda)) for cuda in offered]
        runs = [(verdict is CompatibilityVerdict.PASS, cuda) for verdict, cuda in judged if verdict in _RUNS]
        if runs:
            _, cuda = max(runs)
            return index_name(str(cuda))
    named = f"torch {version}" if version else "torch"
    raise SpecError(
        f"no listed build of {named} runs on driver {facts.driver} with {facts.gpus[0].name}",
        fix="look for a way out: slipway compat check",
    )


def _verdict(facts: Facts, release: str, cuda: str, tables: Tables) -> CompatibilityVerdict:
    known = {**facts.model_dump(), "engine": _ENGINE, "packages": {"torch": release}, "cuda_build": cuda}
    return judge(Survey(facts=Facts.model_validate(known)), tables=tables).verdict
