"""The model registry: which version an alias names, and where that version's files lie.

`SLIPWAY_REGISTRY` is the address of an MLflow tracking server (`http…`), or a folder or S3 prefix with this layout:
`<name>/aliases/<alias>` is a small text that holds a version, `<name>/versions/<version>/` holds the model's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks.deadline import within
from blocks.object_store import ObjectStore, open_object_store
from tasks.core.errors import ModelError, NotFoundError, WrongUseError
from tasks.core.files import read_regular
from tasks.core.settings import Settings

_DEADLINE_S = 30.0
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"models:/(?P<name>{_NAME})@(?P<alias>{_NAME})")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are: `file:/ABSOLUTE/PATH` or `s3://BUCKET/PREFIX`; its version if it has one."""

    source: str
    version: str | None = None


def resolve(model: str, settings: Settings) -> ResolvedModel:
    """The source that `file:…`, `s3://…` or `models:/NAME@ALIAS` means now. Does not look into it.

    The folder of a model in a Hugging Face cache means the snapshot that its `main` names.
    """
    if model.startswith("file:"):
        folder = Path(model.removeprefix("file:")).expanduser().absolute()
        commit = within(_DEADLINE_S, str(folder), lambda: _cached_commit(folder))
        if commit is not None:
            return ResolvedModel(f"file:{folder / 'snapshots' / commit}", commit)
        return ResolvedModel(f"file:{folder}")
    if model.startswith("s3://"):
        return ResolvedModel(model.rstrip("/"))
    match = _REFERENCE.fullmatch(model)
    if match is None:
        raise WrongUseError(
            f"{model!r} names no model", fix="write file:PATH, s3://BUCKET/PREFIX or models:/NAME@ALIAS"
        )
    if settings.registry.startswith(("http://", "https://")):
        from blocks.mlflow_registry import MlflowRegistry

        mlflow = MlflowRegistry(settings.registry, s3_endpoint=settings.s3_endpoint)
        version = mlflow.version(match["name"], match["alias"])
        return ResolvedModel(mlflow.source(match["name"], version), version)
    version = read_alias(match["name"], match["alias"], settings)
    registry = _registry(settings)
    return ResolvedModel(registry.url(f"{match['name']}/versions/{version}"), version)


def _cached_commit(folder: Path) -> str | None:
    try:
        if not (folder / "snapshots").is_dir():
            return None
        commit = read_regular(folder / "refs" / "main", 1 << 10).decode().strip()
    except (OSError, ModelError, UnicodeDecodeError):
        return None  # whatever ails the folder is told when its files are listed
    return commit if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def read_alias(name: str, alias: str, settings: Settings) -> str:
    """The version that an alias names. Raises `NotFoundError` that lists the aliases there are."""
    registry = _registry(settings)
    try:
        version = registry.read(f"{name}/aliases/{alias}").decode(errors="replace").strip()
    except NotFoundError:
        known = list_aliases(name, settings)
        there = f"its aliases are {', '.join(known)}" if known else "it has no aliases"
        models = list_models(settings)
        fix = there if name in models else f"models there: {', '.join(models) or 'none'}"
        raise NotFoundError(f"{registry.url()} knows no {name}@{alias}", fix=fix) from None
    if not re.fullmatch(_NAME, version):
        raise ModelError(
            f"{registry.url(f'{name}/aliases/{alias}')} holds no version but {version[:60]!r}",
            fix="write the version's folder name into it",
        )
    return version


def list_models(settings: Settings) -> Sequence[str]:
    """Names of the models in the registry."""
    return [name for name in _registry(settings).names() if re.fullmatch(_NAME, name)]


def list_aliases(name: str, settings: Settings) -> Sequence[str]:
    """Aliases of one model."""
    return [alias for alias in _registry(settings).names(f"{name}/aliases") if re.fullmatch(_NAME, alias)]


def _registry(settings: Settings) -> ObjectStore:
    return open_object_store(settings.registry, endpoint=settings.s3_endpoint)
