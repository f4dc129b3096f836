"""The model registry: which version an alias names, and the location of its files.

`SLIPWAY_REGISTRY` is the address of an MLflow tracking server (`http…`), or a folder or S3 prefix with this layout:
`<name>/aliases/<alias>` is a small text file with a version, `<name>/versions/<version>/` contains the model's files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from blocks.storage.object_store import ObjectStore, open_object_store
from tasks.core.errors import ModelError, NotFoundError, WrongUseError
from tasks.core.paths import is_file_name, shown, some_of
from tasks.core.settings import Settings
from tasks.core.sources import FORMS, REGISTRY, ResolvedModel

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"{REGISTRY}(?P<name>.+)@(?P<alias>[^@]+)", re.DOTALL)
_VERSION = re.compile(rf"{REGISTRY}(?P<name>[^/@]+)/(?P<version>[^/@]+)")
_LIMITED = re.compile(_NAME)


def resolve_alias(model: str, settings: Settings) -> ResolvedModel:
    """The source of the version that `models:/NAME@ALIAS` means now. Does not read its files."""
    by_mlflow = settings.registry.startswith(("http://", "https://"))
    name, alias = _read_reference(model, any_name=by_mlflow)
    if by_mlflow:
        from blocks.storage.mlflow_registry import MlflowRegistry

        mlflow = MlflowRegistry(settings.registry, s3_endpoint=settings.s3_endpoint)
        version = mlflow.version(name, alias)
        return ResolvedModel(mlflow.source(name, version), version)
    version = read_alias(name, alias, settings)
    return ResolvedModel(_registry(settings).url(f"{name}/versions/{version}"), version)


def _read_reference(model: str, *, any_name: bool) -> tuple[str, str]:
    """Name and alias. MLflow allows any name; in a folder or on S3 they must be valid file names."""
    if versioned := _VERSION.fullmatch(model):
        raise WrongUseError(
            f"{shown(model)} names a version or a stage of {versioned['name']}, but Slipway follows aliases",
            fix=f"point an alias to that version, then write models:/{versioned['name']}@ALIAS",
        )
    match = _REFERENCE.fullmatch(model)
    is_name = is_file_name if any_name else _LIMITED.fullmatch
    if match is None or not is_name(match["name"]) or not is_name(match["alias"]):
        raise WrongUseError(f"{shown(model)} does not name a model", fix=f"write {FORMS}")
    return match["name"], match["alias"]


def read_alias(name: str, alias: str, settings: Settings) -> str:
    """The version that an alias names. Raises a `NotFoundError` that lists the existing aliases."""
    registry = _registry(settings)
    try:
        version = registry.read(f"{name}/aliases/{alias}").decode(errors="replace").strip()
    except NotFoundError:
        known = list_aliases(name, settings)
        there = f"its aliases are {some_of(known)}" if known else "it has no aliases"
        models = list_models(settings)
        fix = there if name in models else f"its models are {some_of(models) or 'none'}"
        raise NotFoundError(f"{registry.url()} does not have {name}@{alias}", fix=fix) from None
    if not re.fullmatch(_NAME, version):
        raise ModelError(
            f"{registry.url(f'{name}/aliases/{alias}')} contains {version[:60]!r}, which is not a version",
            fix="write the name of the version's folder into it",
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
