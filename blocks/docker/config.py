"""The Docker command's configuration, as far as Slipway goes by it: the engine, and the credential helpers.

https://docs.docker.com/reference/cli/docker/#docker-cli-configuration-file-configjson-properties
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker.auth import load_config
from docker.context.config import get_meta_file
from docker.errors import DockerException
from docker.utils.config import find_config_file

from tasks.core.errors import MissingToolError, WrongUseError

LOCAL_ENGINE = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class DockerConfig:
    """`file` is None if there is none. `context` is the current one, `helpers` the names of credential helpers."""

    file: Path | None
    context: str = "default"
    helpers: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls) -> DockerConfig:
        """The configuration in `DOCKER_CONFIG` or the home. Raises `WrongUseError` if Docker cannot read it."""
        found = find_config_file()
        name = os.environ.get("DOCKER_CONTEXT")
        if found is None:
            return cls(None, name or "default")
        file = Path(str(found))
        content = _read_object(file)
        store, helpers = content.get("credsStore") or "", content.get("credHelpers") or {}
        context = name or content.get("currentContext") or "default"
        if not (isinstance(store, str) and isinstance(helpers, dict) and isinstance(context, str)):
            raise _unreadable(file, "credsStore, credHelpers or currentContext is of the wrong type")
        try:
            load_config()
        except (DockerException, ValueError, TypeError, AttributeError) as error:
            raise _unreadable(file, f"of its auths, {error}") from None
        names = sorted({str(one) for one in (store, *helpers.values()) if one})
        return cls(file, context, tuple(names))

    def engine(self) -> str:
        """The engine's address and who names it. Raises `WrongUseError` for a context that is not there."""
        if host := os.environ.get("DOCKER_HOST"):
            return f"{host} (DOCKER_HOST)"
        if self.context == "default":
            return LOCAL_ENGINE
        meta = Path(get_meta_file(self.context))
        fix = "choose another: docker context use default, or unset DOCKER_CONTEXT, or set DOCKER_HOST"
        if not meta.is_file():
            raise WrongUseError(f"Docker's current context {self.context} does not exist", fix=fix)
        try:
            address = _read_object(meta)["Endpoints"]["docker"]["Host"]
        except (KeyError, TypeError):
            raise WrongUseError(
                f"Docker's current context {self.context} does not name an engine", fix=fix
            ) from None
        return f"{address} (Docker's context {self.context})"

    def check_helpers(self) -> None:
        """Raise `MissingToolError` for a credential helper that is not installed: no image can be built then."""
        for name in self.helpers:
            if shutil.which(f"docker-credential-{name}") is None:
                raise MissingToolError(
                    f"Docker's configuration {self.file} names the credential helper docker-credential-{name}, which "
                    "is not installed",
                    fix=f"install it, or remove {name} from credsStore and credHelpers in that file",
                )


def _unreadable(file: Path, why: str) -> WrongUseError:
    """The error for a configuration that Docker's client cannot use."""
    return WrongUseError(
        f"Docker's configuration {file} cannot be read: {why}",
        fix="correct or remove the file, or set DOCKER_CONFIG to a folder without one",
    )


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, str(error.strerror)) from None
    except (ValueError, RecursionError):
        raise _unreadable(file, "it is not JSON") from None
    if not isinstance(content, dict):
        raise _unreadable(file, "it is not a JSON object")
    return content
