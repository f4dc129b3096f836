"""Whatever a lock file holds, it is read or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.packages.bill_of_materials import bill_of_materials
from tasks.core.errors import WrongUseError
from tasks.core.spec_sections import Environment
from tasks.environment import locks, plan

HASH = "sha256:" + "0" * 64
UV = f"numpy==2.3.1 \\\n    --hash={HASH}\n    # via gguf\nx @ https://host/x-1-py3-none-any.whl --hash={HASH}\n"
CONDA = f"version: 7\npackages:\n- conda: https://host/c/linux-64/numpy-2.3.1-py311_0.conda\n  {HASH.replace(':', ': ')}\n"
SYSTEM = "numpy==2.3.1\nidna==3.10\n"


def lock(text: str, **environment: Any) -> str:
    asked = plan.make_lock_request(["numpy"], "linux-x86_64", Environment(python="3.11", **environment))
    return locks.render_lock(asked, text)


WHOLE = [
    lock(UV),
    lock(CONDA, manager="conda", channels=("https://host/c",)),
    lock(SYSTEM, manager="system", path="/opt/e"),
]


def read_or_refuse(text: str) -> None:
    try:
        content = locks.read_lock(text, "a lock")
    except WrongUseError as error:
        assert "\n" not in str(error)
        assert error.fix
    else:
        assert content.packages
        bill_of_materials(content)


@pytest.mark.parametrize("text", WHOLE)
def test_the_whole_ones_are_read(text: str) -> None:
    assert locks.read_lock(text, "a lock").packages["numpy"] == "2.3.1"


@given(st.sampled_from(WHOLE), st.integers(0, 400), st.integers(0, 40), st.text(max_size=12))
def test_a_piece_replaced_by_anything(text: str, start: int, length: int, piece: str) -> None:
    read_or_refuse(text[:start] + piece + text[start + length :])


@pytest.mark.parametrize(
    "text",
    [
        f"x @ https://[ {HASH}\n",
        WHOLE[1].replace("https://host/c/linux-64", "https://["),
        WHOLE[1].replace("packages:", "packages: " + "[" * 1500),
        WHOLE[0].replace(HASH, "sha256:xyz"),
        WHOLE[0].replace("2.3.1", "2" * 900),
    ],
    ids=["address", "channel", "depth", "hash", "version"],
)
def test_what_parsers_choke_on(text: str) -> None:
    read_or_refuse(text)


@given(st.text(max_size=80), st.sampled_from(["", *(text.partition("\n")[0] + "\n" for text in WHOLE)]))
def test_any_text_below_any_first_line(text: str, first: str) -> None:
    read_or_refuse(first + text)
