"""`slipway engines`: what is known about the serving engines, and which one to use for a need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deployments.cli.kb import read_records
from deployments.cli.main import print_json
from deployments.cli.params import GivenPath
from deployments.cli.show import plain, print_table
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts
from tasks.core.spec_kinds import EngineKind
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.engines.family_names import check_name
from tasks.engines.recommend import Choice, ChoiceKind, Measured, Need, Recommendation, recommend
from tasks.knowledge.plan import matrix, part

if TYPE_CHECKING:
    from tasks.core.records import Record

_KINDS: tuple[ChoiceKind, ...] = ("engine", "family", "application", "sourcing")
_FAILED = {"failed", "out of memory"}
"""Reasons against a batch size in a record that are the engine's fault, not an objective's."""


@click.command()
@click.option("--need", type=click.Choice([need.value for need in Need]), help="Recommend for this need.")
@click.option("--family", help="Model family to serve; an unknown name counts as your own architecture.")
@click.option(
    "--facts", "facts_file", metavar="FILE", type=GivenPath(), help="Recommend for the host of these facts."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def engines(need: str | None, family: str | None, facts_file: Path | None, as_json: bool) -> None:
    """List the serving engines; with --need, rank engines, model families and applications for it, with reasons."""
    if need is None:
        for option, given in (("--family", family), ("--facts", facts_file)):
            if given is not None:
                raise WrongUseError(
                    f"{option} only applies to a recommendation",
                    fix="add a need, for example --need throughput",
                )
        _list(as_json=as_json)
        return
    if family is not None:
        check_name(family)
    facts, fingerprint = _facts(facts_file)
    found = recommend(Need(need), facts, measured(read_records(), fingerprint), family=family)
    if as_json:
        print_json(_answer(found))
    else:
        _show(found)


def describe(kind: EngineKind) -> dict[str, Any]:
    """One engine as JSON: its card, and how it is pinned."""
    card = get_engine(kind).card.model_dump(mode="json")
    return {"engine": card.pop("kind"), "deploys": card["missing"] is None, **card}


def measured(records: Sequence[Record], fingerprint: str) -> list[Measured]:
    """What the records say about engines on the hardware of that fingerprint: measured batch sizes, and searches in
    which the engine failed at every size. Missing the objectives at every size is not the engine's failure."""
    here = [record for record in records if record.host_fingerprint == fingerprint]
    found = [
        Measured(
            record=cell.record,
            engine=cell.engine,
            model=cell.model_digest,
            throughput=cell.throughput,
            answers=cell.answers,
        )
        for cell in matrix(here)
        if cell.throughput > 0
    ]
    for record in here:
        result, inputs = part(record, "result"), part(record, "inputs")
        fits = {str(size.get("fit")) for size in result.get("sizes") or ()}
        if record.stage is StageName.BATCHING and fits and fits <= _FAILED:
            reason = str(result.get("reason") or record.outcome)
            engine, model = str(inputs.get("engine", "?")), str(inputs.get("model_digest", ""))
            found.append(Measured(record=record.id, engine=engine, model=model, failed=reason))
    return found


def _facts(file: Path | None) -> tuple[Facts, str]:
    """The facts of the file, else this host's GPUs and memory; and the fingerprint of that hardware."""
    if file is None:
        from blocks.host.host import read_system
        from blocks.host.nvml import read_nvml

        facts = Facts(gpus=read_nvml().gpus, **read_system().model_dump())
    else:
        from deployments.cli.compat_reports import read_facts

        facts = read_facts(file)
    return facts, facts.fingerprint


def _answer(found: Recommendation) -> dict[str, Any]:
    best = {kind: one.name for kind in _KINDS if (one := found.best(kind)) is not None}
    return {
        "need": found.need,
        "family": found.family,
        "recommended": best,
        "choices": [choice.model_dump(mode="json") | {"fits": choice.fits} for choice in found.choices],
    }


def _list(*, as_json: bool) -> None:
    found = [describe(kind) for kind in EngineKind]
    if as_json:
        print_json({"engines": found})
        return
    rows = [
        (
            str(row["engine"]),
            str(row["version"]),
            "needed" if row["needs_gpu"] else "not needed",
            str(row["min_compute_capability"] or ""),
            ", ".join(row["layouts"]),
            ", ".join(one["name"] for one in row["quantization"]),
            "yes" if row["deploys"] else "not yet",
        )
        for row in found
    ]
    columns = ("engine", "version", "GPU", "capability", "model", "quantized weights", "deploys")
    print_table(columns, rows, right=("capability",), whole=("engine", "version", "GPU", "deploys"))


def _show(found: Recommendation) -> None:
    rows = []
    for kind in _KINDS:
        for place, choice in enumerate(found.of(kind), start=1):
            if choice.points or choice.against or place == 1:
                rows.append(tuple(plain(cell) for cell in _row(kind, place, choice)))
    columns = ("kind", "choice", "points", "why", "by")
    print_table(columns, rows, title=f"For {found.need}", right=("points",), whole=("kind", "choice"))
    best = [f"{kind} {one.name}" for kind in _KINDS if (one := found.best(kind)) is not None]
    click.echo(f"recommended  {', '.join(best)}")
    engine = found.best("engine")
    missing = engine and get_engine(EngineKind(engine.name)).card.missing
    if engine and missing:
        click.echo(f"not yet      Slipway does not deploy {engine.name}: {missing}")


def _row(kind: ChoiceKind, place: int, choice: Choice) -> tuple[str, ...]:
    """Its strongest reason, or the first objection, and the source."""
    first = (*choice.against, *choice.reasons)[:1]
    why = "; ".join(reason.text for reason in first)
    by = ", ".join(cited for reason in first for cited in reason.cites[:1])
    figure = f"{choice.points:g}" if choice.fits else "no"
    return (kind if place == 1 else "", choice.name, figure, why, by)
