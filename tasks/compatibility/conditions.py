"""The condition language of the rule table: declarative, typed, three-valued; nothing is executed.

A condition maps a field to what it must be:

- a version field to comparisons, `">=12,<13"`; a value may be another field, `">@driver_cuda"`;
- a text field to a pattern or a list of patterns, `["vllm", "sglang"]`, `"deepseek*"`;
- a flag to `true` or `false`;
- any field to `"none"` (looked for, and absent) or `"present"`.

Fields that start with `gpu.` are about one GPU: all of them must hold for the same GPU, whichever of the host's.
The answer is None if a field is not known, unless another part already decides (Kleene's logic).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

Value = str | bool | tuple[str, ...] | None
"""What is known of a field; None means looked for, and absent."""

Wanted = str | bool | list[str]
"""What a condition asks of a field, as TOML gives it."""

GPU = "gpu."
PACKAGE = "packages."
PRESENCE = ("none", "present")

VERSIONS = frozenset(
    {
        "compat_branch",
        "compat_cuda",
        "build_branch",
        "container_toolkit",
        "cuda_build",
        "cuda_driver",
        "driver",
        "driver_branch",
        "driver_cuda",
        "engine_version",
        "glibc",
        "glibc_needed",
        "gpu.compute_capability",
        "gpu.engine_floor",
        "gpu.last_branch",
        "gpu.last_cuda",
        "gpu.min_cuda",
        "gpu.nvcc",
        "gpu.own_cuda",
        "gpu.triton_ptxas",
        "nvcc",
        "torch_cuda",
        "triton",
        "wsl_kernel",
    }
)
TEXTS = frozenset(
    {
        "compat_fit",
        "build_odd",
        "build_odd_image",
        "build_odd_optional",
        "compiles",
        "container",
        "container_gpus",
        "cuda_major",
        "disagreement",
        "dtype",
        "engine",
        "fabric",
        "family",
        "gpu.driver_model",
        "gpu.forward_compat",
        "gpu.jit",
        "gpu.mig",
        "gpu.no_code",
        "gpu.torch_kernels",
        "gpu.triton",
        "gpu.weights",
        "library_odd",
        "gpu.virtual",
        "host_fault",
        "host_warning",
        "mixed_cuda",
        "pin_broken",
        "pin_near",
        "image_check",
        "platform",
        "target",
        "torch_too_old",
    }
)
FLAGS = frozenset(
    {
        "cpu_build",
        "forward_compat",
        "gpu_optional",
        "gpu_unused",
        "jetson_wheels",
        "needs_gpu",
        "own_torch",
        "several_gpus",
        "tegra",
        "wants_gpu",
        "weights_fit",
        "wsl",
    }
    | {"gpu.licensed"}
)
PRESENT_ONLY = frozenset({"gpus"})


class DriverAdvice(Protocol):
    """What a message can say about another driver for the host."""

    def upgrade(self, wanted: str) -> str:
        """How to get a driver of at least that version, or why there is none."""

    def upgrade_to_cuda(self, cuda: str) -> str:
        """How to get a driver that supports this CUDA natively."""

    def builds(self) -> str | None:
        """The newest CUDA whose builds run on this driver."""


@dataclass(frozen=True)
class Subject:
    """What the conditions are about. A field that is not in `values` is not known.

    `gpus` holds the fields of each GPU; None if the GPUs are not known. Likewise `packages`. No comparison holds for
    a field in `own_series`: its numbers are not those that rules compare with. `drivers` gives advice for messages.
    """

    values: Mapping[str, Value]
    gpus: Sequence[Mapping[str, Value]] | None
    packages: Mapping[str, str] | None
    own_series: frozenset[str] = frozenset()
    drivers: DriverAdvice | None = None


@dataclass(frozen=True)
class Answer:
    """Whether a condition holds; `missing` names the unknown fields if that cannot be said.

    `gpu` is the first GPU for which the GPU fields hold.
    """

    holds: bool | None
    missing: frozenset[str] = frozenset()
    gpu: Mapping[str, Value] | None = None


def check(field: str, wanted: Wanted) -> None:
    """Raise a `ValueError` that says what is wrong with this part of a condition."""
    if wanted in PRESENCE:
        if not _is_field(field):
            raise ValueError(f"unknown field {field!r}")
    elif field in VERSIONS or field.startswith(PACKAGE):
        _check_versions(field, wanted)
    elif field in TEXTS:
        if not _is_text(wanted):
            raise ValueError(f"{field} takes a pattern or a list of patterns, not {wanted!r}")
    elif field in FLAGS:
        if not isinstance(wanted, bool):
            raise ValueError(f"{field} takes true or false, not {wanted!r}")
    else:
        raise ValueError(f"{field!r} is not a field, or takes only {' or '.join(PRESENCE)}")


def _is_field(field: str) -> bool:
    return field in VERSIONS | TEXTS | FLAGS | PRESENT_ONLY or field.startswith(PACKAGE)


def _is_text(wanted: Wanted) -> bool:
    return isinstance(wanted, str) or (isinstance(wanted, list) and bool(wanted))


def _check_versions(field: str, wanted: Wanted) -> None:
    if not isinstance(wanted, str):
        raise ValueError(f"{field} takes comparisons such as '>=12,<13', not {wanted!r}")
    _, at, other = wanted.partition("@")
    if at and other not in VERSIONS:
        raise ValueError(f"{field} is compared with {other!r}, which is not a version")
    try:
        SpecifierSet(wanted.replace(f"@{other}", "1") if at else wanted)
    except InvalidSpecifier:
        raise ValueError(f"{field}: {wanted!r} is not a comparison of versions") from None


def evaluate(condition: Mapping[str, Wanted], subject: Subject) -> Answer:
    """Whether every part of `condition` holds for `subject`."""
    return _all(_answers(condition, subject))


def _answers(condition: Mapping[str, Wanted], subject: Subject) -> Iterator[Answer]:
    """One by one, because most rules end with their first part. One GPU must satisfy all parts about a GPU."""
    about_gpu: dict[str, Wanted] = {}
    for field, wanted in condition.items():
        if field.startswith(GPU):
            about_gpu[field] = wanted
        else:
            yield _field(field, wanted, subject, {})
    if about_gpu:
        yield _any_gpu(about_gpu, subject)


def any_holds(condition: Mapping[str, Wanted], subject: Subject) -> bool:
    """Whether any part of `condition` is known to hold: how an `unless` is read."""
    return any(evaluate({field: wanted}, subject).holds for field, wanted in condition.items())


def _any_gpu(condition: Mapping[str, Wanted], subject: Subject) -> Answer:
    if subject.gpus is None:
        return Answer(None, frozenset({"gpus"}))
    missing: frozenset[str] = frozenset()
    for gpu in subject.gpus:
        answer = _all(_field(field, wanted, subject, gpu) for field, wanted in condition.items())
        if answer.holds:
            return Answer(True, gpu=gpu)
        missing |= answer.missing
    return Answer(None, missing) if missing else Answer(False)


def _all(answers: Iterable[Answer]) -> Answer:
    missing: frozenset[str] = frozenset()
    gpu: Mapping[str, Value] | None = None
    for answer in answers:
        if answer.holds is False:
            return Answer(False)
        missing |= answer.missing
        gpu = gpu or answer.gpu
    return Answer(None, missing) if missing else Answer(True, gpu=gpu)


def all_hold(answers: Iterable[bool | None]) -> bool | None:
    """Whether all are true; None if that depends on one that is not known."""
    said = list(answers)
    return False if False in said else None if None in said else True


def text_or_none(value: Value) -> str | None:
    """The value of a field that holds one text."""
    return value if isinstance(value, str) else None


def _field(field: str, wanted: Wanted, subject: Subject, gpu: Mapping[str, Value]) -> Answer:
    if field == "gpus":
        if subject.gpus is None:
            return Answer(None, frozenset({"gpus"}))
        return Answer(bool(subject.gpus) == (wanted == "present"))
    known, value = _look_up(field, subject, gpu)
    if known and isinstance(wanted, str) and wanted in PRESENCE:
        return Answer((value is not None) == (wanted == "present"))
    if known and (value is None or field in subject.own_series):
        return Answer(False)
    missing = frozenset() if known else frozenset({_fact(field)})
    _, at, other = wanted.partition("@") if isinstance(wanted, str) else ("", "", "")
    if at:
        bound_known, bound = _look_up(other, subject, gpu)
        if bound_known and bound is None:
            return Answer(False)
        missing |= frozenset() if bound_known else frozenset({_fact(other)})
        wanted = str(wanted).replace(f"@{other}", str(bound))
    return Answer(None, missing) if missing else Answer(_matches(field, wanted, value))


def _matches(field: str, wanted: Wanted, value: Value) -> bool:
    if isinstance(wanted, bool):
        return value is wanted
    if field in TEXTS:
        patterns = [wanted] if isinstance(wanted, str) else wanted
        texts = value if isinstance(value, tuple) else (str(value),)
        return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)
    return contains(str(wanted), str(value))


@functools.lru_cache(maxsize=8192)
def contains(comparisons: str, version: str) -> bool:
    """Whether `version` satisfies all comparisons. Pre-releases count; local parts (`+cu126`) do not."""
    return SpecifierSet(comparisons).contains(Version(version).public, prereleases=True)


def _look_up(field: str, subject: Subject, gpu: Mapping[str, Value]) -> tuple[bool, Value]:
    """Whether the field is known, and its value."""
    if field.startswith(PACKAGE):
        packages = subject.packages
        return packages is not None, (packages or {}).get(field.removeprefix(PACKAGE))
    values = gpu if field.startswith(GPU) else subject.values
    return field in values, values.get(field)


def _fact(field: str) -> str:
    return "packages" if field.startswith(PACKAGE) else field
