"""For which CUDA the packages of an environment were built, by their local versions and a table of the wheels. Pure.

An index offers one build of a release, whatever torch is installed; a local version (`0.21.0+cu129`) names another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.version import Version

from tasks.compatibility.conditions import contains
from tasks.compatibility.glibc import fits
from tasks.compatibility.rules import BuildRow, ReleaseRow, Tables
from tasks.core.cuda_packages import local_cuda
from tasks.core.facts import Facts
from tasks.core.versions import same_minor

TORCH = "torch"
_CPU = "cpu"
_DRIVER_OF_CUDA = {"12": "525.60.13", "13": "580"}


@dataclass(frozen=True)
class Build:
    """One package, and the CUDA versions that its files were built for; `row` is its row in the table, if any."""

    package: str
    version: str
    cuda: tuple[str, ...]
    row: BuildRow | None

    @property
    def is_named(self) -> bool:
        """Whether its version says for which CUDA it was built."""
        return local_cuda(self.version) is not None

    @property
    def majors(self) -> frozenset[str]:
        """Major versions of CUDA that it can be loaded with."""
        return frozenset(_major(cuda) for cuda in self.cuda)


@dataclass(frozen=True)
class Wheel:
    """One build of a release."""

    release: str
    cuda: str
    row: BuildRow

    @property
    def is_other(self) -> bool:
        """Whether it is not the one on the index."""
        return self.cuda not in self.row.cuda

    @property
    def local(self) -> str:
        """Its version, with the local part that tells it from the one on the index."""
        return f"{self.release}+{index_name(self.cuda)}" if self.is_other else self.release


def torch_cuda(facts: Facts) -> str | None:
    """The CUDA of torch's build: `cpu` without CUDA, None if it is not known."""
    version = facts.packages.get(TORCH)
    if version is None:
        return None
    local = Version(version).local
    return _CPU if local == _CPU else local_cuda(version) or facts.cuda_build


def builds(packages: Mapping[str, str], tables: Tables) -> Iterator[Build]:
    """The packages whose CUDA is known, torch apart."""
    for package, version in packages.items():
        local = Version(version).local or ""
        cuda = local_cuda(version)
        row = build_row(package, version, tables)
        if package == TORCH or local == _CPU or (row and not set(row.carried_by).isdisjoint(packages)):
            continue
        if cuda or row:
            yield Build(package, version, (cuda,) if cuda else row.cuda if row else (), row)


def build_row(package: str, version: str, tables: Tables) -> BuildRow | None:
    """What the table says about that release."""
    rows = (row for row in tables.builds if row.package == package)
    return next((row for row in rows if contains(row.releases, version)), None)


def mismatched(
    packages: Mapping[str, str], torch: str | None, tables: Tables, dtype: str | None = None
) -> tuple[Build, ...]:
    """The builds that cannot be loaded next to torch's CUDA. A package that loads only the build for the very CUDA
    counts where it is used, for weights of this type."""
    if torch is None:
        return ()
    return tuple(
        build
        for build in builds(packages, tables)
        if not _goes_with(build, torch, dtype) and not (torch == _CPU and build.row and build.row.optional)
    )


def _goes_with(build: Build, torch: str, dtype: str | None) -> bool:
    """Whether it can be loaded next to a torch for that CUDA."""
    if build.row and build.row.exact and dtype in build.row.types and "." in torch:
        return torch in build.cuda
    return _major(torch) in build.majors


def without_code(
    packages: Mapping[str, str],
    engine: str | None,
    dtype: str | None,
    capability: str,
    tables: Tables,
    *,
    in_container: bool = False,
) -> Iterator[tuple[str, BuildRow]]:
    """The packages that the engine uses for these weights and whose published wheels contain no code for GPUs of that
    capability, such as `sgl-kernel 0.1.7`, and their rows. A local version, or an image, may bring another build."""
    for package, version in packages.items():
        row = build_row(package, version, tables)
        if row is None or not any(contains(part, capability) for part in row.lacks):
            continue
        own = Version(version).local is not None or in_container
        used = engine in (row.engines or (engine,)) and dtype in (row.types or (dtype,))
        if used and (row.any_build or not own):
            yield f"{package} {version}", row


def in_image(facts: Facts) -> bool:
    """Whether the packages are, or will be, in an image."""
    return facts.container is not None or (facts.target or "").lower() == "docker"


