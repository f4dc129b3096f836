"""The supervisor's control socket: one JSON object a line, each answered by one.

`{"op": "status"}` -> `{"ok": true, …}`, or `{"ok": false, "code": …, "error": …}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

from tasks.rollout.daemon.files import clear_place
from tasks.rollout.daemon.supervisor import RefusedError, Supervisor
from tasks.rollout.proxy.keys import digests_in

SOCKET_FILE = "control.sock"
LONGEST_LINE_BYTES = 1 << 20

Message = dict[str, Any]


def bind_control_socket(folder: Path) -> socket.socket:
    """The listening socket, for this user alone. A leftover of a killed supervisor is replaced.

    The address of a Unix socket has 107 bytes at most, so it is named from the folder's descriptor.
    """
    clear_place(folder / SOCKET_FILE, folder)
    (folder / SOCKET_FILE).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{handle}/{SOCKET_FILE}")
    finally:
        os.umask(mask)
        os.close(handle)
    return listener


class Control:
    """Serves the control socket."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._connections: dict[asyncio.Task[None], asyncio.StreamReader] = {}
        self._server: asyncio.Server | None = None
        self._file: os.stat_result | None = None

    async def listen(self, listener: socket.socket) -> asyncio.Server:
        """Accept connections from now on."""
        return await asyncio.start_unix_server(self._accept, sock=listener, limit=LONGEST_LINE_BYTES)

    async def renew(self) -> None:
        """Listen in the service's folder, if the socket there is not this one's own. Raises `OSError`."""
        folder = self._supervisor.folder
        with contextlib.suppress(FileNotFoundError):
            if self._file is not None and os.path.samestat(self._file, (folder / SOCKET_FILE).stat()):
                return
        before, self._server = self._server, await self.listen(bind_control_socket(folder))
        self._file = (folder / SOCKET_FILE).stat()
        if before is not None:
            before.close()  # its connections stay open

    async def close(self) -> None:
        """Accept nothing more, read nothing more, and let the answers out that are being written."""
        if self._server is not None:
            self._server.close()
        for reader in self._connections.values():
            reader.feed_eof()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        owner = object()
        self._supervisor.arrive(owner)
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = reader
        task.add_done_callback(self._connections.pop)
        try:
            while line := await reader.readline():
                answer = await self._do(owner, line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # hung up, or a line longer than any request: hang up too
        finally:
            self._supervisor.hang_up(owner)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _do(self, owner: object, line: bytes) -> Message:
        try:
            return {"ok": True, **await self._dispatch(owner, json.loads(line))}
        except RefusedError as error:
            return {"ok": False, "code": error.code, "error": str(error)}
        except (KeyError, ValueError, OSError) as error:
            return {"ok": False, "code": "failed", "error": f"{type(error).__name__}: {error}"}

    async def _dispatch(self, owner: object, request: Message) -> Message:
        supervisor = self._supervisor
        match request["op"]:
            case "claim":
                return await supervisor.claim(owner, request["host"], request["port"])
            case "claim_locked":  # a name of its own: a supervisor that knows no keys must refuse it
                return await supervisor.claim(owner, request["host"], request["port"], digests_in(request))
            case "start":
                return await supervisor.start(
                    owner, request["release"], request["argv"], request["env"], request["drain_s"]
                )
            case "newcomer":  # keeps its name: a supervisor outlives upgrades of the command
                return await supervisor.new_release(owner, request["lines"])
            case "switch":
                return await supervisor.switch(owner)
            case "settle":
                return await supervisor.settle(owner, request["drain_s"])
            case "revert":
                return await supervisor.revert(owner)
            case "lock":
                return await supervisor.lock(digests_in(request))
            case "status":
                return await supervisor.status()
            case "stop":
                return await supervisor.stop(owner, request["drain_s"])
            case unknown:
                raise RefusedError("unknown", f"no such request: {unknown!r}")
