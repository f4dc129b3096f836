"""The environment stage's result for people: the key number, the figures, the artifact. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tasks.core.records import Number
from tasks.environment.models import EnvironmentResult
from tasks.environment.plan import dependents, describe


def headline(result: EnvironmentResult) -> str:
    """What is in it and how fast its engine starts, or why it is not sound."""
    if result.reason:
        return result.reason if len(result.reason) <= 200 else result.reason[:199] + "…"
    text = f"{len(result.packages)} packages, {(result.size_bytes or 0) / 1e6:.0f} MB"
    if result.proof and result.proof.engine and result.proof.engine.start_s is not None:
        text += f", engine {result.engine_version} starts in {result.proof.engine.start_s:.2f} s"
    return text


def numbers(result: EnvironmentResult) -> Mapping[str, Number]:
    """Figures for the record; only what was measured in this run."""
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
    """The artifact: verdict, conflicts with who asks for what, proof, packages."""
    parts = [f"# environment: {result.verdict}", headline(result)]
    if result.conflicts:
        parts += ["## Conflicts", _conflicts(result), *_who_requires(result)]
    if result.proof is not None:
        parts += ["## Proof", _proof(result)]
    if result.packages:
        parts += ["## Packages", _table(("package", "version"), sorted(result.packages.items()))]
    if result.environment_path is not None:
        parts.append(f"Python {result.python_version}, lock `{result.lock_digest}`")
    return "\n\n".join(parts)


def _conflicts(result: EnvironmentResult) -> str:
    rows = [
        (one.package, one.required_by or "you", one.requirement or "", one.installed or "none", describe(one))
        for one in result.conflicts
    ]
    return _table(("package", "asked for by", "as", "installed", "in words"), rows)


def _who_requires(result: EnvironmentResult) -> Iterable[str]:
    for package in dict.fromkeys(one.package for one in result.conflicts):
        lines = [
            f"{'  ' * (level - 1)}- {edge.required_by} requires {edge.requirement}"
            for level, edge in dependents(result.dependencies, package)
        ]
        if lines:
            yield "\n".join([f"Who requires {package}:", "", *lines])


def _proof(result: EnvironmentResult) -> str:
    assert result.proof is not None
    rows = [
        (f"import {one.module}", "works" if one.ok else one.reason or "fails", f"{one.seconds:.2f}")
        for one in result.proof.imports
    ]
    if (engine := result.proof.engine) is not None:
        what = f"{engine.output_tokens} tokens" if engine.ok else engine.reason or "fails"
        rows.append(("engine to first completion", what, f"{engine.start_s or 0:.2f}"))
    return _table(("step", "outcome", "s"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
