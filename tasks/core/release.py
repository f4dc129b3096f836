"""A release: the immutable result of a deploy, and the state of the service that runs it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from tasks.core.addresses import base_url
from tasks.core.digests import digest_of
from tasks.core.errors import NotFoundError, RecordError
from tasks.core.frozen import Frozen, first_wrong
from tasks.core.kept_spec import KeptSpec
from tasks.core.paths import is_file_name, shown
from tasks.core.progress import say
from tasks.core.records import Number
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind, Target

M = TypeVar("M", bound=BaseModel)

_NOT_IN_ID = {"at", "numbers", "records"}


class Launch(Frozen):
    """How the engine is started on this host: everything but the port, which is chosen at the start.

    `argv` has the placeholders `{host}` and `{port}`. `model_file` is the file or folder that is served.
    All paths are this host's; a container's command is made from the release's tuned configuration.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = Field({})
    model_file: Path


class Release(Frozen):
    """What was decided and measured for one service, named by digests (DESIGN 3).

    `candidate_digest` is the digest of `launch.model_file`, which a rollout checks before it starts; `config` is the
    tuned configuration.
    """

    schema_: Literal["slipway.release/2"] = Field(default="slipway.release/2", alias="schema")
    at: datetime
    spec: KeptSpec
    engine: EngineKind
    engine_version: str
    target: Target
    environment_digest: str
    environment_path: Path
    lock_path: Path
    model_source: str
    model_version: str | None = None
    model_digest: str
    candidate_format: str
    candidate_digest: str
    config: ServingConfig
    launch: Launch
    image: str | None = None
    numbers: dict[str, Number] = Field({})
    records: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.spec.name

    _stored: tuple[str, dict[str, Any]] | None = PrivateAttr(None)
    """The id that this version would give, and the document as another version wrote it, with another id."""

    @model_validator(mode="wrap")
    @classmethod
    def _keep_document(
        cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        release = handler(value)
        if info.mode == "json" and _id_of(value) != (own := release._own_id):
            release._stored = (own, value)
        return release

    @property
    def id(self) -> str:
        """Digest of everything that decides what runs: equal releases made at different times share it.

        A release that was read keeps the id that it was stored under, whatever keys Slipway has gained or lost since.
        """
        document = self._stored_document
        return self._own_id if document is None else _id_of(document)

    def document(self) -> str:
        """What to store. A release that another version stored stays as it is: its id is a digest of that."""
        document = self._stored_document
        return (
            self.model_dump_json(by_alias=True, indent=1)
            if document is None
            else json.dumps(document, indent=1)
        )

    @property
    def _own_id(self) -> str:
        return _id_of(self.model_dump(mode="json", by_alias=True))

    @property
    def _stored_document(self) -> dict[str, Any] | None:
        """None if this version wrote it, or if it was changed since it was read."""
        return self._stored[1] if self._stored and self._stored[0] == self._own_id else None


def _id_of(document: dict[str, Any]) -> str:
    return digest_of({key: value for key, value in document.items() if key not in _NOT_IN_ID})


class ServiceState(Frozen):
    """What serves now, and what served before it: the document `current.json` in the service's folder."""

    schema_: Literal["slipway.service/1"] = Field(default="slipway.service/1", alias="schema")
    name: str
    target: Target
    host: str
    port: int
    release: str
    previous: str | None = None
    since: datetime

    @property
    def endpoint(self) -> str:
        """Base URL of the service, without `/v1`."""
        return base_url(self.host, self.port)


class ServiceFolder:
    """Paths of one service below `SLIPWAY_HOME/services/<name>`."""

    def __init__(self, services: Path, name: str) -> None:
        if not is_file_name(name):
            raise NotFoundError(
                f"{shown(name)} is not a valid service name", fix="list the services: slipway status"
            )
        self.root = services / name
        self.name = name

    @property
    def state_file(self) -> Path:
        """The `ServiceState`."""
        return self.root / "current.json"

    @property
    def last_file(self) -> Path:
        """A copy of the last `ServiceState`: it outlives a stop, and replaces a damaged `current.json`."""
        return self.root / "last.json"

    @property
    def logs(self) -> Path:
        """The supervisor's and the engines' logs."""
        return self.root / "logs"

    @property
    def control_socket(self) -> Path:
        """The supervisor's socket for requests (`target: process`)."""
        return self.root / "control.sock"

    @property
    def door_file(self) -> Path:
        """Where the service's keys come from, and their digests; absent if everyone may use the service."""
        return self.root / "door.json"

    @property
    def own_key_file(self) -> Path:
        """The key that Slipway's own requests to the service carry."""
        return self.root / "own-key"

    @property
    def samples(self) -> Path:
        """The leak sampler's series."""
        return self.root / "samples"

    def release_file(self, release_id: str) -> Path:
        """The document of one release."""
        return self.root / "releases" / f"{release_id.removeprefix('sha256:')[:16]}.json"

    def state(self) -> ServiceState | None:
        """What serves now; None if nothing was ever rolled out or the service was stopped."""
        return _read(ServiceState, self.state_file, self._way_out)

    def last(self) -> ServiceState | None:
        """What served last, even if the service is stopped; None if that is not known."""
        return self.state() or _read(ServiceState, self.last_file, self._way_out)

    def serving(self) -> tuple[ServiceState, Release]:
        """What serves, and its release. Raises `NotFoundError` for an unknown or stopped service."""
        state = self.state()
        if state is None:
            why = "it was stopped" if self.root.is_dir() else "it was never deployed"
            raise NotFoundError(
                f"the service {self.name} is not running: {why}", fix="list the services: slipway status"
            )
        release = self.release(state.release)
        if release is None:
            raise NotFoundError(
                f"the release of {self.name} is gone from {self.root / 'releases'}",
                fix="deploy its spec again",
            )
        return state, release

    def release(self, release_id: str) -> Release | None:
        """The release of that id, if it is kept here. Raises `RecordError` for one that cannot be read."""
        return _read(Release, self.release_file(release_id), "deploy its spec again")

    def releases(self) -> dict[str, Release]:
        """The releases that are kept here, by id, oldest first. One that cannot be read is reported and skipped."""
        found = {}
        for file in sorted(self.root.glob("releases/*.json")):
            try:
                release = read_release(file)
            except RecordError as error:
                say("releases", f"skipped: {error.what}")
            else:
                found[release.id] = release
        return dict(sorted(found.items(), key=lambda item: item[1].at))

    @property
    def _way_out(self) -> str:
        return f"set it aside: slipway start {self.name}, or slipway stop {self.name} if it is not to run"


def read_release(file: Path) -> Release:
    """The release in that document. Raises `RecordError` for one that is gone or cannot be read."""
    release = _read(Release, file, "deploy its spec again")
    if release is None:
        raise RecordError(f"the release {file} is gone", fix="deploy its spec again")
    return release


def _read(model: type[M], file: Path, way_out: str) -> M | None:
    """A document of a service; None if there is none. Raises `RecordError` for one that cannot be read."""
    try:
        return model.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise RecordError(f"{file} is a folder, but should be a document", fix=way_out) from None
    except ValidationError as error:
        raise RecordError(
            f"{file} is damaged, or from another version of Slipway: {first_wrong(error)}", fix=way_out
        ) from None


def named_by_releases(services: Path, field: str) -> dict[str, str]:
    """The value of `field` in the releases of all services, including those to roll back to; and the service.

    Raises `RecordError` if a release cannot be read: what it needs is not known then.
    """
    found = {}
    for document in services.glob("*/releases/*.json"):
        try:
            value = json.loads(document.read_bytes())[field]
            if not isinstance(value, str):
                raise TypeError(field)
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            name = document.parent.parent.name
            raise RecordError(
                f"the release {document} cannot be read, so what it needs is not known",
                fix=f"move it away: slipway start {name}, or slipway stop {name} if the service should not run",
            ) from None
        found[value] = document.parent.parent.name
    return found
