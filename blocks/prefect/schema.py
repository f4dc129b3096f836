"""The empty database of Prefect's server. Its migrations take seconds to make one; from their result it takes none.

After an upgrade of Prefect, `python -m blocks.prefect.schema` writes `schema.sql` again; a test fails until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from importlib.metadata import version
from pathlib import Path

from tasks.core.files import PART
from tasks.core.home import PRIVATE_FILE

FILE = Path(__file__).with_name("schema.sql")


def lay_out(file: Path, schema: Path = FILE) -> None:
    """Make the database. Call it while no one else makes one.

    Without a schema of the installed Prefect, or space to write it, nothing is left: the server migrates.
    """
    made_by, _, script = schema.read_text().partition("\n")
    if made_by != _made_by():
        return
    part = file.with_name(file.name + PART)
    _remove(part)
    try:
        with contextlib.closing(sqlite3.connect(part)) as opened:
            opened.executescript(script)
    except sqlite3.Error:
        _remove(part)
        return
    part.chmod(PRIVATE_FILE)
    part.rename(file)


def _remove(part: Path) -> None:
    for file in (part, part.with_name(f"{part.name}-journal")):
        file.unlink(missing_ok=True)


def migrated() -> str:
    """The schema as the migrations of the installed Prefect make it. Call in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.db"
        os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{file}"
        from prefect.server.database import provide_database_interface

        asyncio.run(provide_database_interface().create_db())
        with contextlib.closing(sqlite3.connect(file)) as opened:
            statements = [" ".join(statement.split()) for statement in opened.iterdump()]
        return "\n".join([_made_by(), *statements]) + "\n"


def _made_by() -> str:
    return f"-- prefect {version('prefect')}"


if __name__ == "__main__":
    FILE.write_text(migrated())
