"""The folder of one HAProxy: its configuration, the keys that open it, and the socket that takes commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from tasks.rollout.daemon.files import clear_place, part_of, write_durably
from tasks.rollout.proxy.config import proxy_config
from tasks.rollout.proxy.keys import FILE as KEYS
from tasks.rollout.proxy.keys import PREPARE, Digests, keys_document, replace_keys, version_in
from tasks.rollout.proxy.slots import LOOK, Route, Slot, folder_name, slots_in

CONFIG, SOCKET = "haproxy.cfg", "admin.sock"
ANSWER_S = 5.0


class ProxyFolder:
    """One public address's folder, below that of its service."""

    def __init__(self, service: Path, host: str, port: int) -> None:
        self.path = service / "proxy" / folder_name(host, port)
        self._service = service

    @property
    def config(self) -> Path:
        """What HAProxy is started with."""
        return self.path / CONFIG

    def write(self, route: Route, digests: Digests, *, bind: int, metrics: int) -> None:
        """What HAProxy is to do, with the descriptors of its sockets. Raises `OSError`."""
        for folder in (self.path.parent, self.path):
            if folder.exists() and not folder.is_dir():
                folder.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, SOCKET, KEYS):
            clear_place(self.path / name, self._service)
        self._replace(CONFIG, proxy_config(route, bind=f"fd@{bind}", metrics=f"fd@{metrics}"))
        self.write_keys(digests)

    def write_keys(self, digests: Digests) -> None:
        """Whom the next HAProxy lets in. Raises `OSError`."""
        self._replace(KEYS, keys_document(digests))

    def _replace(self, name: str, text: str) -> None:
        file, content = self.path / name, text.encode()
        if not file.exists() or file.read_bytes() != content:
            write_durably(file, content)

    def drop_socket(self) -> None:
        """Before a HAProxy makes its own. Raises `OSError`."""
        (self.path / SOCKET).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove its files, and the folder if nothing else is in it."""
        files = (CONFIG, KEYS)
        for name in (*files, *(part_of(self.path / file).name for file in files), SOCKET):
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
            self.path.parent.rmdir()

    async def answers(self) -> bool:
        """Whether HAProxy takes commands."""
        try:
            await self.slots()
        except OSError:
            return False
        return True

    async def slots(self) -> dict[str, Slot]:
        """What HAProxy says of its slots. Raises `OSError`."""
        try:
            return slots_in(await self.ask(LOOK))
        except ValueError as error:
            raise OSError(str(error)) from error

    async def replace_keys(self, digests: Digests) -> None:
        """All at once: no request finds a part of them. Raises `OSError`."""
        answer = await self.ask(PREPARE)
        if (version := version_in(answer)) is None:
            raise OSError(answer.strip())
        if refused := (await self.ask(replace_keys(version, digests))).strip():
            raise OSError(refused)

    async def ask(self, line: str) -> str:
        """The answer to a line of commands. Raises `OSError`, also for a proxy that is silent (`TimeoutError`)."""
        folder = os.open(self.path, os.O_PATH | os.O_DIRECTORY)
        writer = None
        try:
            async with asyncio.timeout(ANSWER_S):
                # A socket's path has room for 107 bytes; by the folder's descriptor it is always short.
                path = f"/proc/self/fd/{folder}/{SOCKET}"
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(f"{line}\n".encode())
                return (await reader.read()).decode()
        finally:
            os.close(folder)
            if writer is not None:
                writer.close()
