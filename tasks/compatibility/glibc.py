"""The glibc that the wheels of an environment need, by a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from tasks.compatibility.conditions import contains
from tasks.compatibility.rules import GlibcRow, Tables

_EVERYWHERE = "use a newer distribution, or a container"


def glibc_row(package: str, version: str, tables: Tables, platform: str | None = None) -> GlibcRow | None:
    """What the table says about that wheel; a row for its local version counts before one for all. `platform` is that
    of a build without CUDA."""
    local = Version(version).local
    rows = [
        row
        for row in tables.glibc
        if row.package == package and row.platform in (None, platform) and contains(row.releases, version)
    ]
    return next(
        (row for row in rows if row.build == local), next((row for row in rows if row.build is None), None)
    )


def neediest(
    packages: Mapping[str, str], tables: Tables, platform: str | None = None
) -> tuple[str, GlibcRow] | None:
    """The package whose wheel needs the newest glibc, and its row."""
    found = [
        (package, row)
        for package, version in packages.items()
        if (row := glibc_row(package, version, tables, platform)) is not None
    ]
    return max(found, key=lambda one: Version(one[1].glibc), default=None)


def fits(package: str, version: str, glibc: str | None, tables: Tables) -> bool:
    """Whether that wheel can be loaded with this glibc, as far as the table knows."""
    row = glibc_row(package, version, tables)
    return row is None or glibc is None or Version(row.glibc) <= Version(glibc)


def way(row: GlibcRow) -> str:
    """A newer system, or what needs less."""
    return f"{_EVERYWHERE}, or {row.instead}" if row.instead else _EVERYWHERE
