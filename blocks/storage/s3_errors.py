"""Errors of boto3 and S3 servers as Slipway's: one line each, of limited length, with the way out."""

from __future__ import annotations

import contextlib
import email.utils
from collections.abc import Iterator
from datetime import UTC, datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
)
from botocore.parsers import ResponseParserError

from tasks.core.errors import AccessError, NetworkError, NotFoundError, SlipwayError, WrongUseError, one_line

CONFLICT = {"412", "PreconditionFailed"}
MISSING = {"404", "NoSuchBucket", "NoSuchKey", "NotFound"}
SLOW_DOWN = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded", "429", "503"}
_REFUSED = {"403", "401", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken"}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "301", "307"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired"}
_SKEW_S = 60
_PATIENCE_S = 60.0
"""How long to retry a server that says that it is busy, s."""


class S3Answers:
    """What failures of ranges from S3 mean. Implements `blocks.storage.ranges.Answers`."""

    certificates: tuple[str, ...] = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")

    def patience_s(self) -> float:
        """As `Answers` says."""
        return _PATIENCE_S

    def unreachable(self, place: str, error: Exception) -> Exception:
        """As `Answers` says."""
        return unreachable(place, error)

    def refused(self, place: str, status: int, start: bytes, date: str | None) -> Exception:
        """As `Answers` says; S3 names a wrong clock."""
        return wrong_clock(place, date) if b"RequestTimeTooSkewed" in start else refused(place, status)

    def no_ranges(self, place: str) -> Exception:
        """As `Answers` says."""
        return no_ranges(place)

    def proxy_refused(self, place: str) -> Exception:
        """As `Answers` says."""
        return proxy_refused(place)

    def waits(self, place: str, status: int, pause_s: float) -> None:
        """Says nothing: S3 asks for fractions of a second."""


class ExistsError(SlipwayError):
    """The condition of a request was not met."""


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn boto3's errors about `address` into Slipway's, each in one line."""
    try:
        yield
    except ClientError as error:
        raise _from_answer(error, address) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AccessError(
            f"no credentials for {address}", fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ProxyConnectionError as error:
        raise NetworkError(
            f"{address} cannot be reached: {one_line(error)}",
            fix="check HTTP_PROXY, HTTPS_PROXY and NO_PROXY",
        ) from error
    except (ParamValidationError, ValueError) as error:
        if _tells_a_header(error):
            raise _unsendable(address) from None
        raise WrongUseError(
            f"{address} is not a valid S3 address: {one_line(error)}", fix="write s3://BUCKET/PREFIX"
        ) from error
    except ResponseParserError as error:
        raise no_s3(address) from error
    except BotoCoreError as error:
        if _tells_a_header(error):
            raise _unsendable(address) from None
        raise unreachable(address, error) from error


def code_of(error: ClientError) -> str:
    """The server's own code, such as `NoSuchKey`, or the status if it sent none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def no_s3(address: str) -> NetworkError:
    """Something other than an S3 server answers."""
    return NetworkError(
        f"{address} is not on an S3 server: the answer is not S3's XML",
        fix="check SLIPWAY_S3_ENDPOINT, and anything in front of the server, such as a login page",
    )


def no_ranges(address: str) -> NetworkError:
    """The server, or a proxy in front of it, ignores the header `Range`."""
    return NetworkError(
        f"the server ignores ranges: it sends all of {address} when asked for a part",
        fix="use a server that supports ranges, as S3 does; check the proxy in front of it",
    )


def unreachable(address: str, error: Exception) -> NetworkError:
    """Nothing answers there."""
    return NetworkError(
        f"{address} cannot be reached: {one_line(error)}",
        fix="check SLIPWAY_S3_ENDPOINT and the network, then try again",
    )


def refused(address: str, code: str | int) -> AccessError:
    """The server does not accept the credentials."""
    return AccessError(
        f"{address} refused the credentials ({code})",
        fix="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their permissions",
    )


def proxy_refused(address: str) -> AccessError:
    """A proxy requires other credentials."""
    return AccessError(
        f"{address} cannot be reached: the proxy requires user and password (407)",
        fix="set HTTP_PROXY or HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT, with characters such as @ as %40",
    )


def wrong_clock(address: str, date: str | None) -> AccessError:
    """The server refuses the signing time of a request. `date` is the server's, from the HTTP header."""
    behind_s = _seconds_behind(date)
    if behind_s is None or abs(behind_s) < _SKEW_S:
        how = "differs too much from the server's"
    else:
        how = f"is {abs(behind_s) / 60:.0f} minutes {'behind' if behind_s > 0 else 'ahead of'} the server's"
    return AccessError(
        f"{address} refused the request: the clock of this host {how}", fix="set it: timedatectl set-ntp true"
    )


def _from_answer(error: ClientError, address: str) -> SlipwayError:
    code = code_of(error)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if code in _SKEWED:
        return wrong_clock(address, headers.get("date"))
    if code == "407":
        return proxy_refused(address)
    if code in _ELSEWHERE:
        region = headers.get("x-amz-bucket-region", "")
        named = f"in the region {region[:40]!r}" if region else "in another region, or behind another address"
        return AccessError(
            f"{address} is {named} ({code})",
            fix=f"set AWS_DEFAULT_REGION{f'={region[:40]}' if region else ''} and check SLIPWAY_S3_ENDPOINT",
        )
    if code in _REFUSED:
        return refused(address, code)
    if code in MISSING:
        return NotFoundError(f"{address} does not exist ({code})", fix="check bucket and prefix")
    if code == "500" and "xml" not in headers.get("content-type", ""):  # boto3's, for a body that is not XML
        return no_s3(address)
    if code in CONFLICT:
        return ExistsError(f"{address} exists already")
    return NetworkError(f"{address} answered {code[:60]}: {one_line(error)}", fix="try again later")


def _tells_a_header(error: Exception) -> bool:
    """Whether the message repeats an invalid header, which contains a key or a token."""
    return "header value" in str(error)


def _unsendable(address: str) -> AccessError:
    return AccessError(
        f"the credentials for {address} contain a character that a request cannot carry, such as a line break",
        fix="set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN again",
    )


def _seconds_behind(date: str | None) -> float | None:
    """How far this host's clock is behind, s; negative if it is ahead."""
    try:
        server = email.utils.parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (server.replace(tzinfo=server.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
