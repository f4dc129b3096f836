"""What the tables of builds, pins and wheels say about the packages of an environment, as fields. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tasks.compatibility import builds, glibc, pins
from tasks.compatibility.conditions import Value
from tasks.compatibility.engines import is_cpu_build, with_engine
from tasks.compatibility.kernels import platform_of
from tasks.compatibility.rules import Tables
from tasks.compatibility.weights import find_type
from tasks.core.cuda_packages import describe_mixed, is_published_torch, local_cuda, mixed_cuda
from tasks.core.facts import Facts


def describe_packages(facts: Facts, tables: Tables) -> dict[str, Value]:
    """What tables of builds, pins and wheels say about the packages and the engine. They say nothing about a torch
    that PyTorch did not publish, and in an image the engine is mostly a build of its own."""
    own_torch = not is_published_torch(facts.packages.get(builds.TORCH, "0"))
    here = {
        name: version
        for name, version in with_engine(facts, tables).items()
        if not (own_torch and name == builds.TORCH)
    }
    torch = None if own_torch else builds.torch_cuda(facts)
    weights = find_type(facts.dtype, tables)
    dtype = weights.name if weights else None
    odd = () if is_cpu_build(facts, tables) else builds.mismatched(here, torch, tables, dtype)
    optional = [build for build in odd if build.row and build.row.optional and dtype not in build.row.types]
    perhaps = [
        build for build in odd if build not in optional and builds.in_image(facts) and not build.is_named
    ]
    needed = [build for build in odd if build not in optional and build not in perhaps]
    broken = [_in_image(pin, facts) for pin in pins.broken_pins(here, tables)]
    mixed = mixed_cuda(facts.packages)
    values: dict[str, Value] = {
        "own_torch": own_torch,
        "build_odd": _joined(builds.describe(build, facts) for build in needed),
        "build_odd_image": _joined(builds.describe(build, facts) for build in perhaps),
        "build_odd_optional": _joined(builds.describe(build, facts) for build in optional),
        "build_way": _joined(builds.ways(build, facts, tables) for build in odd[:1]),
        "mixed_cuda": describe_mixed(mixed, facts.packages) if mixed else None,
        "torch_cuda": local_cuda(facts.packages.get(builds.TORCH, "0")),
    }
    for name, some in (
        ("pin_broken", [pin for pin in broken if not pin.near]),
        ("pin_near", [pin for pin in broken if pin.near]),
    ):
        values[name] = _joined(map(pins.describe, some))
        way = "pin_way" if name == "pin_broken" else "pin_near_way"
        values[way] = _joined(pins.way(pin, tables) for pin in some)
    values["pin_package"] = broken[0].required if broken else None
    values["cuda12_way"] = _cuda12_way(facts, here, tables)
    without_cuda = facts.known("cuda_build") and facts.cuda_build is None
    platform = _platform_of_cpu_build(facts) if without_cuda else None
    if (neediest := glibc.neediest(here, tables, platform)) is not None:
        package, row = neediest
        values |= {
            "glibc_needed": row.glibc,
            "glibc_package": f"{package} {here[package]}",
            "glibc_way": glibc.way(row),
        }
    else:
        values["glibc_needed"] = None
    return values


def _in_image(pin: pins.BrokenPin, facts: Facts) -> pins.BrokenPin:
    """In an image its makers chose the packages that go with the engine, whatever its METADATA asks for."""
    own = facts.container is not None and pin.package == facts.engine
    return replace(pin, near=True) if own else pin


def _platform_of_cpu_build(facts: Facts) -> str | None:
    """For which processor a published build without CUDA would be. With a GPU, x86-64 hosts mostly
    compile their own."""
    if (platform := platform_of(facts)) == "aarch64":
        return platform
    return "x86_64" if facts.known("gpus") and not facts.gpus else None


def _cuda12_way(facts: Facts, packages: Mapping[str, str], tables: Tables) -> str:
    """What runs on a driver below 580: torch for CUDA 12, and the engine's build for it if it has binaries."""
    own = next(
        (build for build in builds.builds(packages, tables) if build.row and not build.row.optional), None
    )
    if own is None or "12" in own.majors:
        return "torch for CUDA 12 (cu126)"
    wheel = builds.nearest_build(own.package, own.version, "12", facts, tables)
    named = builds.in_words(own.package, wheel) if wheel else f"an older {own.package}"
    return f"{named} with torch for CUDA 12"


def _joined(texts: Iterable[str]) -> str | None:
    return "; ".join(texts) or None
