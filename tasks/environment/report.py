"""The environment stage's result for people: the key number, the figures, the artifact. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tasks.core.digests import short
from tasks.core.markdown import bullets, cell, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.environment.dependencies import dependents
from tasks.environment.models import Conflict, EnvironmentResult, Loosening
from tasks.environment.plan import describe
from tasks.environment.refusals import format_chain


def headline(result: EnvironmentResult) -> str:
    """What is in it and how fast its engine starts, or why it is not sound."""
    if result.reason:
        return result.reason if len(result.reason) <= 200 else result.reason[:199] + "…"
    size = f"{result.size_bytes / 1e6:.0f} MB" if result.size_bytes else "there already"
    text = f"{len(result.packages)} packages, {size}"
    if result.proof and result.proof.engine and result.proof.engine.start_s is not None:
        text += f", engine {result.engine_version} starts in {result.proof.engine.start_s:.2f} s"
    return text


def numbers(result: EnvironmentResult) -> Mapping[str, Number]:
    """Figures for the record; only those measured in this run."""
    found = {
        "conflicts": Number(value=len(result.conflicts), unit="count"),
        "lock": Number(value=result.lock_s, unit="s"),
    }
    if result.environment_path is not None:
        found["packages"] = Number(value=len(result.packages), unit="count")
        found["build"] = Number(value=result.build_s, unit="s")
        found["size"] = Number(value=result.size_bytes or 0, unit="B")
    if result.proof is not None:
        found["imports"] = Number(value=sum(one.seconds for one in result.proof.imports), unit="s")
        if result.proof.engine and result.proof.engine.start_s is not None:
            found["engine_start"] = Number(value=result.proof.engine.start_s, unit="s")
    return found


def markdown(result: EnvironmentResult) -> str:
    """The artifact: verdict, conflicts with what requires what, proof, packages."""
    return page(
        StageName.ENVIRONMENT,
        result.verdict,
        result.reason or headline(result),
        section("Conflicts", *_conflicts(result)),
        section("Proof", _proof(result)),
        section("What it is", _identity(result)),
        section("Packages", _packages(result)),
    )


def _conflicts(result: EnvironmentResult) -> Iterable[str]:
    if not result.conflicts:
        return
    rows = [
        (one.package, one.required_by or "you", one.requirement or describe(one), one.installed or "none")
        for one in result.conflicts
    ]
    yield table(("package", "required by", "as", "installed"), rows)
    yield from _who_requires(result)
    if result.chains:
        yield "What conflicts:"
        yield bullets(format_chain(chain) for chain in result.chains)
    yield f"What to do: {what_to_do(result.conflicts, result.loosen, result.python_instead, result.remarks)}"


def what_to_do(
    conflicts: Sequence[Conflict],
    loosen: Sequence[Loosening],
    python: str | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """The way out in a sentence: what was tried, else what is known to help."""
    if python:
        return f"take Python {python}: with it everything resolves."
    if loosen:
        ways = " or ".join(f"{way.requirement} ({_became(way)})" for way in loosen)
        more = f" Else: {'; '.join(remarks)}." if remarks else ""
        return f"loosen {ways}: with it everything resolves.{more}"
    if remarks:
        return "; ".join(remarks) + "."
    fixes = list(dict.fromkeys(conflict.fix for conflict in conflicts if conflict.fix))
    if fixes:
        return "; ".join(fixes) + "."
    return "loosen or remove one of these requirements under `environment.requirements`."


def _became(way: Loosening) -> str:
    if way.back_to_major:
        return f"it would go back over a major version, to {way.version}"
    return f"it would become {way.version}"


def _who_requires(result: EnvironmentResult) -> Iterable[str]:
    for package in dict.fromkeys(one.package for one in result.conflicts):
        lines = [
            f"{'  ' * (level - 1)}- {cell(f'{edge.required_by} requires {edge.requirement}', table=False)}"
            for level, edge in dependents(result.dependencies, package)
        ]
        if lines:
            yield "\n".join([f"What requires {package}:", "", *lines])


def _proof(result: EnvironmentResult) -> str:
    if result.proof is None:
        return ""
    rows = [
        (f"import {one.module}", "works" if one.ok else one.reason or "fails", f"{one.seconds:.2f} s")
        for one in result.proof.imports
    ]
    rows += [
        (one.what, one.note or "works" if one.ok else one.reason or "fails", f"{one.seconds:.2f} s")
        for one in result.proof.computations
    ]
    if (engine := result.proof.engine) is not None:
        what = f"{engine.output_tokens} tokens" if engine.ok else engine.reason or "fails"
        rows.append(("engine to first completion", what, f"{engine.start_s or 0:.2f} s"))
    return table(("step", "outcome", "time"), rows, right=("time",))


def _identity(result: EnvironmentResult) -> str:
    if result.environment_path is None:
        return ""
    rows = [
        ("Python", result.python_version or "not known"),
        ("folder", f"`{result.environment_path}`"),
        ("lock", f"`{short(result.lock_digest or '')}`"),
        ("size", f"{(result.size_bytes or 0) / 1e6:.0f} MB"),
        ("time to lock", f"{result.lock_s:.1f} s"),
        ("time to build", f"{result.build_s:.1f} s"),
    ]
    return table(("fact", "value"), rows)


def _packages(result: EnvironmentResult) -> str:
    return table(("package", "version"), sorted(result.packages.items())) if result.packages else ""
