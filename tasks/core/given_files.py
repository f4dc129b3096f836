"""Files and paths that a user names: opened without waiting, read up to a limit, refused with one line."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from tasks.core.errors import NotFoundError, SlipwayError, WrongUseError
from tasks.core.files import write_atomically

LOCK_LIMIT_BYTES = 20_000_000
"""Largest lock or list of requirements: one of 1,000 packages with all their hashes has 2 MB."""
TEXT_LIMIT_BYTES = 64_000_000
"""Largest text, series or task set that is read whole."""


_LONGEST_PATH_BYTES = 4095
_LONGEST_NAME_BYTES = 255
"""PATH_MAX and NAME_MAX of Linux."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What cannot be shown in one line."""

LONGEST_TEXT = 4096
"""Characters of the longest name, address or other value that is taken."""


def check_path(text: str) -> None:
    """Raise `ValueError` for a path that Linux cannot hold, or that cannot be shown in one line."""
    if not text:
        raise ValueError("an empty path")
    if CONTROL.search(text):
        raise ValueError("holds a control character")
    try:
        names = text.encode().split(b"/")
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if sum(len(name) + 1 for name in names) > _LONGEST_PATH_BYTES:
        raise ValueError(f"is longer than {_LONGEST_PATH_BYTES} bytes")
    if any(len(name) > _LONGEST_NAME_BYTES for name in names):
        raise ValueError(f"a name in the path is longer than {_LONGEST_NAME_BYTES} bytes")


def expand_user(path: Path) -> Path:
    """`~` and `~NAME` replaced by the user's home. Raises `WrongUseError` for a user that does not exist."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise WrongUseError(
            f"{str(path)[:200]!r}: there is no user {path.parts[0][1:]!r} with a home",
            fix="write the path out, from / on",
        ) from None


def absolute_path(path: Path) -> Path:
    """The path from / on, with `~` replaced. Raises `WrongUseError` for one that cannot be."""
    try:
        check_path(str(path))
    except ValueError as error:
        raise WrongUseError(f"{str(path)[:80]!r}: {error}", fix="name another path") from None
    return expand_user(path).absolute()


def without_links(path: Path) -> Path:
    """The path from / on that no link is a part of. Raises `WrongUseError` for one that cannot be."""
    given = absolute_path(path)
    try:
        return given.resolve()
    except (OSError, RuntimeError):  # a link to itself is the latter before Python 3.13
        raise WrongUseError(f"{given} is a link that leads to itself", fix="name another path") from None


def check_accessible(path: Path) -> None:
    """Raise `WrongUseError` where this user may not look at the path, or not into the folder that is there."""
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
        denied = folder and not os.access(path, os.R_OK | os.X_OK, effective_ids=True)
    except PermissionError:
        denied = True
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WrongUseError(f"{path} is a link that leads to itself", fix="name another path") from None
        denied = False  # told by whatever opens it
    if denied:
        raise WrongUseError(f"{path} may not be looked into by this user", fix=f"allow it: chmod +rx {path}")


def check_new_folder(folder: Path) -> None:
    """Raise `WrongUseError` where no folder can be made or used: something else is there, or above it."""
    for place in (folder, *folder.parents):
        try:
            kind = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                raise WrongUseError(
                    f"{place} is a link that leads nowhere", fix="name another folder"
                ) from None
            continue
        except NotADirectoryError:
            continue  # told of the file above it
        except OSError as error:
            raise WrongUseError(f"cannot use {place}: {_reason(error)}", fix="name another folder") from None
        if not stat.S_ISDIR(kind):
            raise WrongUseError(f"{place} is not a folder", fix="name a folder, or one that is not there yet")
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            raise WrongUseError(f"{place} may not be written", fix="name another folder")
        return


def read_given(
    path: Path,
    what: str,
    *,
    limit_bytes: int,
    fix: str | None = None,
    missing: type[SlipwayError] = NotFoundError,
    wrong: type[SlipwayError] = WrongUseError,
) -> bytes:
    """The bytes of the regular file `path`, which is a `what` such as `spec file`.

    Raises as `read_beginning` does, and `wrong` for more than `limit_bytes`.
    """
    content = read_beginning(path, what, limit_bytes + 1, fix=fix, missing=missing, wrong=wrong)
    return within_limit(content, f"the {what} {str(path)[:200]}", limit_bytes, wrong)


def read_beginning(
    path: Path,
    what: str,
    length: int,
    *,
    fix: str | None = None,
    missing: type[SlipwayError] = NotFoundError,
    wrong: type[SlipwayError] = WrongUseError,
) -> bytes:
    """The first `length` bytes of the regular file `path`; fewer where it has fewer.

    Raises `missing` where there is none, and `wrong` for a folder, a pipe or a device, and for what this user may
    not read. A pipe is not waited for: whether anything will ever write to it is not known.
    """
    shown = str(path)[:200]
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise missing(f"no {what} {shown}", fix=fix) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise wrong(f"cannot read the {what} {shown!r}: {_reason(error)}", fix=fix) from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            found = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
            raise wrong(f"the {what} {shown} is {found}", fix=fix or "give the path of a regular file")
        with open(handle, "rb", closefd=False) as file:
            return file.read(length)
    except OSError as error:
        raise wrong(f"cannot read the {what} {shown}: {_reason(error)}", fix=fix) from None
    finally:
        os.close(handle)


def write_given(path: Path, content: bytes | str) -> None:
    """Write the file that a user named. Raises `WrongUseError` where there can be none, or `DiskFullError`.

    A device or a pipe is written to, never replaced: root's `-o /dev/null` would turn it into a file.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            _write_through(path, content.encode() if isinstance(content, str) else content)
        else:
            write_atomically(path, content, private=False)
    except OSError as error:
        raise WrongUseError(f"cannot write {path}: {_reason(error)}", fix="name another file") from None


def _write_through(path: Path, content: bytes) -> None:
    """Into what is there. A pipe that no program reads from is refused, not waited for."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def within_limit(
    content: bytes, name: str, limit_bytes: int, wrong: type[SlipwayError] = WrongUseError
) -> bytes:
    """`content`, unless it is longer than the limit. Raises `wrong`."""
    if len(content) > limit_bytes:
        raise wrong(f"{name} is too large: at most {limit_bytes / 1e6:g} MB are read")
    return content


def decode_text(content: bytes, name: str, wrong: type[SlipwayError] = WrongUseError) -> str:
    """The UTF-8 text, without a byte order mark. Raises `wrong` that names the first wrong byte's place."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(
            f"cannot read {name}: byte {error.start} is not UTF-8", fix="save it as UTF-8 text"
        ) from None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
