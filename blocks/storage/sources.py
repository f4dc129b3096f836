"""What each scheme of a model's source means: the place that it names now, and how to read its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blocks.storage.model_registry import resolve_alias
from blocks.storage.model_source import open_folder, open_s3, resolve_folder
from tasks.core.errors import WrongUseError
from tasks.core.paths import is_utf8, shown
from tasks.core.settings import Settings
from tasks.core.sources import (
    ARTIFACTS,
    FILE,
    FORMS,
    GGUF,
    HUB,
    OCI,
    REGISTRY,
    S3,
    ResolvedModel,
    parse_hub,
    parse_oci,
    scheme_of,
    split_variant,
    with_variant,
)
from tasks.staging.gguf_choice import GgufSource, files_named, one_model
from tasks.staging.source import ModelSource


@dataclass(frozen=True)
class Scheme:
    """`resolve` finds the place that a source names now; `open` takes such a place, the address of an S3 server, and
    whether one of several quantizations is asked for.

    A scheme without `open` always resolves to another one.
    """

    resolve: Callable[[str, Settings], ResolvedModel]
    open: Callable[[str, str | None, bool], ModelSource] | None = None


def _resolve_hub(source: str, _: Settings) -> ResolvedModel:
    from blocks.storage.hub import resolve_hub  # imported only when needed: it takes time to load

    return resolve_hub(source)


def _open_hub(source: str, _: str | None, variant: bool) -> ModelSource:
    """A repository, or one GGUF model in it."""
    from blocks.storage.hub import open_hub

    file = reference.file if (reference := parse_hub(source)) else None
    opened = open_hub(source, all_formats=variant or file is not None)
    return GgufSource(opened, files_named(file)) if file else opened


def _resolve_oci(source: str, _: Settings) -> ResolvedModel:
    from blocks.storage.oci import resolve_oci

    return resolve_oci(source)


def _open_oci(source: str, _endpoint: str | None, _variant: bool) -> ModelSource:
    """An artifact, or one GGUF model in it."""
    from blocks.storage.oci import open_oci

    file = reference.file if (reference := parse_oci(source)) else None
    opened = open_oci(source)
    return GgufSource(opened, files_named(file)) if file else opened


def _open_artifacts(source: str, _endpoint: str | None, _variant: bool) -> ModelSource:
    """A folder behind MLflow's server, or one GGUF model in it."""
    from blocks.storage.mlflow_artifacts import open_artifacts

    folder, _, name = source.rpartition("/")
    registry = Settings.load().registry
    if not name.endswith(GGUF):
        return open_artifacts(source, registry)
    return GgufSource(open_artifacts(folder, registry), files_named(name))


def _open_s3(source: str, endpoint: str | None, _variant: bool) -> ModelSource:
    """A prefix, or one GGUF model below it: its name is that of an object."""
    prefix, _, name = source.rpartition("/")
    if not name.endswith(GGUF):
        return open_s3(source, endpoint)
    return GgufSource(open_s3(prefix, endpoint), files_named(name))


_SCHEMES = {
    FILE: Scheme(lambda source, _: resolve_folder(source), lambda source, *_: open_folder(source)),
    S3: Scheme(lambda source, _: ResolvedModel(source.rstrip("/")), _open_s3),
    HUB: Scheme(_resolve_hub, _open_hub),
    OCI: Scheme(_resolve_oci, _open_oci),
    ARTIFACTS: Scheme(lambda source, _: ResolvedModel(source.rstrip("/")), _open_artifacts),
    REGISTRY: Scheme(resolve_alias),
}


def resolve(model: str, settings: Settings) -> ResolvedModel:
    """The place that `file:…`, `s3://…`, `hf:…` or `models:/NAME@ALIAS` means now. Does not read its files.

    For the folder of a model in a Hugging Face cache, the snapshot that `main` points to.
    """
    if not is_utf8(model):
        raise WrongUseError(
            f"the name of the model {shown(model)} is not UTF-8",
            fix="rename the folder, or name a link to it",
        )
    scheme = scheme_of(model)
    if scheme is None:
        raise WrongUseError(f"{shown(model)} does not name a model", fix=f"write {FORMS}")
    place, variant = split_variant(model)
    resolved = _SCHEMES[scheme].resolve(place, settings)
    return replace(resolved, source=with_variant(resolved.source, variant))


def open_source(source: str, *, endpoint: str | None) -> ModelSource:
    """The files of a resolved source, whatever variant it asks for. Does not read them yet."""
    source, variant = split_variant(source)
    opener = _SCHEMES[scheme].open if (scheme := scheme_of(source)) else None
    if opener is None:
        raise WrongUseError(f"{source!r} is not a valid source", fix=f"write {FORMS}")
    return opener(source, endpoint, variant is not None)


def open_model(source: str, formats: Sequence[str], *, endpoint: str | None) -> ModelSource:
    """The same, but of several GGUF models the one that is meant, by the variant in the source or by one of these
    formats. Lists the files. Raises `SpecError` if neither decides."""
    opened = open_source(source, endpoint=endpoint)
    return one_model(opened, split_variant(source)[1], formats)
