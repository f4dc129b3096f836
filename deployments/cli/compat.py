"""`slipway survey` and `slipway compat`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from deployments.cli.params import GivenPath
from tasks.core.errors import NotFoundError, WrongUseError
from tasks.core.spec import DEFAULT_ENGINE, EngineKind, Target
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from tasks.compatibility.models import CompatibilityResult, Survey, TablesCheck
    from tasks.core.facts import Facts


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@as_json_option
def survey(as_json: bool) -> None:
    """Show what this host is: driver, CUDA, GPUs, toolkits, distribution, disks.

    `slipway compat check --facts` reads the JSON.
    """
    found = _survey_here()
    if as_json:
        print_json(found.facts.model_dump(mode="json"))
        return
    from rich.markup import escape

    from deployments.cli.show import print_facts
    from tasks.compatibility.report import survey_rows

    print_facts((name, escape(value)) for name, value in survey_rows(found))


@click.group()
def compat() -> None:
    """Judge driver, CUDA, GPU and packages together."""


@compat.command()
@click.option(
    "--facts",
    "facts_file",
    metavar="FILE",
    type=GivenPath(),
    help="Judge these facts, not this host; - reads them.",
)
@click.option(
    "--engine",
    type=click.Choice([kind.value for kind in EngineKind]),
    help="Engine to run there; by default that of --facts or --environment, else llama.cpp.",
)
@click.option(
    "--lock",
    metavar="FILE",
    type=GivenPath(),
    help="Lock of the engine's environment; by default the engine's own pinned requirements.",
)
@click.option(
    "--environment",
    metavar="ENV",
    type=GivenPath(),
    help="Existing environment on this host: its packages, and the CUDA that its torch was built for.",
)
@click.option(
    "--target", type=click.Choice([kind.value for kind in Target]), help="Where the engine is to run."
)
@as_json_option
def check(
    facts_file: Path | None,
    engine: str | None,
    lock: Path | None,
    environment: Path | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Give the verdict and the reasons for it; exit code 3 for block and unknown."""
    if facts_file is not None:
        for option, given in (("--lock", lock), ("--environment", environment)):
            if given is not None:
                raise WrongUseError(
                    f"{option} describes this host's environment, but --facts another host's", fix="give one"
                )
        if target is not None:
            raise WrongUseError(
                "--target is for this host, not for --facts",
                fix=f'put "target": "{target}" there',
            )
        result = _judge_file(facts_file, engine)
    elif environment is not None:
        if lock is not None:
            raise WrongUseError("--lock and --environment exclude each other", fix="give one")
        result = _judge_environment(environment, engine, target)
    else:
        result = _judge_lock(EngineKind(engine or DEFAULT_ENGINE), lock, target)
    if as_json:
        from tasks.compatibility.report import answer

        print_json(answer(result))
    else:
        _show(result)
    if says_no(StageName.COMPATIBILITY, result.verdict):
        click.get_current_context().exit(3)


@compat.command()
@as_json_option
def rules(as_json: bool) -> None:
    """List the rules with severity, precedence, condition and sources."""
    from tasks.compatibility.rules import load_tables

    table = load_tables().rules
    if as_json:
        print_json([rule.model_dump(mode="json") for rule in table])
        return
    from rich.markup import escape

    from deployments.cli.show import coloured, print_table

    rows = [
        (
            f"[bold]{rule.id}[/bold]",
            rule.precedence,
            coloured(rule.severity),
            escape(_in_words(rule.when)),
            escape(_in_words(rule.unless)) if rule.unless else "",
        )
        for rule in table
    ]
    print_table(
        ("rule", "precedence", "severity", "when", "unless"), rows, whole=("rule", "precedence", "severity")
    )


@compat.command()
@click.option("--docs", metavar="PATH", type=GivenPath(), help="Also write the Data Docs page to this file.")
@as_json_option
def tables(docs: Path | None, as_json: bool) -> None:
    """Check the fact tables against their contract; exit code 3 if it is broken.

    Great Expectations checks each version of the tables once, which takes seconds, and writes a page about it.
    """
    from blocks.expectations.fact_contract import FactContract
    from tasks.compatibility.report import tables_answer
    from tasks.core.settings import Settings

    found = FactContract(Settings.load()).check()
    if docs is not None:
        found = found.model_copy(update={"page": str(_copy_page(Path(found.page), docs))})
    if as_json:
        print_json(tables_answer(found))
    else:
        _show_tables(found)
    if found.broken:
        click.get_current_context().exit(3)


def _copy_page(page: Path, to: Path) -> Path:
    from tasks.core.given_files import write_given

    target = to / page.name if to.is_dir() else to
    write_given(target, page.read_bytes())
    return target.absolute()


