"""What an image demands of the driver in NVIDIA_REQUIRE_*, as NVIDIA's container toolkit checks it. Pure.

`cuda>=12.6 brand=tesla,driver>=550,driver<551` holds if one of the groups between spaces does, and a group if all its
parts do. https://github.com/NVIDIA/nvidia-container-toolkit internal/requirements/constraints @d34b3046
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from packaging.version import InvalidVersion, Version

from tasks.compatibility.conditions import all_hold

_PART = re.compile(r"([a-z]+)(>=|<=|!=|=|>|<)([A-Za-z0-9.]+)")
_HOLDS: Mapping[str, Callable[[Version, Version], bool]] = {
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "!=": lambda left, right: left != right,
    "=": lambda left, right: left == right,
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
}
_BRANDS = (
    ("geforce", frozenset({"geforce", "geforcertx"})),
    ("titan", frozenset({"titan", "titanrtx"})),
    ("quadro", frozenset({"quadro", "quadrortx"})),
    ("rtx", frozenset({"nvidiartx", "quadrortx", "nvidia"})),
    ("tesla", frozenset({"tesla"})),
)
_DATA_CENTER = frozenset({"tesla", "nvidia"})
"""NVML names the brand of a data-center GPU by either, depending on its generation."""


def is_satisfied(
    demands: Iterable[str], versions: Mapping[str, str], gpu_names: Sequence[str]
) -> bool | None:
    """Whether every demand holds for `versions` of `cuda`, `driver` and `arch`, and the brand of the GPUs.

    None if that depends on something that is not known.
    """
    answers = [_any(_group(group, versions, gpu_names) for group in demand.split()) for demand in demands]
    return all_hold(answers)


def first_demand(demands: Iterable[str]) -> str:
    """`cuda>=12.6`: what the message of the toolkit names."""
    return " and ".join(demand.split()[0] for demand in demands if demand.split())


def _group(group: str, versions: Mapping[str, str], gpu_names: Sequence[str]) -> bool | None:
    return all_hold(_part(part, versions, gpu_names) for part in group.split(","))


def _part(part: str, versions: Mapping[str, str], gpu_names: Sequence[str]) -> bool | None:
    found = _PART.fullmatch(part)
    if found is None:
        return None
    name, operator, wanted = found.groups()
    if name == "brand":
        brands = _brands(gpu_names)
        return None if brands is None else (wanted in brands) is (operator == "=")
    try:
        return _HOLDS[operator](Version(versions[name]), Version(wanted))
    except (KeyError, InvalidVersion):
        return None


def _brands(gpu_names: Sequence[str]) -> frozenset[str] | None:
    """The brands that NVML may report for the first GPU, which is the one that the toolkit asks."""
    if not gpu_names:
        return None
    name = gpu_names[0].lower()
    return next((brands for word, brands in _BRANDS if word in name), _DATA_CENTER)


def _any(answers: Iterable[bool | None]) -> bool | None:
    said = list(answers)
    return True if True in said or not said else None if None in said else False
