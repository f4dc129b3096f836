"""The key to the local API: made once, for this user alone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.prefect.api_key import api_key, key_file
from tasks.core.errors import SlipwayError
from tasks.core.settings import Settings


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    return Settings.load()


def test_it_is_made_once_and_is_its_owners_alone(settings: Settings) -> None:
    key = api_key(settings)
    user, _, secret = key.partition(":")
    assert (user, len(secret)) == ("slipway", 43)
    assert api_key(settings) == key
    assert key_file(settings).stat().st_mode & 0o777 == 0o600
    assert key_file(settings).parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in key_file(settings).parent.iterdir()] == ["api-key"]


def test_each_home_has_its_own(tmp_path: Path) -> None:
    homes = (Settings(home=tmp_path / name, records="", registry="", s3_endpoint=None) for name in "ab")
    first, second = (api_key(settings) for settings in homes)
    assert first != second


@pytest.mark.parametrize(
    "content", [b"", b"slipway:short", b"\xff\xfe\x00", b"nothing", b"slipway:" + b"A" * 43 + b"\nmore"],
    ids=["empty", "cut", "garbage", "a word", "two lines"],
)  # fmt: skip
def test_a_damaged_one_is_replaced(settings: Settings, content: bytes) -> None:
    key_file(settings).parent.mkdir(parents=True)
    key_file(settings).write_bytes(content)
    key = api_key(settings)
    assert key.encode() != content
    assert api_key(settings) == key
    assert key_file(settings).stat().st_mode & 0o777 == 0o600


def link_to_nothing(file: Path) -> None:
    file.symlink_to("nowhere")


def link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize("put", [link_to_nothing, link_to_itself, pipe])
def test_what_is_not_a_file_is_replaced(settings: Settings, put: Callable[[Path], None]) -> None:
    key_file(settings).parent.mkdir(parents=True)
    put(key_file(settings))
    assert api_key(settings) == api_key(settings)
    assert not key_file(settings).is_symlink()
    assert key_file(settings).stat().st_mode & 0o777 == 0o600


def test_a_link_to_a_key_is_followed(settings: Settings, tmp_path: Path) -> None:
    key = api_key(settings)
    key_file(settings).rename(tmp_path / "elsewhere")
    key_file(settings).symlink_to(tmp_path / "elsewhere")
    assert api_key(settings) == key


def test_a_folder_in_its_place_has_a_way_out_that_works(settings: Settings) -> None:
    (key_file(settings) / "inside").mkdir(parents=True)
    with pytest.raises(SlipwayError, match="api-key") as caught:
        api_key(settings)
    found = re.search(r"mv \S+ \S+", caught.value.fix or "")
    assert found
    subprocess.run(shlex.split(found[0]), check=True)
    assert api_key(settings) == api_key(settings)


def test_one_that_others_could_read_is_closed(settings: Settings) -> None:
    key = api_key(settings)
    key_file(settings).chmod(0o644)
    assert api_key(settings) == key
    assert key_file(settings).stat().st_mode & 0o777 == 0o600
