"""`slipway deploy --dry-run`: the plan, and no effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from inline_snapshot import snapshot
from plain_safetensors import write_plain
from quantized_model import say_quantized, write_int8_model
from releases import make_release
from small_gguf import write_gguf

from blocks.storage.record_store import open_record_store
from deployments.cli.changes import DECIDED_BY, standings
from deployments.cli.deploy import _describe_model, deploy
from tasks.core.errors import ModelError, SpecError
from tasks.core.files import write_atomically
from tasks.core.records import new_record
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.verdicts import StageName
from tasks.lifecycle.plan import plan_of
from tasks.rollout.history import flat


def test_the_plan_names_every_stage_and_does_nothing(
    random_model: Path, slipway_home: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{random_model}\nrollout: {{port: 8123}}\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--json"])
    plan = {step["stage"]: step["does"] for step in json.loads(shown.output)["plan"]}
    assert list(plan) == [
        "environment",
        "compatibility",
        "staging",
        "quantization",
        "batching",
        "rollout",
        "health",
    ]
    assert "xllamacpp" in plan["environment"]
    assert "qwen3, 2 layers" in plan["staging"]
    assert "127.0.0.1:8123" in plan["rollout"]
    assert not slipway_home.exists()


def test_an_address_that_others_can_reach_needs_a_key_or_is_warned_of(
    random_model: Path, slipway_home: Path, tmp_path: Path
) -> None:
    keys, spec = tmp_path / "keys", tmp_path / "spec.yaml"
    keys.touch(0o600)
    keys.write_text("the-key-of-today")

    def warned(host: str, *options: str) -> list[str]:
        spec.write_text(f"name: tiny\nmodel: file:{random_model}\nrollout: {{host: '{host}'}}\n")
        shown = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--json", *options])
        assert shown.exit_code == 0, shown.output
        warnings: list[str] = json.loads(shown.stdout)["warnings"]
        assert shown.stderr == "".join(f"warning: {warning}\n" for warning in warnings)
        return warnings

    assert warned("0.0.0.0") == snapshot(
        ["everyone who can reach 0.0.0.0 may use the service: it needs no key (serving.api_key)"]
    )
    assert warned("127.0.0.1") == warned("::1") == []
    assert warned("0.0.0.0", "--set", "serving.api_key=file:keys") == []


def test_the_plan_says_how_sizes_are_loaded(random_model: Path) -> None:
    model = {"name": "tiny", "model": f"file:{random_model}"}

    def batching(**tuning: object) -> str:
        spec = parse_spec({**model, "tuning": tuning})
        return next(step.does for step in plan_of(spec, "") if step.stage == "batching")

    assert batching() == "measure batch sizes up to 16 at 512 tokens of context"
    assert batching(load={"kind": "open", "rate": 2.5}, load_generator="guidellm").endswith(
        "of context, 2.5 requests/s, by guidellm in its own environment"
    )


@pytest.mark.parametrize(
    ("engine", "gpus", "who"),
    [
        ("llama.cpp", 0, ""),
        (
            "llama.cpp",
            1,
            "; llama.cpp decides at each size how many layers it puts into 80% of the memory of the GPU",
        ),
        ("vllm", 2, "; vllm takes at most 80% of the memory of 2 GPUs, and says how much its cache holds"),
        ("transformers", 1, "; transformers takes at most 80% of the memory of the GPU"),
    ],
)
def test_the_plan_says_who_decides_how_a_model_lies_on_gpus(
    engine: str, gpus: int, who: str, random_model: Path
) -> None:
    candidates = ["q8_0"] if engine == "llama.cpp" else ["bf16"]
    spec = parse_spec(
        {
            "name": "tiny",
            "model": f"file:{random_model}",
            "engine": engine,
            "hardware": {"gpus": gpus},
            "objectives": {"memory_fraction": 0.8},
            "tuning": {"candidates": candidates},
        }
    )
    (does,) = (step.does for step in plan_of(spec, "") if step.stage == "batching")
    assert does == "measure batch sizes up to 16 at 512 tokens of context" + who


def test_people_see_a_table(random_model: Path, slipway_home: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{random_model}\ntarget: docker\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert shown.exit_code == 0
    assert "Plan for tiny" in shown.output
    assert "Nothing was done" in shown.output


def test_the_plan_says_what_the_spec_adds_to_the_engine() -> None:
    given = {"engine_args": {"seed": 1}, "engine_env": {"A": "1"}, "engine_version": "2026.9.11063"}
    plan = {
        step.stage: step.does for step in plan_of(parse_spec({"name": "x", "model": "file:/m", **given}), "")
    }
    assert plan[StageName.ROLLOUT].startswith("start llama.cpp as a supervised process with --seed, A, pass")
    assert "lock xllamacpp==2026.9.11063, " in plan[StageName.ENVIRONMENT]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_what_slipway_sets_is_refused_before_anything_is_planned(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: tiny\nmodel: s3://bucket/model\nengine: vllm\nengine_args: {tp: 2}\n")
    answer = CliRunner().invoke(deploy, [str(spec), *more])
    assert isinstance(answer.exception, SpecError)
    assert answer.exception.what == "engine_args.tp: Slipway sets --tp of vLLM itself"


def test_a_missing_model_is_named_before_anything_runs(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{tmp_path / 'none'}\n")
    answer = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert isinstance(answer.exception, ModelError)
    assert "no model folder" in str(answer.exception)


def test_the_plan_says_what_is_not_known_of_a_model(slipway_home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NovelForCausalLM"], "model_type": "novel"}')
    write_plain(tmp_path / "model.safetensors", {"a.weight": ("U8", (1,), b"\0")})
    spec = parse_spec({"name": "tiny", "model": f"file:{tmp_path}", "engine": "transformers"})
    described, _ = _describe_model(spec)
    assert "(novel; Slipway does not know the architecture NovelForCausalLM" in described
    assert "config.json does not say how much memory keys and values take" in described


def test_a_remote_model_that_cannot_be_read_is_planned_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    spec = parse_spec({"name": "tiny", "model": "s3://bucket/model"})
    assert _describe_model(spec) == ("s3://bucket/model", None)
    assert "warning: whether the model can be deployed is not known: " in capsys.readouterr().err


def test_a_gguf_model_is_described_or_refused_as_by_the_deploy(slipway_home: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m-Q4_K_M.gguf")
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{tmp_path}#q4_k_m\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--json"])
    plan = {step["stage"]: step["does"] for step in json.loads(shown.output)["plan"]}
    assert plan["staging"].replace(str(tmp_path), "HERE") == snapshot(
        "copy file:HERE/m-Q4_K_M.gguf (llama, 2 layers, hidden 64, context 512, q4_k_m (1 q4_k, 1 f32 tensors), tokenizer gpt2, a chat template) as it is, and verify it"
    )
    assert plan["quantization"] == snapshot(
        "make nothing: the model is in q4_k_m; measure quality on no text, size and speed"
    )
    path.write_bytes(path.read_bytes()[:-1])
    cut = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert "is cut off" in str(cut.exception)
    assert not slipway_home.exists()


def test_a_quantized_model_is_described_or_refused_as_by_the_deploy(
    slipway_home: Path, random_model: Path, tmp_path: Path
) -> None:
    model = write_int8_model(random_model, tmp_path / "model")
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{model}\nengine: transformers\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--json"])
    plan = {step["stage"]: step["does"] for step in json.loads(shown.output)["plan"]}
    assert plan["staging"].replace(str(tmp_path), "HERE") == snapshot(
        "copy file:HERE/model (qwen3, 2 layers, hidden 128) as it is, and verify it"
    )
    assert plan["quantization"] == snapshot(
        "make nothing: the model is in compressed-tensors, int8; measure quality on no text, size and speed"
    )
    for override, why in (
        ("engine=llama.cpp", "which cannot be converted to GGUF for llama.cpp"),
        ("tuning.candidates=[bf16]", "so bf16 cannot be made of it"),
    ):
        refused = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--set", override])
        assert why in str(refused.exception)
    say_quantized(model, {"quant_method": "bitnet"})
    warned = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert "warning: whether transformers computes in bitnet on the CPU is not known" in warned.output
    assert not slipway_home.exists()


@pytest.fixture
def served(slipway_home: Path, random_model: Path) -> DeploySpec:
    """The spec of a release that serves, with a record for each stage that it rests on."""
    settings = Settings.load()
    gguf = slipway_home / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    store = open_record_store(settings)
    good = {"environment": "sound", "compatibility": "pass", "staging": "verified"}
    made = [
        new_record(
            stage=stage,
            subject="tiny",
            host_fingerprint="sha256:h",
            inputs_digest=f"sha256:{stage}",
            outcome=good.get(stage, "chosen"),
            seconds=1,
        )
        for stage in DECIDED_BY
        if stage is not StageName.ROLLOUT
    ]
    for record in made:
        store.put(record)
    release = make_release(Path("/venv/bin/python"), gguf, name="tiny")
    spec = parse_spec({"name": "tiny", "model": f"file:{random_model}"})
    release = release.model_copy(update={"spec": spec, "records": tuple(one.id for one in made)})
    folder = ServiceFolder(settings.services, "tiny")
    write_atomically(folder.release_file(release.id), release.model_dump_json(by_alias=True))
    state = ServiceState(
        name="tiny", target=release.target, host="127.0.0.1", port=1, release=release.id, since=release.at
    )
    write_atomically(folder.state_file, state.model_dump_json(by_alias=True))
    return release.spec


def running(spec: DeploySpec, fresh: tuple[str, ...] = ()) -> dict[str, str]:
    """Stages that would run, and why."""
    found = standings(spec, Settings.load(), fresh)
    return {str(stage): one.why for stage, one in found.items() if not one.cached}


def test_the_plan_of_what_serves_names_the_records_that_stand_in(served: DeploySpec) -> None:
    assert running(served) == {}
    found = standings(served, Settings.load(), ())
    assert found[StageName.BATCHING].why.startswith(f"record {found[StageName.BATCHING].record}, 0 min old")


@pytest.mark.parametrize(
    ("change", "stages", "why"),
    [
        ({"tuning": {"max_batch": 3}}, "batching rollout", "changed: tuning.max_batch: 16 -> 3"),
        ({"tuning": {"candidates": ["q8_0"]}}, "quantization batching rollout", "-> q8_0"),
        ({"rollout": {"port": 8123}}, "rollout", "changed: rollout.port: "),
        (
            {"engine_args": {"cache_type_k": "q8_0"}},
            "quantization batching rollout",
            "changed: engine_args.cache-type-k: nothing -> q8_0",
        ),
        ({"engine_env": {"A": "1"}}, "quantization batching rollout", "engine_env.A: nothing -> 1"),
        (
            {"engine_version": "2026.9.11063"},
            "environment compatibility quantization batching rollout",
            "engine_version: nothing -> 2026.9.11063",
        ),
        ({"model": "s3://a/b"}, "compatibility staging quantization batching rollout", "-> s3://a/b"),
        (
            {"environment": {"python": "3.12"}},
            "environment compatibility quantization batching rollout",
            "environment.python: ",
        ),
    ],
)
def test_a_changed_key_runs_the_stages_that_rest_on_it(
    served: DeploySpec, change: dict[str, object], stages: str, why: str
) -> None:
    spec = parse_spec({"name": "tiny", "model": served.model, **change})
    found = running(spec)
    assert list(found) == stages.split()
    assert all(why in one for one in found.values())


def test_what_is_asked_for_anew_runs(served: DeploySpec) -> None:
    assert running(served, ("batching",)) == {"batching": "requested by --fresh"}


def test_a_record_that_was_taken_back_stands_in_no_more(served: DeploySpec) -> None:
    record = new_record(
        stage=StageName.ENVIRONMENT,
        subject="tiny",
        host_fingerprint="sha256:h",
        inputs_digest="sha256:environment",
        outcome="conflicting",
        seconds=1,
    ).model_copy(update={"id": "7" + "Z" * 25})
    open_record_store(Settings.load()).put(record)
    assert running(served) == {"environment": "the newest record with these inputs says no"}


def test_where_nothing_serves_all_runs(slipway_home: Path) -> None:
    found = running(parse_spec({"name": "tiny", "model": "s3://bucket/model"}))
    assert set(found.values()) == {"no release of tiny serves"}
    assert len(found) == len(DECIDED_BY)
    assert not slipway_home.exists()


def test_every_key_of_the_spec_that_a_stage_rests_on_exists() -> None:
    given = {"name": "a", "model": "file:/m", "engine_args": {"seed": 1}, "engine_env": {"A": "1"}}
    keys = set(flat(DeploySpec.model_validate(given).model_dump(mode="json")))
    for stage, names in DECIDED_BY.items():
        for name in names:
            assert any(not name or key == name or key.startswith(f"{name}.") for key in keys), (stage, name)


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ((), []),
        (("--fresh", "batching"), ["batching"]),
        (("--fresh", "disk", "--fresh", "batching"), ["batching"]),
        (("--fresh",), ["environment", "compatibility", "staging", "quantization", "batching"]),
        (
            ("--fresh", "all", "--json"),
            ["environment", "compatibility", "staging", "quantization", "batching"],
        ),
    ],
)
def test_stages_are_named_on_the_command_line(
    served: DeploySpec, tmp_path: Path, arguments: tuple[str, ...], stages: list[str]
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(served.model_dump_json())
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run", "--json", *arguments])
    plan = json.loads(shown.output)["plan"]
    assert [step["stage"] for step in plan if step.get("why") == "requested by --fresh"] == stages
