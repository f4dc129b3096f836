"""What a model's own files say against a spec ends a deploy before a copy, and its dry run with the same line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_model import rewrite_model
from small_gguf import write_gguf

from deployments.cli.main import main

COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def no_server(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise AssertionError("a Prefect server would be started")

    monkeypatch.setattr("deployments.prefect_api.prefect_api", start)


@pytest.fixture
def model(random_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_model, tmp_path / "model"))


def run(model: Path, *options: str, engine: str = "llama.cpp", form: str = "f16") -> object:
    """The exit code of a deploy."""
    spec = model.parent / "spec.yaml"
    spec.write_text(
        f"name: a\nmodel: file:{model}\nengine: {engine}\ntuning: {{candidates: [{form}], context: 256}}\n"
    )
    return code_of("deploy", str(spec), *options)


def code_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def tokenizer(**changes: Any) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        path = model / "tokenizer.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "model": {**found["model"], **changes}}))

    return change


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda model: rewrite_model(model, config=changes)


def template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for %}")


def gguf_below(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "Q4").mkdir()
    write_gguf(model / "Q4" / "m.gguf")


UNIGRAM = tokenizer(type="Unigram")
EARLY = {
    "a tokenizer that llama.cpp cannot cut": (UNIGRAM, "the tokenizer kind Unigram is not a byte-level BPE"),
    "no tokenizer.json": (
        lambda model: (model / "tokenizer.json").unlink(),
        "tokenizer.json is missing or not a tokenizer",
    ),
    "another architecture": (
        config(architectures=["Qwen2ForCausalLM"]),
        "Slipway cannot convert the architecture Qwen2ForCausalLM to GGUF",
    ),
    "a scaling that is not known": (config(rope_scaling={"type": "longrope"}), "rope scaling longrope"),
    "a context that is too long": (config(max_position_embeddings=128), "supports at most 128 tokens"),
    "a chat template that is not Jinja": (template, "the chat template is not valid Jinja"),
    "GGUF in a subfolder": (gguf_below, "contains no weights, but its folder Q4 has GGUF files"),
    "an odd config": (config(architectures=None), "the architecture (none)"),
}


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize(("change", "told"), EARLY.values(), ids=EARLY)
def test_a_deploy_and_its_dry_run_refuse_alike(
    change: Callable[[Path], object],
    told: str,
    options: tuple[str, ...],
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(model)
    assert run(model, *options) in (1, 2)
    err = capsys.readouterr().err
    assert told in err
    assert err.count("error:") == 1
    assert "slipway-model-" not in err  # where small files were copied to for the check


@pytest.mark.parametrize(
    "change",
    [
        UNIGRAM,
        lambda model: (model / "tokenizer.json").rename(model / "tekken.json"),
        config(rope_scaling={}),
    ],
)
def test_what_only_gguf_cares_about_does_not_stop_engines_that_load_folders(
    change: Callable[[Path], object], model: Path
) -> None:
    change(model)
    assert run(model, "--dry-run", engine="transformers", form="bf16") == 0


def test_a_dry_run_reads_the_headers_of_all_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite_model(model, tensors={"model.layers.1.mlp.up_proj.weight": None})
    assert run(model, "--dry-run") == 1
    assert f"file:{model}: the weights lack model.layers.1.mlp.up_proj" in capsys.readouterr().err


def test_a_dry_run_says_what_stays_behind(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert run(model, "--dry-run") == 0
    told = "warning: other weights next to the model, not copied: consolidated.safetensors"
    assert told in capsys.readouterr().err


def test_a_dry_run_says_when_it_cannot_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: a\nmodel: s3://bucket/model\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPWAY_S3_BLOCK", "block")
        assert code_of("deploy", str(spec), "--dry-run") == 0
    assert "whether the model can be deployed is not known: its credentials are in" in capsys.readouterr().err


@pytest.mark.parametrize(("commits", "main_at"), [((COMMIT,), None), ((COMMIT, "b" * 40), COMMIT)])
def test_a_cache_of_snapshots_is_planned_as_it_is_deployed(
    commits: tuple[str, ...], main_at: str | None, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cache_of(model, commits, main_at), "--dry-run") == 0
    assert "Nothing was done" in capsys.readouterr().out


def test_of_several_snapshots_one_must_be_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = cache_of(model, (COMMIT, "b" * 40), None)
    assert run(cache, "--dry-run") == 1
    err = capsys.readouterr().err
    assert f"{cache} is a Hugging Face cache with 2 snapshots, and none is its main" in err
    assert f"name one: file:{cache}/snapshots/{COMMIT}" in err


def cache_of(model: Path, commits: tuple[str, ...], main_at: str | None) -> Path:
    """The model in a Hugging Face cache: links to blobs, and `main` if it points to a snapshot."""
    cache = model.parent / "models--org--m"
    (cache / "refs").mkdir(parents=True)
    shutil.copytree(model, cache / "blobs")
    for commit in commits:
        (cache / "snapshots" / commit).mkdir(parents=True)
        for path in (cache / "blobs").iterdir():
            (cache / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{path.name}")
    if main_at:
        (cache / "refs" / "main").write_text(main_at)
    return cache
