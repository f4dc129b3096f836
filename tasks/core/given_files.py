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
"""Largest lock or list of requirements: 1,000 packages with all their hashes take 2 MB."""
TEXT_LIMIT_BYTES = 64_000_000
"""Largest text, series or task set that is read at once."""


_LONGEST_PATH_BYTES = 4095
_LONGEST_NAME_BYTES = 255
"""PATH_MAX and NAME_MAX of Linux."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that cannot be shown in one line."""

LONGEST_TEXT = 4096
"""Longest name, address or other value that is accepted, characters."""


def check_path(text: str) -> None:
    """Raise `ValueError` for a path that Linux does not allow, or that cannot be shown in one line."""
    if not text:
        raise ValueError("an empty path")
    if CONTROL.search(text):
        raise ValueError("contains a control character")
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
            f"{str(path)[:200]!r}: the user {path.parts[0][1:]!r} does not exist or has no home",
            fix="write the full path, starting with /",
        ) from None


def absolute_path(path: Path) -> Path:
    """The absolute path, with `~` replaced. Raises `WrongUseError` for an impossible path."""
    try:
        check_path(str(path))
    except ValueError as error:
        raise WrongUseError(f"{str(path)[:80]!r}: {error}", fix="name another path") from None
    return expand_user(path).absolute()


def without_links(path: Path) -> Path:
    """The absolute path with all links resolved. Raises `WrongUseError` for an impossible path."""
    given = absolute_path(path)
    try:
        return given.resolve()
    except (OSError, RuntimeError):  # a link to itself is the latter before Python 3.13
        raise WrongUseError(f"{given} is a link to itself", fix="name another path") from None


def check_accessible(path: Path) -> None:
    """Raise `WrongUseError` if this user may not access the path, or not list the folder there."""
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
        denied = folder and not os.access(path, os.R_OK | os.X_OK, effective_ids=True)
    except PermissionError:
        denied = True
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WrongUseError(f"{path} is a link to itself", fix="name another path") from None
        denied = False  # reported by whatever opens it
    if denied:
        raise WrongUseError(f"this user may not list {path}", fix=f"make it readable: chmod +rx {path}")


def check_new_folder(folder: Path) -> None:
    """Raise `WrongUseError` if a folder cannot be created or used there: something else exists there, or above it."""
    for place in (folder, *folder.parents):
        try:
            kind = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                raise WrongUseError(
                    f"{place} is a link to a path that does not exist", fix="name another folder"
                ) from None
            continue
        except NotADirectoryError:
            continue  # reported for the file above it
        except OSError as error:
            raise WrongUseError(f"cannot use {place}: {_reason(error)}", fix="name another folder") from None
        if not stat.S_ISDIR(kind):
            raise WrongUseError(
                f"{place} is not a folder", fix="name a folder, or a path that does not exist yet"
            )
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            raise WrongUseError(f"{place} is not writable", fix="name another folder")
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

    Raises what `read_beginning` raises, and `wrong` for more than `limit_bytes`.
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
    """The first `length` bytes of the regular file `path`; fewer if it is shorter.

    Raises `missing` if it does not exist, and `wrong` for a folder, a pipe, a device, or a file that this user may
    not read. It does not wait for a pipe, because nothing may ever write to it.
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
    """Write the file that a user named. Raises `WrongUseError` if that is impossible, or `DiskFullError`.

    A device or a pipe is written to, never replaced: otherwise root's `-o /dev/null` would turn it into a file.
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
    """Write to an existing device or pipe. A pipe that no program reads from is refused at once."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def within_limit(
    content: bytes, name: str, limit_bytes: int, wrong: type[SlipwayError] = WrongUseError
) -> bytes:
    """`content`, if it is not longer than the limit. Raises `wrong`."""
    if len(content) > limit_bytes:
        raise wrong(f"{name} is too large: at most {limit_bytes / 1e6:g} MB are read")
    return content


def decode_text(content: bytes, name: str, wrong: type[SlipwayError] = WrongUseError) -> str:
    """The UTF-8 text, without a byte order mark. Raises `wrong`, which names the position of the first wrong byte."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(
            f"cannot read {name}: byte {error.start} is not UTF-8", fix="save it as UTF-8 text"
        ) from None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
