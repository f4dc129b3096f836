"""A real Hugging Face hub for tests: `olah` serves repositories of Git; in front of it what its local mode lacks.

The front forwards questions to olah and, as the hub does, sends the reader of a large file to a store, which knows ranges.
It also fails on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from tool_environment import UnavailableError, environment

from blocks.processes.ports import free_port
from blocks.processes.process import guarded

LOCK_FILE = Path(__file__).with_name("olah-requirements.lock")
START_TIMEOUT_S = 120.0
TOKEN = "hf_OneThatIsOnlyForTests1234567890"
_SMALL = "/api/resolve-cache"
"""Where the hub sends the reader of a small file."""

_SIGNATURE = "X-Amz-Signature=abcdef0123456789"


@dataclass
class Faults:
    """What the hub does wrong. Counts go down with each use."""

    token: str | None = None
    """Asked for on every request to the hub itself."""
    gated: bool = False
    busy: int = 0
    retry_after: str = "1"
    breaks: int = 0
    """So many answers of the store end in their middle."""
    expired: int = 0
    """So many signed addresses are refused."""
    ignores_ranges: bool = False


@dataclass
class HubServer:
    """`url` is the front's, `olah` the address of the server behind it."""

    url: str
    olah: str
    mirror: Path
    faults: Faults = field(default_factory=Faults)
    asked: list[str] = field(default_factory=list)

    def push(
        self, name: str, folder: Path, *, large: tuple[str, ...] = (".safetensors", ".gguf", ".bin")
    ) -> str:
        """Commit the folder's content as that repository's `main`; the commit."""
        place = self.mirror / "models" / name
        if not place.exists():
            place.mkdir(parents=True)
            _git(place, "init", "--quiet", "--initial-branch=main")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.suffix in large:
                content = _as_pointer(place, content)
            target = place / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        _git(place, "add", "--all")
        _git(place, "commit", "--quiet", "--message", "new weights")
        return _git(place, "rev-parse", "HEAD")

    def takes(self, fault: str) -> bool:
        """Whether this fault strikes now."""
        left: int = getattr(self.faults, fault)
        setattr(self.faults, fault, max(0, left - 1))
        return left > 0


