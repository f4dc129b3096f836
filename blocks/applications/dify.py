"""Dify's console, through the API that its own web interface uses: register a served model, and read its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import httpx

from tasks.core.errors import AccessError, EngineError, NetworkError, NotFoundError, SlipwayError
from tasks.engines.dify import CREDENTIALS, LOGIN, MODELS, PROVIDER, login_request, model_credentials

_CSRF_HEADER = "X-CSRF-Token"
_CSRF_COOKIE = "csrf_token"  # behind https its name begins with __Host-


class DifyApi:
    """A client for the console at `address`, e.g. `http://dify.example`. Log in first."""

    def __init__(self, address: str, *, timeout_s: float = 120.0) -> None:
        self.address = address
        self._client = httpx.Client(base_url=address, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> DifyApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def log_in(self, email: str, password: str) -> None:
        """Begin a session. Raises `AccessError` if the console refuses."""
        answer = _send(self._client, "POST", LOGIN, body=login_request(email, password))
        token = next(
            (cookie.value for cookie in self._client.cookies.jar if cookie.name.endswith(_CSRF_COOKIE)), None
        )
        if answer.status_code != 200 or _as_object(answer).get("result") != "success" or not token:
            raise AccessError(
                f"Dify at {self.address} refused the login of {email}: {_error_message(answer)}",
                fix="check the address, the account and its password",
            )
        self._client.headers[_CSRF_HEADER] = token

    def register(self, model: str, endpoint: str, *, context: int, key: str | None = None) -> str:
        """Make a served model known as an OpenAI-compatible one, or change what is known; Dify's status of it then.

        Dify itself asks the endpoint before it believes it, so the engine serves first, at an address that Dify
        reaches, with `key` if it needs one. Raises `EngineError` with Dify's reason if it does not.
        """
        body = model_credentials(model, endpoint, context=context, key=key)
        known = self._credential_id(model)
        method, extra = ("PUT", {"credential_id": known}) if known else ("POST", {})
        answer = _send(self._client, method, CREDENTIALS, body=body | extra)
        if answer.status_code not in (200, 201):
            self._refuse(answer, f"did not take {model} at {endpoint}")
        return self.status(model)

    def status(self, model: str) -> str:
        """What Dify says of the model, e.g. `active`. Raises `NotFoundError` if it does not know it."""
        answer = _send(self._client, "GET", MODELS)
        if answer.status_code != 200:
            self._refuse(answer, "does not list its models")
        for row in _as_object(answer).get("data") or ():
            if row.get("model") == model and row.get("model_type") == "llm":
                return str(row.get("status"))
        raise NotFoundError(f"Dify at {self.address} does not have the model {model}", fix="register it")

    def _credential_id(self, model: str) -> str | None:
        answer = _send(self._client, "GET", CREDENTIALS, params={"model": model, "model_type": "llm"})
        if answer.status_code != 200:
            self._refuse(answer, f"does not say what it knows of {model}")
        found = _as_object(answer).get("current_credential_id")
        return str(found) if found else None

    def _refuse(self, answer: httpx.Response, what: str) -> NoReturn:
        kind: type[SlipwayError] = EngineError
        fix = "give an address of the service that Dify's containers reach, not 127.0.0.1"
        if answer.status_code in (401, 403):
            kind, fix = AccessError, "log in as an owner or administrator of the workspace"
        elif answer.status_code == 404:
            kind, fix = NotFoundError, f"install the plugin {PROVIDER} in it"
        raise kind(f"Dify at {self.address} {what}: {_error_message(answer)}", fix=fix)


def _send(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    params: Mapping[str, str] | None = None,
) -> httpx.Response:
    """The answer, whatever its status. Raises `NetworkError` if there is none."""
    try:
        return client.request(method, path, json=body, params=params)
    except httpx.HTTPError as error:
        raise NetworkError(
            f"{client.base_url}{path.lstrip('/')} does not answer: {error or type(error).__name__}",
            fix="check the address, and that the server runs",
        ) from error


def _error_message(answer: httpx.Response) -> str:
    """What a server says of a refusal, in one line: its `message` or `error`, else the beginning of its answer."""
    value = _as_object(answer)
    text = value.get("message") or value.get("error") or answer.text[:200] or answer.reason_phrase
    return " ".join(str(text).split())[:300]


def _as_object(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty for anything else."""
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
