"""An MLflow tracking server as the model registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from blocks.storage.mlflow_artifacts import ProxiedArtifacts
from blocks.storage.mlflow_client import MlflowClient
from blocks.storage.object_store import open_object_store
from tasks.core.errors import ModelError, NetworkError, NotFoundError
from tasks.core.mlmodel import LIMIT_BYTES, weights_folder
from tasks.core.paths import is_file_name, shown, some_of
from tasks.core.sources import ARTIFACTS, FILE, S3

_MOST_PAGES = 100


class MlflowRegistry:
    """Registered models, their aliases, and the location of their versions' files."""

    def __init__(self, url: str, *, s3_endpoint: str | None) -> None:
        self._client = MlflowClient(url)
        self._s3_endpoint = s3_endpoint

    def version(self, name: str, alias: str) -> str:
        """The version that an alias names. Raises a `NotFoundError` that lists the existing aliases or models."""
        try:
            found = self._client.ask("registered-models/alias", name=name, alias=alias)
        except NotFoundError:
            models = self.models()
            fix = f"its models are {some_of(tuple(models)) or 'none'}"
            if name in models:
                aliases = some_of(models[name])
                fix = f"its aliases are {aliases}" if aliases else "it has no aliases: set one in MLflow"
            raise NotFoundError(f"{self._client.name} does not have {name}@{alias}", fix=fix) from None
        version = _object(found.get("model_version")).get("version")
        if not is_file_name(str(version)) or version is None:
            raise self._odd("a version")
        return str(version)

    def models(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the models, each with its aliases; of very many, the first ten thousand."""
        found: dict[str, tuple[str, ...]] = {}
        page = ""
        for _ in range(_MOST_PAGES):
            more = {"page_token": page} if page else {}
            answer = self._client.ask("registered-models/search", max_results="100", **more)
            for model in map(_object, _items(answer.get("registered_models"))):
                aliases = (_object(item).get("alias", "") for item in _items(model.get("aliases")))
                found[str(model.get("name", ""))] = tuple(sorted(map(str, aliases)))
            page = str(answer.get("next_page_token") or "")
            if not page:
                break
        return dict(sorted(found.items()))

    def source(self, name: str, version: str) -> str:
        """Location of that version's files: `file:/PATH`, `s3://BUCKET/PREFIX` or, behind the server's own proxy,
        `mlflow-artifacts:/PATH`.

        For a model logged with MLflow's flavor `transformers`, the folder of its weights. Raises `ModelError` for
        artifacts anywhere else.
        """
        answer = self._client.ask("model-versions/get-download-uri", name=name, version=version)
        uri = answer.get("artifact_uri")
        if not isinstance(uri, str) or not uri:
            raise self._odd("an address of artifacts")
        if uri.startswith(ARTIFACTS):
            return self._behind_the_server(uri)
        place = _place(uri)
        if place is None:
            raise ModelError(
                f"version {version} of {name} is at {shown(_without_password(uri))}, from where files cannot be "
                "read",
                fix="keep MLflow's artifacts on S3 or in a folder, or let its server give them (--serve-artifacts)",
            )
        address = place if place.startswith(S3) else f"{FILE}{place}"
        try:
            text = open_object_store(place, endpoint=self._s3_endpoint).read("MLmodel")
        except NotFoundError:
            return address  # files logged without a flavor
        return f"{address}/{weights_folder(text)}"

    def _behind_the_server(self, uri: str) -> str:
        """The folder of the weights. The address may name a server: it is always this one that is asked."""
        path = urlsplit(uri).path.strip("/")
        if not uri.isprintable() or not path or ".." in path.split("/"):
            raise self._odd("a usable address of artifacts")
        artifacts = ProxiedArtifacts(f"{ARTIFACTS}{path}", self._client)
        described = next((file for file in artifacts.list_files() if file.path == "MLmodel"), None)
        if described is None:
            return artifacts.name  # files logged without a flavor
        text = artifacts.read(described, 0, min(described.size_bytes, LIMIT_BYTES))
        return f"{artifacts.name}/{weights_folder(text)}"

    def _odd(self, wanted: str) -> NetworkError:
        return NetworkError(
            f"the model registry {self._client.name} answered without {wanted}",
            fix="is it an MLflow tracking server?",
        )


def _place(uri: str) -> str | None:
    """The folder or `s3://BUCKET/PREFIX` of MLflow's address; None for any other kind.

    MLflow percent-encodes `file:` addresses, but not plain paths or those on S3.
    """
    if not uri.isprintable():
        return None
    scheme, colon, rest = uri.partition(":")
    if uri.startswith("/"):
        return uri
    if scheme == "file":
        try:
            parts = urlsplit(uri)
        except ValueError:  # such as an incomplete IPv6 address
            return None
        path = unquote(parts.path)
        return (
            path
            if parts.netloc in ("", "localhost") and path.startswith("/") and path.isprintable()
            else None
        )
    if colon and scheme in ("s3", "s3a", "s3n") and rest.startswith("//") and rest.strip("/"):
        return f"s3:{rest}"
    return None


def _without_password(uri: str) -> str:
    start, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{start}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
