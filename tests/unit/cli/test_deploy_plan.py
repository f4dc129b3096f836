"""`slipway deploy --dry-run`: the plan, and no effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deployments.cli.deploy import deploy
from deployments.cli.plan import plan_of
from tasks.core.errors import ModelError
from tasks.core.spec import parse_spec


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


def test_the_plan_says_how_sizes_are_loaded(random_model: Path) -> None:
    model = {"name": "tiny", "model": f"file:{random_model}"}

    def batching(**tuning: object) -> str:
        spec = parse_spec({**model, "tuning": tuning})
        return next(step.does for step in plan_of(spec) if step.stage == "batching")

    assert batching() == "measure batch sizes up to 16 at 512 tokens of context"
    assert batching(load={"kind": "open", "rate": 2.5}, load_generator="guidellm").endswith(
        "of context, 2.5 requests/s, by guidellm in its own environment"
    )


def test_people_see_a_table(random_model: Path, slipway_home: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: tiny\nmodel: file:{random_model}\ntarget: docker\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert shown.exit_code == 0
    assert "Plan for tiny" in shown.output
    assert "Nothing was done" in shown.output


def test_a_missing_model_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        plan_of(parse_spec({"name": "tiny", "model": f"file:{tmp_path / 'none'}"}))


def test_a_remote_model_is_not_looked_at() -> None:
    steps = plan_of(parse_spec({"name": "tiny", "model": "s3://bucket/model"}))
    assert any("s3://bucket/model" in step.does for step in steps)
