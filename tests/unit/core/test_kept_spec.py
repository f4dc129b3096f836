"""Releases of earlier versions stay readable, with the name that they had, whatever is checked since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from releases import make_release

from tasks.core.digests import digest_of
from tasks.core.errors import SpecError
from tasks.core.release import Release
from tasks.core.spec import parse_spec


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A release as it lies in a service's folder."""
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    made = make_release(tmp_path / "bin" / "python", gguf)
    found: dict[str, Any] = json.loads(made.model_dump_json(by_alias=True))
    return found


def name_of(document: dict[str, Any]) -> str:
    named = {key: value for key, value in document.items() if key not in ("at", "numbers", "records")}
    return digest_of(named)


EARLIER: tuple[tuple[str, Any], ...] = (
    ("rollout.drain_s", 1e12),
    ("rollout.gate.start_timeout_s", 1e9),
    ("rollout.gate.prompt", "a\x07b"),
    ("rollout.host", "127.1"),
    ("rollout.base_image", "my image"),
    ("rollout.pids", 10**9),
    ("hardware.memory", 4096),
    ("environment.exclude_newer", "3 days"),
    ("environment.requirements", ["a\tb"]),
    ("tuning.quality_text", "/text\n"),
    (
        "tuning.load",
        {"kind": "open", "rate": 0.0005, "arrivals": "poisson", "requests": 20, "prompt_tokens": None},
    ),
    ("checks.sample_period_s", 0.001),
    ("objectives.ttft_ms", 1e9),
    ("engine_args", {"-seed": [1, 2]}),
    ("engine_env", {"LD_PRELOAD": "/x.so"}),
)


@pytest.mark.parametrize(("key", "value"), EARLIER, ids=[key for key, _ in EARLIER])
def test_what_was_accepted_stays_readable(document: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section = document["spec"]
    for parent in parents:
        section = section[parent]
    section[last] = value
    with pytest.raises(SpecError):
        parse_spec(document["spec"])
    release = Release.model_validate_json(json.dumps(document))
    assert release.id == name_of(document)
    assert json.loads(release.model_dump_json(by_alias=True)) == document
    assert Release.model_validate_json(release.model_dump_json(by_alias=True)) == release


def test_several_of_them_do_too(document: dict[str, Any]) -> None:
    document["spec"]["rollout"] |= {"drain_s": 1e12, "pids": 10**9, "host": "127.1"}
    assert Release.model_validate_json(json.dumps(document)).id == name_of(document)


def test_a_key_that_there_is_no_more_is_left_out_where_it_was_empty(document: dict[str, Any]) -> None:
    before = Release.model_validate_json(json.dumps(document))
    document["spec"]["rollout"] |= {"replicas": None, "drain_s": 1e12}
    release = Release.model_validate_json(json.dumps(document))
    assert release.spec.rollout == before.spec.rollout.model_copy(update={"drain_s": 1e12})
    document["spec"]["rollout"]["replicas"] = 2
    with pytest.raises(ValidationError):
        Release.model_validate_json(json.dumps(document))


def test_a_release_keeps_its_id_when_the_spec_loses_or_gains_a_key(document: dict[str, Any]) -> None:
    own = Release.model_validate_json(json.dumps(document))
    document["spec"]["rollout"]["replicas"] = None
    del document["spec"]["rollout"]["pids"]
    release = Release.model_validate_json(json.dumps(document))
    assert release.id == name_of(document) != own.id
    assert json.loads(release.document()) == document
    assert Release.model_validate_json(release.document()) == release
    changed = release.model_copy(update={"image": "sha256:i"})
    assert changed.id == name_of(json.loads(changed.document())) != release.id


def test_a_release_of_before_engines_took_arguments_serves_without(document: dict[str, Any]) -> None:
    own = Release.model_validate_json(json.dumps(document))
    for key in ("engine_version", "engine_args", "engine_env"):
        document["config"].pop(key, None)
        del document["spec"][key]
    release = Release.model_validate_json(json.dumps(document))
    assert (release.spec, release.config, release.launch) == (own.spec, own.config, own.launch)
    assert release.config.engine_args == release.config.engine_env == {}
    assert json.loads(release.document()) == document
    assert release.id == name_of(document)


def test_a_release_of_before_makers_images_serves_without(document: dict[str, Any]) -> None:
    own = Release.model_validate_json(json.dumps(document))
    del document["spec"]["rollout"]["image"]
    release = Release.model_validate_json(json.dumps(document))
    assert release.spec == own.spec
    assert release.spec.rollout.image is None
    assert release.id == name_of(document)


def test_arguments_are_part_of_what_a_release_is(document: dict[str, Any]) -> None:
    own = Release.model_validate_json(json.dumps(document))
    for changes in ({"engine_args": {"seed": 1}}, {"engine_env": {"A": "1"}}):
        changed = own.model_copy(update={"config": own.config.model_copy(update=changes)})
        assert changed.id != own.id
        assert Release.model_validate_json(changed.document()) == changed


DAMAGED: tuple[dict[str, Any], ...] = (
    {"name": None},
    {"tuning": None},
    {"modle": 1},
    {"model": 5},
    {"engine": "none"},
    {"name": "A B"},
    {"rollout": {"drain_s": "30"}},
    {"rollout": {"pids": True}},
)


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_a_damaged_one_is_still_told(document: dict[str, Any], damage: dict[str, Any]) -> None:
    document["spec"] |= damage
    with pytest.raises(ValidationError):
        Release.model_validate_json(json.dumps(document))


def test_a_release_from_before_quantized_models_keeps_its_name(document: dict[str, Any]) -> None:
    del document["spec"]["serving"]["trust_remote_code"]
    del document["spec"]["tuning"]["baseline"]
    del document["config"]["remote_code"]
    read = Release.model_validate_json(json.dumps(document))
    assert read.id == name_of(document)
    assert json.loads(read.document()) == document
    assert (read.config.remote_code, read.spec.serving.trust_remote_code) == ({}, False)


def test_another_digest_of_the_code_is_another_release(document: dict[str, Any]) -> None:
    names = set()
    for code in ({}, {"modeling_own.py": "sha256:1"}, {"modeling_own.py": "sha256:2"}):
        document["config"]["remote_code"] = code
        names.add(Release.model_validate_json(json.dumps(document)).id)
    assert len(names) == 3
