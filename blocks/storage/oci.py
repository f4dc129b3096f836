"""Models in a registry of images: `oci://HOST/NAME:TAG`, as ModelPack and `oras push` keep them, one blob a file.

A tag is pinned to the digest of its manifest once. Every blob has its SHA-256 as its name, and is checked against it.
Credentials are those that `docker login` or `oras login` writes into `~/.docker/config.json`.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from blocks.processes.deadline import within
from blocks.storage.oci_errors import OciAnswers, explained, odd
from blocks.storage.ranges import RangeReader, pause_s
from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, Took, ring
from tasks.core.errors import AccessError, ModelError, WrongUseError
from tasks.core.files import read_regular
from tasks.core.paths import checked, shown
from tasks.core.redaction import remember
from tasks.core.sources import FORMS, OciReference, ResolvedModel, parse_oci
from tasks.staging.models import SourceFile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_NAMES = ("org.cncf.model.filepath", "org.opencontainers.image.title")
"""Annotations of a layer that name its file: ModelPack's, and that of oras."""

_PACKED = re.compile(r"\.cncf\.model\..*\.tar|[.+](?:gzip|zstd)$")
"""Not the type that oras gives to files as they are: it is that of a layer in tar."""

_UNPACK = "io.deis.oras.content.unpack"
_LOOPBACK = ("localhost", "127.0.0.1")
_DEADLINE_S = 60.0
_TIMEOUT_S = 30.0
_ATTEMPTS = 4
_MOST_BYTES = 4 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def resolve_oci(source: str) -> ResolvedModel:
    """The digest that a tag names now. Raises `NotFoundError`, `AccessError` or `NetworkError`."""
    reference = _read(source)
    if reference.digest is None:
        content = _Registry(reference).manifest(reference.tag)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        reference = OciReference(reference.host, reference.name, digest=digest)
    return ResolvedModel(str(reference), reference.digest)


def open_oci(source: str) -> OciSource:
    """The files of a resolved artifact."""
    reference = _read(source)
    if reference.digest is None:
        raise WrongUseError(f"{source} is not pinned to a digest", fix="write oci://HOST/NAME@sha256:DIGEST")
    return OciSource(OciReference(reference.host, reference.name, digest=reference.digest), reference.digest)


def _read(source: str) -> OciReference:
    reference = parse_oci(source)
    if reference is None:
        raise WrongUseError(f"{shown(source)} does not name a model", fix=f"write {FORMS}")
    return reference


class OciSource:
    """The files of one manifest. Implements `tasks.staging.source.ModelSource`."""

    parallel = 8

    def __init__(self, reference: OciReference, digest: str) -> None:
        self.name = str(reference)
        self._digest = digest
        self._registry = _Registry(reference)
        self._ranges = RangeReader(self._address, self._place, OciAnswers(), self._registry.headers)

    def list_files(self) -> Sequence[SourceFile]:
        """Files that are blobs of their own, not in folders, by path. Raises `ModelError` for packed ones."""
        return self._files

    @cached_property
    def _files(self) -> Sequence[SourceFile]:
        content = self._registry.manifest(self._digest)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != self._digest:
            raise ModelError(
                f"{self.name}: the manifest does not have this digest", fix="push the model again"
            )
        return list_layers(content, self.name)

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that file."""
        (buffer,) = ring(1, length)
        self.read_into(file, offset, length, buffer, 0, lambda _: None)
        return bytes(buffer.view[:length])

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, straight into the buffer."""
        self._ranges.read_into(file.path, file.identity, offset, length, buffer, at, took)

    def _place(self, path: str) -> str:
        return f"{self.name}/{path}"

    def _address(self, path: str) -> str:
        file = next(file for file in self._files if file.path == path)
        return self._registry.address_of(file.identity)


