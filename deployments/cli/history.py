"""`slipway history | diff`: what a service went through, and how its releases differ."""

from __future__ import annotations

from typing import Any

import click

from deployments.cli.changes import records_of
from deployments.cli.main import print_json
from deployments.cli.params import LARGEST_COUNT, Count
from deployments.cli.service import folder_named
from deployments.cli.show import coloured, plain, print_table
from tasks.core.digests import short
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.rollout.history import Difference, Event, Figure, differences, figures, find_release
from tasks.rollout.history import history as history_of

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_COLUMNS = ("at", "by", "outcome", "release", "engine", "format", "batch", "why")


@click.command()
@click.argument("name")
@click.option(
    "-n", "--lines", default=20, show_default=True, type=Count(1, LARGEST_COUNT), help="Number of events."
)
@_AS_JSON
def history(name: str, lines: int, as_json: bool) -> None:
    """Show what NAME went through: each rollout, rollback, start and stop, the newest last."""
    from blocks.storage.record_store import open_record_store

    settings = Settings.load()
    folder = folder_named(settings, name)
    records = open_record_store(settings).list(StageName.ROLLOUT)
    events = history_of(name, records, folder.releases(), _serving(folder))[-lines:]
    if as_json:
        print_json({"name": name, "events": [event.model_dump(mode="json") for event in events]})
    elif not events:
        click.echo(f"{name} has no records of rollouts in this knowledge base")
    else:
        print_table(
            _COLUMNS,
            map(_cells, events),
            right=("batch",),
            whole=("at", "outcome", "release"),
            spare=("engine", "by"),
        )
        click.echo(f"* serves now; go back: slipway rollback {name} --to RELEASE")


@click.command()
@click.argument("name")
@click.argument("before")
@click.argument("after", required=False)
@_AS_JSON
def diff(name: str, before: str, after: str | None, as_json: bool) -> None:
    """Compare two releases of NAME: BEFORE with AFTER, or with the one that serves.

    A release is given by the first digits of its id, as `slipway history` shows them.
    """
    from blocks.storage.record_store import open_record_store

    settings = Settings.load()
    folder = folder_named(settings, name)
    kept = folder.releases()
    old = find_release(before, kept, name)
    new = find_release(after, kept, name) if after else folder.serving()[1]
    store = open_record_store(settings)
    changed = differences(old, new)
    measured = figures(*(records_of(one, store).values() for one in (old, new)))
    if as_json:
        print_json(
            {
                "name": name,
                "before": old.id,
                "after": new.id,
                "changed": [one.model_dump(mode="json") for one in changed],
                "figures": [one.model_dump(mode="json") for one in measured],
            }
        )
    elif not changed:
        click.echo(f"{short(old.id)} and {short(new.id)} are the same release")
    else:
        _print_differences(old, new, changed, measured)


def _serving(folder: ServiceFolder) -> str | None:
    state = folder.state()
    return state.release if state else None


def _cells(event: Event) -> list[str]:
    release = short(event.release) if event.release else ""
    return [
        event.at.isoformat(sep=" ")[:19],
        event.by,
        coloured(event.outcome),
        f"{release} *" if event.serves else f"{release}{'' if event.kept or not release else ' (gone)'}",
        plain(event.engine or ""),
        plain(event.format or ""),
        "" if event.batch is None else str(event.batch),
        plain(event.reason or ""),
    ]


def _print_differences(
    old: Release, new: Release, changed: tuple[Difference, ...], measured: tuple[Figure, ...]
) -> None:
    heads = (short(old.id), short(new.id))
    rows = [[plain(one.key), _value(one.before), _value(one.after)] for one in changed]
    print_table(("what decides", *heads), rows, whole=("what decides",))
    if measured:
        cells = [
            [plain(f"{one.name} ({one.unit})"), _number(one.before), _number(one.after)] for one in measured
        ]
        print_table(("what was measured", *heads), cells, right=heads)


def _value(value: Any) -> str:
    return "-" if value is None else plain(str(value))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"
