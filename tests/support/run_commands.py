"""Runs commands of `slipway`, each in a fork of this process: modules are loaded once, mounts and users are shared.

`python run_commands.py COMMANDS.json`: a list of argument lists; prints a line of JSON for each with its exit status,
`out` and `err`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO


def main() -> None:
    """Run them one after another."""
    import deployments.cli.main  # before the forks

    commands = json.loads(Path(sys.argv[1]).read_text())
    for command in commands:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                _run(deployments.cli.main.main, command, out, err)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(json.dumps({"code": code, "out": _text(out), "err": _text(err)}), flush=True)


def _run(entry: object, command: list[str], out: IO[bytes], err: IO[bytes]) -> None:
    code = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        assert callable(entry)
        entry(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:  # noqa: BLE001  # as the interpreter does for the command itself
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    main()
