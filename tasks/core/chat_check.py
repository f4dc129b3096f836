"""Render a chat template in a process of its own, with limits: one that loops for ever, or fills the memory, ends.

`python -I -m tasks.core.chat_check FILE` reads `{"text", "where", "tokens"}`. It prints `{"closing"}`, what follows
an assistant's answer, or `{"wrong"}`, why the template cannot be served.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from tasks.core.chat_template import Template, check_template
from tasks.core.errors import SlipwayError

CPU_S = 3
"""Real templates take milliseconds; an engine renders one for each request."""

_MEMORY_BYTES = 1 << 30


def main() -> None:
    """Judge the template in the file that the command line names."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    asked = json.loads(Path(sys.argv[1]).read_text())
    try:
        answer = {"closing": check_template(Template(asked["text"], asked["where"]), asked["tokens"])}
    except SlipwayError as error:
        answer = {"wrong": error.what}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
