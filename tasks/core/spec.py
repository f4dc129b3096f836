"""The deployment spec: what the user wants (docs/spec.md). YAML in, a frozen model out.

Unknown keys are refused with the key's path and the nearest known key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tasks.core import api_keys, strict_yaml
from tasks.core.engine_options import EngineArgs, EngineEnv, EngineVersion
from tasks.core.errors import SpecError, WrongUseError
from tasks.core.given_files import decode_text, expand_user, read_given
from tasks.core.model_task import Task
from tasks.core.sources import FILE, FORMS, GGUF, local_folder, split_variant, with_variant
from tasks.core.spec_errors import explain
from tasks.core.spec_kinds import DEFAULT_ENGINE, EngineKind, EnvironmentManager, Target
from tasks.core.spec_sections import (
    Checks,
    Environment,
    Hardware,
    Objectives,
    Part,
    Rollout,
    Serving,
    Staging,
    Tuning,
)
from tasks.core.spec_values import check_source


class DeploySpec(Part):
    """One service: which model, on which engine, where, and how good it must be."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="Name of the service and of the model in its API: a-z, 0-9 and -.",
    )
    model: str = Field(
        description=f"{FORMS}. PATH may be a GGUF file; #q4_k_m at the end chooses one of several in a folder."
    )
    task: Task | None = Field(
        None, description="What users ask the model for; what its files say when empty (docs/embeddings.md)."
    )
    engine: EngineKind = Field(DEFAULT_ENGINE, description="Serving engine.")
    engine_version: EngineVersion | None = Field(
        None, description="Release of the engine; the one that Slipway was tested with when empty."
    )
    engine_args: EngineArgs = Field(
        {},
        description="More arguments for the engine's command line, by name without dashes: true gives a flag, a list "
        "several values. Those that Slipway sets are refused.",
    )
    engine_env: EngineEnv = Field(
        {}, description="More environment variables for the engine, as text. They are not for secrets."
    )
    target: Target = Field(Target.PROCESS, description="Where the release runs.")
    hardware: Hardware = Hardware()
    environment: Environment = Environment()
    staging: Staging = Staging()
    objectives: Objectives = Objectives()
    tuning: Tuning = Tuning()
    serving: Serving = Serving()
    rollout: Rollout = Rollout()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _images_are_built_from_locks(self) -> Self:
        manager = self.environment.manager
        if self.target.in_image and manager is not EnvironmentManager.UV:
            raise ValueError(f"target {self.target} builds its image from a lock of uv's, not of {manager}")
        return self

    @field_validator("rollout")
    @classmethod
    def _an_image_is_run(cls, value: Rollout, info: ValidationInfo) -> Rollout:
        target = info.data.get("target", Target.DOCKER)  # absent if it is wrong itself
        if value.image is not None and not target.in_image:
            raise ValueError(f"image is for target {Target.DOCKER}, not for {target}")
        return value

    @model_validator(mode="after")
    def _a_release_is_installed(self) -> Self:
        if self.engine_version is not None and self.environment.manager is EnvironmentManager.SYSTEM:
            raise ValueError(
                "engine_version is for environments that Slipway builds; the manager system uses its own"
            )
        return self

    @model_validator(mode="after")
    def _further_names_are_others(self) -> Self:
        if self.name in self.serving.names:
            raise ValueError(f"serving.names: {self.name} is the service's own name, which it always has")
        return self

    @field_validator("model")
    @classmethod
    def _known_source(cls, value: str) -> str:
        return check_source(value)


def load_spec(path: Path, overrides: Sequence[str] = ()) -> DeploySpec:
    """Read a spec file; `overrides` are `KEY=VALUE` with dotted keys and YAML values.

    Relative paths in the file are relative to the file's folder. Raises `SpecError`.
    """
    content = read_given(
        path,
        "spec file",
        limit_bytes=strict_yaml.LIMIT_BYTES,
        fix="give the path of a YAML file",
        missing=SpecError,
        wrong=SpecError,
    )
    values = strict_yaml.parse_yaml(decode_text(content, f"the spec file {path}", SpecError), str(path))
    if not isinstance(values, dict):
        raise SpecError(f"{path} is not a mapping of keys to values", fix="start with `name:` and `model:`")
    for override in overrides:
        _apply_override(values, override)
    return parse_spec(values, source=str(path), base=path.absolute().parent)


def parse_spec(values: Mapping[str, Any], *, source: str = "spec", base: Path | None = None) -> DeploySpec:
    """The model with these values. Raises one `SpecError` that names the first wrong key."""
    try:
        spec = DeploySpec.model_validate(values)
    except ValidationError as error:
        raise explain(error, source, DeploySpec) from None
    return _with_absolute_paths(spec, base, source) if base else spec


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(
            f"--set {override[:80]!r} is not KEY=VALUE", fix="for example --set tuning.max_batch=8"
        )
    *parents, last = key.split(".")
    here: Any = values
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise SpecError(f"--set {key[:80]}: {parent[:80]} is not a section")
    here[last] = strict_yaml.parse_yaml(text, f"--set {key[:80]}")


def _with_absolute_paths(spec: DeploySpec, base: Path, source: str) -> DeploySpec:
    changes: dict[str, Any] = {}
    changes["model"] = _absolute_source(spec.model, base, f"{source}: model")
    # An environment's folder may be a link that its programs refer to: it is not resolved.
    for section, follow in (("environment", False), ("tuning", True), ("serving", True)):
        part: Part = getattr(spec, section)
        given = {
            name: _absolute(value, base, f"{source}: {section}.{name}")
            for name, value in part
            if isinstance(value, Path)
        }
        if given:
            update = {name: Path(os.path.realpath(path)) if follow else path for name, path in given.items()}
            changes[section] = part.model_copy(update=update)
    if (baseline := spec.tuning.baseline) is not None:
        place = _absolute_source(baseline, base, f"{source}: tuning.baseline")
        changes["tuning"] = changes.get("tuning", spec.tuning).model_copy(update={"baseline": place})
    if file := api_keys.key_file(spec.serving.api_key):
        # Not resolved: what rotates a key may replace a link.
        path = _absolute(file, base, f"{source}: serving.api_key names")
        changes["serving"] = spec.serving.model_copy(update={"api_key": f"{FILE}{path}"})
    return spec.model_copy(update=changes)


def _absolute_source(model: str, base: Path, key: str) -> str:
    folder = local_folder(model)
    if folder is None:
        return model
    return with_variant(f"{FILE}{_real(_absolute(folder, base, key))}", split_variant(model)[1])


def _real(path: Path) -> str:
    """The path without links. A GGUF file keeps its name: a Hugging Face cache links it to one that says nothing."""
    real = os.path.realpath(path)
    if path.suffix == GGUF and not real.endswith(GGUF):
        return f"{os.path.realpath(path.parent)}/{path.name}"
    return real


def _absolute(path: Path, base: Path, key: str) -> Path:
    try:
        absolute = base / expand_user(path)
        absolute.lstat()  # an impossible path: too long, or through a file
    except WrongUseError as error:
        raise SpecError(f"{key}: {error.what.partition(': ')[2]}", fix=error.fix) from None
    except (FileNotFoundError, PermissionError):
        pass  # reported where it is used
    except OSError as error:
        raise SpecError(f"{key}: {str(path)[:200]!r}: {error.strerror}") from None
    return absolute.absolute()
