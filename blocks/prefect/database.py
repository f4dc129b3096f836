"""The local server's SQLite file: private to its user, and renamed if it is damaged (docs/adr/0081).

It only lists past runs; Slipway's decisions use the records. So damage must not prevent a deploy.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tasks.core.errors import SlipwayError
from tasks.core.files import file_lock
from tasks.core.home import PRIVATE_FILE, make_private_folder
from tasks.core.progress import say
from tasks.core.settings import Settings

_COMPANIONS = ("", "-wal", "-shm", "-journal")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CHECK_LIMIT_BYTES = 256 << 20
"""Files up to this size are checked completely (0.5 s); of larger ones, only the header."""

_OPEN_RUN = """SELECT 1 FROM flow_run, json_each(flow_run.tags) AS tag
WHERE flow_run.state_type IN ('PENDING', 'RUNNING') AND tag.value = ? LIMIT 1"""


def database_file(settings: Settings) -> Path:
    """The file; its journals are next to it."""
    return settings.prefect_home / "prefect.db"


def ready_database(settings: Settings) -> None:
    """Make sure that the database is sound or absent. Call this before a server starts.

    A damaged file is renamed and reported. Raises `SlipwayError` if the path cannot be read or is not a file.
    """
    make_private_folder(settings.prefect_home)
    file = database_file(settings)
    with hold_database(settings):
        if reason := damage(file):
            aside = _set_aside(file)
            say(
                "prefect",
                f"{file} is damaged ({reason}): moved to {aside.name}, past runs are no longer shown",
            )
        for companion in _files(file):
            with contextlib.suppress(FileNotFoundError):  # a server removes its journals when it ends
                companion.chmod(PRIVATE_FILE)


@contextlib.contextmanager
def hold_database(settings: Settings) -> Iterator[None]:
    """Keep other commands from renaming or creating the file while the block runs."""
    with file_lock(settings.leases / "prefect-database.lock", wait=True, holder="Prefect's database"):
        yield


def check_database_in_use(settings: Settings) -> None:
    """Raise `SlipwayError` if the file of a running server is gone or damaged."""
    file = database_file(settings)
    reason = damage(file) if file.is_file() and file.stat().st_size else "missing or empty"
    if reason:
        raise SlipwayError(
            f"the local Prefect server cannot work: its database {file} is damaged ({reason})",
            fix="restart the server, which moves the file away and creates a new one: slipway up",
        )


def damage(file: Path) -> str | None:
    """What is wrong with the content of a database; None for a good or missing one.

    Raises `SlipwayError` if it cannot be read for another reason.
    """
    if not file.exists():
        # Journals of a deleted database would be mistaken for those of the new one.
        return "only its journal is left" if _files(file) else None
    if not file.is_file():
        raise SlipwayError(f"{file} is not a file", fix="move it away: Prefect's database belongs there")
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=30)) as opened:
            opened.execute("PRAGMA schema_version").fetchone()
            opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if file.stat().st_size > _CHECK_LIMIT_BYTES:
                return None
            (found,) = opened.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in _DAMAGED:
            return str(error)
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return None  # a server uses it
        raise SlipwayError(
            f"Prefect's database {file} cannot be opened: {error}",
            fix=f"make {file.parent} readable and writable for this user, or move the file away",
        ) from error
    return None if found == "ok" else str(found)


def has_open_run(settings: Settings, tag: str) -> bool:
    """Whether the database lists a run with this tag as pending or running; also true if the database cannot be read.

    Such a run may have been killed. This reads the file, so no server has to be started unless there is such a run.
    """
    file = database_file(settings)
    if not file.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=30)) as opened:
            return opened.execute(_OPEN_RUN, (tag,)).fetchone() is not None
    except sqlite3.Error:
        return True


def _files(file: Path) -> list[Path]:
    places = (file.with_name(f"{file.name}{suffix}") for suffix in _COMPANIONS)
    return [place for place in places if place.exists()]


def _set_aside(file: Path) -> Path:
    """Rename the database and its journals; the database's new place."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    base = f"{file.name}.damaged-{stamp}"
    number = 0
    while any(file.parent.glob(f"{base}-{number}*")):
        number += 1
    aside = file.with_name(f"{base}-{number}")
    for found in _files(file):
        found.rename(aside.with_name(f"{aside.name}{found.name.removeprefix(file.name)}"))
    return aside
