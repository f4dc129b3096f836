"""What an environment's native code requires of the system, read from the files: tags of wheels can be wrong."""

from __future__ import annotations

import re
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from packaging.version import Version

from tasks.core.cancellation import current

_GLIBC = re.compile(r"^GLIBC_(\d+(?:\.\d+)+)$")
_MAGIC = b"\x7fELF"


def glibc_needs(packages: Path) -> dict[str, str]:
    """The newest glibc that each shared library below `packages` (a `site-packages`) requires, by relative path.

    Files that require none, or are not ELF files of this machine's byte order, are omitted.
    """
    found = {}
    for file in sorted(packages.rglob("*.so*")):
        current().check()
        if file.is_file() and not file.is_symlink() and (version := _newest(file)) is not None:
            found[str(file.relative_to(packages))] = version
    return found


def _newest(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                return None
            section = ELFFile(stream).get_section_by_name(".gnu.version_r")
            if not isinstance(section, GNUVerNeedSection):
                return None
            names = [need.name for _, needs in section.iter_versions() for need in needs]
    except (OSError, ELFError, ValueError, KeyError, AttributeError):
        return None  # a file that cannot be read cannot be loaded: the imports will fail
    versions = [match[1] for name in names if (match := _GLIBC.match(str(name)))]
    return max(versions, key=Version, default=None)
