"""`slipway tune`: choose a format, or a batch size, by measuring."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_BYTES, LARGEST_COUNT, Count, GivenPath, Number
from deployments.cli.show import console, print_table
from tasks.batching.apply import search
from tasks.batching.judging import summarise
from tasks.batching.models import Decision, Limits, Run, SizeFigures
from tasks.batching.report import failure_lines
from tasks.core.child_environment import Needs, passed_on
from tasks.core.errors import CommandError, CommandTimeoutError, WrongUseError
from tasks.core.progress import listen, to_log
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, load_spec
from tasks.core.verdicts import ChoiceVerdict, StageName, says_no
from tasks.engines.failures import Failure, FailureKind, failure_of_exit

if TYPE_CHECKING:
    from tasks.core.stage import Outcome

PLACEHOLDER = "{batch}"
_LARGEST_FIGURE = 1e18


@click.group()
def tune() -> None:
    """Choose quantization and batch size by measuring."""


@tune.command()
@click.argument("spec_file", metavar="SPEC", type=GivenPath())
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the spec.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def quantization(spec_file: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Make SPEC's candidates, measure quality, size and speed of each, and choose one.

    Builds the environment and stages the model first if necessary. Nothing is put into service.
    """
    from blocks.services.early_checks import check_tuning_inputs, prefect_knows_the_storage

    spec = load_spec(spec_file, overrides)
    check_tuning_inputs(spec, Settings.load(), remote=not prefect_knows_the_storage())
    outcome = _run_quantization(spec, quiet=as_json)
    if as_json:
        print_json(
            {
                **outcome.model_dump(
                    mode="json", include={"stage", "verdict", "cached", "seconds", "record"}
                ),
                "result": outcome.result.model_dump(mode="json"),
            }
        )
    else:
        _show_quantization(outcome)
    if outcome.says_no:
        sys.exit(3)


def _run_quantization(spec: DeploySpec, *, quiet: bool) -> Outcome[Any]:
    from deployments.cli.progress import show_progress
    from deployments.prefect_api import prefect_api

    with show_progress(console(stderr=quiet)) as listener:
        listen(listener, to_log)
        with prefect_api(Settings.load()) as api:
            from flows.quantize_model import quantize_model

            api.wait()
            with api.quiet_runs():
                return quantize_model(spec)


def _show_quantization(outcome: Outcome[Any]) -> None:
    if outcome.stage == StageName.QUANTIZATION:
        from tasks.quantization.report import table

        heads, rows = table(outcome.result)
        shown = [[cell.replace("**", "").replace("[", "\\[") for cell in row] for row in rows]
        print_table(heads, shown, title=outcome.result.reason)
    click.echo(f"{outcome.stage} {outcome.verdict}: {outcome.headline}")


