"""`slipway deploy` of a model with a chat template: told before anything is built, served, and served anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from chat_models import CHATML, chat_model
from commands import Desk

from blocks.prefect.server import TemporaryServer
from blocks.services.kept_code import TEMPLATES
from blocks.storage.record_store import FolderRecordStore
from tasks.core.chat_template import Template
from tasks.core.verdicts import StageName

pytestmark = [pytest.mark.engine, pytest.mark.server]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, prefect_api_url: str) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("home"), prefect_api_url)
    yield desk
    desk.run("stop", "chat")
    desk.left_nothing_but([])


def write_spec(folder: Path, model: Path, **changes: Any) -> Path:
    spec = {
        "name": "chat",
        "model": f"file:{model}",
        "hardware": {"cpus": 1},
        "staging": {"disk_benchmark": False},
        "tuning": {"max_batch": 1, "context": 128, "output_tokens": 8},
        **changes,
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def prompt_of(endpoint: str) -> str:
    """What the service makes of a user's message."""
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{endpoint}/apply-template", json=body, trust_env=False, timeout=60)
    return str(answer.json()["prompt"])


def names_of(endpoint: str) -> set[str]:
    """What the service calls its model."""
    (model,) = httpx.get(f"{endpoint}/v1/models", trust_env=False, timeout=60).json()["data"]
    return {model["id"], *model["aliases"]}


def test_a_chat_model_is_asked_in_chat_and_a_new_template_is_a_new_release(
    desk: Desk, tmp_path: Path
) -> None:
    model = chat_model(tmp_path / "model")
    spec = write_spec(tmp_path, model)
    first = desk.deploy(spec).answer
    assert first["verdict"] == "serving"
    assert prompt_of(first["endpoint"]) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    asked = desk.run("logs", "chat", "--requests", "-n", "500").stdout
    assert "POST /v1/chat/completions status=200" in asked
    assert "POST /v1/completions" not in asked, "the gate, its health and the answer that is shown"
    (kept,) = (desk.home / "services" / "chat" / "releases").glob("*.json")
    assert json.loads(kept.read_text())["config"]["chat"] == {
        "digest": Template(CHATML, "").digest,
        "file": None,
        "ends_with": "<|im_end|>",
    }

    # The same template in a file of the user's.
    mine = tmp_path / "mine.jinja"
    mine.write_text("{% for message in messages %}<{{ message['content'] }}>{% endfor %}")
    changed = write_spec(tmp_path, model, serving={"chat_template": "mine.jinja", "names": ["org/chat:1"]})
    assert "org/chat:1" not in names_of(first["endpoint"])
    second = desk.deploy(changed).answer
    assert second["release"] != first["release"]
    assert {row["stage"] for row in second["stages"] if row["cached"]} == {
        "environment",
        "compatibility",
        "staging",
        "quantization",
    }
    assert prompt_of(second["endpoint"]) == "<Hello>"
    assert names_of(second["endpoint"]) == {"chat", "org/chat:1"}
    again = desk.deploy(changed).answer
    assert again["release"] == second["release"]
    assert {row["stage"] for row in again["stages"] if not row["cached"]} == {"health"}

    # Its release keeps it, whatever becomes of the file; another text is another release.
    mine.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    third = desk.deploy(changed).answer
    assert prompt_of(third["endpoint"]) == "[Hello]"
    mine.unlink()
    back = desk.run("rollback", "chat")
    assert back.code == 0, back.stderr
    assert prompt_of(third["endpoint"]) == "<Hello>"
    assert len(list((desk.home / TEMPLATES).iterdir())) == 2


def test_a_broken_template_is_refused_before_anything_is_built(desk: Desk, tmp_path: Path) -> None:
    built = len(FolderRecordStore(desk.home / "records").list(StageName.ENVIRONMENT))
    spec = write_spec(tmp_path, chat_model(tmp_path / "model", "{{ messages[0].text.strip() }}"))
    ended = desk.deploy(spec)
    assert ended.code == 1
    assert "tokenizer_config.json: the chat template does not render a user's message" in ended.error
    assert "serving.chat_template" in ended.fix
    assert len(FolderRecordStore(desk.home / "records").list(StageName.ENVIRONMENT)) == built


def test_a_template_that_is_not_there_is_a_wrong_spec(desk: Desk, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, chat_model(tmp_path / "model"), serving={"chat_template": "gone.jinja"})
    ended = desk.deploy(spec)
    assert ended.code == 2
    assert ended.error == f"no chat template {tmp_path / 'gone.jinja'}"


def test_the_key_in_a_block_is_found_nowhere(
    desk: Desk, prefect_server: TemporaryServer, tmp_path: Path
) -> None:
    key = "never-to-be-seen-4711"
    save = "import sys; from prefect.blocks.system import Secret; Secret(value=sys.stdin.read()).save('chat-keys', overwrite=True)"
    environment = {**os.environ, "PREFECT_API_URL": desk.api}
    subprocess.run([sys.executable, "-c", save], input=key, text=True, env=environment, check=True)
    spec = write_spec(tmp_path, chat_model(tmp_path / "model"), serving={"api_key": "block:chat-keys"})
    ended = desk.deploy(spec)
    url = f"{ended.answer['endpoint']}/v1/models"
    sent = {"Authorization": f"Bearer {key}"}
    assert [httpx.get(url, headers=headers, trust_env=False).status_code for headers in ({}, sent)] == [
        401,
        200,
    ]
    own_server = prefect_server.log.parents[1]
    kept = [path for home in (desk.home, own_server) for path in home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in kept), "the database of Prefect's server is among them"
    assert not [path for path in kept if key.encode() in path.read_bytes()]
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if key in line]
    assert key not in ended.stdout + ended.stderr
