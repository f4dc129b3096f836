"""What a spec may name as its keys, and what the secret may contain."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from tasks.core.addresses import is_loopback
from tasks.core.api_keys import block_name, digest_of_key, key_file, parse_keys
from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, load_spec, parse_spec


def spec_with(api_key: object) -> DeploySpec:
    return parse_spec({"name": "chat", "model": "file:/m", "serving": {"api_key": api_key}})


@pytest.mark.parametrize("name", ["file:/run/keys", "file:keys of mine", "block:chat-keys", None])
def test_a_spec_names_a_secret(name: str | None) -> None:
    assert spec_with(name).serving.api_key == name


@pytest.mark.parametrize(
    "value",
    ["sk-proj-abcdef0123456789", "keys.txt", "file:", "file:a\0b", "block:", "block:A", "block:a/b", "env:KEY", ""],
)  # fmt: skip
def test_anything_else_is_refused_and_never_shown(value: str) -> None:
    """It may be the key itself."""
    with pytest.raises(SpecError) as caught:
        spec_with(value)
    assert "serving.api_key: " in str(caught.value)
    assert "***" not in str(caught.value) or "\0" in value or value == "file:"
    assert len(value) < 8 or value not in str(caught.value)


def test_the_error_says_what_to_write() -> None:
    with pytest.raises(SpecError) as caught:
        spec_with("sk-proj-abcdef0123456789")
    assert str(caught.value) == snapshot(
        "spec: serving.api_key: must be file:PATH or block:NAME, which names the secret; never the key itself"
    )


def test_a_file_is_next_to_the_spec_and_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "spec.yaml").write_text("name: chat\nmodel: file:.\nserving:\n  api_key: file:link\n")
    spec = load_spec(tmp_path / "spec.yaml")
    assert key_file(spec.serving.api_key) == tmp_path / "link"
    assert (key_file("block:a"), block_name("block:a"), block_name("file:a")) == (None, "a", None)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("one-key-1", ("one-key-1",)),
        ("# rotated in May\n\n  first-key \r\nsecond-key\n#third-key\n", ("first-key", "second-key")),
        ("same-key\nsame-key\n", ("same-key",)),
        ("sk-proj_0.1/2+3~4==\n", ("sk-proj_0.1/2+3~4==",)),
        (f"{'k' * 512}\n", ("k" * 512,)),
    ],
)
def test_a_secret_has_one_key_a_line(text: str, keys: tuple[str, ...]) -> None:
    assert parse_keys(text, "the key file f") == keys


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the key file f contains no key"),
        ("# only a comment\n \n", "the key file f contains no key"),
        ("good-key-1\nbad key-2\n", "line 2 of the key file f is not a key"),
        ("a,b,c,d,e,f\n", "line 1 of the key file f is not a key"),
        ("schlüssel-1\n", "line 1 of the key file f is not a key"),
        ("good-key\n1234567\n", "the key in line 2 of the key file f has 7 characters"),
        ("k" * 513, "the key in line 1 of the key file f has 513 characters"),
        ("\n".join(f"key-number-{number}" for number in range(1001)), "the key file f contains 1001 keys"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_without_its_content(text: str, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_keys(text, "the key file f")
    assert str(caught.value).startswith(reason)
    assert not [
        line for line in text.split() if line in str(caught.value) and len(line) > 6 and line != "comment"
    ]


def test_digests_are_sha256() -> None:
    assert digest_of_key("one-key-1") == hashlib.sha256(b"one-key-1").hexdigest()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("LocalHost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("gpu-1.example", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_what_only_this_host_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
