"""Dify's console by the API that its own web interface uses: registers a served model, and looks at it from there."""

from __future__ import annotations

import httpx

from blocks.applications.http_json import as_object, said, send
from tasks.core.errors import AccessError, EngineError, NotFoundError
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
        """Begin a session. Raises `AccessError` where the console refuses."""
        answer = send(self._client, "POST", LOGIN, body=login_request(email, password))
        token = next(
            (cookie.value for cookie in self._client.cookies.jar if cookie.name.endswith(_CSRF_COOKIE)), None
        )
        if answer.status_code != 200 or as_object(answer).get("result") != "success" or not token:
            raise AccessError(
                f"Dify at {self.address} refused the login of {email}: {said(answer)}",
                fix="check the address, the account and its password",
            )
        self._client.headers[_CSRF_HEADER] = token

    def register(self, model: str, endpoint: str, *, context: int, api_key: str | None = None) -> str:
        """Make a served model known as an OpenAI-compatible one, or change what is known; Dify's status of it then.

        Dify itself asks the endpoint before it believes it, so the engine serves first, at an address that Dify
        reaches. Raises `EngineError` with Dify's reason where it does not.
        """
        body = model_credentials(model, endpoint, context=context, api_key=api_key)
        known = self._credential_id(model)
        method, extra = ("PUT", {"credential_id": known}) if known else ("POST", {})
        answer = send(self._client, method, CREDENTIALS, body=body | extra)
        if answer.status_code not in (200, 201):
            self._refuse(answer, f"did not take {model} at {endpoint}")
        return self.status(model)

    def status(self, model: str) -> str:
        """What Dify says of the model, e.g. `active`. Raises `NotFoundError` where it does not know it."""
        answer = send(self._client, "GET", MODELS)
        if answer.status_code != 200:
            self._refuse(answer, "does not list its models")
        for row in as_object(answer).get("data") or ():
            if row.get("model") == model and row.get("model_type") == "llm":
                return str(row.get("status"))
        raise NotFoundError(f"Dify at {self.address} knows no model {model}", fix="register it")

    def remove(self, model: str) -> None:
        """Make Dify forget the model; one that it does not know is forgotten already."""
        answer = send(self._client, "DELETE", MODELS, body={"model": model, "model_type": "llm"})
        if answer.status_code not in (200, 204, 404):
            self._refuse(answer, f"did not remove {model}")

    def _credential_id(self, model: str) -> str | None:
        answer = send(self._client, "GET", CREDENTIALS, params={"model": model, "model_type": "llm"})
        if answer.status_code != 200:
            self._refuse(answer, f"does not say what it knows of {model}")
        found = as_object(answer).get("current_credential_id")
        return str(found) if found else None

    def _refuse(self, answer: httpx.Response, what: str) -> None:
        if answer.status_code in (401, 403):
            raise AccessError(
                f"Dify at {self.address} {what}: {said(answer)}",
                fix="log in as an owner or administrator of the workspace",
            )
        if answer.status_code == 404:
            raise NotFoundError(
                f"Dify at {self.address} {what}: {said(answer)}", fix=f"install the plugin {PROVIDER} in it"
            )
        raise EngineError(
            f"Dify at {self.address} {what}: {said(answer)}",
            fix="give an address of the service that Dify's containers reach, not 127.0.0.1",
        )
