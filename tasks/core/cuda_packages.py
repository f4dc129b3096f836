"""Which CUDA NVIDIA's Python packages belong to, and whether a set of packages mixes two. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.version import Version

_NUMBERED_LIKE_CUDA = frozenset(
    {"cublas", "cuda-cupti", "cuda-nvcc", "cuda-nvrtc", "cuda-runtime", "nvjitlink", "nvtx"}
)
"""Libraries whose major version is CUDA's. From CUDA 13 on, these packages have no suffix."""

_NUMBERED_THEIR_OWN_WAY = frozenset(
    {"cudnn", "cufft", "cufile", "curand", "cusolver", "cusparse", "cusparselt", "nccl", "nvshmem"}
)
"""Libraries with numbers of their own, such as cuFFT 12.0 in CUDA 13.0: only a suffix says for which CUDA."""

_SUFFIXED = re.compile(r"^nvidia-(?P<library>[a-z0-9-]+)-cu(?P<major>1[0-9])$")
_LOCAL = re.compile(r"^cu(?P<major>1[0-9])(?P<minor>[0-9](?![0-9]))?")
_FIRST_WITHOUT_SUFFIX = 13
_OF_PYTORCH = re.compile(r"^(cu1[0-9]|cpu|rocm|xpu)")


@dataclass(frozen=True)
class MixedCuda:
    """Two packages for different major versions of CUDA. They share `library`, if that is not None."""

    one: str
    other: str
    majors: tuple[str, str]
    library: str | None


def mixed_cuda(packages: Mapping[str, str]) -> MixedCuda | None:
    """The oldest and the newest CUDA among these packages, if they differ; the same library twice comes first."""
    majors: dict[int, dict[str, str]] = defaultdict(dict)
    for package, version in sorted(packages.items()):
        if (found := cuda_of(package, version)) is not None:
            library, major = found
            majors[int(major)][library] = package
    if len(majors) < 2:
        return None
    oldest, newest = majors[min(majors)], majors[max(majors)]
    shared = sorted(oldest.keys() & newest.keys())
    one, other = (shared[0], shared[0]) if shared else (next(iter(oldest)), next(iter(newest)))
    both = (str(min(majors)), str(max(majors)))
    return MixedCuda(oldest[one], newest[other], both, shared[0] if shared else None)


def describe_mixed(mixed: MixedCuda, packages: Mapping[str, str]) -> str:
    """`CUDA 11 and CUDA 12 in one environment: nvidia-nccl-cu11 2.14.3 and nvidia-nccl-cu12 2.27.5`."""
    one, other = (f"{name} {packages[name]}" for name in (mixed.one, mixed.other))
    oldest, newest = mixed.majors
    same = ", which are the same library" if mixed.library and mixed.one != mixed.other else ""
    return f"CUDA {oldest} and CUDA {newest} in one environment: {one} and {other}{same}"


def cuda_of(package: str, version: str) -> tuple[str, str] | None:
    """The library, and the major version of CUDA that a package contains or was built for."""
    known = _NUMBERED_LIKE_CUDA | _NUMBERED_THEIR_OWN_WAY
    if match := _SUFFIXED.match(package):
        return (match["library"], match["major"]) if match["library"] in known else None
    library = package.removeprefix("nvidia-")
    if library != package and library in _NUMBERED_LIKE_CUDA:
        major = Version(version).major
        return (library, str(major)) if major >= _FIRST_WITHOUT_SUFFIX else None
    local = local_cuda(version)
    return (package, local.partition(".")[0]) if local else None


def is_published_torch(version: str) -> bool:
    """Whether PyTorch may have published this torch. Builds from its source are alphas, and those of others have
    local versions of their own: `2.9.0a0+145a3a7bda.nv25.10`."""
    parsed = Version(version)
    from_source = parsed.pre is not None and parsed.pre[0] == "a"
    return not from_source and (parsed.local is None or _OF_PYTORCH.match(parsed.local) is not None)


def local_cuda(version: str) -> str | None:
    """The CUDA that a local version names: 12.6 of `2.11.0+cu126`, 12 of `2.8.3+cu12torch2.8`."""
    match = _LOCAL.match(Version(version).local or "")
    if match is None:
        return None
    return f"{match['major']}.{match['minor']}" if match["minor"] else match["major"]
