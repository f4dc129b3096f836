"""Files of models behind MLflow's artifact proxy, which knows no ranges: each is read from its beginning on.

One reader keeps the answer open, and takes from it what comes next; what lies in between is skipped. A copy asks for
the bytes of a file in order, so each file is sent once. A killed copy goes on in the file it was in, whose beginning
is sent again.
https://github.com/mlflow/mlflow/blob/master/mlflow/server/handlers.py
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import httpx

from blocks.processes.deadline import within
from blocks.storage.mlflow_client import BusyServerError, MlflowClient, OpenAnswer
from tasks.core.cancellation import current
from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import NetworkError, NotFoundError, WrongUseError, one_line
from tasks.core.paths import checked, shown
from tasks.core.progress import say
from tasks.core.sources import ARTIFACTS
from tasks.core.verdicts import StageName
from tasks.staging.models import SourceFile
from tasks.staging.source import changed

_API = "api/2.0/mlflow-artifacts/artifacts"
_DEADLINE_S = 120.0
"""Limit for the next piece of a file, s."""

_ATTEMPTS = 4
_PAUSE_S = 0.5
_PATIENCE_S = 300.0
"""How long to wait for a server that says that it is busy, s."""


def open_artifacts(source: str, registry: str) -> ProxiedArtifacts:
    """The files below `mlflow-artifacts:/PATH` on the tracking server `registry`."""
    if not registry.startswith(("http://", "https://")):
        raise WrongUseError(
            f"{shown(source)} is behind an MLflow server, and SLIPWAY_REGISTRY does not name one",
            fix="set it to the server's address",
        )
    return ProxiedArtifacts(source.rstrip("/"), MlflowClient(registry))


class ProxiedArtifacts:
    """The files of one folder of artifacts. Implements `tasks.staging.source.ModelSource`."""

    parallel = 1

    def __init__(self, source: str, client: MlflowClient) -> None:
        self.name = source
        self._folder = checked(source.removeprefix(ARTIFACTS).strip("/"), source)
        self._client = client
        self._lock = threading.Lock()
        self._open: _Stream | None = None

    def list_files(self) -> Sequence[SourceFile]:
        """Files directly in the folder, by path. The server states only their sizes, but versions share no folder."""
        listing = self._client.ask_at(_API, path=self._folder).get("files")
        found = []
        for item in listing if isinstance(listing, list) else []:
            path, size = str(item.get("path", "")).rpartition("/")[2], item.get("file_size")
            if not item.get("is_dir") and isinstance(size, int):
                found.append(SourceFile(path=checked(path, self.name), size_bytes=size, identity=str(size)))
        if not found:
            raise NotFoundError(
                f"there are no files in {self.name}", fix="check the model's version in MLflow"
            )
        return sorted(found, key=lambda file: file.path)

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """Exactly these bytes of exactly that file."""
        content = bytearray(length)
        self._copy(file, offset, memoryview(content), lambda _: None)
        return bytes(content)

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """The same, into the buffer."""
        self._copy(file, offset, buffer.view[at : at + length], took)

    def _copy(self, file: SourceFile, offset: int, view: memoryview, took: Took) -> None:
        """Broken transfers begin again; a busy server is waited for."""
        done = failures = 0
        patience = time.monotonic() + _PATIENCE_S
        with self._lock:
            while done < len(view):
                try:
                    for piece in self._stream(file, offset + done).take(len(view) - done):
                        view[done : done + len(piece)] = piece
                        took(view[done : done + len(piece)])
                        done += len(piece)
                        failures = 0
                except BusyServerError as error:
                    self._drop()
                    if time.monotonic() + error.pause_s > patience:
                        raise
                    say(StageName.STAGING, f"{error.what}, asked again in {error.pause_s:.0f} s")
                    self._wait(error.pause_s)
                except (httpx.HTTPError, NetworkError) as error:
                    self._drop()
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise self._broken(file, error) from error
                    self._wait(_PAUSE_S * failures)

    def _stream(self, file: SourceFile, offset: int) -> _Stream:
        """The answer for that file, at that byte."""
        if self._open is None or self._open.path != file.path or self._open.position > offset:
            self._drop()
            address = f"{_API}/{quote(f'{self._folder}/{file.path}')}"
            self._open = _Stream(file, self._client.send(address), f"{self.name}/{file.path}")
        self._open.skip_to(offset)
        return self._open

    def _drop(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _wait(self, pause_s: float) -> None:
        current().wait(pause_s)
        current().check()

    def _broken(self, file: SourceFile, error: Exception) -> NetworkError:
        return NetworkError(
            f"{self.name}/{file.path} cannot be read from {self._client.name}: {one_line(error)}",
            fix="check SLIPWAY_REGISTRY and the network, then try again",
        )


class _Stream:
    """One file as it comes. `position` is that of the next byte."""

    def __init__(self, file: SourceFile, answer: OpenAnswer, name: str) -> None:
        self.path = file.path
        self.position = 0
        self._size = file.size_bytes
        self._answer = answer
        self._name = name
        self._rest = b""

    def skip_to(self, offset: int) -> None:
        for _ in self.take(offset - self.position):
            current().check()

    def take(self, length: int) -> Iterator[bytes]:
        """The next bytes in pieces. Raises `ModelError` if the file is shorter than listed."""
        while length:
            if not self._rest:
                self._rest = within(_DEADLINE_S, self._name, lambda: next(self._answer.pieces, b""))
            if not self._rest:
                raise changed(self._name)
            piece, self._rest = self._rest[:length], self._rest[length:]
            self.position += len(piece)
            length -= len(piece)
            yield piece

    def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self._answer.close()