def list_layers(content: bytes, name: str) -> Sequence[SourceFile]:
    """The files in a manifest. Raises `ModelError` for a manifest that is of no use."""
    try:
        manifest = json.loads(content)
        if manifest.get("mediaType") in _INDEXES or "manifests" in manifest:
            raise ModelError(f"{name} is an index of several artifacts", fix="name one of them by its digest")
        found = [_as_file(layer, name) for layer in manifest["layers"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{name} is not an artifact with files: its manifest lists none", fix="push the model again"
        ) from None
    files = {file.path: file for file in found if file is not None}
    if not files:
        raise ModelError(
            f"{name} contains no files by name: it may be an image to run",
            fix="push the model's files themselves, with ModelPack (modctl build --raw) or oras push",
        )
    return [files[path] for path in sorted(files)]


def _as_file(layer: Mapping[str, Any], name: str) -> SourceFile | None:
    """The file of a layer; None if it has no name, or is in a folder."""
    path = next((layer["annotations"][key] for key in _NAMES if key in layer.get("annotations", {})), None)
    digest = _DIGEST.fullmatch(layer["digest"])
    if path is None or "/" in (path := checked(path, name)) or digest is None:
        return None
    if _PACKED.search(layer["mediaType"]) or layer["annotations"].get(_UNPACK) == "true":
        raise ModelError(
            f"{name}: {path} is packed ({layer['mediaType'][:100]}), from which ranges cannot be read",
            fix="push the files as they are: modctl build --raw, or oras push",
        )
    return SourceFile(path=path, size_bytes=layer["size"], identity=layer["digest"], sha256=digest[1])


class _Registry:
    """Questions about one repository."""

    def __init__(self, reference: OciReference) -> None:
        self._reference = reference
        loopback = reference.host.partition(":")[0] in _LOOPBACK
        host = "registry-1.docker.io" if reference.host == "docker.io" else reference.host
        self._base = f"{'http' if loopback else 'https'}://{host}/v2/{reference.name}"
        self._own = urlsplit(self._base)[:2]
        self._client = httpx.Client(verify=_trusted(), timeout=_TIMEOUT_S, trust_env=not loopback)
        self._authorization: str | None = None

    def manifest(self, tag: str) -> bytes:
        """The manifest of a tag or digest."""
        accepted = ", ".join((MANIFEST, *_INDEXES))
        content = self._ask(f"{self._base}/manifests/{tag}", {"Accept": accepted}).content
        if len(content) > _MOST_BYTES:
            raise odd(str(self._reference))
        return content

    def address_of(self, digest: str) -> str:
        """Where the blob's bytes are: in the registry itself, or signed, at the store that it names."""
        url = f"{self._base}/blobs/{digest}"
        answer = self._ask(url, {"Range": "bytes=0-0"})
        return str(answer.next_request.url) if answer.next_request else url

    def headers(self, address: SplitResult) -> Mapping[str, str]:
        """The credentials, for requests to the registry itself only."""
        return (
            {"Authorization": self._authorization} if address[:2] == self._own and self._authorization else {}
        )

    def _ask(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """An answer of 2xx or 3xx. Logs in if asked to; waits as long as a busy registry asks for, and says so."""
        place, answers = str(self._reference), OciAnswers()
        failures = refusals = 0
        logged_in = False
        patience = time.monotonic() + answers.patience_s()
        while True:
            try:
                answer = within(_DEADLINE_S, place, lambda: self._send(url, headers))
                if answer.status_code < httpx.codes.BAD_REQUEST:
                    return answer
                if answer.status_code == httpx.codes.UNAUTHORIZED and not logged_in:
                    logged_in = True
                    self._authorization = self._log_in(answer.headers.get("www-authenticate", ""))
                    continue
            except httpx.HTTPError as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise answers.unreachable(place, error) from None
                self._wait(pause_s(failures))
                continue
            if answer.status_code not in (429, 503):
                raise explained(place, self._reference.host, answer.status_code)
            refusals += 1
            told = answer.headers.get("retry-after", "")
            wait_s = float(told) if told.isdecimal() else pause_s(refusals)
            if time.monotonic() + wait_s > patience:
                raise explained(place, self._reference.host, answer.status_code)
            answers.waits(place, answer.status_code, wait_s)
            self._wait(wait_s)

    def _send(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        return self._client.get(url, headers={**headers, **self.headers(urlsplit(url))})

    def _log_in(self, challenge: str) -> str | None:
        """The header for what the registry asks for: `Basic`, or `Bearer` with a token that its realm gives."""
        kind, _, rest = challenge.partition(" ")
        basic = _credentials(self._reference.host)
        if kind.lower() != "bearer":
            return f"Basic {basic}" if basic else None
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = urlsplit(asked.get("realm", ""))
        if realm.scheme != "https" and realm[:2] != self._own:
            raise odd(str(self._reference))
        answer = self._client.get(
            asked["realm"],
            params={"service": asked.get("service", ""), "scope": f"repository:{self._reference.name}:pull"},
            headers={"Authorization": f"Basic {basic}"} if basic else {},
        )
        try:
            found = answer.json()
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token:
            raise explained(str(self._reference), self._reference.host, answer.status_code)
        remember(token)
        return f"Bearer {token}"

    def _wait(self, wait_s: float) -> None:
        current().wait(wait_s)
        current().check()


def _credentials(host: str) -> str | None:
    """`USER:PASSWORD` in base64, as `docker login` keeps it; None without any."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    try:
        config = json.loads(read_regular(folder / "config.json", 1 << 20))
        key = "https://index.docker.io/v1/" if host == "docker.io" else host
        found = config.get("auths", {}).get(key, {}).get("auth")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ModelError, ValueError, AttributeError):
        raise AccessError(
            f"{folder}/config.json cannot be read", fix=f"log in again: docker login {host}"
        ) from None
    if isinstance(found, str) and found:
        remember(found)
        return found
    return None


def _trusted() -> ssl.SSLContext:
    named = next((os.environ[name] for name in OciAnswers.certificates if os.environ.get(name)), None)
    return ssl.create_default_context(cafile=named) if named else httpx.create_ssl_context(trust_env=False)
