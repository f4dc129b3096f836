"""Shared libraries that an engine's wheels expect on the host, added to the environment if the host lacks them.

A minimal Debian has no OpenMP runtime, and installing one takes root. Wheels of other projects contain a copy under
a mangled name. That copy gets back the name that loaders look for, is put into the environment and loaded whenever
its Python starts: whatever asks for the name later gets it. No environment variable changes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from tasks.core.errors import SlipwayError
from tasks.engines.card import SystemLibrary

FOLDER = "lib/slipway"
"""Folder for these libraries inside the environment."""

_START = "import ctypes, os, sys; ctypes.CDLL(os.path.join(sys.prefix, {folder!r}, {name!r}))\n"
"""The interpreter runs a `.pth` line that begins with `import` at every start (the `site` module)."""


def bring(environment: Path, libraries: Iterable[SystemLibrary]) -> None:
    """Put `libraries` into a freshly installed environment. Raises `SlipwayError` if a wheel carries none."""
    start = ""
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for library in libraries:
        found = sorted(packages.glob(library.file or "")) if library.file else []
        if not found:
            raise SlipwayError(
                f"{library.wheel} does not contain {library.soname}",
                fix=f"install {library.package} on this host (Debian's name for it)",
            )
        target = environment / FOLDER / library.soname
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(named(found[0].read_bytes(), library.soname))
        start += _START.format(folder=FOLDER, name=library.soname)
    if start:
        (packages / "slipway_libraries.pth").write_text(start)


def named(content: bytes, soname: str) -> bytes:
    """The shared library `content` under another name, which must not be longer than its own.

    Loaders compare DT_SONAME, a text in the library's string table; hashes of symbols do not depend on it.
    Raises `SlipwayError` if it is not such a library.
    """
    try:
        place, old = _soname(content)
    except (ELFError, LookupError, ValueError) as error:
        raise SlipwayError(f"the copy of {soname} is not a shared library: {error}") from None
    new = soname.encode()
    if len(new) > len(old):
        raise SlipwayError(f"{old.decode()} cannot be renamed to {soname}: the new name is longer")
    return content[:place] + new.ljust(len(old), b"\0") + content[place + len(old) :]


def _soname(content: bytes) -> tuple[int, bytes]:
    """Offset of the name in the file, and the name."""
    elf = ELFFile(io.BytesIO(content))
    section = elf.get_section_by_name(".dynamic")
    if not isinstance(section, DynamicSection):
        raise LookupError("it has no dynamic section")
    tag = next((tag for tag in section.iter_tags("DT_SONAME")), None)
    strings = elf.get_section_by_name(".dynstr")
    if tag is None or strings is None:
        raise LookupError("it has no name")
    place = strings["sh_offset"] + tag.entry.d_val
    return place, content[place : content.index(b"\0", place)]
