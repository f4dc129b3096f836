"""The key to the local Prefect API: made once, kept in the home, read by this user alone (docs/adr/0080).

It is `USER:SECRET`, as in HTTP's basic authentication and Prefect's sign-in form. Other processes get it through the
environment, never on a command line, which every user of the machine can read.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from pathlib import Path

from tasks.core.disk_faults import as_disk_fault
from tasks.core.errors import ModelError
from tasks.core.files import create_exclusively, read_regular, write_atomically
from tasks.core.home import PRIVATE_FILE, make_private_folder
from tasks.core.settings import Settings

_USER = "slipway"
_SECRET_BYTES = 32
_LIMIT_BYTES = 4096
_KEY = re.compile(rf"{_USER}:[A-Za-z0-9_-]{{40,}}")


def key_file(settings: Settings) -> Path:
    """Path of the key."""
    return settings.prefect_home / "api-key"


def api_key(settings: Settings) -> str:
    """The key of this home; a new one if there is none, or if the file is damaged.

    Raises `DiskError` if it can be neither read nor replaced, for example because it is a folder.
    """
    file = key_file(settings)
    made = f"{_USER}:{secrets.token_urlsafe(_SECRET_BYTES)}"
    make_private_folder(settings.prefect_home)
    if create_exclusively(file, made):
        return made
    if found := _kept(file):
        return found
    write_atomically(file, made)
    return made


def _kept(file: Path) -> str | None:
    """The key in the file; None if it is not a key, not a file, or a broken link."""
    try:
        kind = file.stat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if not stat.S_ISREG(kind):
            return None
        file.chmod(PRIVATE_FILE)
        found = read_regular(file, _LIMIT_BYTES).decode(errors="replace").strip()
    except (FileNotFoundError, ModelError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise as_disk_fault(error, file) from error
    return found if _KEY.fullmatch(found) else None
