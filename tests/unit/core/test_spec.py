"""The spec: what is accepted, and one clear line for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, load_spec, parse_spec
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.spec_values import parse_size

MINIMAL = {"name": "tiny", "model": "file:model"}


def refusal(values: Any) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": 1}, "spec: unknown key 'modle' (did you mean 'model'?)"),
        (
            {"tuning": {"max_bach": 4}},
            "spec: unknown key 'tuning.max_bach' (did you mean 'max_batch'?)",
        ),
        (
            {"rollout": {"gate": {"promt": "x"}}},
            "spec: unknown key 'rollout.gate.promt' (did you mean 'prompt'?)",
        ),
        ({"name": "Tiny!"}, "spec: name: String should match pattern"),
        (
            {"model": "tiny"},
            "spec: model: must be file:PATH, s3://BUCKET/PREFIX, hf:ORG/NAME@REVISION, oci://HOST/NAME:TAG or models:/NAME@ALIAS (got 'tiny')",
        ),
        ({"engine": "vlm"}, "spec: engine: Input should be 'llama.cpp', "),
        (
            {"hardware": {"memory": "16Gx"}},
            "spec: hardware.memory: a size such as 512Mi, 16Gi or 2G (got '16Gx')",
        ),
        (
            {"staging": {"shards": 0}},
            "spec: staging.shards: Input should be greater than or equal to 1 (got 0)",
        ),
        ({"tuning": {"candidates": ["f16", "f16"]}}, "spec: tuning.candidates: each format once"),
        ({"tuning": None}, "spec: tuning: Input should be a valid"),
        (
            {"tuning": {"candidates": ["f16", "q8_0"]}},
            "spec: tuning: f16, q8_0 cannot be compared without a text: name one in tuning.quality_text",
        ),
        (
            {"tuning": {"load": {"kind": "open"}}},
            "spec: tuning.load: the kind open needs a rate, requests per second",
        ),
        (
            {"tuning": {"load": {"rate": 5}}},
            "spec: tuning.load: a rate is for the kind open: a closed loop sends as fast as it is answered",
        ),
        (
            {"tuning": {"load": {"kind": "open", "rate": 5, "arivals": "constant"}}},
            "spec: unknown key 'tuning.load.arivals' (did you mean 'arrivals'?)",
        ),
        (
            {"tuning": {"candidates": ["bf16", "w4a16"], "quality_text": "t"}},
            "spec: tuning: w4a16 needs a text for calibration: name one in tuning.calibration_text",
        ),
        ({"tuning": {"task_set": "t.jsonl"}}, "spec: tuning: a task set also needs a text: name one"),
        (
            {"objectives": {"policy": "speed"}},
            "spec: objectives.policy: Input should be 'accuracy', 'latency'",
        ),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(changes: dict[str, Any], message: str) -> None:
    assert refusal({**MINIMAL, **changes}).startswith(message)


def test_a_missing_key_is_named() -> None:
    assert refusal({"name": "tiny"}) == snapshot("spec: the key 'model' is missing (add `model: …`)")


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    assert "known keys: cpus, gpus, memory" in refusal({**MINIMAL, "hardware": {"zzzzzz": 1}})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16Gi", 16 * 2**30),
        ("16GiB", 16 * 2**30),
        ("2G", 2 * 10**9),
        ("512Mi", 2**29),
        ("1.5k", 1500),
        ("7", 7),
    ],
)
def test_sizes_are_written_as_in_kubernetes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1e3", "-1", "2000P", "9" * 20 + "P", "9" * 400, ".inf", "inf", "1G\n\n2"]
)
def test_what_is_not_a_size_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_size(text)


def test_a_size_is_read_in_the_spec() -> None:
    assert parse_spec({**MINIMAL, "hardware": {"memory": "1.5Gi"}}).hardware.memory == 3 * 2**29


@given(st.integers(2**20, 2**60))
def test_a_plain_number_of_bytes_is_kept(size: int) -> None:
    assert parse_spec({**MINIMAL, "hardware": {"memory": size}}).hardware.memory == size


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=12,
    )
)
def test_no_yaml_makes_a_traceback(value: Any) -> None:
    values = value if isinstance(value, dict) else {**MINIMAL, "tuning": value}
    try:
        parse_spec(values)
    except SpecError as error:
        assert "\n" not in error.what


def test_a_spec_survives_yaml_and_json() -> None:
    spec = parse_spec(
        {
            **MINIMAL,
            "tuning": {"candidates": ["f32", "q8_0"], "quality_text": "/text"},
            "hardware": {"memory": "1Gi"},
        }
    )
    assert DeploySpec.model_validate_json(spec.model_dump_json()) == spec
    assert parse_spec(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec


def test_paths_are_taken_from_the_spec_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    texts = "quality_text: text.txt, task_set: t.jsonl, calibration_text: c.txt"
    path.write_text(f"name: tiny\nmodel: file:weights\ntuning: {{{texts}}}\n")
    spec = load_spec(path)
    assert spec.tuning.calibration_text == tmp_path / "c.txt"
    assert spec.model == f"file:{tmp_path / 'weights'}"
    assert spec.tuning.quality_text == tmp_path / "text.txt"
    assert spec.tuning.task_set == tmp_path / "t.jsonl"


def test_a_key_is_overridden_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: tiny\nmodel: file:weights\n")
    spec = load_spec(path, ["tuning.max_batch=4", "tuning.candidates=[f32]", "name=other"])
    assert (spec.name, spec.tuning.max_batch, spec.tuning.candidates) == ("other", 4, (CandidateFormat.F32,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_batch", "--set 'max_batch' is not KEY=VALUE"),
        ("name.x=1", "--set name.x: name is not a section"),
        ("tuning.max_batch=[", "--set tuning.max_batch, line 2 is not YAML: "),
    ],
)
def test_a_wrong_override_says_so(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: tiny\nmodel: file:weights\n")
    with pytest.raises(SpecError, match=message):
        load_spec(path, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "is not a mapping of keys"),
        ("name: [\n", "is not YAML"),
        (b"\xff\xfe\x00", "cannot read the spec file .*: byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_spec_says_so(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError, match=message):
        load_spec(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no spec file"):
        load_spec(tmp_path / "none.yaml")
