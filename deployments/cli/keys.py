"""`slipway keys`: replace the keys of a running service. Works without Prefect, unless a block has them."""

from __future__ import annotations

import click

from blocks.services.targets import open_target
from deployments.cli.main import print_json
from deployments.cli.service import folder_named
from tasks.core.errors import WrongUseError
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.rollout.door import Door, digests_of, keep_door, kept_door, read_door
from tasks.rollout.recovery.apply import target_of


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def keys(name: str, as_json: bool) -> None:
    """Read the keys of NAME again, from the file or block that its spec names.

    From the next request on, exactly these open the service: no restart, and no request fails.
    """
    from blocks.services.door import read_keys

    settings = Settings.load()
    folder = folder_named(settings, name)
    before = kept_door(folder)
    door = read_door(_source(folder, before), folder, read_keys)
    # Without the service's lease: a leaked key is not to open the service until a deploy ends.
    with open_target(target_of(folder), folder, settings) as target:
        keep_door(door, folder)
        running = target.running()
        if running is not None:
            target.lock(digests_of(door))
    old = set(before.digests) if before else set()
    added, removed = len(set(door.digests) - old), len(old - set(door.digests))
    if as_json:
        counts = {"keys": len(door.digests), "added": added, "removed": removed}
        print_json({"name": name, "source": door.source, **counts, "running": running is not None})
        return
    state = "" if running else "; it does not run, and has them at its next start"
    click.echo(f"{name}: {len(door.digests)} keys from {door.source} ({added} new, {removed} removed){state}")


def _source(folder: ServiceFolder, before: Door | None) -> str:
    """The secret that the release names; the one that was read last, if that one names none."""
    state = folder.last()
    release = folder.release(state.release) if state else None
    named = release.spec.serving.api_key if release else None
    if source := named or (before.source if before else None):
        return source
    raise WrongUseError(
        f"{folder.name} has no keys", fix="name a secret in the spec (serving.api_key), then deploy it"
    )
