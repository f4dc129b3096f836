"""Ranges of files behind HTTP, received straight into a buffer.

The server's own client names the address, signed if need be; the bytes come over a plain HTTP connection per thread.
Reading them through boto3 costs several times as much CPU time (ADR 34).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import random
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from botocore.httpsession import get_cert_path

from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, Took
from tasks.staging.source import changed

SIGNED_FOR_S = 3600
_STEP = 256 << 10
_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_PAUSE_S = 0.2
_STALLED_S = 60.0
_LEAST_PROGRESS = 16 << 10
"""Bytes that an attempt must transfer to count as progress."""

_ERROR_BYTES = 4096
_SHOWN_LETTERS = 60
_Connection = tuple[str, http.client.HTTPConnection, dict[str, str] | None]
_BUSY = {429, 503}
_NO_CONDITIONS = 501
_CHANGED = {404, 412, 416}
_REFUSED = {401, 403}
_ENDED = {400, *_REFUSED}
"""Answers for an expired signature; temporary credentials may end it early."""


_SLOW_DOWN_PAUSE_S = 0.5
_SLOW_DOWN_MOST_S = 8.0


class _BusyError(OSError):
    """The server is busy; for how many seconds, if it says so."""

    def __init__(self, status: int, reason: str, pause_s: float | None) -> None:
        super().__init__(f"it answered {status} {reason}")
        self.status = status
        self.pause_s = pause_s


class Answers(Protocol):
    """What the failures of one kind of server mean to its user. `place` is the file's address for messages."""

    certificates: tuple[str, ...]
    """Variables that may name a file of certificates, the first that is set counts."""

    def patience_s(self) -> float:
        """How long to retry a server that says that it is busy, s."""

    def unreachable(self, place: str, error: Exception) -> Exception:
        """Nothing answers, or nothing useful."""

    def refused(self, place: str, status: int, start: bytes, date: str | None) -> Exception:
        """It does not let this user in; the start of its answer, and its clock."""

    def no_ranges(self, place: str) -> Exception:
        """It sends the whole file."""

    def proxy_refused(self, place: str) -> Exception:
        """A proxy requires other credentials."""

    def waits(self, place: str, status: int, pause_s: float) -> None:
        """The server is busy; it is asked again after a pause."""


def pause_s(attempts: int) -> float:
    """How long to wait after that many busy answers: longer each time, with jitter."""
    return min(_SLOW_DOWN_PAUSE_S * 2.0 ** (attempts - 1), _SLOW_DOWN_MOST_S) * random.uniform(0.5, 1.0)


def quoted(etag: str) -> str:
    """An ETag for comparison: some servers omit the quotes."""
    etag = etag.strip()
    return f'"{etag}"' if etag and not etag.startswith(('"', "W/")) else etag


def condition_on(identity: str) -> str | None:
    """The ETag for `If-Match`; None unless the server named a strong one, because only those can be compared."""
    return identity if identity.startswith('"') else None


