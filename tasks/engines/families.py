"""Model families: what they need of an engine, of a GPU and of their own `config.json`, which is read here."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version
from pydantic import Field, ValidationError

from tasks.core.config_sizes import language_part
from tasks.core.errors import ModelError
from tasks.core.frozen import Frozen
from tasks.core.model_shape import ENCODERS, ModelShape
from tasks.core.sources import local_folder
from tasks.engines.card import Capability, Sourced, damaged, read_data

_BFLOAT16 = Version("8.0")
"""Compute capability from which GPUs compute in bfloat16."""


class Family(Sourced):
    """One family; see `data/families.toml` for what the fields mean. Sizes in bytes, contexts in tokens."""

    name: str
    title: str
    architectures: tuple[str, ...] = Field(min_length=1)
    model_types: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    native_dtype: str
    native_quantization: str | None = None
    native_capability: Capability | None = None
    forbids: tuple[str, ...] = ()
    forbidden_flags: tuple[str, ...] = ()
    config: dict[str, str] = Field({})
    max_context: int | None = None
    weights_bytes: int | None = None
    alternative: str | None = None
    dtype_rule: str | None = None
    capability_rule: str | None = None
    status: Literal["verified", "partly-verified"]
    checked_on: date


class Finding(Frozen):
    """Why a family cannot be served so: what is wrong, what to do, and who says so."""

    message: str
    fix: str
    sources: tuple[str, ...]


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, by name. Raises `SlipwayError` if the table is damaged."""
    try:
        return tuple(Family.model_validate(row) for row in read_data("families.toml")["family"])
    except (KeyError, ValidationError) as error:
        raise damaged("families.toml", " ".join(str(error).split())[:200]) from error


def find_family(name: str | None) -> Family | None:
    """The family of that name."""
    return next((family for family in families() if family.name == name), None)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a model by its `config.json`; None for one that is not known. Several families may share one
    architecture: then `model_type` tells which it is."""
    named, kind = config.get("architectures"), config.get("model_type")
    found = {str(name) for name in named} if isinstance(named, list) else set()
    typed = next((family for family in families() if kind in family.model_types), None)
    return typed or next((family for family in families() if found.intersection(family.architectures)), None)


def shape_findings(config: Mapping[str, Any], shape: ModelShape) -> tuple[str, ...]:
    """What cannot be known of a model before it is served: warnings, which refuse nothing."""
    found = []
    if family_of(config) is None and shape.architecture not in ENCODERS:
        found.append(
            f"Slipway does not know the architecture {shape.architecture}: the engine decides whether to serve it"
        )
    found += [f"config.json does not say {what}: only measurements will tell" for what in shape.unread]
    return tuple(found)


def config_at(source: str) -> Mapping[str, Any]:
    """The `config.json` of a model whose folder is on this machine (`file:PATH`); empty if there is none."""
    folder = local_folder(source)
    return {} if folder is None else config_in(folder)


def config_in(folder: Path) -> Mapping[str, Any]:
    """The `config.json` in a folder; empty if there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # staging says what is wrong with it
    return config if isinstance(config, dict) else {}


def family_in(folder: Path) -> Family | None:
    """The family of the model in a folder, as `check_family` says; None for one that comes as GGUF."""
    if not (folder / "config.json").exists():
        return None
    return check_family(json.loads((folder / "config.json").read_bytes()))  # its sizes were read before


def check_family(config: Mapping[str, Any]) -> Family | None:
    """The family of a model by its `config.json`; None for one that is not known. Raises `ModelError` if the
    configuration lacks what the family needs."""
    family = family_of(config)
    _refuse(config_findings(family, config) if family else ())
    return family


def serving_dtype(family: Family, capabilities: Iterable[Capability]) -> str | None:
    """The type in which to serve the family on GPUs of these capabilities.

    None if no type is possible. float16 if a GPU is too old for bfloat16, unless the family overflows in float16.
    """
    if all(Version(one) >= _BFLOAT16 for one in capabilities):
        return family.native_dtype
    return "float16" if "float16" not in family.forbids else None


def served_as(family: Family, capabilities: Iterable[Capability]) -> str | None:
    """The type that the compatibility tables judge of weights that are not quantized: files say whether they are."""
    return serving_dtype(family, capabilities) or family.native_dtype


def dtype_finding(family: Family, dtype: str) -> Finding | None:
    """What is wrong with serving the family in that type."""
    if dtype not in family.forbids:
        return None
    return Finding(
        message=f"{family.title} overflows in {dtype}",
        fix=f"serve it in {family.native_dtype}",
        sources=_sources(family, family.dtype_rule),
    )


def config_findings(family: Family, config: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Keys that a model's `config.json` lacks, or that have a value that makes engines crash."""
    part = language_part(config)
    return tuple(
        Finding(
            message=f"config.json has {key} {part.get(key)!r}, {family.title} needs {wanted!r}",
            fix=f"set {key} to {wanted!r}, or use the model's original config.json",
            sources=_sources(family),
        )
        for key, wanted in family.config.items()
        if part.get(key) != wanted
    )


def flag_findings(family: Family, argv: Iterable[str]) -> tuple[Finding, ...]:
    """Arguments that must not be given for a model of this family that is quantized already."""
    return tuple(
        Finding(
            message=f"{flag} must not be given: {family.title} comes in {family.native_quantization} already",
            fix=f"leave {flag} out",
            sources=_sources(family),
        )
        for flag in family.forbidden_flags
        if flag in argv
    )


def check_flags(folder: Path, argv: Sequence[str]) -> None:
    """Raise `ModelError` for an argument that the family of the model in a folder forbids, if it is quantized."""
    family = family_in(folder)
    quantized = family is not None and config_in(folder).get("quantization_config")
    _refuse(flag_findings(family, argv) if family and quantized else ())


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        raise ModelError("; ".join(one.message for one in findings), fix=findings[0].fix)


def host_findings(
    family: Family, capabilities: Iterable[Capability], memory_bytes: int | None, share: float
) -> tuple[Finding, ...]:
    """Why the family's own weights cannot be served on these GPUs, of whose memory in all `share` may be used.

    `memory_bytes` None: not known.
    """
    found = []
    low = [one for one in capabilities if not _new_enough(family, one)]
    otherwise = family.alternative or "another family, or newer GPUs"
    if low:
        found.append(
            Finding(
                message=f"{family.title} comes in {family.native_quantization or family.native_dtype}, "
                f"which compute capability {low[0]} does not compute in",
                fix=otherwise,
                sources=_sources(family, family.capability_rule),
            )
        )
    if family.weights_bytes and memory_bytes is not None and family.weights_bytes > memory_bytes * share:
        found.append(
            Finding(
                message=f"its weights take {family.weights_bytes / 1e9:.0f} GB, "
                f"{memory_bytes * share / 1e9:.0f} GB may be used",
                fix=otherwise,
                sources=_sources(family),
            )
        )
    return tuple(found)


def _new_enough(family: Family, capability: Capability) -> bool:
    if family.native_capability is not None:
        return Version(capability) >= Version(family.native_capability)
    return serving_dtype(family, [capability]) is not None


def _sources(family: Family, rule: str | None = None) -> tuple[str, ...]:
    """The rule of the compatibility tables that says the same, then what both rest on."""
    return (rule, *family.sources) if rule else family.sources
