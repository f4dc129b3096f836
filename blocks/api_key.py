"""The key to the local Prefect API: made once, kept in the home, read by this user alone (docs/adr/0080).

It is `USER:SECRET`, as HTTP's basic authentication and Prefect's sign-in form take it. It reaches other processes
by the environment, never by a command line, which every user of the machine may read.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from tasks.core.files import create_exclusively, write_atomically
from tasks.core.home import PRIVATE_FILE, make_private_folder
from tasks.core.settings import Settings

_USER = "slipway"
_SECRET_BYTES = 32
_KEY = re.compile(rf"{_USER}:[A-Za-z0-9_-]{{40,}}")


def key_file(settings: Settings) -> Path:
    """Where the key is kept."""
    return settings.prefect_home / "api-key"


def api_key(settings: Settings) -> str:
    """The key of this home; a new one where there is none, or where the file is damaged."""
    file = key_file(settings)
    made = f"{_USER}:{secrets.token_urlsafe(_SECRET_BYTES)}"
    make_private_folder(settings.prefect_home)
    if create_exclusively(file, made):
        return made
    file.chmod(PRIVATE_FILE)
    found = file.read_bytes().decode(errors="replace").strip()
    if _KEY.fullmatch(found):
        return found
    write_atomically(file, made)
    return made
