"""Requests to the REST API of an MLflow tracking server: limited in time and size, with the user's settings.

Credentials and certificates are those of MLflow's own clients: `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME`
and `_PASSWORD`, or the name and password in the address; `MLFLOW_TRACKING_SERVER_CERT_PATH`, `_CLIENT_CERT_PATH` and
`_INSECURE_TLS`, else `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` or `SSL_CERT_FILE`.
https://mlflow.org/docs/latest/api_reference/rest-api.html
https://github.com/mlflow/mlflow/blob/master/mlflow/environment_variables.py
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import ssl
import time
from pathlib import Path
from typing import Any

import httpx

from blocks.processes.deadline import within
from tasks.core.cancellation import current
from tasks.core.errors import AccessError, ModelError, NetworkError, NotFoundError, WrongUseError, one_line
from tasks.core.files import read_regular

_TIMEOUT_S = 30.0
_DEADLINE_S = 90.0
_MOST_CERTIFICATE_BYTES = 1 << 24
"""Limit for one request, including retries and redirects, s."""

_PATIENCE_S = 45.0
"""How long to retry a server that says that it is busy, s."""

_PAUSE_S = 1.0
_MOST_PAUSE_S = 8.0
_MOST_BYTES = 16 << 20
_MOST_REDIRECTS = 5
_PIECE_BYTES = 1 << 20
_SHOWN_LETTERS = 200
_BUSY = {429, 502, 503, 504}
_UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_LOGIN = "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_ROOTS = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class BusyServerError(NetworkError):
    """The server says that it is busy, and for how many seconds."""

    def __init__(self, what: str, *, fix: str, pause_s: float) -> None:
        super().__init__(what, fix=fix)
        self.pause_s = pause_s


class OpenAnswer:
    """An answer whose content is still to be read, from its beginning on."""

    def __init__(self, client: httpx.Client, answer: httpx.Response) -> None:
        self._client = client
        self.pieces = answer.iter_bytes(_PIECE_BYTES)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class MlflowClient:
    """A client for one server. `name` is its address for messages, without user and password."""

    def __init__(self, url: str) -> None:
        try:
            address = httpx.URL(url.rstrip("/"))
        except (httpx.InvalidURL, ValueError):
            raise WrongUseError(
                "SLIPWAY_REGISTRY is not a valid address", fix="write http://HOST:PORT or https://HOST/PATH"
            ) from None
        self._url = address.copy_with(username=None, password=None, query=None, fragment=None)
        self._authorization = _authorization(address)
        self.name = str(self._url).rstrip("/")

    def ask(self, path: str, **parameters: str) -> dict[str, Any]:
        """The server's JSON object.

        Raises `NotFoundError` for something unknown, `AccessError` if it requires a login, `NetworkError` for
        any other failure.
        """
        return self.ask_at(f"api/2.0/mlflow/{path}", **parameters)

    def ask_at(self, address: str, /, **parameters: str) -> dict[str, Any]:
        """The same, below the server's address."""
        return within(
            _DEADLINE_S, f"the model registry {self.name}", lambda: self._patient(address, parameters)
        )

    def send(self, path: str, **parameters: str) -> OpenAnswer:
        """The server's answer to a question below its address, still to be read; close it.

        Raises `NotFoundError`, `AccessError`, or `NetworkError` as `ask` does, but does not ask again.
        """
        url = httpx.URL(f"{self.name}/{path}", params=parameters)
        request = httpx.Request("GET", url, headers=self._authorization)
        client = self._client(request)
        try:
            answer = client.send(request, stream=True)
            if answer.status_code == httpx.codes.OK:
                return OpenAnswer(client, answer)
            content = b"".join(itertools.islice(answer.iter_bytes(_SHOWN_LETTERS * 4), 1))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            client.close()
            raise self._unreachable(error) from None
        client.close()
        if answer.status_code in _BUSY:
            raise BusyServerError(
                f"the model registry {self.name} is busy: it answered {answer.status_code}",
                fix="try again later",
                pause_s=_seconds(answer.headers.get("retry-after"), _PAUSE_S),
            )
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NotFoundError(
                f"{self.name} does not have this file", fix="check the model's version in MLflow"
            )
        self._read(answer.status_code, answer.headers, content)
        raise AssertionError("unreachable")

    def _patient(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        """One request, repeated while the server is busy."""
        patience, pause_s = time.monotonic() + _PATIENCE_S, _PAUSE_S
        while True:
            status, headers, content = self._follow(f"{self.name}/{path}", parameters)
            wait_s = _seconds(headers.get("retry-after"), pause_s)
            if status not in _BUSY or time.monotonic() + wait_s > patience:
                return self._read(status, headers, content)
            current().wait(wait_s)
            current().check()
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _follow(self, url: str, parameters: dict[str, str]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and content of the answer after all redirects, which must stay on the host."""
        request = httpx.Request("GET", url, params=parameters, headers=self._authorization)
        for _ in range(_MOST_REDIRECTS):
            answer, content = self._send(request)
            following = answer.next_request
            if following is None:
                return answer.status_code, answer.headers, content
            if following.url.host != self._url.host or (request.url.scheme, following.url.scheme) == (
                "https",
                "http",
            ):
                raise AccessError(
                    f"the model registry {self.name} requires a login, or has moved: it redirects to "
                    f"{following.url.scheme}://{following.url.host[:_SHOWN_LETTERS]}",
                    fix=f"{_LOGIN}; or set SLIPWAY_REGISTRY to its new address",
                )
            request = following
        raise NetworkError(
            f"the model registry {self.name} redirects endlessly",
            fix="check SLIPWAY_REGISTRY, and any proxy in front of the server",
        )

    def _send(self, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        try:
            with self._client(request) as client:
                answer = client.send(request, stream=True)
                content = b""
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise self._odd(f"sent more than {_MOST_BYTES} bytes")
                return answer, content
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._unreachable(error) from None

    def _client(self, request: httpx.Request) -> httpx.Client:
        verify = _context() if request.url.scheme == "https" else False
        try:
            return httpx.Client(
                verify=verify, timeout=_TIMEOUT_S, trust_env=request.url.host not in _LOOPBACK
            )
        except (ValueError, ImportError) as error:
            raise WrongUseError(
                f"the proxy settings cannot be used: {one_line(error)}", fix="check HTTPS_PROXY and ALL_PROXY"
            ) from None

    def _unreachable(self, error: Exception) -> NetworkError:
        if isinstance(error, httpx.ProxyError):
            return NetworkError(
                f"the model registry {self.name} cannot be reached through the proxy: {one_line(error)}",
                fix="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and user and password in them",
            )
        fix = "check SLIPWAY_REGISTRY and the network, then try again"
        if "CERTIFICATE" in str(error):
            fix = "name the certificate of its issuer: MLFLOW_TRACKING_SERVER_CERT_PATH"
        return NetworkError(f"the model registry {self.name} cannot be reached: {one_line(error)}", fix=fix)

    def _read(self, status: int, headers: httpx.Headers, content: bytes) -> dict[str, Any]:
        value = _as_object(content)
        if status == httpx.codes.OK:
            if value is None and _is_page(headers, content):
                raise AccessError(
                    f"the model registry {self.name} requires a login, or is another server: it answered with a web "
                    "page",
                    fix=f"{_LOGIN}; or correct SLIPWAY_REGISTRY",
                )
            if value is None:
                raise self._odd("did not answer with a JSON object")
            return value
        code = str((value or {}).get("error_code", ""))[:_SHOWN_LETTERS]
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessError(
                f"the model registry {self.name} refused the credentials ({status})", fix=_LOGIN
            )
        if status == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
            raise AccessError(
                f"the model registry {self.name} cannot be reached: the proxy requires user and password (407)",
                fix="set HTTP_PROXY or HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT, with characters such as @ "
                "as %40",
            )
        if code in _UNKNOWN:
            raise NotFoundError(f"{self.name} answered {code}", fix="check the model's name and version")
        if status in _BUSY:
            raise NetworkError(
                f"the model registry {self.name} is busy: it answered {status} {code}".rstrip(),
                fix="try again later",
            )
        raise self._odd(f"answered {status} {code}".rstrip())

    def _odd(self, what: str) -> NetworkError:
        return NetworkError(f"the model registry {self.name} {what}", fix="is it an MLflow tracking server?")


def _authorization(address: httpx.URL) -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        if not (token.isascii() and token.isprintable()):
            raise AccessError(
                "MLFLOW_TRACKING_TOKEN contains a character that a request cannot carry, such as a line break",
                fix="set it again",
            )
        return {"Authorization": f"Bearer {token}"}
    user, password = (
        os.environ.get("MLFLOW_TRACKING_USERNAME"),
        os.environ.get("MLFLOW_TRACKING_PASSWORD", ""),
    )
    if not user:
        user, password = address.username, address.password
    if not user:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _context() -> ssl.SSLContext:
    """Certificates of the server and of the client. Raises a `WrongUseError` that names the variable."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    name = next((name for name in _ROOTS if os.environ.get(name)), None)
    if insecure:
        if name == _ROOTS[0]:
            raise WrongUseError(
                f"MLFLOW_TRACKING_INSECURE_TLS and {name} contradict each other", fix="set one of them"
            )
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    elif name is None:
        context = httpx.create_ssl_context(trust_env=False)
    else:
        context = _with_roots(name)
    client_certificate = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    if client_certificate:
        try:
            read_regular(Path(client_certificate), _MOST_CERTIFICATE_BYTES)
            context.load_cert_chain(client_certificate)
        except (OSError, ModelError) as error:
            raise _unusable("MLFLOW_TRACKING_CLIENT_CERT_PATH", error) from None
    return context


def _with_roots(name: str) -> ssl.SSLContext:
    path = os.environ[name]
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        read_regular(Path(path), _MOST_CERTIFICATE_BYTES)  # OpenSSL would wait for a pipe
        return ssl.create_default_context(cafile=path)
    except (OSError, ModelError) as error:
        raise _unusable(name, error) from None


def _unusable(name: str, error: OSError | ModelError) -> WrongUseError:
    why = error.what if isinstance(error, ModelError) else error.strerror or error
    return WrongUseError(
        f"{name} is {os.environ[name]!r}, which does not contain a readable certificate: {why}",
        fix="name a file in the PEM format, or unset it",
    )


def _as_object(content: bytes) -> dict[str, Any] | None:
    """Parse the body as JSON whatever its content type: some servers say text."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_page(headers: httpx.Headers, content: bytes) -> bool:
    return "html" in headers.get("content-type", "") or content.lstrip()[:1] == b"<"


def _seconds(header: str | None, default: float) -> float:
    """The seconds in `Retry-After`, if it names seconds."""
    return float(header) if header and header.isdecimal() and len(header) < 10 else default
