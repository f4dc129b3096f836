"""An MLflow tracking server as the model registry, by its REST interface.

Credentials are those of MLflow's own clients: `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `_PASSWORD`.
https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import yaml

from blocks.object_store import open_object_store
from tasks.core.errors import AccessError, ModelError, NetworkError, NotFoundError, UnsafeNameError
from tasks.core.paths import is_file_name, shown

_TIMEOUT_S = 30.0
_UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


class MlflowRegistry:
    """Registered models, their aliases, and where their versions' files lie."""

    def __init__(self, url: str, *, s3_endpoint: str | None) -> None:
        self.url = url.rstrip("/")
        self._s3_endpoint = s3_endpoint

    def version(self, name: str, alias: str) -> str:
        """The version that an alias names. Raises `NotFoundError` that lists the aliases or models there are."""
        try:
            found = self._ask("registered-models/alias", name=name, alias=alias)
        except NotFoundError:
            models = self.models()
            there = f"its aliases are {', '.join(models[name]) or 'none'}" if name in models else ""
            raise NotFoundError(
                f"{self.url} knows no {name}@{alias}",
                fix=there or f"models there: {', '.join(models) or 'none'}",
            ) from None
        return str(found["model_version"]["version"])

    def models(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the models, each with its aliases."""
        found: dict[str, tuple[str, ...]] = {}
        page = ""
        while True:
            more = {"page_token": page} if page else {}
            answer = self._ask("registered-models/search", max_results="100", **more)
            for model in answer.get("registered_models", []):
                found[model["name"]] = tuple(sorted(item["alias"] for item in model.get("aliases", [])))
            page = answer.get("next_page_token", "")
            if not page:
                return dict(sorted(found.items()))

    def source(self, name: str, version: str) -> str:
        """Where that version's files lie: `file:/PATH` or `s3://BUCKET/PREFIX`.

        Of a model logged as MLflow's flavor `transformers`, the folder of its weights. Raises `ModelError` for
        artifacts that only MLflow's server can hand out.
        """
        answer = self._ask("model-versions/get-download-uri", name=name, version=version)
        uri = str(answer["artifact_uri"])
        parts = urlsplit(uri)
        if parts.scheme in ("", "file"):
            place, address = unquote(parts.path), f"file:{unquote(parts.path)}"
        elif parts.scheme in ("s3", "s3a", "s3n"):
            place = address = f"s3://{parts.netloc}{unquote(parts.path)}"
        else:
            raise ModelError(
                f"version {version} of {name} lies at {uri}, from where ranges cannot be read",
                fix="keep MLflow's artifacts on S3 or in a folder, and start its server with --no-serve-artifacts",
            )
        try:
            text = open_object_store(place, endpoint=self._s3_endpoint).read("MLmodel")
        except NotFoundError:
            return address  # files logged as they are
        return f"{address}/{_weights_folder(text)}"

    def _ask(self, path: str, **parameters: str) -> dict[str, Any]:
        url = f"{self.url}/api/2.0/mlflow/{path}"
        try:
            answer = httpx.get(url, params=parameters, headers=_bearer(), auth=_basic(), timeout=_TIMEOUT_S)
            content = (
                answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
            )
        except (httpx.HTTPError, ValueError) as error:
            raise NetworkError(
                f"the model registry {self.url} cannot be reached: {' '.join(str(error).split())}",
                fix="look at SLIPWAY_REGISTRY and the network, then try again",
            ) from error
        if answer.status_code == 200 and isinstance(content, dict):
            return content
        code = content.get("error_code", "") if isinstance(content, dict) else ""
        if answer.status_code in (401, 403):
            raise AccessError(
                f"the model registry {self.url} refused the credentials ({answer.status_code})",
                fix="set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            )
        if code in _UNKNOWN:
            raise NotFoundError(f"{self.url} answered {code}")
        raise NetworkError(
            f"the model registry {self.url} answered {answer.status_code} {code}".rstrip(),
            fix="is it an MLflow tracking server?",
        )


def _weights_folder(mlmodel: bytes) -> str:
    try:
        flavor = yaml.safe_load(mlmodel)["flavors"]["transformers"]
        folder = str(flavor.get("model_binary", "model"))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise ModelError(
            "the model was logged with a flavor of MLflow that is not transformers",
            fix="log the folder in the Hugging Face layout itself",
        ) from None
    if not is_file_name(folder):
        raise UnsafeNameError(
            f"its MLmodel names {shown(folder)} as the folder of its weights", fix="log the model again"
        )
    return folder


def _bearer() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _basic() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
