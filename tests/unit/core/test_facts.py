"""The facts format: a missing key is not known, null is looked for and not there, anything else one clear line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.core.errors import WrongUseError
from tasks.core.facts import Facts, Gpu, parse_facts


def refused(text: str) -> str:
    with pytest.raises(WrongUseError) as caught:
        parse_facts(text)
    return str(caught.value)


def test_missing_is_not_null() -> None:
    assert not parse_facts("{}").known("driver")
    assert parse_facts('{"driver": null}').known("driver")
    assert parse_facts('{"gpus": null}').gpus == ()
    assert parse_facts('{"packages": null}').packages == {}
    assert parse_facts('{"forward_compat": null}').forward_compat is False


def test_one_text_is_a_list_of_one() -> None:
    facts = parse_facts('{"image_requires": "cuda>=13.0", "container_gpus": "cdi"}')
    assert (facts.image_requires, facts.container_gpus) == (("cuda>=13.0",), ("cdi",))
    assert parse_facts('{"gpus": [{"name": "H100", "mig": "1g.10gb"}]}').gpus[0].mig == ("1g.10gb",)


def test_what_is_not_known_stays_so_in_files() -> None:
    facts = parse_facts('{"driver": null, "gpus": [{"name": "T4"}]}')
    again = parse_facts(facts.model_dump_json())
    assert again == facts
    assert again.model_fields_set == {"driver", "gpus"}


def test_package_names_are_canonical() -> None:
    assert parse_facts('{"packages": {"Flash_Attn": "2.8"}}').packages == {"flash-attn": "2.8"}


@pytest.mark.parametrize(
    ("given", "read"), [("b4574", "4574"), ("v0.30.1", "0.30.1"), ("V1", "1"), ("1.0b2", "1.0b2")]
)
def test_a_letter_before_a_release_is_left_out(given: str, read: str) -> None:
    facts = parse_facts(json.dumps({"engine_version": given, "packages": {"llama.cpp": given}}))
    assert facts.engine_version == read
    assert list(facts.packages.values()) == [read]


def test_letters_alone_are_not_a_release() -> None:
    assert "not a version" in refused('{"engine_version": "bv"}')
    assert "not a version" in refused('{"engine_version": "b"}')


def test_one_line_for_what_is_wrong() -> None:
    assert refused('{"drivr": "1"}') == snapshot("facts: unknown key 'drivr' (did you mean 'driver'?)")
    assert refused('{"gpus": [{"nam": "T4", "name": "T4"}]}') == snapshot(
        "facts: unknown key 'gpus.0.nam' (did you mean 'name'?)"
    )
    assert refused('{"gpus": [{}]}') == snapshot(
        "facts: the key 'gpus.0.name' is missing (add 'gpus.0.name')"
    )
    assert refused('{"driver": 535}') == snapshot("facts: driver: Input should be a valid string (got 535)")
    assert refused('{"driver": "new"}') == snapshot(
        "facts: driver: not a version such as 12.4 or 535.154.05 (got 'new')"
    )
    assert refused('{"forward_compat": "yes"}') == snapshot(
        "facts: forward_compat: Input should be a valid boolean (got 'yes')"
    )
    assert refused('{"packages": {"torch": "latest"}}') == snapshot(
        "facts: packages.torch: not a version such as 12.4 or 535.154.05 (got 'latest')"
    )
    assert refused('{"packages": ["torch"]}') == snapshot(
        "facts: packages: Input should be a valid object (got ['torch'])"
    )
    assert refused('{"gpus": "H200"}') == snapshot("facts: gpus: Input should be a valid list (got 'H200')")
    assert refused('{"memory_bytes": true}') == snapshot(
        "facts: memory_bytes: Input should be a valid integer (got True)"
    )
    assert refused("[]") == snapshot('facts is not a JSON object (for example {"driver": "535.154.05"})')
    assert refused("{") == snapshot(
        "facts is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert refused('{"distribution": "\\ud800"}') == snapshot(
        "facts is not JSON: 'utf-8' codec can't encode character '\\ud800' in position 18: surrogates not allowed"
    )
    assert refused('{"disks": [{"mont": "/"}]}') == snapshot(
        "facts: the key 'disks.0.mount' is missing (add 'disks.0.mount')"
    )
    assert refused('{"driver": null, "driver": "580"}') == snapshot("facts is not JSON: a key occurs twice")
    assert "known keys: driver" in refused('{"zzz": 1}')
    assert refused('{"packages": {"a\\nb": null}}') == snapshot(
        "facts: packages.a b: Input should be a valid string (got None)"
    )
    assert "not JSON" in refused("[" * 100_000)
    assert "not JSON" in refused('{"cpu_count": ' + "9" * 5000 + "}")


def test_fingerprint_is_of_the_hardware_alone() -> None:
    host = Facts(cpu="x", cpu_count=2, memory_bytes=2**34, gpus=(Gpu(name="T4", memory_bytes=1),))
    assert (
        host.fingerprint
        == host.model_copy(update={"driver": "580", "memory_bytes": 2**34 + 4096}).fingerprint
    )
    assert host.fingerprint != host.model_copy(update={"gpus": ()}).fingerprint


versions = st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{1,3}){0,3}([abc][0-9])?(\+cu1[0-9]{2}|\+cpu)?\Z")
names = st.text(max_size=12)
good = st.fixed_dictionaries(
    {},
    optional={
        **{
            name: st.none() | versions
            for name in ("driver", "cuda_driver", "nvcc", "glibc", "engine_version", "cuda_build")
        },
        "gpus": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"name": names | st.sampled_from(["NVIDIA H200", "Tesla V100", "GeForce RTX 4090"])},
                optional={
                    "compute_capability": st.none() | st.sampled_from(["3.5", "7.0", "9.0", "12.1", "99.9"])
                },
            ),
            max_size=3,
        ),
        "engine": st.none() | names | st.sampled_from(["vllm", "ollama", "llama.cpp", "sglang", "dify"]),
        "packages": st.dictionaries(st.sampled_from(["torch", "vllm", "numpy", "transformers"]), versions),
        "family": st.none() | st.sampled_from(["deepseek", "llama", ""]),
        "dtype": st.none() | st.sampled_from(["float16", "fp8", "nvfp4", "bf16", ""]),
        "forward_compat": st.none() | st.booleans(),
        "distribution": st.none() | names,
    },
)
SAID = {"block", "warn", "unknown", "pass"}


@given(good)
@settings(max_examples=200, deadline=None)
def test_any_facts_get_a_verdict(values: dict[str, object]) -> None:
    facts = parse_facts(json.dumps(values))
    assert parse_facts(facts.model_dump_json()) == facts
    result = judge(Survey(facts=facts))
    assert result.verdict.value in SAID
    if not {"driver", "cuda_build", "gpus"} <= values.keys():
        assert result.verdict != "pass"
    if "{" not in json.dumps([facts.distribution, facts.engine, *(gpu.name for gpu in facts.gpus or ())]):
        assert "{" not in "".join(one.message for one in result.findings if one.precedence == "P2")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Facts.model_fields]) | st.text(max_size=6), json_values, max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_json_is_judged_or_refused_in_one_line(values: dict[str, object]) -> None:
    try:
        facts = parse_facts(json.dumps(values))
    except WrongUseError as error:
        assert "\n" not in error.what
    else:
        assert judge(Survey(facts=facts)).verdict.value in SAID


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_in_one_line(content: bytes) -> None:
    try:
        parse_facts(content)
    except WrongUseError as error:
        assert "\n" not in error.what
