"""The `slipway` command: finds the verb, runs it, maps an error to an exit code.

Verbs are imported when they are called: `slipway --help` loads none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from blocks.processes.surroundings import print_anything, repair_variables, use_utf8
from tasks.core.errors import SlipwayError, WrongUseError
from tasks.core.home import close_home
from tasks.core.paths import is_utf8, shown
from tasks.core.progress import listen
from tasks.core.redaction import redacted, redacted_value
from tasks.core.settings import home_folder

VERBS: dict[str, tuple[str, str]] = {
    "deploy": ("deployments.cli.deploy:deploy", "Take a model from its source to a running, tuned service."),
    "status": ("deployments.cli.service:status", "Show services and what they serve."),
    "start": ("deployments.cli.start:start", "Start services that are down or stopped."),
    "logs": ("deployments.cli.service:logs", "Show the end of a service's log."),
    "rollback": ("deployments.cli.service:rollback", "Go back to the previous release, or to an older one."),
    "history": ("deployments.cli.history:history", "Show what a service went through."),
    "diff": ("deployments.cli.history:diff", "Compare two releases."),
    "stop": ("deployments.cli.service:stop", "End a service."),
    "keys": ("deployments.cli.keys:keys", "Read a service's keys again, without a restart."),
    "up": ("deployments.cli.local:up", "Start the local server, worker and deployments."),
    "ui": ("deployments.cli.ui:ui", "Open the local server's UI, signed in."),
    "down": ("deployments.cli.local:down", "End the server and worker that `up` started."),
    "doctor": ("deployments.cli.doctor:doctor", "Show what is installed on this host, and what is missing."),
    "survey": ("deployments.cli.compat:survey", "Show what this host is: driver, CUDA, GPUs, disk."),
    "compat": ("deployments.cli.compat:compat", "Judge driver, CUDA, GPU and packages together."),
    "env": ("deployments.cli.env:env", "Lock, build and check environments."),
    "stage": ("deployments.cli.stage:stage", "Copy models into verified shards, and verify them."),
    "bench": ("deployments.cli.bench:bench", "Measure the disk, and loading from it."),
    "tune": ("deployments.cli.tune:tune", "Choose quantization and batch size by measuring."),
    "health": ("deployments.cli.checks:health", "Check a service's GPU, process and answers."),
    "leaks": ("deployments.cli.checks:leaks", "Judge memory series."),
    "kb": ("deployments.cli.kb:kb", "Read the knowledge base."),
    "dify": ("deployments.cli.dify:dify", "Register services with a Dify server."),
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
    """Entry point: exits with a code, and never shows a traceback."""
    if argv is None:
        use_utf8()
    print_anything()
    try:
        for warning in repair_variables(os.environ):
            click.echo(f"warning: {warning}", err=True)
        run(argv)
    except KeyboardInterrupt:  # before a verb could say so
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - below here there is only the interpreter's traceback
        # The top of the command: an unexpected error is shown in one line, and saved with its traceback.
        from deployments.cli.faults import describe_unexpected, reader_is_gone

        if isinstance(error, BrokenPipeError) and reader_is_gone():
            sys.exit(1)
        report_error(describe_unexpected(error), as_json="--json" in (sys.argv if argv is None else argv))
        sys.exit(1)


def run(argv: list[str] | None) -> None:
    """Run the verb and exit. Raises only what Slipway cannot explain."""
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect would send telemetry, and print a notice
    listen()  # a long verb says itself where it shows progress
    try:
        _check_text(arguments)
        _close_home(tell=True)
        code = slipway.main(args=arguments, prog_name="slipway", standalone_mode=False)
    except SlipwayError as error:
        report_error(error, as_json="--json" in arguments)
        code = error.exit_code
    except OSError as error:
        fault = _fault_of(error)
        report_error(fault, as_json="--json" in arguments)
        code = fault.exit_code
    except ValueError as error:
        from blocks.prefect.settings import explain_setting

        explained = explain_setting(error)
        if explained is None:
            raise
        fault = explained
        report_error(fault, as_json="--json" in arguments)
        code = fault.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        click.echo(redacted(shown.getvalue()), err=True, nl=False)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = 130
    finally:
        with contextlib.suppress(SlipwayError):
            _close_home(tell=False)  # one that the verb made
    sys.exit(code if isinstance(code, int) else 0)


def _fault_of(error: OSError) -> SlipwayError:
    """Report a disk fault, if that is the cause; otherwise raise the error again."""
    from tasks.core.disk_faults import unforeseen_fault

    fault = unforeseen_fault(error, home_folder())
    if fault is None:
        raise error
    return fault


def _check_text(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8: records, manifests and Prefect can only store text."""
    here = ""
    with contextlib.suppress(FileNotFoundError):  # it was removed, which matters only to some verbs
        here = str(Path.cwd())
    for argument in (*arguments, here):
        if not is_utf8(argument):
            raise WrongUseError(
                f"{shown(argument)} is not UTF-8", fix="rename the file or folder, or name a link to it"
            )


def _close_home(*, tell: bool) -> None:
    """Close the home: those of earlier versions were open to other users of the machine."""
    home = home_folder()
    if close_home(home) and tell:
        click.echo(f"{home} was readable for other users of this machine; it no longer is", err=True)


def report_error(error: SlipwayError, *, as_json: bool) -> None:
    """Print one clear line on standard error, with the suggested fix and evidence below it."""
    if as_json:
        print_json(error.as_json())
    click.echo(f"error: {error.what}", err=True)
    if error.fix:
        click.echo(f"  fix: {error.fix}", err=True)
    for line in (error.detail or "").splitlines():
        click.echo(f"  | {line}", err=True)


def print_json(value: Any, *, with_secrets: bool = False) -> None:
    """Print one JSON document on standard output, without secrets unless they were requested."""
    plain = json.loads(json.dumps(value, default=str))
    click.echo(json.dumps(plain if with_secrets else redacted_value(plain), indent=1))


if __name__ == "__main__":
    main()
