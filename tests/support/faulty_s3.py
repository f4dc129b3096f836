"""An S3 server that deviates from Amazon's in one way: what no real server here can be made to do.

It serves `objects` (key to bytes) of every bucket. `Faults` says how it deviates.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Faults:
    """How the server deviates; nothing set is an ordinary server.

    `etag` is a format of the ETag in listings, with `{}` for the digest; None lists none.
    `slow_down` requests are answered 503 SlowDown first. `region` is the only one that signatures may name.
    """

    etag: str | None = '"{}"'
    slow_down: int = 0
    slow_down_ranges: int = 0
    region: str = ""
    region_status: int = 400
    clock_offset_s: float = 0.0
    ignores_delimiter: bool = False
    ignores_prefix: bool = False
    ignores_ranges: bool = False
    refuses_conditions: bool = False
    encodes_keys: bool = True
    page: str = ""
    error: tuple[int, str] = (0, "")
    drips: bool = False


@dataclass
class FaultyS3(ThreadingHTTPServer):
    """Listens on the loopback; `requests` are the methods and paths that came."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: Faults = Faults()
    requests: list[str] = field(default_factory=list)

    daemon_threads = True
    block_on_close = False

    def __post_init__(self) -> None:
        self.ending = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def upload(self, files: dict[str, bytes], prefix: str = "m") -> None:
        """Objects below a prefix."""
        self.objects |= {f"{prefix}/{name}": content for name, content in files.items()}

    def deviate(self, **faults: object) -> None:
        """Deviate in these ways from now on."""
        self.faults = replace(Faults(), **faults)  # type: ignore[arg-type]

    def takes(self, fault: str) -> bool:
        """Whether one more request meets this counted fault."""
        left = getattr(self.faults, fault)
        if left:
            self.faults = replace(self.faults, **{fault: left - 1})
        return bool(left)


class _Handler(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        faults = self.server.faults
        self.server.requests.append(f"{self.command} {self.path}")
        _, _, key = unquote(url.path).removeprefix("/").partition("/")
        signature = unquote(self.headers.get("Authorization", "") + url.query)
        if faults.error[0]:
            self._refuse(*faults.error)
        elif faults.region and f"/{faults.region}/" not in signature:
            code = "PermanentRedirect" if faults.region_status == 301 else "AuthorizationHeaderMalformed"
            self._refuse(faults.region_status, code, {"x-amz-bucket-region": faults.region})
        elif self.server.takes("slow_down"):
            self._refuse(503, "SlowDown")
        elif not key:
            self._list(parse_qs(url.query, keep_blank_values=True))
        elif key not in self.server.objects:
            self._refuse(404, "NoSuchKey")
        else:
            self._get(key, presigned="X-Amz-Signature" in url.query)

    def _list(self, asked: dict[str, list[str]]) -> None:
        faults = self.server.faults
        if faults.page:
            self._answer(200, faults.page.encode(), {"Content-Type": "text/html"})
            return
        prefix, delimiter = asked.get("prefix", [""])[0], asked.get("delimiter", [""])[0]
        start = int(asked.get("continuation-token", ["0"])[0])
        encoded = faults.encodes_keys and asked.get("encoding-type") == ["url"]
        found, folders = [], set()
        for key in sorted(self.server.objects):
            if not key.startswith(prefix) and not faults.ignores_prefix:
                continue
            tail = key[len(prefix) :]
            if delimiter and delimiter in tail and not faults.ignores_delimiter:
                folders.add(prefix + tail.partition(delimiter)[0] + delimiter)
            else:
                found.append(key)
        page, more = found[start : start + 1000], len(found) > start + 1000

        def written(key: str) -> str:
            return quote(key, safe="/") if encoded else escape(key)

        rows = [f"<IsTruncated>{str(more).lower()}</IsTruncated>"]
        rows += ["<EncodingType>url</EncodingType>"] if encoded else []
        rows += [f"<NextContinuationToken>{start + 1000}</NextContinuationToken>"] if more else []
        for key in page:
            content = self.server.objects[key]
            etag = (
                "" if faults.etag is None else f"<ETag>{escape(faults.etag.format(_digest(content)))}</ETag>"
            )
            rows.append(
                f"<Contents><Key>{written(key)}</Key><LastModified>2026-03-01T00:00:00.000Z</LastModified>{etag}"
                f"<Size>{len(content)}</Size></Contents>"
            )
        rows += [
            f"<CommonPrefixes><Prefix>{written(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        self._answer(200, f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode())

    def _get(self, key: str, *, presigned: bool) -> None:
        faults, content = self.server.faults, self.server.objects[key]
        condition, wanted = self.headers.get("If-Match"), self.headers.get("Range")
        etag = f'"{_digest(content)}"'
        if presigned and self.server.takes("slow_down_ranges"):
            self._refuse(503, "SlowDown")
        elif condition and faults.refuses_conditions:
            self._refuse(501, "NotImplemented")
        elif condition and condition != etag:
            self._refuse(412, "PreconditionFailed")
        elif wanted and not faults.ignores_ranges:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            assert match is not None
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            headers = {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self._answer(206, content[first : last + 1], headers)
        else:
            self._answer(200, content, {"ETag": etag})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        region = f"<Region>{self.server.faults.region}</Region>" if self.server.faults.region else ""
        text = f"<Error><Code>{code}</Code><Message>no</Message>{region}</Error>"
        self._answer(status, text.encode(), headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        self.send_header(
            "Date", email.utils.formatdate(time.time() + self.server.faults.clock_offset_s, usegmt=True)
        )
        for name, value in {"Content-Type": "application/xml", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):  # the client gave up
            if not self.server.faults.drips:
                self.wfile.write(body)
                return
            for place in range(len(body)):
                self.wfile.write(body[place : place + 1])
                if self.server.ending.wait(0.05):
                    return

    def log_message(self, *_: object) -> None:
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@contextlib.contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """A server until the block is left."""
    with FaultyS3() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
