"""The `slipway` command: finds the verb, runs it, maps an error to an exit code.

Verbs are imported when they are called: `slipway --help` loads none of them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import click

from tasks.core.errors import SlipwayError
from tasks.core.progress import listen

VERBS: dict[str, tuple[str, str]] = {
    "deploy": ("deployments.cli.deploy:deploy", "Take a model from its source to a running, tuned service."),
    "status": ("deployments.cli.service:status", "Show services and what they serve."),
    "logs": ("deployments.cli.service:logs", "Show the end of a service's log."),
    "rollback": ("deployments.cli.service:rollback", "Go back to the release that served before."),
    "stop": ("deployments.cli.service:stop", "End a service."),
    "up": ("deployments.cli.local:up", "Start the local server, worker and deployments."),
    "down": ("deployments.cli.local:down", "End what `up` started."),
    "doctor": ("deployments.cli.doctor:doctor", "Say what is installed here and what is missing."),
    "survey": ("deployments.cli.compat:survey", "Show what this host is: driver, CUDA, GPUs, disk."),
    "compat": ("deployments.cli.compat:compat", "Judge driver, CUDA, GPU and packages together."),
    "env": ("deployments.cli.env:env", "Lock, build and check environments."),
    "stage": ("deployments.cli.stage:stage", "Copy models into verified shards, and verify them."),
    "bench": ("deployments.cli.bench:bench", "Measure the disk, and loading from it."),
    "tune": ("deployments.cli.tune:tune", "Choose quantization and batch size by measuring."),
    "health": ("deployments.cli.checks:health", "Check a service's GPU, process and answers."),
    "leaks": ("deployments.cli.checks:leaks", "Judge memory series."),
    "kb": ("deployments.cli.kb:kb", "Read the knowledge base."),
    "dify": ("deployments.cli.dify:dify", "Make services known to a Dify server."),
    "engines": ("deployments.cli.engines:engines", "List the serving engines; recommend one for a need."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 fault, 2 wrong use, 3 a verdict that says no.",
)
@click.version_option(package_name="slipway")
def slipway() -> None:
    """Take a large language model from a registry to a server in production, and keep it healthy there."""


def main(argv: list[str] | None = None) -> None:
    """Entry point. Never shows a traceback for a fault that Slipway can explain."""
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect would report use of it, and print a notice
    listen()  # a verb that takes long says where it shows its progress
    try:
        code = slipway.main(args=arguments, prog_name="slipway", standalone_mode=False)
    except SlipwayError as error:
        report_error(error, as_json="--json" in arguments)
        code = error.exit_code
    except OSError as error:
        fault = _fault_of(error)
        report_error(fault, as_json="--json" in arguments)
        code = fault.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _fault_of(error: OSError) -> SlipwayError:
    """What the disk did, where that is the cause; else the error goes on up."""
    from tasks.core.disk_faults import disk_fault
    from tasks.core.settings import Settings

    fault = disk_fault(error, Settings.load().home)
    if fault is None:
        raise error
    return fault


def report_error(error: SlipwayError, *, as_json: bool) -> None:
    """One clear line on standard error, with the way out and evidence below it."""
    if as_json:
        print_json(error.as_json())
    click.echo(f"error: {error.what}", err=True)
    if error.fix:
        click.echo(f"  fix: {error.fix}", err=True)
    if error.detail:
        for line in error.detail.splitlines():
            click.echo(f"  | {line}", err=True)


def print_json(value: Any) -> None:
    """What programs read: one JSON document on standard output."""
    click.echo(json.dumps(value, indent=1, default=str))


if __name__ == "__main__":
    main()