@tune.command()
@click.option(
    "--probe",
    required=True,
    metavar="CMD",
    help="Command that measures one size: {batch} is replaced; prints peak_bytes, latency_ms, throughput, oom.",
)
@click.option("--memory-bytes", type=Count(1, LARGEST_BYTES), required=True, help="Memory limit, bytes.")
@click.option(
    "--memory-fraction",
    type=Number(0.01, 1),
    default=0.9,
    show_default=True,
    help="Share of the limit that may be used.",
)
@click.option("--slo-ms", type=Number(0, 3_600_000, min_open=True), help="Latency objective, ms.")
@click.option(
    "--max-batch", type=Count(1, LARGEST_COUNT), default=256, show_default=True, help="Largest size to try."
)
@click.option(
    "--tolerance",
    type=Number(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    help="Share of the best throughput that a smaller size may cost.",
)
@click.option("--start", type=Count(1, LARGEST_COUNT), help="Size to start from, if a good one is known.")
@click.option("--timeout-s", type=Number(0, 604_800, min_open=True), default=600, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def batch(
    probe: str,
    memory_bytes: int,
    memory_fraction: float,
    slo_ms: float | None,
    max_batch: int,
    tolerance: float,
    start: int | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Find the batch size of anything that a command can measure.

    The answer was measured several times; it keeps the memory limit and the latency objective, and has the
    highest throughput, or nearly so. The exit code is 3 if no size does.
    """
    limits = Limits(
        memory_bytes=max(1, int(memory_bytes * memory_fraction)),
        latency_ms={"latency": slo_ms} if slo_ms else {},
        tolerance=tolerance,
        max_batch=max_batch,
    )
    command = CommandProbe(probe, timeout_s)
    decision, history = search(command, limits, start)
    sizes = summarise(history, limits)
    if as_json:
        print_json(_answer(decision, history, sizes))
    else:
        _show(decision, list(sizes.values()))
    if says_no(StageName.BATCHING, ChoiceVerdict.CHOSEN if decision.batch else ChoiceVerdict.NONE):
        sys.exit(3)


class CommandProbe:
    """A user's command as a probe. Each run is a fresh process, started without a shell."""

    def __init__(self, command: str, timeout_s: float) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as error:
            raise WrongUseError(f"--probe {command!r} is not a valid command: {error}") from None
        if PLACEHOLDER not in command:
            raise WrongUseError(
                f"--probe {command!r} does not contain {PLACEHOLDER}",
                fix=f"write {PLACEHOLDER} where the size goes",
            )
        if shutil.which(self._argv[0]) is None:
            raise WrongUseError(f"--probe: the program {self._argv[0]} does not exist")
        self._timeout_s = timeout_s

    def measure(self, batch: int, runs: int) -> Sequence[Run]:
        """Run the command `runs` times; stop at the first run without figures."""
        done: list[Run] = []
        for _ in range(runs):
            done.append(self._measure_once(batch))
            if not done[-1].answered:
                break
        return done

    def _measure_once(self, batch: int) -> Run:
        from blocks.processes.process import last_lines, run
        from blocks.processes.process_memory import kernel_kills, kernel_kills_since

        killed_before = kernel_kills()
        try:
            finished = run(
                [arg.replace(PLACEHOLDER, str(batch)) for arg in self._argv],
                timeout_s=self._timeout_s,
                needs=(Needs.COMPUTE, *passed_on(os.environ)),
            )
        except CommandTimeoutError as error:
            hung = Failure(kind=FailureKind.HUNG, what=error.what, log_tail=error.detail or None)
            return Run.failing(batch, hung)
        except CommandError as error:
            return Run.failing(batch, Failure(kind=FailureKind.NOT_STARTED, what=error.what))
        if finished.code != 0:
            kills = kernel_kills_since(killed_before)
            log = last_lines(finished.stderr or finished.stdout)
            return Run.failing(batch, failure_of_exit(finished.code, log, kernel_kills=kills))
        return parse_probe(batch, finished.stdout)


def parse_probe(batch: int, text: str) -> Run:
    """A probe's output: one JSON object, on its last line or over all lines."""
    lines = text.strip().splitlines()
    for candidate in (text, lines[-1] if lines else ""):
        try:
            values = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            return _run_of(batch, values)
    return _garbage(batch, f"printed {text.strip()[-80:]!r} instead of a JSON object")


def _garbage(batch: int, what: str) -> Run:
    return Run.failing(batch, Failure(kind=FailureKind.GARBAGE, what=what))


def _run_of(batch: int, values: dict[str, Any]) -> Run:
    if values.get("oom") is True:
        return Run(batch=batch, oom=True)
    for name in ("peak_bytes", "latency_ms", "throughput"):
        value = values.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= _LARGEST_FIGURE  # also false for nan
        ):
            return _garbage(
                batch, f"{name} is {repr(value)[:40]}, not a number from 0 to {_LARGEST_FIGURE:g}"
            )
    return Run(
        batch=batch,
        peak_bytes=math.ceil(values["peak_bytes"]),
        latency_ms={"latency": float(values["latency_ms"])},
        throughput=float(values["throughput"]),
    )


def _answer(decision: Decision, history: Sequence[Run], sizes: Mapping[int, SizeFigures]) -> dict[str, Any]:
    chosen = sizes[decision.batch] if decision.batch else None
    return {
        "batch": decision.batch,
        "probes": len({run.batch for run in history}),
        "runs": len(history),
        "oom_hits": sum(run.oom for run in history),
        "throughput": chosen.throughput if chosen else None,
        "reason": decision.reason,
        "failures": [
            {"batch": size.batch, **failure.model_dump(mode="json")}
            for size in sizes.values()
            for failure in size.failures
        ],
    }


def _show(decision: Decision, sizes: Sequence[SizeFigures]) -> None:
    rows = [
        (
            str(size.batch),
            str(size.runs),
            f"{size.throughput:.4g}" if size.peak_bytes is not None else "-",
            f"{size.latency_ms['latency']:.4g}" if size.latency_ms else "-",
            f"{size.peak_bytes / 1e6:.4g}" if size.peak_bytes is not None else "-",
            "[bold]chosen[/bold]" if size.batch == decision.batch else size.why.replace("[", "\\["),
        )
        for size in sizes
    ]
    figures = ["batch", "runs", "throughput", "latency ms", "peak MB"]
    print_table([*figures, "why"], rows, right=figures)
    for line in failure_lines(sizes):
        click.echo(line)
    click.echo(f"batch {decision.batch}: {decision.reason}" if decision.batch else f"none: {decision.reason}")
