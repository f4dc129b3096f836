"""Names that come from outside, such as object keys, manifests, indexes and registries: one rule for all of them.

A name is refused if it leads out of its folder, or if a file system, a terminal or another tool might interpret it
differently from Slipway.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.core.errors import UnsafeNameError

LONGEST_COMPONENT_BYTES = 255
"""Limit of Linux file systems for one path component."""

_SHOWN_LETTERS = 80


def inside(folder: Path, name: object, where: str, *, follow: bool = False) -> Path:
    """The path of `name`, a relative path with `/` between its components, below `folder`.

    Folders on the way may not be links that lead out. The last component may be, because a writer replaces it; with
    `follow`, for readers, it may not. `where` names the document or the server that the name comes from.

    Raises `UnsafeNameError`.
    """
    path = folder / checked(name, where)
    target = path if follow else path.parent
    try:
        real, home = target.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # a link to itself is the latter before Python 3.13
        raise _refused(name, where, "it is a link to itself") from None
    if not real.is_relative_to(home):
        raise _refused(name, where, f"it is a link that leads out of the folder, to {real}")
    return path


def checked(name: object, where: str) -> str:
    """The name, if it stays inside any folder that it is used in. Raises `UnsafeNameError`."""
    why = why_unsafe(name)
    if why is not None:
        raise _refused(name, where, why)
    assert isinstance(name, str)
    return name


def checked_file_name(name: object, where: str) -> str:
    """The same for the name of a file or folder directly in another one."""
    if "/" in checked(name, where):
        raise _refused(name, where, "it names a file in another folder")
    return str(name)


def why_unsafe(name: object) -> str | None:
    """Why the name is refused; None for a good one."""
    if not isinstance(name, str):
        return "it is not text"
    if not name:
        return "it is empty"
    if not is_utf8(name):
        return "it is not valid UTF-8"
    if not name.isprintable():
        return "it contains characters that cannot be printed"
    if "\\" in name:
        return "it contains a backslash"
    if name.startswith("/"):
        return "it is an absolute path"
    for component in name.split("/"):
        if component in ("", ".", ".."):
            return f"{component!r} leads elsewhere" if component else "it contains an empty component"
        if len(component.encode()) > LONGEST_COMPONENT_BYTES:
            return f"a component of it has more than {LONGEST_COMPONENT_BYTES} bytes"
    return None


def is_file_name(name: object) -> bool:
    """Whether it names a file or folder directly in another one."""
    return why_unsafe(name) is None and "/" not in str(name)


def shown(name: object) -> str:
    """The name in printable characters, on one line of bounded length."""
    text = name if isinstance(name, str) else repr(name)
    return repr(text[:_SHOWN_LETTERS] + "…" if len(text) > _SHOWN_LETTERS else text)


def some_of(names: Sequence[str], most: int = 8) -> str:
    """The first names and how many more there are, on one line of bounded length."""
    parts = [
        name if name.isprintable() and len(name) <= _SHOWN_LETTERS else shown(name) for name in names[:most]
    ]
    listed = ", ".join(parts)
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"


def is_utf8(name: str) -> bool:
    """Whether it can be encoded as UTF-8: file names may contain other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(name: object, where: str, why: str) -> UnsafeNameError:
    return UnsafeNameError(
        f"{where} names the file {shown(name)}, which is refused: {why}",
        fix="rename it at its source, or remove it there",
    )
