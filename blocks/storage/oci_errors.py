"""Failures of a registry of images as Slipway's: one line each, with the way out."""

from __future__ import annotations

from blocks.storage.s3_errors import proxy_refused
from tasks.core.errors import AccessError, NetworkError, NotFoundError, SlipwayError, one_line
from tasks.core.progress import say
from tasks.core.verdicts import StageName

_PATIENCE_S = 300.0
"""How long to wait for a registry that says that it is busy, s."""


class OciAnswers:
    """What failures of ranges from a registry mean. Implements `blocks.storage.ranges.Answers`."""

    certificates: tuple[str, ...] = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

    def patience_s(self) -> float:
        """As `Answers` says."""
        return _PATIENCE_S

    def unreachable(self, place: str, error: Exception) -> Exception:
        """As `Answers` says."""
        return NetworkError(
            f"{place} cannot be read: {one_line(error)}", fix="check its host and the network, then try again"
        )

    def refused(self, place: str, status: int, start: bytes, date: str | None) -> Exception:
        """As `Answers` says."""
        return explained(place, place.removeprefix("oci://").partition("/")[0], status)

    def no_ranges(self, place: str) -> Exception:
        """As `Answers` says."""
        return NetworkError(
            f"the registry ignores ranges: it sends all of {place} when asked for a part",
            fix="check the proxy in front of it",
        )

    def proxy_refused(self, place: str) -> Exception:
        """As `Answers` says."""
        return proxy_refused(place)

    def waits(self, place: str, status: int, pause_s: float) -> None:
        """As `Answers` says."""
        say(StageName.STAGING, f"{place}: the registry is busy ({status}), asked again in {pause_s:.0f} s")


def explained(place: str, host: str, status: int) -> SlipwayError:
    """What a status means."""
    if status in (401, 403):
        return AccessError(
            f"{host} does not let this user read {place} ({status})",
            fix=f"log in: docker login {host}, which must keep the password in ~/.docker/config.json",
        )
    if status == 404:
        return NotFoundError(f"{place} does not exist", fix="check its name and tag")
    return NetworkError(f"{place} cannot be read: {host} answered {status}", fix="try again later")


def odd(place: str) -> NetworkError:
    """Something other than a registry answers."""
    return NetworkError(
        f"{place} is not in a registry of images: the answer is not one's", fix="check its host"
    )
