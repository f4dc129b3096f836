"""Prefect's own settings: whether it accepts them, and whether the API that they name answers."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from tasks.core.errors import AccessError, NetworkError, SlipwayError, WrongUseError

_ANOTHER_SERVER = (
    "PREFECT_PROFILE*", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_API_SSL_*", "PREFECT_API_TLS_*",
    "PREFECT_API_ENABLE_HTTP2", "PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_CLIENT_CSRF_*", "PREFECT_CLOUD_*",
    "PREFECT_SERVER_API_*", "PREFECT_SERVER_UI_*", "PREFECT_UI_*", "PREFECT_SERVER_CSRF_*", "PREFECT_SERVER_CORS_*",
    "PREFECT_SERVER_EPHEMERAL_*", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
)  # fmt: skip
"""Address, path and access of a server. Slipway sets these for the local server; the user may choose its
database, limits and logs."""

_TIMEOUT_S = 10.0
_WAY_OUT = "correct PREFECT_API_URL, or unset it: Slipway then uses its own server"


def forget_other_servers(environ: MutableMapping[str, str]) -> None:
    """Remove the settings that describe a server other than the local one from `environ`."""
    for name in [name for name in environ if any(fnmatchcase(name, pattern) for pattern in _ANOTHER_SERVER)]:
        del environ[name]


def check_settings() -> None:
    """Have Prefect read its settings. Raises `WrongUseError` that names the one which it does not accept."""
    imported = "prefect.context" in sys.modules
    try:
        import prefect.context  # reads them all, once

        if imported:
            prefect.context.refresh_global_settings_context()
    except ValidationError as error:
        raise explain_setting(error) or error from None


def explain_setting(error: ValueError) -> WrongUseError | None:
    """The fault behind an exception of importing Prefect; None for any other error."""
    if not (isinstance(error, ValidationError) and error.title.endswith("Settings")):
        return None
    wrong = error.errors(include_url=False, include_input=False)[0]
    setting = ".".join(str(part) for part in wrong["loc"])
    return WrongUseError(
        f"Prefect does not accept its setting {setting}: {wrong['msg']}",
        fix="correct or unset the variable PREFECT_…, or the line of .env, prefect.toml or a profile, for it",
    )


def check_api(url: str) -> None:
    """Send a request that needs credentials to the API at `url`, the value of `PREFECT_API_URL`.

    Raises a `WrongUseError`, `NetworkError` or `AccessError` that names the variable and the way out.
    """
    if not _is_address(url):
        raise WrongUseError("PREFECT_API_URL is not the address of a Prefect API", fix=_WAY_OUT)
    check_settings()
    from prefect import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": _TIMEOUT_S}) as client,
        ):
            client.read_flows(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise _explained(_without_password(url), error) from None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _explained(url: str, error: Exception) -> SlipwayError:
    match error:
        case httpx.HTTPStatusError(response=answer) if answer.status_code in (401, 403):
            return AccessError(
                f"the Prefect API that PREFECT_API_URL names, {url}, refused the credentials ({answer.status_code})",
                fix="set PREFECT_API_AUTH_STRING to the server's (PREFECT_API_KEY for Prefect Cloud), or unset "
                "PREFECT_API_URL: Slipway then uses its own server",
            )
        case httpx.HTTPStatusError(response=answer) if answer.status_code >= 500:
            reason = f"answers with {answer.status_code}"
        case httpx.TransportError():
            reason = f"does not answer: {' '.join(str(error).split()) or type(error).__name__}"
        case _:
            return WrongUseError(f"PREFECT_API_URL is {url}, which is not a Prefect API", fix=_WAY_OUT)
    return NetworkError(f"the Prefect API that PREFECT_API_URL names, {url}, {reason}", fix=_WAY_OUT)


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
