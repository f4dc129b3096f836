"""How the source of a model is written: a scheme, and what follows it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILE, S3, REGISTRY = "file:", "s3://", "models:/"

GGUF = ".gguf"
"""How the name of a source ends that is one file of a folder."""

_VARIANT = re.compile(
    r"(?P<place>.*)#(?P<variant>(?:ud-)?(?:i?q[0-9][a-z0-9_]*|tq[0-9]_[0-9]|bf16|fp?16|fp?32|mxfp4[a-z0-9_]*|nvfp4))",
    re.IGNORECASE | re.DOTALL,
)
"""Only names of quantizations count: the name of a folder may contain `#`."""

SCHEMES = {FILE: "file:PATH", S3: "s3://BUCKET/PREFIX", REGISTRY: "models:/NAME@ALIAS"}
"""All schemes, each with the form of such a source. `blocks/storage/sources.py` says what they mean."""

*_first, _last = SCHEMES.values()
FORMS = f"{', '.join(_first)} or {_last}"


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are: `file:/ABSOLUTE/PATH` or `s3://BUCKET/PREFIX`; its version if it has one.

    A path or prefix that ends in `.gguf` is one file; `#q4_k_m` behind a folder chooses one of its GGUF models.
    """

    source: str
    version: str | None = None


def scheme_of(source: str) -> str | None:
    """The scheme of a source; None if it has none of these."""
    return next((scheme for scheme in SCHEMES if source.startswith(scheme)), None)


def split_variant(source: str) -> tuple[str, str | None]:
    """A source without the quantization that it asks for, and that in small letters: `file:/m#q4_k_m`."""
    found = _VARIANT.fullmatch(source)
    return (found["place"], found["variant"].lower()) if found else (source, None)


def with_variant(source: str, variant: str | None) -> str:
    """The reverse of `split_variant`."""
    return f"{source}#{variant}" if variant else source


def local_folder(source: str) -> Path | None:
    """The folder, or the GGUF file, that `file:PATH` names; None for any other source."""
    place, _ = split_variant(source)
    return Path(place.removeprefix(FILE)) if place.startswith(FILE) else None
