"""`slipway survey` and `slipway compat`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.main import print_json
from tasks.core.errors import NotFoundError, WrongUseError
from tasks.core.spec import EngineKind
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from tasks.compatibility.models import CompatibilityResult, Survey

_COLOURS = {"block": "red", "warn": "yellow", "unknown": "magenta", "pass": "green", "info": "cyan"}

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command()
@as_json_option
def survey(as_json: bool) -> None:
    """Show what this host is: driver, CUDA, GPUs, toolkit, distribution.

    The JSON is what `slipway compat check --facts` takes.
    """
    found = _survey_here()
    if as_json:
        print_json(found.facts.model_dump(mode="json"))
        return
    from tasks.compatibility.report import facts_rows
    from tasks.compatibility.subject import disagreements

    for name, value in facts_rows(found.facts):
        click.echo(f"{name:<14} {value}")
    for fact, who in disagreements(found.sightings).items():
        click.echo(f"{'disagreement':<14} {fact}: {who}")
    if found.fault:
        click.echo(f"{'fault':<14} {found.fault}")


@click.group()
def compat() -> None:
    """Judge driver, CUDA, GPU and packages together."""


@compat.command()
@click.option("--facts", "facts_file", metavar="FILE", help="Judge these facts, not this host; - reads them.")
@click.option(
    "--engine",
    type=click.Choice([kind.value for kind in EngineKind]),
    default=EngineKind.LLAMA_CPP.value,
    show_default=True,
    help="Engine to run on this host.",
)
@click.option(
    "--lock",
    metavar="FILE",
    help="Lock of the engine's environment; the engine's own pinned requirements when left out.",
)
@as_json_option
def check(facts_file: str | None, engine: str, lock: str | None, as_json: bool) -> None:
    """Give the verdict and the reasons for it; exit code 3 for block and unknown."""
    if facts_file is not None:
        if lock is not None:
            raise WrongUseError(
                "--lock describes this host's environment and --facts another host's", fix="give one"
            )
        result = _judge_file(facts_file)
    else:
        result = _judge_here(EngineKind(engine), lock)
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
    for rule in table:
        click.secho(f"{rule.id:<28}", bold=True, nl=False)
        click.secho(f"{rule.precedence}  {rule.severity:<8}", fg=_COLOURS[rule.severity], nl=False)
        click.echo(_in_words(rule.when) + (f"  unless {_in_words(rule.unless)}" if rule.unless else ""))


def _in_words(condition: Mapping[str, object]) -> str:
    return ", ".join(f"{field} {wanted}" for field, wanted in condition.items())


def _survey_here() -> Survey:
    from blocks.host import ThisHost
    from tasks.compatibility.apply import survey_host

    return survey_host(ThisHost())


def _judge_file(name: str) -> CompatibilityResult:
    from tasks.compatibility.models import Survey
    from tasks.compatibility.plan import judge
    from tasks.core.facts import parse_facts

    content = sys.stdin.buffer.read() if name == "-" else _read(Path(name))
    return judge(Survey(facts=parse_facts(content, source="standard input" if name == "-" else name)))


def _judge_here(engine: EngineKind, lock: str | None) -> CompatibilityResult:
    from tasks.compatibility.models import CompatibilityRequest
    from tasks.compatibility.plan import facts_of, judge
    from tasks.core.pins import pinned_versions
    from tasks.engines.catalogue import get_engine

    text = _read(Path(lock)).decode(errors="replace") if lock else "\n".join(get_engine(engine).requirements)
    packages = pinned_versions(text)
    if lock and not packages:
        raise WrongUseError(f"{lock} pins no package", fix="give a lock with lines such as numpy==2.3.1")
    found = _survey_here()
    facts = facts_of(CompatibilityRequest(engine=engine, packages=packages), found)
    return judge(found.model_copy(update={"facts": facts}))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no file {path}") from None
    except OSError as error:
        raise WrongUseError(f"cannot read {path}: {error.strerror}") from None


def _show(result: CompatibilityResult) -> None:
    from tasks.compatibility.report import headline

    click.secho(result.verdict.value, fg=_COLOURS[result.verdict.value], bold=True, nl=False)
    click.echo(f"  {headline(result)}")
    for finding in result.findings:
        click.secho(f"  {finding.severity:<8}", fg=_COLOURS[finding.severity], nl=False)
        click.echo(f"{finding.rule} ({finding.precedence}): {finding.message}")
        click.echo(f"          fix: {finding.fix}")
        click.echo(f"          source: {'; '.join(finding.sources)}")
