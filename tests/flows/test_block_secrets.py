"""The secrets of Prefect blocks are known to the redaction once they were loaded."""

from __future__ import annotations

import pytest
from inline_snapshot import snapshot
from prefect.blocks.system import Secret
from pydantic import SecretStr

from blocks.applications.dify_console import DifyConsole, load_console
from blocks.services.door import read_keys
from blocks.storage.object_storage import ObjectStorage, load_storage
from tasks.core.api_keys import digest_of_key
from tasks.core.errors import AccessError, SlipwayError
from tasks.core.redaction import redacted


def test_the_secret_key_of_a_storage() -> None:
    ObjectStorage(access_key="me", secret_key=SecretStr("key of a block")).save("kept", overwrite=True)
    load_storage("kept")
    assert redacted("signed with key of a block") == "signed with ***"


def test_the_password_of_a_console() -> None:
    console = DifyConsole(address="https://dify", email="me@dify", password=SecretStr("word of a console"))
    console.save("kept", overwrite=True)
    load_console("kept")
    assert redacted("logged in with word of a console") == "logged in with ***"


def test_the_keys_of_a_service() -> None:
    Secret(value="first of two keys".replace(" ", "-") + "\n# old\nsecond-of-two-keys\n").save(
        "chat-keys", overwrite=True
    )
    digests = tuple(map(digest_of_key, ("first-of-two-keys", "second-of-two-keys")))
    assert read_keys("block:chat-keys") == digests
    assert redacted("sent second-of-two-keys") == "sent ***"


def test_a_block_that_has_no_keys() -> None:
    with pytest.raises(AccessError) as caught:
        read_keys("block:never-saved")
    assert str(caught.value) == snapshot(
        "Prefect has no Secret block 'never-saved', which serving.api_key names "
        "(save one of type `Secret` under that name)"
    )
    for number, value in enumerate(({"a": 1}, "", "short")):
        Secret(value=value).save(f"wrong-{number}", overwrite=True)
        with pytest.raises(SlipwayError, match=f"the Secret block 'wrong-{number}'"):
            read_keys(f"block:wrong-{number}")
