"""The fact tables held against what their makers publish: `python -m tasks.compatibility.makers`.

`data/makers/*.toml` record what a maker's page says, in the maker's terms, with its source and the day it was read.
Each file has a reader here, which knows what the tables must then say. Pure, except for the command itself.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tasks.compatibility.fact_tables import DATA, RawTables, Row, damaged, read_rows
from tasks.core.versions import major_minor

MAKERS = DATA / "makers"


@dataclass(frozen=True)
class Page:
    """What one page of a maker says."""

    name: str
    source: str
    read_on: date
    rows: Sequence[Row]


@dataclass(frozen=True)
class Difference:
    """A row of a fact table that is missing, or whose value is not what the maker says."""

    page: str
    row: str
    found: object
    published: object

    def __str__(self) -> str:
        return f"{self.page}: {self.row} is {self.found}, published is {self.published}"


def read_pages(folder: Path | None = None) -> tuple[Page, ...]:
    """The recorded pages, by name. Raises `SlipwayError` if one is damaged."""
    return tuple(_page(file) for file in sorted((folder or MAKERS).glob("*.toml")))


def _page(file: Path) -> Page:
    try:
        found = tomllib.loads(file.read_text())
        return Page(file.stem, found["source"], found["read_on"], found["row"])
    except (OSError, KeyError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise damaged(f"{file.name}: {type(error).__name__}: {error}") from error


def compare(tables: RawTables, pages: Sequence[Page]) -> tuple[Difference, ...]:
    """Where the tables say something else than the pages, or nothing."""
    return tuple(difference for page in pages for difference in _READERS[page.name](page, tables))


def _cuda_toolkits(page: Page, tables: RawTables) -> Iterator[Difference]:
    """A branch supports the newest CUDA whose toolkit comes with a driver of that branch."""
    ours = {str(row["branch"]): row["cuda"] for row in tables["branches"]}
    newest: dict[str, str] = {}
    for row in sorted(page.rows, key=lambda row: Version(row["cuda"])):
        newest[row["driver"].partition(".")[0]] = major_minor(row["cuda"])
    for branch, cuda in newest.items():
        if ours.get(branch) != cuda:
            yield Difference(page.name, f"branch {branch}: cuda", ours.get(branch), cuda)


def _torch_matrix(page: Page, tables: RawTables) -> Iterator[Difference]:
    """A release of torch is offered for every stable and experimental CUDA; the index may keep others."""
    ours = {
        major_minor(row["version"]): set(row["cuda"])
        for row in tables["releases"]
        if row["package"] == "torch"
    }
    for row in page.rows:
        published = {*row["stable"], *row["experimental"]}
        found = ours.get(row["torch"], set())
        if not published <= found:
            yield Difference(page.name, f"torch {row['torch']}: cuda", sorted(found), sorted(published))


def _engine_metadata(page: Page, tables: RawTables) -> Iterator[Difference]:
    """Pins of torch, transformers and numpy, and the versions of Python."""
    releases = {(row["package"], row["version"]): row for row in tables["releases"]}
    pythons = {(row["package"], row["version"]): row for row in tables["pythons"]}
    recorded = {(row["package"], row["version"]): row for row in page.rows}
    for key, row in recorded.items():
        ours = {**pythons.get(key, {}), **releases.get(key, {})}
        for field in ("torch", "transformers", "numpy", "python"):
            if not _same(ours.get(field), row.get(field)):
                yield Difference(page.name, f"{' '.join(key)}: {field}", ours.get(field), row.get(field))
    packages = {package for package, _ in recorded}
    for key in sorted(releases.keys() - recorded.keys()):
        if key[0] in packages:
            yield Difference(page.name, " ".join(key), "listed", "not recorded")


_READERS: Mapping[str, Callable[[Page, RawTables], Iterator[Difference]]] = {
    "cuda_toolkits": _cuda_toolkits,
    "engine_metadata": _engine_metadata,
    "torch_matrix": _torch_matrix,
}
"""By name of the file."""


def _same(ours: Any, published: Any) -> bool:
    """Equal, or the same comparisons in another order."""
    if ours == published or ours is None or published is None:
        return bool(ours == published)
    return not str(ours)[:1].isdigit() and SpecifierSet(str(ours)) == SpecifierSet(str(published))


def main() -> int:
    """Print where the tables differ from the recorded pages; 1 if they do."""
    pages = read_pages()
    differences = compare(read_rows(), pages)
    for page in pages:
        print(f"{page.name}: {len(page.rows)} rows, read on {page.read_on}: {page.source}")
    for difference in differences:
        print(f"differs: {difference}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
