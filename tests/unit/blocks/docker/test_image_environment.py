"""The environment of an image, from docker inspect or line by line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.docker.image_environment import parse_environment

ENV = [
    "PATH=/usr/bin",
    "NVIDIA_REQUIRE_CUDA=cuda>=12.6 brand=tesla,driver>=470,driver<471",
    "CUDA_VERSION=12.6.3",
]
WANTED = dict(line.split("=", 1) for line in ENV)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"Id": "sha256:ab", "Config": {"Env": ENV, "Cmd": ["x=1"]}}]),
        json.dumps({"Env": ENV}),
        json.dumps(ENV),
        json.dumps(WANTED),
        "\n".join(ENV),
        "\n".join(f'export {name}="{value}"' for name, value in WANTED.items()),
        '            "Env": [\n' + ",\n".join(f'                "{line}"' for line in ENV) + ",\n",
        "$ docker exec c env\n" + "\n".join(ENV),
    ],
)
def test_each_form(text: str) -> None:
    assert parse_environment(text) == WANTED


@given(st.text(max_size=100))
def test_any_text_is_read(text: str) -> None:
    parse_environment(text)


def test_deep_json_is_nothing() -> None:
    assert parse_environment("[" * 100_000) == {}
