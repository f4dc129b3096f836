"""The options of an installed engine, for `tests/golden/engine_options`.

`python tests/support/engine_options.py KIND PYTHON`: asks the engine in the environment of that Python for its help, and
prints the file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine

_WIDE = {"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
_LINE = re.compile(r"^ {1,8}(-.*)$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--?([A-Za-z0-9][\w-]*)(?![\w.-])")


def options_of(text: str) -> list[str]:
    """The options that a help defines, without dashes in front; those that its texts mention are no others, or gone."""
    lines = (re.split(r"\s{2,}", line)[0] for line in _LINE.findall(text))
    return sorted({name for line in lines for name in _OPTION.findall(line)})


def main() -> None:
    kind, python = sys.argv[1:]
    engine = get_engine(EngineKind(kind))
    command = engine.help_command(Path(python))
    assert command is not None
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=_WIDE)
    page = {
        "engine": kind,
        "version": engine.card.version,
        "source": " ".join(engine.card.requirements),
        "how": f"run: {' '.join(engine.card.help)}",
        "options": options_of(done.stdout),
    }
    print(json.dumps(page, indent=0))


if __name__ == "__main__":
    main()