def _git(place: Path, *words: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    answer = subprocess.run(
        ["git", "-C", place, *identity, *words], check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def _as_pointer(place: Path, content: bytes) -> bytes:
    """Keep the content as Git LFS does; the pointer to it."""
    digest = hashlib.sha256(content).hexdigest()
    kept = place / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()


def _told(head: httpx.Response) -> dict[str, str]:
    return {"X-Repo-Commit": head.headers["x-repo-commit"], "ETag": f'"{head.headers["etag"]}"'}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Front

    def do_GET(self) -> None:
        hub = self.server.hub
        hub.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/store/"):
            self._send_from_store()
        elif self.path.startswith(_SMALL):
            address = f"{hub.olah}{self.path.removeprefix(_SMALL)}"
            self._send(httpx.get(address).content, _told(httpx.head(address)))
        elif hub.takes("busy"):
            self._answer(429, b"", {"Retry-After": hub.faults.retry_after})
        elif hub.faults.token and self.headers.get("Authorization") != f"Bearer {hub.faults.token}":
            self._answer(
                401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif "/resolve/" in self.path and hub.faults.gated:
            message = "Access to model is restricted and you are not in the authorized list."
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif "/resolve/" in self.path:
            self._resolve()
        else:
            self._forward()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _forward(self) -> None:
        path, question, parameters = self.path.partition("?")
        if re.fullmatch(r"/api/models/[^/]+/[^/]+", path):
            path += "/revision/main"
        path += "/" if re.search(r"/tree/[^/]+$", path) else ""
        asked = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        answer = httpx.request(
            "POST" if self.command == "POST" else "GET",
            f"{self.server.hub.olah}{path}{question}{parameters}",
            content=asked,
            headers={"Content-Type": self.headers.get("Content-Type", "application/json")},
        )
        kept = {
            name: answer.headers[name]
            for name in ("x-error-code", "x-error-message")
            if name in answer.headers
        }
        if answer.status_code == 401:  # olah's word for both; the hub's for a revision is 404
            code = "RevisionNotFound" if "/revision/" in path and self._is_there(path) else "RepoNotFound"
            kept, status = {"x-error-code": code}, 404
        else:
            status = answer.status_code
        self._answer(status, answer.content, {"Content-Type": "application/json", **kept})

    def _is_there(self, path: str) -> bool:
        return (self.server.hub.mirror / "models" / "/".join(path.split("/")[3:5])).exists()

    def _resolve(self) -> None:
        head = httpx.head(f"{self.server.hub.olah}{self.path}")
        if head.status_code != httpx.codes.OK:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        told = _told(head)
        if len(head.headers["etag"]) == 64:  # a large file
            told["X-Linked-Etag"], told["X-Linked-Size"] = told["ETag"], head.headers["content-length"]
            address = f"http://localhost:{self.server.server_port}/store{self.path}?{_SIGNATURE}"
            self._answer(302, b"", {**told, "Location": address})
            return
        self._answer(307, b"", {**told, "Location": f"{_SMALL}{self.path}"})

    def _send_from_store(self) -> None:
        hub = self.server.hub
        path, _, signature = self.path.removeprefix("/store").partition("?")
        if signature != _SIGNATURE or "Authorization" in self.headers:
            self._answer(400, b"a signed address and a token", {})
        elif hub.takes("expired"):
            self._answer(403, b"Request has expired", {})
        else:
            kept = self.server.kept
            if path not in kept:
                kept[path] = httpx.get(f"{hub.olah}{path}").content
            self._send(kept[path], {"ETag": '"of-the-store"'}, breaks=hub.takes("breaks"))

    def _send(self, content: bytes, told: dict[str, str], *, breaks: bool = False) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or self.server.hub.faults.ignores_ranges:
            self._answer(200, content, told)
            return
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        told = {**told, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._answer(206, content[first : last + 1], told, breaks=breaks)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], *, breaks: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):  # the client was killed
            self.wfile.write(body[: len(body) // 2] if breaks else body)
        self.close_connection |= breaks

    def log_message(self, *_: object) -> None:
        pass


class _Front(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = hub
        self.kept: dict[str, bytes] = {}

    def handle_error(self, *_: object) -> None:
        """A client that was killed is expected."""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[HubServer]:
    """The hub, with its data in `folder`, until the block is left. Raises `UnavailableError`."""
    mirror = folder / "mirror"
    mirror.mkdir()
    with olah(folder / "olah", f"mirrors-path = ['{mirror}']", offline=True) as behind:
        port = free_port("127.0.0.1")
        front = _Front(HubServer(f"http://127.0.0.1:{port}", behind, mirror), port)
        threading.Thread(target=front.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield front.hub
        finally:
            front.shutdown()
            front.server_close()


@contextlib.contextmanager
def olah(folder: Path, *settings: str, offline: bool = False) -> Iterator[str]:
    """The address of one olah server, until the block is left. `settings` are lines of its configuration."""
    program = environment("olah", LOCK_FILE) / "bin" / "olah-cli"
    port = free_port("127.0.0.1")
    folder.mkdir()
    lines = [
        "[basic]",
        'host = "127.0.0.1"',
        f"port = {port}",
        f"repos-path = '{folder / 'repos'}'",
        *settings,
    ]
    lines += ["[accessibility]", f"offline = {str(offline).lower()}"]
    (folder / "olah.toml").write_text("\n".join(lines))
    command = [str(program), "--config", str(folder / "olah.toml"), "--log-path", str(folder / "logs")]
    log = folder / "log"
    with log.open("wb") as out, guarded(command, stdout=out, stderr=out, cwd=folder) as child:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, child, log)
        yield url


def _wait_for(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/")
            return
        if child.poll() is not None or time.monotonic() > deadline:
            raise UnavailableError(f"olah did not start: {log.read_text(errors='replace')[-800:]}")
        time.sleep(0.1)
