"""The condition language: typed when it is read, three-valued when it is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.compatibility.conditions import Answer, Subject, Value, any_holds, check, contains, evaluate

V100: dict[str, Value] = {"gpu.name": "V100", "gpu.compute_capability": "7.0", "gpu.forward_compat": "yes"}
RTX: dict[str, Value] = {"gpu.name": "RTX", "gpu.compute_capability": "8.9", "gpu.forward_compat": "no"}
HOST = Subject(
    values={
        "driver": "535.154.05",
        "driver_cuda": "12.2",
        "engine": "vllm",
        "nvcc": None,
        "cpu_build": False,
    },
    gpus=(V100, RTX),
    packages={"torch": "2.6.0+cu124"},
)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"driver": ">=525.60.13,<580"}, True),
        ({"driver": "<525.60.13"}, False),
        ({"driver": "==535.*"}, True),
        ({"driver_cuda": "<@cuda_build"}, None),
        ({"driver": ">580", "cuda_build": ">=12"}, False),
        ({"engine": ["sglang", "v*"]}, True),
        ({"engine": "vllm*", "cpu_build": False}, True),
        ({"nvcc": "none"}, True),
        ({"nvcc": ">=1"}, False),
        ({"nvcc": ">@cuda_build"}, False),
        ({"gpus": "present"}, True),
        ({"gpus": "none"}, False),
        ({"packages.torch": ">=2.6,<2.7"}, True),
        ({"packages.numpy": "none"}, True),
        ({"packages.numpy": ">=2"}, False),
        ({"gpu.compute_capability": "<7.5"}, True),
        ({"gpu.compute_capability": "<7.5", "gpu.forward_compat": "no"}, False),
        ({"gpu.last_cuda": "<13"}, None),
    ],
)
def test_evaluate(condition: dict[str, str | bool | list[str]], expected: bool | None) -> None:
    for field, wanted in condition.items():
        check(field, wanted)
    assert evaluate(condition, HOST).holds is expected


def test_an_unknown_field_is_named() -> None:
    assert evaluate({"driver": ">1", "cuda_build": ">1"}, HOST) == Answer(None, frozenset({"cuda_build"}))


def test_the_gpu_that_fits_is_handed_back() -> None:
    assert evaluate({"gpu.compute_capability": ">8"}, HOST).gpu is RTX


def test_unknown_gpus_and_packages_leave_it_open() -> None:
    bare = Subject(values={}, gpus=None, packages=None)
    asked = {"gpus": "present", "gpu.compute_capability": "<9", "packages.torch": "<3"}
    assert evaluate(asked, bare).missing == {"gpus", "packages"}


def test_unless_needs_only_one_part_and_only_known_ones() -> None:
    assert any_holds({"cuda_build": "none", "gpus": "present"}, HOST)
    assert not any_holds({"cuda_build": "none", "gpus": "none"}, HOST)


@pytest.mark.parametrize(
    ("field", "wanted", "complaint"),
    [
        ("drivr", ">=1", "'drivr' is not a field"),
        ("drivr", "none", "unknown field 'drivr'"),
        ("driver", "about 12", "not a comparison of versions"),
        ("driver", True, "takes comparisons"),
        ("driver", ">@engine", "which is not a version"),
        ("engine", True, "takes a pattern"),
        ("engine", [], "takes a pattern"),
        ("cpu_build", "yes", "takes true or false"),
        ("gpus", ">1", "takes only none or present"),
    ],
)
def test_a_wrong_condition_is_refused_when_it_is_read(
    field: str, wanted: str | bool | list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(field, wanted)


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=3),
    st.lists(st.integers(0, 999), min_size=1, max_size=3),
)
def test_versions_are_numbers(left: list[int], right: list[int]) -> None:
    padded = [(*parts, *([0] * (3 - len(parts)))) for parts in (left, right)]
    texts = [".".join(map(str, parts)) for parts in (left, right)]
    assert contains(f"<{texts[1]}", texts[0]) == (padded[0] < padded[1])


def test_local_parts_do_not_count_and_previews_do() -> None:
    assert contains("==2.6.0", "2.6.0+cu124")
    assert contains(">=2.15", "2.16.0.dev20261101")