def _show_tables(found: TablesCheck) -> None:
    from rich.markup import escape

    from deployments.cli.show import print_table, show
    from tasks.compatibility.report import BREACH, breach_rows, tables_headline

    rows = [
        (
            f"[bold]{row.table}[/bold]",
            str(row.rows),
            str(row.expectations),
            f"[red]{len(row.breaches)}[/red]" if row.breaches else "0",
            row.last_checked_on.isoformat() if row.last_checked_on else "",
        )
        for row in found.tables
    ]
    figures = ("rows", "expectations", "breaches")
    print_table(("table", *figures, "last checked"), rows, right=figures, whole=("table", "last checked"))
    if found.broken:
        cells = [tuple(map(escape, row)) for row in breach_rows(found)]
        print_table(BREACH, cells, whole=("table",))
    show(escape(tables_headline(found)))
    click.echo(f"page  {found.page}")


def _in_words(condition: Mapping[str, object]) -> str:
    return ", ".join(f"{field} {wanted}" for field, wanted in condition.items())


def _survey_here() -> Survey:
    from blocks.host.host import ThisHost
    from tasks.compatibility.apply import survey_host

    return survey_host(ThisHost())


def _judge_file(file: Path, engine: str | None) -> CompatibilityResult:
    from tasks.compatibility.models import Survey
    from tasks.compatibility.plan import for_engine
    from tasks.compatibility.way_out import advise
    from tasks.core.pins import pinned_versions
    from tasks.engines.catalogue import get_engine

    survey = Survey(facts=read_facts(file))
    if engine is not None:
        pins = pinned_versions("\n".join(get_engine(EngineKind(engine)).card.requirements))
        survey = for_engine(survey, engine, pins)
    return advise(survey)


def read_facts(file: Path) -> Facts:
    """The facts in that file; - is standard input. Raises `WrongUseError`."""
    from tasks.core.facts import LIMIT_BYTES, parse_facts
    from tasks.core.given_files import read_given, within_limit

    if str(file) == "-":
        source, content = "standard input", sys.stdin.buffer.read(LIMIT_BYTES + 1)
        within_limit(content, source, LIMIT_BYTES)
    else:
        fix = "make it: slipway survey --json; - reads standard input"
        source, content = str(file), read_given(file, "facts file", limit_bytes=LIMIT_BYTES, fix=fix)
    return parse_facts(content, source=source)


def _judge_lock(engine: EngineKind, lock: Path | None, target: str | None) -> CompatibilityResult:
    from tasks.compatibility.plan import run_on
    from tasks.compatibility.way_out import advise
    from tasks.core.pins import pinned_versions
    from tasks.engines.catalogue import get_engine

    text = _lock_text(lock) if lock else "\n".join(get_engine(engine).card.requirements)
    packages = pinned_versions(text)
    if lock and not packages:
        raise WrongUseError(f"{lock} pins no packages", fix="name a lock with lines such as numpy==2.3.1")
    return advise(run_on(_survey_here(), packages, engine=engine.value, target=target))


def _lock_text(path: Path) -> str:
    from tasks.core.given_files import LOCK_LIMIT_BYTES, read_given

    return read_given(path, "lock", limit_bytes=LOCK_LIMIT_BYTES).decode(errors="replace")


def judge_pins(engine: EngineKind, target: str | None) -> CompatibilityResult:
    """The verdict on an engine with the packages that it pins itself, on this host."""
    return _judge_lock(engine, None, target)


def _judge_environment(folder: Path, engine: str | None, target: str | None) -> CompatibilityResult:
    from blocks.engine.trial import EnvironmentTrial
    from tasks.compatibility.apply import read_torch
    from tasks.compatibility.plan import run_on
    from tasks.compatibility.rules import load_tables
    from tasks.compatibility.subject import engine_of
    from tasks.compatibility.way_out import advise
    from tasks.environment.proof import read_inventory

    python, trial = folder.absolute() / "bin" / "python", EnvironmentTrial()
    if not python.exists():
        raise NotFoundError(
            f"{folder} is not a Python environment", fix="name a folder that contains bin/python"
        )
    packages = read_inventory(python, trial).packages
    survey = _survey_here().model_copy(update={"torch": read_torch(python, packages, trial)})
    return advise(
        run_on(survey, packages, engine=engine or engine_of(packages, load_tables()), target=target)
    )


def _show(result: CompatibilityResult) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    from deployments.cli.show import coloured, show
    from tasks.compatibility.report import headline, way_text

    show(f"[bold]{coloured(result.verdict.value)}[/bold]  {escape(headline(result))}")
    for finding in result.findings:
        lines = (
            f"{coloured(finding.severity)}  [bold]{finding.rule}[/bold] ({finding.precedence}): "
            f"{escape(finding.message)}\n"
            f"  fix: {escape(finding.fix)}\n  source: {escape('; '.join(finding.sources))}"
        )
        show(Padding(lines, (0, 0, 0, 2)))
    for way in result.ways_out:
        text = f"[bold]way out[/bold]: {escape(way_text(way))}, then {coloured(way.verdict.value)}"
        show(Padding(text, (0, 0, 0, 2)))
