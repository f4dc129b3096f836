"""NVIDIA_REQUIRE_CUDA as the container toolkit reads it, with what is not known left open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.compatibility.requirement import first_demand, is_satisfied

OF_126 = "cuda>=12.6 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=550,driver<551 brand=nvidia,driver>=550,driver<551"
OLD = "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=geforce,driver>=535,driver<536 brand=geforcertx,driver>=535,driver<536"
R550 = {"cuda": "12.4", "driver": "550.142"}


@pytest.mark.parametrize(
    ("demands", "versions", "gpus", "wanted"),
    [
        ([OF_126], {"cuda": "12.6", "driver": "560.35.03"}, ["NVIDIA GeForce RTX 3090"], True),
        ([OF_126], R550, ["NVIDIA GeForce RTX 3090"], False),
        ([OF_126], R550, ["NVIDIA TITAN RTX"], False),
        ([OF_126], R550, ["NVIDIA L4"], True),
        ([OF_126], R550, ["Tesla T4"], True),
        ([OF_126], R550, ["NVIDIA RTX A6000"], True),
        ([OF_126], {"cuda": "12.5", "driver": "555.42.06"}, ["NVIDIA L4"], False),
        ([OF_126], R550, [], None),
        ([OF_126], {"driver": "550.142"}, ["NVIDIA GeForce RTX 3090"], None),
        ([OLD], {"cuda": "12.2", "driver": "535.154.05"}, ["NVIDIA GeForce RTX 3090"], True),
        ([OLD], {"cuda": "12.2", "driver": "545.23.06"}, ["NVIDIA GeForce RTX 3090"], False),
        (["arch>=8.0"], {"arch": "7.5"}, ["Tesla T4"], False),
        (["arch>=7.5"], {"arch": "7.5"}, ["Tesla T4"], True),
        (["cuda>=12.0", "arch>=8.0"], {"cuda": "12.4", "arch": "7.5"}, ["Tesla T4"], False),
        (["brand!=geforce"], {}, ["NVIDIA GeForce GTX 1080"], False),
        (["cuda=12.4"], R550, [], True),
        (["whatever"], R550, ["NVIDIA L4"], None),
        (["whatever cuda>=12.4"], R550, ["NVIDIA L4"], True),
        ([""], R550, ["NVIDIA L4"], True),
        ([], {}, [], True),
    ],
)
def test_demands(demands: list[str], versions: dict[str, str], gpus: list[str], wanted: bool | None) -> None:
    assert is_satisfied(demands, versions, gpus) is wanted


def test_the_toolkit_names_the_first_demand() -> None:
    assert first_demand([OF_126]) == "cuda>=12.6"
    assert first_demand(["", "cuda>=12.6", "arch>=8.0"]) == "cuda>=12.6 and arch>=8.0"


@given(
    st.lists(st.text(max_size=40), max_size=3),
    st.dictionaries(st.sampled_from(["cuda", "driver"]), st.text()),
)
def test_any_text_is_an_answer(demands: list[str], versions: dict[str, str]) -> None:
    assert is_satisfied(demands, versions, ["NVIDIA L4"]) in (True, False, None)
