"""A real registry of images for tests: Debian's `docker-registry`, with models pushed as ModelPack and oras do."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tool_environment import UnavailableError

from blocks.processes.ports import free_port
from blocks.processes.process import guarded

START_TIMEOUT_S = 60.0
MODELPACK = "application/vnd.cncf.model.manifest.v1+json"
WEIGHT, SIDE = "application/vnd.cncf.model.weight.v1.raw", "application/vnd.cncf.model.weight.config.v1.raw"
USER, PASSWORD = "tests", "only-for-tests"
_HTPASSWD = "tests:$2b$04$dTLvtBNarGF0VxSnihLqk.7HaPGKGAL47fENzbmtCqHBZj1JvvBxO"

_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
http: {{addr: 127.0.0.1:{port}, secret: only-for-tests}}
"""


@dataclass(frozen=True)
class OciRegistry:
    """`host` is the address, as in `oci://HOST/NAME:TAG`."""

    host: str
    credentials: tuple[str, str] | None = None

    def push(self, name: str, tag: str, folder: Path, **changes: Any) -> str:
        """An artifact with a blob for each file below the folder; its digest. `changes` to the manifest."""
        layers = [
            {**self.upload(name, path.read_bytes()), "mediaType": WEIGHT if path.suffix == ".safetensors" else SIDE,
             "annotations": {"org.cncf.model.filepath": str(path.relative_to(folder))}}
            for path in sorted(folder.rglob("*")) if path.is_file()
        ]  # fmt: skip
        config = {**self.upload(name, b"{}"), "mediaType": "application/vnd.cncf.model.config.v1+json"}
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": MODELPACK,
            "config": config,
            "layers": layers,
            **changes,
        }
        answer = self._ask(
            "PUT", f"{name}/manifests/{tag}", json.dumps(manifest).encode(), manifest["mediaType"]
        )
        return answer.headers["docker-content-digest"]

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """A blob; where it is found."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        place = self._ask("POST", f"{name}/blobs/uploads/").headers["location"]
        separator = "&" if "?" in place else "?"
        self._ask("PUT", f"{place}{separator}digest={digest}", content, "application/octet-stream")
        return {"digest": digest, "size": len(content)}

    def _ask(self, method: str, place: str, content: bytes = b"", kind: str = "") -> httpx.Response:
        url = place if place.startswith("http") else f"http://{self.host}/v2/{place}"
        answer = httpx.request(
            method,
            url,
            content=content,
            headers={"Content-Type": kind} if kind else {},
            auth=self.credentials,
        )
        answer.raise_for_status()
        return answer

    def log_in(self, folder: Path) -> Path:
        """What `docker login` writes, in that folder."""
        words = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {self.host: {"auth": words}}}))
        return folder


@contextlib.contextmanager
def running(folder: Path, *, locked: bool = False) -> Iterator[OciRegistry]:
    """The registry, with its data in `folder`, until the block is left; `locked`: for one user only. Raises
    `UnavailableError`."""
    program = shutil.which("docker-registry", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    if program is None:
        raise UnavailableError("docker-registry is not installed")
    port = free_port("127.0.0.1")
    text = _CONFIG.format(folder=folder, port=port)
    if locked:
        (folder / "htpasswd").write_text(f"{_HTPASSWD}\n")
        text += f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
    (folder / "config.yml").write_text(text)
    log = folder / "log"
    with (
        log.open("wb") as out,
        guarded([program, "serve", str(folder / "config.yml")], stdout=out, stderr=out) as child,
    ):
        registry = OciRegistry(f"127.0.0.1:{port}", (USER, PASSWORD) if locked else None)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://{registry.host}/v2/")
                break
            if child.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(
                    f"docker-registry did not start: {log.read_text(errors='replace')[-800:]}"
                )
            time.sleep(0.05)
        yield registry
