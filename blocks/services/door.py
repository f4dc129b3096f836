"""The keys of services: read from a file or a Prefect block, and carried by Slipway's own requests."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from blocks.engine.api import EngineApi
from tasks.core import api_keys
from tasks.core.errors import SpecError
from tasks.core.given_files import decode_text, read_given
from tasks.core.redaction import remember
from tasks.core.release import ServiceFolder
from tasks.rollout.door import own_key


def open_service(folder: ServiceFolder, *, timeout_s: float = 60.0) -> Callable[[str], EngineApi]:
    """Opens clients for the service's addresses, whose requests carry Slipway's own key if the service needs one."""

    def open_api(base_url: str) -> EngineApi:
        key = own_key(folder)
        if key is not None:
            remember(key)
        return EngineApi(base_url, timeout_s=timeout_s, key=key)

    return open_api


def read_keys(reference: str) -> tuple[str, ...]:
    """The digests of the keys in the secret that `serving.api_key` names. Raises as `keys_in` does."""
    return tuple(map(api_keys.digest_of_key, keys_in(reference)))


def keys_in(reference: str) -> tuple[str, ...]:
    """The keys in the secret that `serving.api_key` names, for those who have to send one.

    Raises `SpecError` for a secret that cannot be used, `AccessError` for a block that Prefect does not have.
    """
    if (path := api_keys.key_file(reference)) is not None:
        name, text = f"the key file {path}", _read_file(path)
    else:
        from blocks.storage.secret_block import load_secret

        block = api_keys.block_name(reference) or ""
        name, text = f"the Secret block {block!r}", load_secret(block)
    keys = api_keys.parse_keys(text, name)
    for key in keys:
        remember(key)
    return keys


def _read_file(path: Path) -> str:
    """The text of a file that only its owner, who is this user or root, can read."""
    content = read_given(
        path,
        "key file",
        limit_bytes=api_keys.LIMIT_BYTES,
        fix="serving.api_key names a file with one key a line",
        missing=SpecError,
        wrong=SpecError,
    )
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise SpecError(
            f"the key file {path} belongs to another user ({found.st_uid}), who can change it",
            fix=f"take it over: chown {os.geteuid()} {path}",
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SpecError(
            f"the key file {path} is open to other users (mode {stat.S_IMODE(found.st_mode):o})",
            fix=f"close it: chmod 600 {path}",
        )
    return decode_text(content, f"the key file {path}", SpecError)
