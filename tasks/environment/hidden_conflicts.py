"""Conflicts in an installed set that neither `pip check` nor a dependency tree shows. Pure.

Each flags the set; the proof shows whether it breaks anything.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from packaging.version import Version

from tasks.environment.models import Conflict, Inventory

_BY_SUFFIX = re.compile(r"^nvidia-(?P<library>[a-z0-9-]+)-cu(?P<major>1[0-9])$")
_BY_VERSION = re.compile(
    r"^nvidia-(?P<library>cublas|cuda-[a-z]+|cufft|curand|cusolver|cusparse|nvjitlink|nvtx)$"
)
_LOCAL = re.compile(r"^cu(?P<major>1[0-9])[0-9]")


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
    """CUDA libraries of several major versions, judged by NVIDIA's packages and the builds of the others.

    Two major versions of one library share a folder; major versions of different libraries share a process.
    """
    majors: dict[str, dict[str, str]] = defaultdict(dict)
    for package, version in sorted(packages.items()):
        if (found := _cuda_of(package, version)) is not None:
            library, major = found
            majors[major][library] = package
    if len(majors) < 2:
        return ()
    oldest, newest = sorted(majors, key=int)[0], sorted(majors, key=int)[-1]
    shared = sorted(majors[oldest].keys() & majors[newest].keys())
    one = majors[oldest][shared[0]] if shared else next(iter(majors[oldest].values()))
    other = majors[newest][shared[0]] if shared else next(iter(majors[newest].values()))
    return (
        Conflict(
            package=one,
            installed=packages[one],
            rule="MIXED-CUDA",
            reason=f"CUDA {oldest} and CUDA {newest} in one environment: {one} {packages[one]} and "
            f"{other} {packages[other]}",
            fix=f"install builds for one CUDA only: see what requires {one} and {other}",
        ),
    )


def _cuda_of(package: str, version: str) -> tuple[str, str] | None:
    """The library and the major version of CUDA that a package contains, or was built for."""
    if match := _BY_SUFFIX.match(package):
        return match["library"], match["major"]
    parsed = Version(version)
    if (match := _BY_VERSION.match(package)) and parsed.major >= 11:  # before CUDA 13 these had suffixes
        return match["library"], str(parsed.major)
    if match := _LOCAL.match(parsed.local or ""):
        return package, match["major"]
    return None


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
