"""`slipway survey` and `slipway compat`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.compat_check import check, survey_here
from deployments.cli.compat_reports import read_facts
from deployments.cli.main import print_json
from deployments.cli.params import GivenPath, Text

if TYPE_CHECKING:
    from tasks.compatibility.models import TablesCheck


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@as_json_option
def survey(as_json: bool) -> None:
    """Show what this host is: driver, CUDA, GPUs, toolkits, distribution, disks.

    `slipway compat check --facts` reads the JSON.
    """
    found = survey_here()
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


compat.add_command(check)


@compat.command()
@click.argument("engine", metavar="ENGINE", type=Text())
@click.option(
    "--facts",
    "facts_file",
    metavar="FILE",
    type=GivenPath(),
    help="Say what runs on the host of these facts, not on this one; - reads them.",
)
@as_json_option
def matrix(engine: str, facts_file: Path | None, as_json: bool) -> None:
    """Print what fits each release of ENGINE, or of torch: CUDA builds, drivers, GPUs, glibc, Python, transformers.

    Each cell is judged by the rules. The last column is the verdict on this host.
    """
    from tasks.compatibility.matrix import matrix_of

    here = read_facts(facts_file) if facts_file is not None else survey_here().facts
    found = matrix_of(engine, here)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    from rich.markup import escape

    from deployments.cli.show import coloured, print_table
    from tasks.compatibility.report import MATRIX, matrix_rows
    from tasks.compatibility.rules import load_tables

    cells = [(*map(escape, row[:-1]), coloured(row[-1])) for row in matrix_rows(found, load_tables())]
    print_table(MATRIX, cells, whole=("release", "here"), spare=("transformers", "python", "glibc from"))


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
    print_table(("table", *figures, "read until"), rows, right=figures, whole=("table", "read until"))
    if found.broken:
        cells = [tuple(map(escape, row)) for row in breach_rows(found)]
        print_table(BREACH, cells, whole=("table",))
    show(escape(tables_headline(found)))
    click.echo(f"page  {found.page}")


def _in_words(condition: Mapping[str, object]) -> str:
    return ", ".join(f"{field} {wanted}" for field, wanted in condition.items())