def describe(build: Build, facts: Facts) -> str:
    """`vllm 0.21.0 is a CUDA 13.0 build, torch 2.11.0+cu126 a CUDA 12.6 one`, and how that ends."""
    torch = f"{TORCH} {facts.packages[TORCH]}"
    mine, its = torch_cuda(facts), build.cuda[-1]
    if mine == _CPU:
        return f"{build.package} {build.version} is a CUDA {its} build, {torch} has no CUDA"
    count = "builds" if len(build.majors) > 1 else "build"
    missing = f"libcudart.so.{_major(its)} is not there"
    if mine and _major(mine) in build.majors:
        missing = f"it loads only a build for the very CUDA of torch, and has none for {mine}"
    return (
        f"{build.package} {build.version} is a CUDA {_range(build.cuda)} {count}, {torch} a CUDA {mine} one: "
        f"{missing}"
    )


def ways(build: Build, facts: Facts, tables: Tables) -> str:
    """How the two are brought together: another build of the package, or of torch."""
    mine, torch = torch_cuda(facts), Version(facts.packages[TORCH]).public
    found = []
    if mine == _CPU:
        found.append(f"install the CPU build of {build.package} (+cpu)")
    elif mine and (other := nearest_build(build.package, build.version, _major(mine), facts, tables)):
        found.append(f"install {in_words(build.package, other)} with torch for CUDA {_major(mine)}")
    release = torch_release(torch, tables)
    offered = release.cuda if release else ()
    if build.row and build.row.exact:
        offered = tuple(cuda for cuda in offered if cuda in build.cuda)
    fitting = [for_major(offered, major) for major in sorted(build.majors, key=int, reverse=True)]
    cuda = next(filter(None, fitting), None)
    if cuda:
        driver = _DRIVER_OF_CUDA.get(_major(cuda), "0")
        older = facts.driver is not None and Version(facts.driver) < Version(driver)
        found.append(
            f"install torch {torch} for {index_name(cuda)}"
            + (f" and driver {driver} or newer" if older else "")
        )
    return "; or ".join(found) or f"install {build.package} and torch for the same CUDA"


def nearest_build(package: str, version: str, major: str, facts: Facts, tables: Tables) -> Wheel | None:
    """The build of a package for that major version of CUDA: of the same release, else of the nearest listed one, the
    newer ones first. Its wheel fits the host's glibc."""
    here = Version(Version(version).public)
    listed = [Version(row.version) for row in tables.releases if row.package == package]
    newer = sorted(release for release in listed if release > here)
    older = sorted((release for release in listed if release < here), reverse=True)
    for release in map(str, (here, *newer, *older)):
        row = build_row(package, release, tables)
        cuda = for_major((*row.cuda, *row.others), major) if row else None
        if row and cuda:
            wheel = Wheel(release, cuda, row)
            if fits(package, wheel.local, facts.glibc, tables):
                return wheel
    return None


def in_words(package: str, wheel: Wheel) -> str:
    """`vllm 0.21.0+cu129 (https://wheels.vllm.ai/0.21.0/cu129, or the image …)`, `vllm 0.12.0` from the index."""
    places = (wheel.row.where, wheel.row.image) if wheel.is_other else ()
    texts = [text.format(version=wheel.release, index=index_name(wheel.cuda)) for text in places if text]
    return f"{package} {wheel.local}" + (f" ({', or the image '.join(texts)})" if texts else "")


def index_name(cuda: str) -> str:
    """`cu126`, as the index of wheels for CUDA 12.6 is called."""
    return f"cu{cuda.replace('.', '')}"


def for_major(cudas: Iterable[str], major: str) -> str | None:
    """The newest of these CUDA versions that is of that major version."""
    return max((cuda for cuda in cudas if _major(cuda) == major), key=Version, default=None)


def torch_release(version: str, tables: Tables) -> ReleaseRow | None:
    """The row of that release of torch."""
    rows = (row for row in tables.releases if row.package == TORCH)
    return next((row for row in rows if same_minor(row.version, version)), None)


def _range(cudas: tuple[str, ...]) -> str:
    return cudas[0] if len(cudas) == 1 else f"{cudas[0]} to {cudas[-1]}"


def _major(cuda: str) -> str:
    return cuda.partition(".")[0]
