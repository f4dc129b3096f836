"""Files and paths that a user names: opened without waiting, read up to a limit, refused with one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tasks.core.errors import NotFoundError, WrongUseError


def expand_user(path: Path) -> Path:
    """`~` and `~NAME` replaced by the user's home. Raises `WrongUseError` for a user that does not exist."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise WrongUseError(
            f"{str(path)[:200]!r}: there is no user {path.parts[0][1:]!r} with a home",
            fix="write the path out, from / on",
        ) from None


def read_given(
    path: Path,
    what: str,
    *,
    limit_bytes: int,
    fix: str | None = None,
    missing: type[WrongUseError] = NotFoundError,
    wrong: type[WrongUseError] = WrongUseError,
) -> bytes:
    """The bytes of the regular file `path`, which is a `what` such as `spec file`.

    Raises `missing` where there is none, and `wrong` for a folder, a pipe or a device, for more than
    `limit_bytes`, and for what this user may not read. A pipe is not waited for: whether anything will ever write
    to it is not known.
    """
    shown = str(path)[:200]
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise missing(f"no {what} {shown}", fix=fix) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise wrong(f"cannot read the {what} {shown!r}: {_reason(error)}", fix=fix) from None
    with os.fdopen(handle, "rb") as file:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            found = "a folder" if stat.S_ISDIR(kind) else "not a regular file"
            raise wrong(f"the {what} {shown} is {found}", fix=fix or "give the path of a regular file")
        try:
            content = file.read(limit_bytes + 1)
        except OSError as error:
            raise wrong(f"cannot read the {what} {shown}: {_reason(error)}", fix=fix) from None
    return within_limit(content, f"the {what} {shown}", limit_bytes, wrong)


def within_limit(
    content: bytes, name: str, limit_bytes: int, wrong: type[WrongUseError] = WrongUseError
) -> bytes:
    """`content`, unless it is longer than the limit. Raises `wrong`."""
    if len(content) > limit_bytes:
        raise wrong(f"{name} is too large: at most {limit_bytes / 1e6:g} MB are read")
    return content


def decode_text(content: bytes, name: str, wrong: type[WrongUseError] = WrongUseError) -> str:
    """The UTF-8 text, without a byte order mark. Raises `wrong` that names the first wrong byte's place."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(
            f"cannot read {name}: byte {error.start} is not UTF-8", fix="save it as UTF-8 text"
        ) from None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
