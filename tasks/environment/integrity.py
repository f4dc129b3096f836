"""Whether an environment's files are still those that were installed.

The build notes size, time and digest of each file. Before each use, size and time are compared, which takes
milliseconds for thousands of files; digests are compared if those differ, or if there is a reason for doubt.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name

from tasks.core.files import write_atomically
from tasks.core.release import Release
from tasks.core.settings import Settings
from tasks.environment.files import MARKER, USED

NOTE = "slipway-files.json"
"""What is installed, file by file."""

DOUBT = "slipway-doubt"
"""An empty file in an environment whose engine failed: the next check compares all digests."""

_SCHEMA = "slipway.files/1"
_OWN = frozenset({NOTE, DOUBT, MARKER, USED})
_THREADS = 4


class Noted(NamedTuple):
    """One file: bytes, time of its last change, and `sha256:…` of its content, or `-> target` of a link."""

    size_bytes: int
    mtime_ns: int
    digest: str


def note_files(folder: Path) -> None:
    """Write down what is installed in `folder`. Raises `DiskError`."""
    found = dict(_look(folder))
    digests = _digests(folder, found)
    _write(folder, {path: Noted(*found[path], digests[path] or "") for path in found})


def changed_files(folder: Path, *, deep: bool = False) -> tuple[str, ...]:
    """Files of the environment that are gone or differ from what was installed; paths relative to it.

    `deep` reads all of them. If there is no note, as in an environment of an earlier version, the packages' own
    records say what was installed, and a note is written.
    """
    noted = _read(folder)
    if noted is None and (folder / NOTE).is_dir():
        return (NOTE,)
    if noted is None:
        damaged = sorted({path for paths in unlike_record(folder).values() for path in paths})
        if not damaged:
            note_files(folder)
        return tuple(damaged)
    found = dict(_look(folder))
    gone = noted.keys() - found.keys()
    moved = {path for path in noted.keys() & found.keys() if found[path] != noted[path][:2]}
    digests = _digests(folder, noted.keys() & found.keys() if deep else moved)
    damaged = sorted(gone | {path for path, digest in digests.items() if digest != noted[path].digest})
    if moved and not damaged:  # copied or touched: the next check need not read them again
        _write(folder, {**noted, **{path: Noted(*found[path], noted[path].digest) for path in moved}})
    return tuple(damaged)


def changed_since_installed(release: Release, settings: Settings) -> tuple[str, ...]:
    """Files of a release's environment that changed since it was installed; the next deploy rebuilds it.

    An environment that Slipway did not build is not checked.
    """
    folder = release.environment_path
    if not _is_built_by_slipway(folder, settings) or not folder.is_dir():
        return ()
    if changed := changed_files(folder, deep=True):
        doubt(folder, settings)
    return changed


def doubt(folder: Path | None, settings: Settings) -> None:
    """Have the next check of an environment that Slipway built compare every file, and recompile its modules."""
    if folder is not None and _is_built_by_slipway(folder, settings) and folder.is_dir():
        with contextlib.suppress(OSError):  # the error that raised the doubt is the one to report
            (folder / DOUBT).touch()


def _is_built_by_slipway(folder: Path, settings: Settings) -> bool:
    """Even if a release of an older Slipway spells the home differently."""
    return folder.parent.resolve() == settings.environments.resolve()


def is_doubted(folder: Path) -> bool:
    """Whether an engine has failed in it since its files were compared."""
    return (folder / DOUBT).exists()


def settle_doubt(folder: Path) -> None:
    """Note that all digests were right. Compiled modules have none, so they are removed and compiled again."""
    for cache in sorted(folder.rglob("__pycache__")):
        shutil.rmtree(cache, ignore_errors=True)
    (folder / DOUBT).unlink(missing_ok=True)


def unlike_record(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Files that differ from what their package's own `RECORD` says, by package; paths in `folder`."""
    found: dict[str, tuple[str, ...]] = {}
    for record in sorted(folder.glob("lib/python*/site-packages/*.dist-info/RECORD")):
        expected = dict(_recorded(record, folder))
        digests = _digests(folder, expected)
        if damaged := tuple(path for path, digest in digests.items() if digest != expected[path]):
            found[canonicalize_name(record.parent.name.partition("-")[0])] = damaged
    return found


def _recorded(record: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Path and digest of each file inside the environment for which a `RECORD` has a digest."""
    try:
        rows = list(csv.reader(record.read_text().splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return
    site, inside = record.parent.parent, str(folder) + os.sep
    for name, digest, *_ in (row for row in rows if len(row) >= 2 and row[1].startswith("sha256=")):
        path = os.path.normpath(site / name)
        if path.startswith(inside) and "__pycache__" not in path:
            yield path.removeprefix(inside), f"sha256:{_hexadecimal(digest.removeprefix('sha256='))}"


def _hexadecimal(digest: str) -> str:
    """The digest in a `RECORD` as hex; empty if it is not one."""
    try:
        return base64.urlsafe_b64decode(f"{digest}==").hex()
    except ValueError:
        return ""


def _look(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Size and time of each file below `folder`, except files that Python and Slipway write later."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                path = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        waiting.append(f"{path}/")
                elif path not in _OWN:
                    found = entry.stat(follow_symlinks=False)
                    # Copying does not preserve a link's time.
                    link = stat.S_ISLNK(found.st_mode)
                    yield path, (0, 0) if link else (found.st_size, found.st_mtime_ns)


def _digests(folder: Path, paths: Iterable[str]) -> dict[str, str | None]:
    """Digest of each; None for one that cannot be read."""
    wanted = sorted(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(wanted, pool.map(lambda path: _digest(folder / path), wanted), strict=True))


def _digest(path: Path) -> str | None:
    try:
        if path.is_symlink():
            return f"-> {path.readlink()}"
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def _write(folder: Path, files: Mapping[str, Noted]) -> None:
    write_atomically(folder / NOTE, json.dumps({"schema": _SCHEMA, "files": files}))


def _read(folder: Path) -> dict[str, Noted] | None:
    """The note; None if it is missing, damaged or of another version."""
    try:
        document = json.loads((folder / NOTE).read_bytes())
        if document["schema"] != _SCHEMA or not document["files"]:
            return None
        return {
            path: Noted(int(size), int(time), str(digest))
            for path, (size, time, digest) in document["files"].items()
        }
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
