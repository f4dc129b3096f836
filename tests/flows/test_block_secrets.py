"""The secrets of Prefect blocks are known to the redaction once they were loaded."""

from __future__ import annotations

from pydantic import SecretStr

from blocks.applications.dify_console import DifyConsole, load_console
from blocks.storage.object_storage import ObjectStorage, load_storage
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
