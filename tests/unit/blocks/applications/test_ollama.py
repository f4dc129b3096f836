"""The client of Ollama's HTTP API, against `tests/support/ollama_server.py`, which speaks the documented API and is not
Ollama: that cannot be installed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ollama_server import ANSWER, State, ollama_server

from blocks.applications.ollama import OllamaApi
from blocks.engine.api import EngineApi
from tasks.core.digests import digest_of_file
from tasks.core.errors import EngineError, NetworkError


@pytest.fixture
def served() -> Iterator[tuple[OllamaApi, State]]:
    with ollama_server() as (address, state), OllamaApi(address) as api:
        yield api, state


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(range(256)) * 8200)  # two chunks
    return file


def test_a_gguf_becomes_a_model_that_answers(served: tuple[OllamaApi, State], gguf: Path) -> None:
    api, state = served
    assert api.version() == "0.30.11"
    digest = api.create("chat", gguf)
    assert digest == digest_of_file(gguf)
    assert state.blobs[digest] == gguf.read_bytes()
    assert state.models == {"chat": {"tiny.gguf": digest}}
    answer = api.chat("chat", "hello", 8)
    assert (answer.text, answer.prompt_tokens, answer.output_tokens, answer.seconds) == (ANSWER, 5, 1, 0.005)
    with EngineApi(api.base_url) as engine:
        assert engine.complete("chat", "hello", 1).text == ANSWER
    api.delete("chat")
    api.delete("chat")
    assert not state.models


def test_a_blob_is_sent_once(served: tuple[OllamaApi, State], gguf: Path) -> None:
    api, state = served
    api.create("chat", gguf)
    api.create("other", gguf)
    assert sum(request.startswith("POST /api/blobs/") for request in state.requests) == 1


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_model_on_the_processor_shows(served: tuple[OllamaApi, State], gguf: Path, share: float) -> None:
    api, state = served
    state.on_gpu = share
    api.create("chat", gguf)
    assert api.loaded() == ()
    api.chat("chat", "hello", 1)
    (model,) = api.loaded()
    assert (model.name, model.size_bytes) == ("chat", gguf.stat().st_size)
    assert model.gpu_share == pytest.approx(share)


def test_refusals_are_one_line(served: tuple[OllamaApi, State], gguf: Path) -> None:
    api, _ = served
    with pytest.raises(EngineError, match=r"/api/chat answered 404: model 'none' not found"):
        api.chat("none", "hello", 1)
    with pytest.raises(EngineError, match=r"refused the blob of .*tiny.gguf: digest mismatch"):
        api._push("sha256:" + "0" * 64, gguf)
    with pytest.raises(NetworkError, match="does not answer"), OllamaApi("http://127.0.0.1:9") as nobody:
        nobody.version()


@pytest.mark.parametrize(
    "answer", [{"message": None}, {"message": {"content": "x"}, "eval_count": 0}, {}, []]
)
def test_an_answer_without_text_is_none(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaApi("http://127.0.0.1:9") as api:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answer))
        monkeypatch.setattr(api, "_client", httpx.Client(base_url=api.base_url, transport=transport))
        with pytest.raises(EngineError, match="answered no text"):
            api.chat("chat", "hello", 1)
        monkeypatch.setattr(api, "has_blob", lambda digest: True)
        with pytest.raises(EngineError, match="did not make chat"):
            api.create("chat", Path(__file__))
