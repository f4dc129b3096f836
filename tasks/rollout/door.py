"""What opens a service's door: the keys that its release names, as they are now or as they were read last."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, ValidationError

from tasks.core import api_keys
from tasks.core.errors import SlipwayError
from tasks.core.files import write_atomically
from tasks.core.frozen import Frozen
from tasks.core.progress import say
from tasks.core.release import Release, ServiceFolder
from tasks.core.verdicts import StageName
from tasks.rollout.proxy.keys import Digests

ReadKeys = Callable[[str], tuple[str, ...]]
"""The digests of the keys in the secret of that name. Raises `SlipwayError`."""


class Door(Frozen):
    """The document `door.json` of a locked service: the secret's name, and the digests of its keys.

    With it a service starts again when the secret cannot be read. `own` is the digest of the key that Slipway's own
    requests carry.
    """

    source: str
    digests: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...]
    own: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def all_digests(self) -> tuple[str, ...]:
        """What the proxy lets in."""
        return (*self.digests, self.own)


def digests_of(door: Door | None) -> Digests:
    """What the proxy lets in; None for everyone."""
    return door.all_digests if door else None


def no_secrets(reference: str) -> tuple[str, ...]:
    """For rollouts of releases that name no secret."""
    raise NotImplementedError(reference)


def kept_door(folder: ServiceFolder) -> Door | None:
    """The door as it was kept; None if everyone may come in. Damage leaves Slipway's own key only."""
    try:
        kept = Door.model_validate_json(folder.door_file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, RecursionError):
        kept = Door(source="", digests=(), own="0" * 64)
    return kept.model_copy(update={"own": _own_digest(folder)})


def keep_door(door: Door | None, folder: ServiceFolder) -> None:
    """Write it down for restarts."""
    if door is None:
        folder.door_file.unlink(missing_ok=True)
    elif door != kept_door(folder):
        write_atomically(folder.door_file, door.model_dump_json(indent=1))


def read_door(source: str, folder: ServiceFolder, read_keys: ReadKeys) -> Door:
    """The door with the keys that the secret has now. Raises what `read_keys` raises."""
    return Door(source=source, digests=read_keys(source), own=_own_digest(folder))


def door_of(release: Release, folder: ServiceFolder, read_keys: ReadKeys, *, reopen: bool) -> Door | None:
    """The door of a release that comes into service; None for one that everyone may use.

    Only a deploy (`reopen`) opens a door that was locked. Whatever else brings a release into service takes the keys
    as they were read last if the secret cannot be read, or is a block: that needs Prefect.

    Raises what `read_keys` raises for a deploy, and if no keys are kept.
    """
    source, kept = release.spec.serving.api_key, kept_door(folder)
    if source is None:
        return None if reopen else kept
    known = None if reopen or kept is None or kept.source != source else kept
    if known is not None and api_keys.block_name(source):
        return known
    try:
        return read_door(source, folder, read_keys)
    except SlipwayError as error:
        if known is None:
            raise
        say(StageName.ROLLOUT, f"{folder.name} keeps the keys that were read last: {error.what}")
        return known


def own_key(folder: ServiceFolder) -> str | None:
    """The key that Slipway's own requests carry; None if the service never had keys."""
    try:
        return folder.own_key_file.read_text().strip() or None
    except (OSError, ValueError):
        return None


def _own_digest(folder: ServiceFolder) -> str:
    """The digest of Slipway's own key, which is made when it is missing."""
    key = own_key(folder)
    if key is None:
        key = secrets.token_urlsafe(32)
        write_atomically(folder.own_key_file, f"{key}\n")
    return api_keys.digest_of_key(key)
