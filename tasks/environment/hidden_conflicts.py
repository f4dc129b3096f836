"""Conflicts in an installed set that neither `pip check` nor a dependency tree shows. Pure.

Each flags the set; the proof shows whether it breaks anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from tasks.core import cuda_packages
from tasks.environment.models import Conflict, Inventory


def hidden_conflicts(
    inventory: Inventory, glibc_needs: Mapping[str, str], glibc: str | None
) -> tuple[Conflict, ...]:
    """All of them. `glibc_needs` names the glibc that each binary file requires, `glibc` is this host's."""
    return (
        *mixed_cuda(inventory.packages),
        *shared_files(inventory),
        *newer_glibc(glibc_needs, glibc),
    )


def mixed_cuda(packages: Mapping[str, str]) -> tuple[Conflict, ...]:
    """CUDA libraries of several major versions. Two of one library overwrite or hide each other; different
    libraries share a process."""
    mixed = cuda_packages.mixed_cuda(packages)
    if mixed is None:
        return ()
    return (
        Conflict(
            package=mixed.one,
            installed=packages[mixed.one],
            rule="MIXED-CUDA",
            reason=cuda_packages.describe_mixed(mixed, packages),
            fix=f"install builds for one CUDA only: see what requires {mixed.one} and {mixed.other}",
        ),
    )


def shared_files(inventory: Inventory) -> tuple[Conflict, ...]:
    """Files that two distributions installed with different content: the later one overwrote the other."""
    return tuple(
        Conflict(
            package=shared.owners[0],
            required_by=None,
            installed=inventory.packages.get(shared.owners[0]),
            rule="SHARED-FILES",
            reason=f"{' and '.join(shared.owners)} each installed a different {shared.path}: one has overwritten "
            f"the other ({shared.count} file{'s' if shared.count > 1 else ''})",
            fix=f"remove {shared.owners[0]} or {shared.owners[1]}",
        )
        for shared in inventory.shared
    )


def newer_glibc(needs: Mapping[str, str], glibc: str | None) -> tuple[Conflict, ...]:
    """Binaries that need a newer glibc than this host's, whatever the tag of their wheel says; worst first."""
    if glibc is None:
        return ()
    newer = [(Version(version), file) for file, version in needs.items() if Version(version) > Version(glibc)]
    if not newer:
        return ()
    version, file = max(newer, key=lambda found: (found[0], found[1]))
    more = f" (and {len(newer) - 1} more)" if len(newer) > 1 else ""
    return (
        Conflict(
            package=_owner(file),
            requirement=f"glibc>={version}",
            installed=glibc,
            rule="NEWER-GLIBC",
            reason=f"{file}{more} needs glibc {version}; this host has {glibc}",
            fix="a newer distribution, a container, or an older release of the package",
        ),
    )


def _owner(file: str) -> str:
    """The top-level folder or module of a file below `site-packages`."""
    return file.partition("/")[0].partition(".")[0]
