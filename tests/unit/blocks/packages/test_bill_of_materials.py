"""A lock as a CycloneDX document, held to the standard's own schema."""

from __future__ import annotations

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from blocks.packages.bill_of_materials import bill_of_materials
from tasks.core.spec_sections import Environment
from tasks.environment.locks import LockFile, read_lock, render_lock
from tasks.environment.plan import make_lock_request

LOCK = f"""\
idna==3.10 \\
    --hash=sha256:{"1" * 64} \\
    --hash=sha256:{"2" * 64}
    # via requests
requests==2.32.0 --hash=sha256:{"3" * 64}
urllib3==2.2.0 --hash=sha256:{"4" * 64}
    # via
    #   requests
    #   other-thing
"""


@pytest.fixture
def lock() -> LockFile:
    request = make_lock_request(["requests"], "linux-x86_64", Environment(python="3.11"))
    return read_lock(render_lock(request, LOCK), "lock")


def test_it_is_valid_by_the_schema(lock: LockFile) -> None:
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill_of_materials(lock))
    assert error is None, error


def test_the_same_lock_gives_the_same_document(lock: LockFile) -> None:
    assert bill_of_materials(lock) == bill_of_materials(lock)
    fewer = lock.model_copy(update={"pins": lock.pins[:-1]})
    assert (
        json.loads(bill_of_materials(fewer))["serialNumber"]
        != json.loads(bill_of_materials(lock))["serialNumber"]
    )


def test_packages_hashes_and_who_requires_whom(lock: LockFile) -> None:
    document = json.loads(bill_of_materials(lock))
    components = {one["name"]: one for one in document["components"]}
    assert components["idna"]["purl"] == "pkg:pypi/idna@3.10"
    assert [one["content"] for one in components["idna"]["hashes"]] == ["1" * 64, "2" * 64]
    needs = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert needs["environment"] == ["pkg:pypi/requests@2.32.0"]
    assert needs["pkg:pypi/requests@2.32.0"] == ["pkg:pypi/idna@3.10", "pkg:pypi/urllib3@2.2.0"]
    properties = {one["name"]: one["value"] for one in document["metadata"]["component"]["properties"]}
    assert properties == {"slipway:platform": "linux-x86_64", "slipway:python": "3.11"}
