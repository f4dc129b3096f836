"""Failures of a Hugging Face hub as Slipway's: one line each, with the way out."""

from __future__ import annotations

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import parse_ratelimit_headers

from tasks.core.errors import AccessError, NetworkError, NotFoundError, SlipwayError, WrongUseError, one_line
from tasks.core.progress import say
from tasks.core.verdicts import StageName

TOKEN = "set HF_TOKEN, or SLIPWAY_HF_BLOCK to the name of a Secret block"
_PATIENCE_S = 900.0
"""How long to wait for a hub that says that it is busy, s: its limits count windows of five minutes."""

_MOST_LETTERS = 100


class HubAnswers:
    """What failures of ranges from a hub mean. Implements `blocks.storage.ranges.Answers`."""

    certificates: tuple[str, ...] = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

    def patience_s(self) -> float:
        """As `Answers` says."""
        return _PATIENCE_S

    def unreachable(self, place: str, error: Exception) -> Exception:
        """As `Answers` says."""
        return unreachable(place, error)

    def refused(self, place: str, status: int, start: bytes, date: str | None) -> Exception:
        """As `Answers` says."""
        return AccessError(f"{place} may not be read with this token ({status})", fix=TOKEN)

    def no_ranges(self, place: str) -> Exception:
        """As `Answers` says."""
        return NetworkError(
            f"the hub ignores ranges: it sends all of {place} when asked for a part",
            fix="use a hub or mirror that supports ranges; check HF_ENDPOINT, and the proxy in front of it",
        )

    def proxy_refused(self, place: str) -> Exception:
        """As `Answers` says."""
        return AccessError(
            f"{place} cannot be reached: the proxy requires user and password (407)",
            fix="set HTTP_PROXY or HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT, with characters such as @ as %40",
        )

    def waits(self, place: str, status: int, pause_s: float) -> None:
        """As `Answers` says."""
        say(StageName.STAGING, f"{place}: the hub is busy ({status}), asked again in {pause_s:.0f} s")


def unreachable(place: str, error: Exception) -> NetworkError:
    """Nothing useful answers."""
    return NetworkError(
        f"{place} cannot be read: {one_line(error)}",
        fix="check HF_ENDPOINT and the network, then try again; what is in the hub's local cache needs neither",
    )


def explained(place: str, host: str, error: Exception) -> SlipwayError:
    """The same failure for the user. `place` is the model's or file's address, `host` the hub's."""
    if isinstance(error, OfflineModeIsEnabled):
        return NetworkError(
            f"{place} is not in the hub's local cache, and HF_HUB_OFFLINE is set",
            fix=f"download it first: hf download {_repository(place)}",
        )
    if isinstance(error, GatedRepoError):
        return AccessError(
            f"{place} is gated: {host} gives it only to users who accepted its terms ({_status(error)})",
            fix=f"accept them on its page, then {TOKEN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"{place} does not exist: {host} has no such branch, tag or commit",
            fix="check the revision after the @",
        )
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"{place} does not exist on {host}, or is private ({_status(error)})",
            fix=f"check the name; for a private model {TOKEN}",
        )
    if isinstance(error, HfHubHTTPError) and _status(error) in (401, 403):
        said = f": {' '.join(error.server_message.split())[:_MOST_LETTERS]}" if error.server_message else ""
        return AccessError(f"{host} refused the token for {place} ({_status(error)}){said}", fix=TOKEN)
    if isinstance(error, HfHubHTTPError) and _status(error) == httpx2.codes.NOT_FOUND:
        return NotFoundError(f"{place} does not exist on {host}", fix="check its name, and HF_ENDPOINT")
    if isinstance(error, HFValidationError):
        return WrongUseError(f"{place} does not name a model: {one_line(error)}")
    if isinstance(error, HfHubHTTPError):
        return unreachable(place, NetworkError(f"{host} answered {_status(error)}"))
    return unreachable(f"{place} on {host}", error)


def busy_s(error: Exception) -> float | None:
    """How long the hub asks to wait, s; 0.0 if it is busy and does not say; None if it is not busy."""
    if not isinstance(error, HfHubHTTPError) or error.response.status_code not in (429, 503):
        return None
    header = error.response.headers.get("retry-after", "")
    if header.isdecimal():
        return float(header)
    limit = parse_ratelimit_headers(error.response.headers)
    return float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError | OSError) and not isinstance(error, OfflineModeIsEnabled)


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code


def _repository(place: str) -> str:
    return place.partition(":")[2].partition("@")[0]
