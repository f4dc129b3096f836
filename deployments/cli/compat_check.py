"""`slipway compat check`: the verdict on this host, on facts, or on what people paste into reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deployments.cli.compat_reports import Reader
from deployments.cli.main import print_json
from deployments.cli.params import GivenPath, Text
from tasks.core.errors import NotFoundError, WrongUseError
from tasks.core.spec_kinds import DEFAULT_ENGINE, EngineKind, Target
from tasks.core.verdicts import StageName, says_no

if TYPE_CHECKING:
    from tasks.compatibility.models import CompatibilityResult, Finding, Survey


def _file(option: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    name = option.removeprefix("--").replace("-", "_")
    return click.option(option, f"{name}_file", metavar="FILE", type=GivenPath(), help=text)


@click.command()
@_file("--facts", "Judge these facts, not this host. Here and below, - is standard input.")
@_file("--nvidia-smi", "What nvidia-smi prints on that host: banner, -L, -q, or all of it in one paste.")
@_file("--pip-freeze", "Its packages: pip freeze, pip list, uv pip list or conda list.")
@_file("--nvcc", "What nvcc --version prints there.")
@_file("--report", "Any text that holds some of these, such as a bug report or torch's collect_env.")
@click.option("--image", metavar="NAME", type=Text(), help="Image that is to run there.")
@click.option(
    "--env",
    "environment_of_image",
    metavar="FILE|KEY=VALUE",
    type=Text(),
    multiple=True,
    help="The image's environment, as `docker inspect` prints it, or one variable of it; may be repeated.",
)
@click.option(
    "--gpu", "gpus", metavar="NAME", type=Text(), multiple=True, help="GPU of that host; may be repeated."
)
@click.option("--driver", metavar="VERSION", type=Text(), help="Driver of that host.")
@click.option(
    "--engine",
    metavar="NAME[==VERSION]",
    type=Text(),
    help="Engine to run there; by default that of the facts or packages, and llama.cpp on this host.",
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
@click.option("--all", "everything", is_flag=True, help="Also show what was set aside, and all sources.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(
    engine: str | None,
    lock: Path | None,
    environment: Path | None,
    target: str | None,
    everything: bool,
    as_json: bool,
    **reports: Path | str | tuple[str, ...] | None,
) -> None:
    """Give the verdict and the reasons for it; exit code 3 for block and unknown.

    Without options, this host is judged; with --facts or any report, the host that they describe. What no report
    states stays unknown.
    """
    if any(reports.values()):
        _refuse_this_host(lock, environment)
        result = _judge_reports(reports, engine, target)
    elif engine is not None and "==" in engine and lock is None and environment is None:
        result = _judge_release(engine, target)
    elif environment is not None:
        if lock is not None:
            raise WrongUseError("--lock and --environment exclude each other", fix="give one")
        result = _judge_environment(environment, engine, target)
    else:
        result = _judge_lock(_deployed_engine(engine), lock, target)
    if as_json:
        from tasks.compatibility.report import answer

        print_json(answer(result))
    else:
        _show(result, everything)
    if says_no(StageName.COMPATIBILITY, result.verdict):
        click.get_current_context().exit(3)


def _refuse_this_host(lock: Path | None, environment: Path | None) -> None:
    for option, given in (("--lock", lock), ("--environment", environment)):
        if given is not None:
            raise WrongUseError(
                f"{option} describes this host's environment, but --facts and reports another host's",
                fix="give its packages with --pip-freeze",
            )


def _deployed_engine(engine: str | None) -> EngineKind:
    try:
        return EngineKind(engine or DEFAULT_ENGINE)
    except ValueError:
        kinds = ", ".join(kind.value for kind in EngineKind)
        raise WrongUseError(
            f"--engine {str(engine)[:80]!r} has no pinned requirements to judge on this host",
            fix=f"use one of {kinds}; or describe the host with --facts or a report",
        ) from None


def _judge_reports(
    given: Mapping[str, Path | str | tuple[str, ...] | None], engine: str | None, target: str | None
) -> CompatibilityResult:
    from tasks.compatibility.models import Survey
    from tasks.compatibility.reported import merge, of_image, of_options
    from tasks.compatibility.rules import load_tables
    from tasks.compatibility.way_out import advise
    from tasks.core.facts import Facts

    reader, tables = Reader(), load_tables()
    facts = given["facts_file"]
    base = Survey(facts=reader.facts(facts) if isinstance(facts, Path) else Facts())
    image = given["image"]
    found = [of_image(image, tables)] if isinstance(image, str) else []
    found += [
        read(path)
        for name, read in (
            ("report_file", reader.report),
            ("nvidia_smi_file", reader.nvidia_smi),
            ("nvcc_file", reader.nvcc),
            ("pip_freeze_file", reader.packages),
        )
        if isinstance(path := given[name], Path)
    ]
    if variables := given["environment_of_image"]:
        found.append(reader.environment(_texts(variables)))
    survey = merge(base, *found)
    gpus, driver = given["gpus"], given["driver"]
    added = of_options(
        tables,
        survey.facts,
        gpus=_texts(gpus),
        driver=str(driver) if driver is not None else None,
        engine=engine,
        target=target,
    )
    survey = merge(survey, added)
    return advise(_with_build(survey) if engine is not None else survey)


def _texts(given: Path | str | tuple[str, ...] | None) -> tuple[str, ...]:
    return given if isinstance(given, tuple) else ()


def _with_build(survey: Survey) -> Survey:
    """The engine that the user named with the packages that come with it, in the build that the host would get.

    A release brings the torch that it pins, a name alone what Slipway pins. Packages that a report lists stay.
    """
    from tasks.compatibility.backend import build_of_pins
    from tasks.compatibility.plan import for_engine

    facts, engine = survey.facts, str(survey.facts.engine)
    if facts.known("engine_version") and not facts.known("cuda_build"):
        build = build_of_pins(facts, facts.packages)
        return (
            survey
            if build is None
            else survey.model_copy(update={"facts": facts.model_copy(update={"cuda_build": build})})
        )
    pins = _pins_of(EngineKind(engine)) if engine in {kind.value for kind in EngineKind} else {}
    return for_engine(survey, engine, pins, cuda_build=build_of_pins(facts, pins)) if pins else survey


def _pins_of(engine: EngineKind, version: str | None = None) -> dict[str, str]:
    from tasks.core.pins import pinned_versions
    from tasks.engines.catalogue import get_engine

    return pinned_versions("\n".join(get_engine(engine).card.requirements_of(version)))


def survey_here() -> Survey:
    """This host, from every source."""
    from blocks.host.host import ThisHost
    from tasks.compatibility.apply import survey_host

    return survey_host(ThisHost())


def _judge_release(engine: str, target: str | None) -> CompatibilityResult:
    from tasks.compatibility.reported import merge, of_options
    from tasks.compatibility.rules import load_tables
    from tasks.compatibility.way_out import advise

    survey = survey_here()
    added = of_options(load_tables(), survey.facts, engine=engine, target=target)
    return advise(_with_build(merge(survey, added)))


def _judge_lock(
    engine: EngineKind, lock: Path | None, target: str | None, version: str | None = None
) -> CompatibilityResult:
    from tasks.compatibility.backend import build_of_pins
    from tasks.compatibility.plan import run_on
    from tasks.compatibility.way_out import advise
    from tasks.core.pins import pinned_versions

    packages = pinned_versions(_lock_text(lock)) if lock else _pins_of(engine, version)
    if lock and not packages:
        raise WrongUseError(f"{lock} pins no packages", fix="name a lock with lines such as numpy==2.3.1")
    survey = survey_here()
    build = None if lock else build_of_pins(survey.facts, packages)
    return advise(run_on(survey, packages, engine=engine.value, target=target, cuda_build=build))


def _lock_text(path: Path) -> str:
    from tasks.core.given_files import LOCK_LIMIT_BYTES, read_given

    return read_given(path, "lock", limit_bytes=LOCK_LIMIT_BYTES).decode(errors="replace")


def judge_pins(engine: EngineKind, target: str | None, version: str | None = None) -> CompatibilityResult:
    """The verdict on an engine with the packages that it pins itself, on this host; `version` is another release."""
    return _judge_lock(engine, None, target, version)


def _judge_environment(folder: Path, engine: str | None, target: str | None) -> CompatibilityResult:
    from blocks.engine.trial import EnvironmentTrial
    from tasks.compatibility.apply import read_torch
    from tasks.compatibility.engines import engine_of
    from tasks.compatibility.plan import run_on
    from tasks.compatibility.rules import load_tables
    from tasks.compatibility.way_out import advise
    from tasks.environment.proof import read_inventory

    named = _deployed_engine(engine).value if engine else None
    python, trial = folder.absolute() / "bin" / "python", EnvironmentTrial()
    if not python.exists():
        raise NotFoundError(
            f"{folder} is not a Python environment", fix="name a folder that contains bin/python"
        )
    packages = read_inventory(python, trial).packages
    survey = survey_here().model_copy(update={"torch": read_torch(python, packages, trial)})
    return advise(run_on(survey, packages, engine=named or engine_of(packages, load_tables()), target=target))


def _show(result: CompatibilityResult, everything: bool) -> None:
    from rich.markup import escape

    from deployments.cli.show import coloured, show
    from tasks.compatibility.report import aside_text, headline, remarks

    show(f"[bold]{coloured(result.verdict.value)}[/bold]  {escape(headline(result))}")
    _show_findings(result.deciding, everything)
    for way in result.ways_out:
        why = f": {escape(way.why)}" if way.why else ""
        _show_indented(f"[bold]way out[/bold]: {escape(way.text)}, then {coloured(way.verdict.value)}{why}")
    _show_findings(remarks(result), everything)
    if everything:
        _show_findings([finding for finding in result.findings if finding.is_aside], everything)
    elif aside := aside_text(result):
        _show_indented(f"{escape(aside)} (--all shows them)")


def _show_findings(findings: Sequence[Finding], everything: bool) -> None:
    from rich.markup import escape

    from deployments.cli.show import coloured

    for finding in findings:
        first, more = finding.sources[0], len(finding.sources) - 1
        sources = (
            "; ".join(finding.sources) if everything else f"{first}{f', and {more} more' if more else ''}"
        )
        lines = [
            f"{coloured(finding.severity)}  [bold]{finding.rule}[/bold] ({finding.precedence}): "
            f"{escape(finding.message)}",
            *([f"  fix: {escape(finding.fix)}"] if finding.fix else []),
            f"  source: {escape(sources)}",
        ]
        _show_indented("\n".join(lines))


def _show_indented(text: str) -> None:
    from rich.padding import Padding

    from deployments.cli.show import show

    show(Padding(text, (0, 0, 0, 2)))
