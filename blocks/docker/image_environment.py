"""The environment of an image, as `docker inspect` prints it or as lines of KEY=VALUE. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_PAIR = re.compile(r"""^(?:export |ENV |- )?([A-Za-z_][A-Za-z0-9_]*)=(.*)$""")


def parse_environment(text: str) -> dict[str, str]:
    """Value by name. JSON may be all of `docker inspect`, its `Config`, or the list `Env`; a list that is cut or lies
    in other text is read line by line."""
    try:
        lines = list(_in_json(json.loads(text)))
    except (ValueError, RecursionError):
        lines = [line.strip().rstrip(",").strip("\"'") for line in text.splitlines()]
    pairs = (_PAIR.match(line) for line in lines)
    return {pair[1]: pair[2].strip("\"'") for pair in pairs if pair}


def _in_json(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, list):
        for part in found:
            yield from _in_json(part)
    elif isinstance(found, dict):
        for key in ("Config", "Env", "ContainerConfig", "container_config", "config"):
            yield from _in_json(found.get(key))
        if not found.keys() & {"Config", "Env", "config"}:
            for name, value in found.items():
                if isinstance(value, str):
                    yield f"{name}={value}"
