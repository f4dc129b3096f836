"""How the report of a deploy says that a service is called."""

from __future__ import annotations

import pytest

from tasks.core.verdicts import LifecycleVerdict
from tasks.lifecycle.models import DeployResult
from tasks.lifecycle.report import markdown


@pytest.mark.parametrize("locked", [False, True])
def test_the_call_has_a_place_for_the_key_of_a_service_that_needs_one(locked: bool) -> None:
    result = DeployResult(
        verdict=LifecycleVerdict.SERVING,
        name="chat",
        model="file:/m",
        endpoint="http://127.0.0.1:8000",
        release="sha256:" + "a" * 64,
        chat=True,
        locked=locked,
    )
    text = markdown(result)
    assert (
        "curl http://127.0.0.1:8000/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n"
        in text
    )
    assert ('  -H "Authorization: Bearer $KEY" \\\n' in text) is locked
    assert ("`$KEY` is one of its keys (`serving.api_key`)" in text) is locked
