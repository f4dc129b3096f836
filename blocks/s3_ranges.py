"""Ranges of objects on S3, received straight into a buffer.

boto3 signs the address; the bytes come over a plain HTTP connection for each thread. boto3's own way of handing them
over costs several times as much processor time (ADR 34).
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from botocore.httpsession import get_cert_path

from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import AccessError, ModelError, NetworkError

SIGNED_FOR_S = 3600
_STEP = 256 << 10
_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_PAUSE_S = 0.2
_CHANGED = {404, 412, 416}
_REFUSED = {401, 403}
_ENDED = {400, *_REFUSED}
"""Answers to an address whose signature has ended, which temporary credentials may do before its time."""


class RangeReader:
    """Reads ranges of one folder's objects. Threads read at once, each over its own connection.

    `sign` gives the address of an object, signed for `SIGNED_FOR_S`; `name` its address for people.
    """

    def __init__(self, sign: Callable[[str], str], name: Callable[[str], str]) -> None:
        self._sign = sign
        self._name = name
        self._signed: dict[str, tuple[SplitResult, float]] = {}
        self._mine = threading.local()

    def read_into(
        self, path: str, etag: str, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """These bytes of that version of the object, to `buffer.view[at:]`.

        A broken answer is taken up where it broke. Raises `ModelError` if the object has changed, `AccessError`, and
        `NetworkError` after four vain attempts.
        """
        done = failures = 0
        while done < length:
            before = done
            view = buffer.view[at + done : at + length]
            try:
                answer = self._ask(path, etag, offset + done, len(view))
                while count := answer.readinto(view[:_STEP]):
                    took(view[:count])
                    view = view[count:]
                    done += count
                if view:
                    raise http.client.IncompleteRead(b"", len(view))
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                failures = 1 if done > before else failures + 1
                if failures == _ATTEMPTS:
                    raise NetworkError(
                        f"{self._name(path)} cannot be reached: {_one_line(error)}",
                        fix="look at SLIPWAY_S3_ENDPOINT and the network, then try again",
                    ) from error
                current().wait(_PAUSE_S * (failures - 1))
                current().check()

    def _ask(self, path: str, etag: str, offset: int, length: int) -> http.client.HTTPResponse:
        """An answer with exactly these bytes to come. Raises `OSError` for what may pass."""
        url = self._url(path)
        answer = self._get(url, etag, offset, length)
        if answer.status in _ENDED:
            # The client renews its credentials when it signs: they are bad only if a new address is refused, too.
            self._drop()
            self._forget(path, url)
            answer = self._get(self._url(path), etag, offset, length)
        if answer.status == 206 and answer.length == length:
            return answer
        code, reason = answer.status, answer.reason
        self._drop()
        if code in _CHANGED or code == 206:
            raise ModelError(f"{self._name(path)} changed while it was read", fix="try again when it rests")
        if code in _REFUSED:
            raise AccessError(
                f"{self._name(path)} refused the credentials ({code})",
                fix="look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do",
            )
        raise OSError(f"it answered {code} {reason}")

    def _get(self, url: SplitResult, etag: str, offset: int, length: int) -> http.client.HTTPResponse:
        connection, proxied = self._connection(url)
        target = url.geturl() if proxied else url._replace(scheme="", netloc="").geturl()
        last = offset + length - 1
        connection.request(
            "GET", target, headers={"Host": url.netloc, "Range": f"bytes={offset}-{last}", "If-Match": etag}
        )
        return connection.getresponse()

    def _url(self, path: str) -> SplitResult:
        """Signed anew when half of its time is over: by the clock that the server reads, too, which a machine's
        sleep does not stop."""
        url, until = self._signed.get(path, (None, 0.0))
        if url is None or time.time() > until:
            url = urlsplit(self._sign(path))
            self._signed[path] = url, time.time() + SIGNED_FOR_S / 2
        return url

    def _forget(self, path: str, url: SplitResult) -> None:
        """Unless another thread has had it signed anew by now."""
        if self._signed.get(path, (None, 0.0))[0] is url:
            self._signed.pop(path, None)

    def _connection(self, url: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it leads to a proxy that wants whole addresses."""
        known: tuple[str, http.client.HTTPConnection, bool] | None = getattr(self._mine, "connection", None)
        if known is None or known[0] != url.netloc:
            self._drop()
            known = url.netloc, *_connect(url)
            self._mine.connection = known
        return known[1:]

    def _drop(self) -> None:
        known = getattr(self._mine, "connection", None)
        if known is not None:
            known[1].close()
            self._mine.connection = None


def _connect(url: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
    """A connection, through the proxy that the environment names for this address."""
    host = url.hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(url.scheme)
    via = urlsplit(proxy if proxy is None or "//" in proxy else f"//{proxy}") if proxy else url
    if url.scheme == "http":
        return http.client.HTTPConnection(via.hostname or "", via.port, timeout=_TIMEOUT_S), bool(proxy)
    certificates = (
        os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(True)
    )
    context = ssl.create_default_context(cafile=certificates)
    connection = http.client.HTTPSConnection(
        via.hostname or "", via.port, timeout=_TIMEOUT_S, context=context
    )
    if proxy:
        connection.set_tunnel(host, url.port)
    return connection, False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
