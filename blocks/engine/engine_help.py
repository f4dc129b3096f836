"""What an engine's own program says of its arguments, before it is started with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from blocks.processes.process import Finished, run
from tasks.core.child_environment import Needs
from tasks.core.engine_options import EngineArg
from tasks.core.errors import CommandError, SpecError
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.engines.arguments import options_in, refuse_unknown, render
from tasks.engines.base import Engine

_TIMEOUT_S = 300.0
_WIDE = {"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
"""A narrow terminal would cut the names of long options."""


def check_by_help(
    engine: Engine,
    python: Path,
    arguments: Mapping[str, EngineArg],
    variables: Mapping[str, str],
    version: str | None = None,
) -> None:
    """Raise `SpecError` for an argument that the engine in the environment of `python` does not know, or for a value
    that it refuses while it reads them. If it shows no help, its first start tells.

    `version` is the engine's, for the error.
    """
    command = engine.help_command(python)
    if not arguments or command is None:
        return
    say(StageName.ENVIRONMENT, f"asking {engine.kind} whether it knows {', '.join(arguments)}")
    env = {**_WIDE, **variables}
    *program, help_ = command
    # Parsers read from the left: what they refuse of a value comes before the help.
    whole = _ask([*program, *render(engine.card, arguments), help_], env)
    answer = whole if whole is not None and whole.code == 0 else _ask(command, env)
    known = options_in(answer.stdout) if answer is not None and answer.code == 0 else set()
    if not known or whole is None:
        say(StageName.ENVIRONMENT, f"{engine.kind} does not list its arguments: its first start will tell")
        return
    refuse_unknown(engine.card, arguments, known, version)
    if whole.code != 0:
        raise SpecError(
            f"engine_args: {engine.card.title} refuses them: {_last_line(whole)}",
            fix="correct the value",
        )


def _ask(command: Sequence[str], env: Mapping[str, str]) -> Finished | None:
    try:
        return run(command, timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,), env=env)
    except CommandError:  # too slow, or endless
        return None


def _last_line(answer: Finished) -> str:
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    # argparse and click begin with the program's name, or with `Error`.
    return (
        re.sub(r"^(?:[\w.-]+: )?[Ee]rror: ", "", lines[-1])[:400] if lines else f"exit status {answer.code}"
    )
