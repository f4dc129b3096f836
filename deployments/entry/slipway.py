"""The `slipway` command's entry point, under a name that no other package has.

Folders of `PYTHONPATH` come before the installed packages, so a `tasks` or a `flows` in one of them would be imported
instead of Slipway's. In a wheel this file is a top-level module; in a checkout its folder is on the import path.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("blocks", "deployments", "flows", "tasks")


def import_own_packages() -> None:
    """Remove folders from the import path that contain other packages under the names of Slipway's."""
    here = Path(__file__).resolve().parent
    own = (here, here.parent.parent)
    sys.path[:] = [entry for entry in sys.path if not _shadows(entry, own)]


def _shadows(entry: str, own: tuple[Path, ...]) -> bool:
    if Path(entry).resolve() in own:
        return False
    found = (PathFinder.find_spec(package, [entry]) for package in PACKAGES)
    return any(spec is not None and spec.loader is not None for spec in found)


def main() -> None:
    """Run the command."""
    import_own_packages()
    from deployments.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
