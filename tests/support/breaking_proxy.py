"""A TCP proxy on the loopback that breaks connections in the middle of an answer when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_BROKEN_AFTER_BYTES = 200_000
"""Past any header and listing, before the end of what tests read."""


class BreakingProxy:
    """Listens until closed; forwards each connection to the target."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._to_break = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def break_next(self, answers: int) -> None:
        """Break that many of the coming long answers."""
        with self._lock:
            self._to_break = answers

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        server.close()

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
                sent += len(data)
                if sent > _BROKEN_AFTER_BYTES and self._break():
                    client.shutdown(socket.SHUT_RDWR)
                    break
        client.close()

    def _break(self) -> bool:
        with self._lock:
            self._to_break -= 1
            return self._to_break >= 0


@contextlib.contextmanager
def breaking_proxy(target: str) -> Iterator[BreakingProxy]:
    """A proxy to `target` (`http://HOST:PORT`) until the block is left."""
    proxy = BreakingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
