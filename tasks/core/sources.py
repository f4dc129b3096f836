"""How the source of a model is written: a scheme, and what follows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FILE, S3, REGISTRY = "file:", "s3://", "models:/"

SCHEMES = {FILE: "file:PATH", S3: "s3://BUCKET/PREFIX", REGISTRY: "models:/NAME@ALIAS"}
"""All schemes, each with the form of such a source. `blocks/storage/sources.py` says what they mean."""

*_first, _last = SCHEMES.values()
FORMS = f"{', '.join(_first)} or {_last}"


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are: `file:/ABSOLUTE/PATH` or `s3://BUCKET/PREFIX`; its version if it has one."""

    source: str
    version: str | None = None


def scheme_of(source: str) -> str | None:
    """The scheme of a source; None if it has none of these."""
    return next((scheme for scheme in SCHEMES if source.startswith(scheme)), None)


def local_folder(source: str) -> Path | None:
    """The folder that `file:PATH` names; None for any other source."""
    return Path(source.removeprefix(FILE)) if source.startswith(FILE) else None