class RangeReader:
    """Reads ranges of one folder's objects. Threads read concurrently, each over its own connection.

    `sign` returns a file's address, valid for `SIGNED_FOR_S`; `name` its address for messages; `headers` what a
    request to a signed address carries beyond the range.
    """

    def __init__(
        self,
        sign: Callable[[str], str],
        name: Callable[[str], str],
        answers: Answers,
        headers: Callable[[SplitResult], Mapping[str, str]] = lambda _: {},
    ) -> None:
        self._sign = sign
        self._name = name
        self._answers = answers
        self._headers = headers
        self._signed: dict[str, tuple[SplitResult, float]] = {}
        self._mine = threading.local()
        self._conditional = True

    def read_into(
        self, path: str, etag: str, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """These bytes of that version of the object, to `buffer.view[at:]`.

        A broken transfer continues where it broke; a connection that transfers almost nothing counts as
        broken. A busy server is retried for a minute. Raises `ModelError` if the object has changed,
        `AccessError`, and `NetworkError` after four attempts without progress.
        """
        done = failures = refusals = 0
        patience = time.monotonic() + self._answers.patience_s()
        while done < length:
            before = done
            view = buffer.view[at + done : at + length]
            try:
                with _watched() as watch:
                    self._mine.watch = watch
                    answer = self._ask(path, etag, offset + done, len(view))
                    while count := answer.readinto(view[:_STEP]):
                        took(view[:count])
                        view = view[count:]
                        done += count
                        watch.moved()
                if view:
                    raise http.client.IncompleteRead(b"", len(view))
            except _BusyError as error:
                refusals += 1
                pause = pause_s(refusals) if error.pause_s is None else error.pause_s
                if time.monotonic() + pause > patience:
                    raise self._answers.unreachable(self._name(path), error) from error
                self._answers.waits(self._name(path), error.status, pause)
                self._wait(pause)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                failures = 1 if done - before >= _LEAST_PROGRESS else failures + 1
                if failures == _ATTEMPTS:
                    raise self._answers.unreachable(self._name(path), error) from error
                self._wait(_PAUSE_S * (failures - 1))

    def _wait(self, pause: float) -> None:
        current().wait(pause)
        current().check()

    def _ask(self, path: str, etag: str, offset: int, length: int) -> http.client.HTTPResponse:
        """A response with exactly these bytes still to read. Raises `OSError` for temporary failures."""
        url = self._url(path)
        answer = self._get(url, etag, offset, length)
        if answer.status in _ENDED:
            # The client renews its credentials when it signs: they are bad only if a newly signed address is
            # refused too.
            self._drop()
            self._forget(path, url)
            answer = self._get(self._url(path), etag, offset, length)
        if answer.status == _NO_CONDITIONS and self._conditional and condition_on(etag):
            self._drop()
            self._conditional = False
            answer = self._get(self._url(path), etag, offset, length)
        whole = answer.status == 200 and offset == 0
        if (answer.status == 206 or whole) and answer.length == length:
            self._check_etag(path, etag, answer)
            return answer
        raise self._refusal(path, answer)

    def _check_etag(self, path: str, etag: str, answer: http.client.HTTPResponse) -> None:
        """Servers that do not support or ignore conditions still say which state they send."""
        if condition_on(etag) and quoted(answer.getheader("ETag") or etag) != etag:
            self._drop()
            raise changed(self._name(path))

    def _refusal(self, path: str, answer: http.client.HTTPResponse) -> Exception:
        code, reason = answer.status, answer.reason[:_SHOWN_LETTERS]
        pause, date = answer.getheader("Retry-After"), answer.getheader("Date")
        start = answer.read(_ERROR_BYTES) if code == 403 else b""
        self._drop()
        if code in _CHANGED or code == 206:
            return changed(self._name(path))
        if code == 200:
            return self._answers.no_ranges(self._name(path))
        if code in _BUSY:
            return _BusyError(code, reason, _seconds(pause, self._answers.patience_s()))
        if code == 407:
            return self._answers.proxy_refused(self._name(path))
        if code in _REFUSED:
            return self._answers.refused(self._name(path), code, start, date)
        return OSError(f"it answered {code} {reason}")

    def _get(self, url: SplitResult, etag: str, offset: int, length: int) -> http.client.HTTPResponse:
        connection, proxy_headers = self._connection(url)
        target = url._replace(scheme="", netloc="").geturl() if proxy_headers is None else url.geturl()
        headers = {
            "Host": url.netloc,
            "Range": f"bytes={offset}-{offset + length - 1}",
            **self._headers(url),
            **(proxy_headers or {}),
        }
        condition = condition_on(etag)
        if condition and self._conditional:
            headers["If-Match"] = condition
        self._mine.watch.connection = connection
        connection.request("GET", target, headers=headers)
        return connection.getresponse()

    def _url(self, path: str) -> SplitResult:
        """Sign again when half of the time is over, by wall clock: the server uses that too, and it does not
        stop when a machine sleeps."""
        url, until = self._signed.get(path, (None, 0.0))
        if url is None or time.time() > until:
            url = urlsplit(self._sign(path))
            self._signed[path] = url, time.time() + SIGNED_FOR_S / 2
        return url

    def _forget(self, path: str, url: SplitResult) -> None:
        """Sign again, unless another thread has done so by now."""
        if self._signed.get(path, (None, 0.0))[0] is url:
            self._signed.pop(path, None)

    def _connection(self, url: SplitResult) -> tuple[http.client.HTTPConnection, dict[str, str] | None]:
        """This thread's connection; and headers for a proxy that needs full addresses, if there is one."""
        known: _Connection | None = getattr(self._mine, "connection", None)
        if known is None or known[0] != url.netloc:
            self._drop()
            known = url.netloc, *_connect(url, self._answers.certificates)
            self._mine.connection = known
        return known[1:]

    def _drop(self) -> None:
        known = getattr(self._mine, "connection", None)
        if known is not None:
            known[1].close()
            self._mine.connection = None


def _connect(
    url: SplitResult, certificates: tuple[str, ...]
) -> tuple[http.client.HTTPConnection, dict[str, str] | None]:
    """A connection, through the proxy that the environment names for this address, and headers for that proxy."""
    host = url.hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(url.scheme)
    via = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else url
    to_proxy = _proxy_headers(via) if proxy else None
    if url.scheme == "http":
        return http.client.HTTPConnection(via.hostname or "", via.port, timeout=_TIMEOUT_S), to_proxy
    named = next((os.environ[name] for name in certificates if os.environ.get(name)), None)
    context = ssl.create_default_context(cafile=named or get_cert_path(True))
    connection = http.client.HTTPSConnection(
        via.hostname or "", via.port, timeout=_TIMEOUT_S, context=context
    )
    if to_proxy is not None:
        connection.set_tunnel(host, url.port, headers=to_proxy)
    return connection, None


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


def _seconds(header: str | None, most_s: float) -> float | None:
    """The seconds in `Retry-After`, if it names seconds."""
    return float(min(int(header), most_s)) if header and header.isdecimal() else None


class _Watch:
    """Watches the progress of a connection."""

    def __init__(self) -> None:
        self.connection: http.client.HTTPConnection | None = None
        self.steps = 0

    def moved(self) -> None:
        """Count one more step."""
        self.steps += 1


@contextlib.contextmanager
def _watched() -> Iterator[_Watch]:
    """Close the connection when it made no step for a minute.

    A socket's own timeout starts again with every single byte.
    """
    watch, over = _Watch(), threading.Event()

    def look() -> None:
        steps = 0
        while not over.wait(_STALLED_S):
            if watch.steps == steps and watch.connection is not None:
                with contextlib.suppress(OSError, AttributeError):  # closed in the meantime
                    watch.connection.sock.shutdown(socket.SHUT_RDWR)
                return
            steps = watch.steps

    threading.Thread(target=look, daemon=True, name="stall").start()
    try:
        yield watch
    finally:
        over.set()
