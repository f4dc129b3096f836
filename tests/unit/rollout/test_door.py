"""Who may use a service once a release serves: every combination of what it names, what is kept and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from releases import make_release

from tasks.core.api_keys import digest_of_key
from tasks.core.errors import AccessError, SpecError
from tasks.core.release import Release, ServiceFolder
from tasks.core.spec_sections import Serving
from tasks.rollout.door import Door, digests_of, door_of, keep_door, kept_door, own_key, read_door
from tasks.rollout.proxy.keys import are_digests, is_locked, keys_document, replace_keys, version_in

FILE, OTHER, BLOCK = "file:/keys", "file:/other", "block:keys"
NOW, BEFORE = digest_of_key("key-of-now"), digest_of_key("key-before")


@pytest.fixture
def folder(tmp_path: Path) -> ServiceFolder:
    folder = ServiceFolder(tmp_path, "chat")
    folder.root.mkdir()
    return folder


def release_with(tmp_path: Path, source: str | None) -> Release:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"model")
    release = make_release(Path("python"), model)
    return release.model_copy(
        update={"spec": release.spec.model_copy(update={"serving": Serving(api_key=source)})}
    )


@dataclass(frozen=True)
class Case:
    """`named` by the release, `kept` with the service; `result` are the user's keys, None for an open door."""

    named: str | None
    kept: str | None
    reopen: bool
    readable: bool
    result: str | type[Exception] | None


CASES = [
    Case(None, None, True, True, None),
    Case(None, FILE, True, True, None),
    Case(None, FILE, False, True, BEFORE),
    Case(None, None, False, True, None),
    Case(FILE, None, True, True, NOW),
    Case(FILE, None, False, True, NOW),
    Case(FILE, FILE, True, True, NOW),
    Case(FILE, FILE, False, True, NOW),
    Case(FILE, FILE, True, False, SpecError),
    Case(FILE, FILE, False, False, BEFORE),
    Case(FILE, OTHER, False, False, SpecError),
    Case(FILE, OTHER, False, True, NOW),
    Case(FILE, None, False, False, SpecError),
    Case(BLOCK, BLOCK, True, True, NOW),
    Case(BLOCK, BLOCK, False, True, BEFORE),
    Case(BLOCK, None, False, True, NOW),
]


@pytest.mark.parametrize("case", CASES)
def test_what_opens_the_door(case: Case, folder: ServiceFolder, tmp_path: Path) -> None:
    def read(source: str) -> tuple[str, ...]:
        if not case.readable:
            raise SpecError(f"{source} cannot be read")
        return (NOW,)

    if case.kept:
        keep_door(read_door(case.kept, folder, lambda source: (BEFORE,)), folder)
    release = release_with(tmp_path, case.named)
    if isinstance(case.result, type):
        with pytest.raises(case.result):
            door_of(release, folder, read, reopen=case.reopen)
        return
    door = door_of(release, folder, read, reopen=case.reopen)
    assert (door.digests if door else None) == ((case.result,) if case.result else None)


def test_a_door_is_kept_for_restarts_and_slipways_own_key_opens_it(folder: ServiceFolder) -> None:
    assert (kept_door(folder), own_key(folder), digests_of(None)) == (None, None, None)
    door = read_door(FILE, folder, lambda source: (NOW,))
    keep_door(door, folder)
    assert kept_door(folder) == door
    assert digests_of(door) == (NOW, digest_of_key(own_key(folder) or ""))
    assert {file.stat().st_mode & 0o777 for file in (folder.door_file, folder.own_key_file)} == {0o600}
    keep_door(None, folder)
    keep_door(None, folder)
    assert kept_door(folder) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'{"source": "file:/keys", "digests": ["open"], "own": "x"}']
)
def test_a_damaged_door_lets_in_slipway_alone(folder: ServiceFolder, content: bytes) -> None:
    folder.door_file.write_bytes(content)
    door = kept_door(folder)
    assert door is not None
    assert digests_of(door) == (digest_of_key(own_key(folder) or ""),)


def test_an_unreadable_block_fails_a_deploy(folder: ServiceFolder, tmp_path: Path) -> None:
    def read(source: str) -> tuple[str, ...]:
        raise AccessError("no block")

    with pytest.raises(AccessError):
        door_of(release_with(tmp_path, BLOCK), folder, read, reopen=True)
    assert not folder.door_file.exists()


def test_what_a_proxy_is_told() -> None:
    assert keys_document(None) == "open\n"
    assert keys_document(()) == ""
    assert keys_document((NOW, BEFORE)) == "".join(f"{one}\n" for one in sorted((NOW, BEFORE)))
    assert [is_locked(keys_document(one)) for one in (None, (), (NOW,))] == [False, True, True]
    assert replace_keys(3, (NOW,)) == f"add acl @3 keys {NOW};commit acl @3 keys"
    assert replace_keys(4, None) == "add acl @4 keys open;commit acl @4 keys"
    assert replace_keys(5, ()) == "commit acl @5 keys"
    assert version_in("New version created: 12\n\n") == 12
    assert version_in("Unknown ACL identifier. Please use #<id> or <file>.\n") is None
    good, bad = [None, (), [NOW], (NOW, BEFORE)], [NOW, ["open"], [1], {NOW: 1}, [NOW.upper()], 0]
    assert [are_digests(one) for one in good] == [True] * len(good)
    assert [are_digests(one) for one in bad] == [False] * len(bad)


def test_a_door_document_holds_digests_only() -> None:
    with pytest.raises(ValueError, match="digests"):
        Door(source=FILE, digests=("a key",), own=NOW)
