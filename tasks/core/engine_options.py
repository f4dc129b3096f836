"""What a spec hands to its engine unchanged: arguments of its command line and environment variables. Pure.

Only the form is checked here, and what holds for every engine. Which arguments Slipway sets itself is on the engine's
card (`tasks/engines/arguments.py`).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Annotated, Any

from packaging.version import InvalidVersion, Version
from pydantic import BeforeValidator, Field

from tasks.core.errors import SpecError
from tasks.core.redaction import SHORTEST_SECRET, names_path, names_secret, redact
from tasks.core.spec_values import check_text

MOST_OPTIONS = 200
_ARGUMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
_PLACEHOLDERS = ("{host}", "{port}")
"""Filled in at the start (`tasks.engines.base`): a value with one of them would not arrive as it was written."""

_SECRET_ARGUMENT = re.compile(
    r"(?:^|-)(?:passw(?:or)?d|passphrase|secret|(?:access|auth|bearer|hf|hub)-token)$"
)
_OFFLINE = "the engine serves what was staged, without a network"
_OWN_PROCESS = "it decides how Slipway runs the engine's process"
_OWNED_VARIABLES = {
    **dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
         "ROCR_VISIBLE_DEVICES"),
        "set hardware.gpus instead",
    ),
    "OMP_NUM_THREADS": "set hardware.cpus instead",
    "LLAMA_ARG_*": "use engine_args instead",
    **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"), f"remove it: {_OFFLINE}"),
    **dict.fromkeys(
        ("PATH", "HOME", "USER", "SHELL", "TMPDIR", "TMP", "TEMP", "LD_*", "GCONV_PATH", "GLIBC_TUNABLES", "PYTHON*",
         "BASH_ENV", "ENV", "IFS", "SLIPWAY_*", "PREFECT_*"),
        f"remove it: {_OWN_PROCESS}",
    ),
}  # fmt: skip
_NOT_OWNED = {"PYTHONHASHSEED"}
"""vLLM takes it for hashes of prefixes that several engines agree on."""


def _parse_arguments(value: Any) -> Any:
    """Names with dashes, in order; without those that are false or empty, which are left out of the command line."""
    if not isinstance(value, Mapping):
        raise ValueError("a mapping of arguments to values, such as {max-logprobs: 5}")
    found: dict[str, Any] = {}
    for written, given in value.items():
        name = argument_name(written)
        if name in found:
            raise ValueError(f"{name} is there twice, with dashes and with underscores")
        found[name] = _argument_value(name, given)
    return {name: found[name] for name in sorted(found) if found[name] is not None}


def argument_name(written: Any) -> str:
    """The one spelling of an argument's name: dashes for underscores, but for the keys behind a dot."""
    if not isinstance(written, str):
        raise ValueError(f"{written!r} is not the name of an argument: write it in quotes")
    if written.startswith("-"):
        raise ValueError(f"write {written[:80]!r} without the dashes: {written[:80].lstrip('-')!r}")
    if "=" in written:
        raise ValueError(
            f"write the value of {written[:80]!r} after a colon: {written[:80].replace('=', ': ')}"
        )
    if not _ARGUMENT.fullmatch(written):
        raise ValueError(f"{written[:80]!r} is not the name of an argument, such as max-logprobs")
    name, dot, below = written.partition(".")
    return f"{name.replace('_', '-')}{dot}{below}"


def _argument_value(name: str, given: Any) -> Any:
    if given is None or given is False:
        return None
    if isinstance(given, Mapping):
        raise ValueError(f"{name}: write a mapping as JSON text in quotes: '{{\"key\": 1}}'")
    if not isinstance(given, list | tuple):
        return given if given is True else _scalar(name, given)
    if not given:
        raise ValueError(f"{name}: an empty list; leave it out")
    return tuple(_scalar(name, one) for one in given)


def _scalar(name: str, given: Any) -> str | int | float:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError(f"{name}: text, a number, true, or a list of texts and numbers")
    text = str(given)
    try:
        check_text(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if any(one in text for one in _PLACEHOLDERS):
        raise ValueError(
            f"{name}: {{host}} and {{port}} are filled in by Slipway, and cannot be part of a value"
        )
    if _SECRET_ARGUMENT.search(name) or redact(text) != text:
        raise ValueError(
            f"{name} looks like a secret, and a command line is public: give the engine a file instead"
        )
    return given


def check_variables(variables: Mapping[str, str]) -> None:
    """Raise `SpecError` for variables that a spec may not set."""
    try:
        _parse_variables(variables)
    except ValueError as error:
        raise SpecError(f"engine_env: {error}") from None


def _parse_variables(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError("a mapping of variables to texts, such as {VLLM_LOGGING_LEVEL: DEBUG}")
    for name, text in value.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ValueError(f"{str(name)[:80]!r} is not the name of a variable")
        if not isinstance(text, str):
            raise ValueError(f"{name}: text; write numbers, true and false in quotes")
        _check_variable(name, text)
    return {name: value[name] for name in sorted(value)}


def _check_variable(name: str, text: str) -> None:
    """Raise `ValueError` for a variable that a spec may not set."""
    owned = next(
        (fix for pattern, fix in _OWNED_VARIABLES.items() if fnmatch.fnmatchcase(name.upper(), pattern)), ""
    )
    if owned and name not in _NOT_OWNED:
        raise ValueError(f"{name} is set by Slipway or this host; {owned}")
    try:
        check_text(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    named = names_secret(name) and not names_path(name) and len(text) >= SHORTEST_SECRET
    if named or redact(text) != text:
        raise ValueError(
            f"{name} looks like a secret, and a release keeps its variables in plain text: name a file that has it"
        )


def _version(value: Any) -> Any:
    if value is None:
        return None
    try:
        return str(Version(value))
    except (InvalidVersion, TypeError):  # 0.30 without quotes is the number 0.3
        raise ValueError("a release as text, such as '0.32.0'") from None


EngineArg = str | int | float | bool | None | tuple[str | int | float, ...]
"""True is a flag alone; a list is given in the engine's own way."""

EngineArgs = Annotated[
    dict[str, EngineArg], BeforeValidator(_parse_arguments), Field(max_length=MOST_OPTIONS)
]
"""Arguments of an engine's command line, by name without leading dashes."""

EngineEnv = Annotated[dict[str, str], BeforeValidator(_parse_variables), Field(max_length=MOST_OPTIONS)]
"""Environment variables of an engine's process."""

EngineVersion = Annotated[str, BeforeValidator(_version)]
"""A release of an engine, as PEP 440 spells it."""
