"""Models with a chat template on the real engine: they are asked as their users ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from chat_models import CHATML, chat_model

from blocks.candidates.candidate_worker import make_gguf
from blocks.engine.api import EngineApi
from blocks.engine.bench import EngineBench
from blocks.engine.load_client import LoadClient
from blocks.engine.load_prompts import CHAT, asking_for
from blocks.engine.process import RunningEngine
from tasks.batching.models import ProbeRequest
from tasks.core.asking import ask
from tasks.core.errors import EngineError, SpecError
from tasks.core.load import Load
from tasks.core.serving import ChatTemplate, ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.engines.transformers import Transformers
from tasks.quantization.recipe import RECIPES

pytestmark = pytest.mark.engine

NAMED = [{"name": "tool_use", "template": "B{{ tools }}"}, {"name": "default", "template": CHATML}]
CONFIG = ServingConfig(
    served_name="tiny", batch=2, context=256, threads=1, chat=ChatTemplate(digest="sha256:" + "a" * 64)
)
LOAD = Load(clients=2, prompt_tokens=64, output_tokens=8, min_s=0.05, max_s=0.3)


@pytest.fixture(scope="module")
def bench(engine_python: Path) -> EngineBench:
    return EngineBench(engine=LlamaCpp(), python=engine_python)


@pytest.fixture(scope="module")
def gguf(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with several named templates."""
    folder = tmp_path_factory.mktemp("chat")
    file = folder / "model.gguf"
    model = chat_model(folder / "model", NAMED)
    make_gguf(engine_python, RECIPES["gguf-file"].worker, model, CandidateFormat.F16, file)
    return file


@contextmanager
def served(
    bench: EngineBench, gguf: Path, folder: Path, config: ServingConfig = CONFIG
) -> Iterator[tuple[RunningEngine, EngineApi]]:
    with bench.serve(gguf, config, folder / "log") as engine, EngineApi(engine.base_url) as api:
        yield engine, api


def prompt_of(api: EngineApi, message: str) -> str:
    """What the engine makes of a user's message."""
    body = {"messages": [{"role": "user", "content": message}]}
    return str(api.post("/apply-template", body)["prompt"])


def test_the_default_of_several_templates_is_served(bench: EngineBench, gguf: Path, tmp_path: Path) -> None:
    with served(bench, gguf, tmp_path) as (_, api):
        assert prompt_of(api, "Hello") == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        answer = ask(api, CONFIG, "Hello", 4)
        bare = ask(api, CONFIG.model_copy(update={"chat": None}), "Hello", 4)
    assert answer.text
    assert answer.output_tokens == 4
    assert answer.prompt_tokens > bare.prompt_tokens


@pytest.mark.parametrize("template", ["[{{ messages[0]['content'] }}]", CHATML.replace("im_", "")])
def test_a_file_replaces_the_models_own(
    template: str, bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    chat = ChatTemplate(digest="sha256:" + "b" * 64, file=file)
    with served(bench, gguf, tmp_path, CONFIG.model_copy(update={"chat": chat})) as (_, api):
        expected = (
            "[Hello]" if template.startswith("[") else "<|start|>user\nHello<|end|>\n<|start|>assistant\n"
        )
        assert prompt_of(api, "Hello") == expected


def test_prompts_of_a_load_have_the_tokens_that_were_asked_for(
    bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    with served(bench, gguf, tmp_path) as (engine, api):
        asking = asking_for(LlamaCpp().card, api, CONFIG)
        client = LoadClient(engine.base_url, "tiny", asking.pool, asking.body, asking.path)
        assert asking.path == CHAT
        assert 0 < asking.added < asking.fewest < 64
        bodies = []
        for _, request in zip(range(8), client.requests(LOAD, 0), strict=False):
            body = json.loads(request.partition(b"\r\n\r\n")[2])
            usage = httpx.post(
                f"{engine.base_url}{CHAT}", json={**body, "stream": False, "stream_options": None}
            ).json()["usage"]
            assert usage["prompt_tokens"] == 64
            assert usage["completion_tokens"] == body["max_tokens"]
            bodies.append(body["messages"][0]["content"])
        assert len(set(bodies)) == 8
        figures = client.run(LOAD)
    assert figures.requests >= 4
    assert figures.ttft_p50_ms


def test_short_prompts_are_as_short_as_the_template_allows(
    bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    with served(bench, gguf, tmp_path) as (_, api):
        asking = asking_for(LlamaCpp().card, api, CONFIG)
        body = asking.body("tiny", asking.pool[:1], 2)
        answer = api.chat("tiny", body["messages"][0]["content"], 1)
    assert answer.prompt_tokens == asking.prompt_tokens(1) == asking.fewest


def test_batch_sizes_are_measured_with_chats(bench: EngineBench, gguf: Path, tmp_path: Path) -> None:
    request = ProbeRequest(model_file=gguf, config=CONFIG, log=tmp_path / "log", output_tokens=8)
    (run,) = bench.probe(request)
    assert run.answered, run.failure
    assert run.throughput


def test_a_template_without_room_for_an_answer_is_refused(
    bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Answer as a pilot would. " * 8 + CHATML)
    chat = ChatTemplate(digest="sha256:" + "f" * 64, file=file)
    config = CONFIG.model_copy(update={"context": 64, "chat": chat})
    request = ProbeRequest(model_file=gguf, config=config, log=tmp_path / "log", output_tokens=32)
    with pytest.raises(
        SpecError, match=r"the chat template adds \d+ tokens to each prompt.* tuning.context 64"
    ):
        bench.probe(request)


def test_an_engine_that_drops_what_users_say_is_not_measured(
    bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("Hello.")
    chat = ChatTemplate(digest="sha256:" + "c" * 64, file=file)
    with (
        served(bench, gguf, tmp_path, CONFIG.model_copy(update={"chat": chat})) as (_, api),
        pytest.raises(EngineError, match="its chat template drops what users say"),
    ):
        asking_for(LlamaCpp().card, api, CONFIG)


def test_transformers_serve_chats_with_a_template_of_the_users(
    transformers_python: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    model = chat_model(tmp_path / "model", files={"chat_template.jinja": CHATML})
    own = CONFIG.model_copy(update={"batch": 1, "names": ("org/other",)})
    mine = ChatTemplate(digest="sha256:" + "e" * 64, file=file)
    bench = EngineBench(engine=Transformers(), python=transformers_python)
    tokens = {}
    for config in (own, own.model_copy(update={"chat": mine})):
        with served(bench, model, tmp_path, config) as (engine, api):
            tokens[config.chat] = ask(api, config, "Hello", 4).prompt_tokens
            assert api.chat("org/other", "Hello", 4).prompt_tokens == tokens[config.chat]
            with pytest.raises(EngineError, match="answered 4"):
                api.chat("org/third", "Hello", 1)
            asking = asking_for(Transformers().card, api, config)
            client = LoadClient(engine.base_url, "tiny", asking.pool, asking.body, asking.path)
            assert client.run(LOAD.model_copy(update={"clients": 1})).tpot_p50_ms
    assert tokens[mine] < tokens[own.chat], "the user's own adds two brackets only"


def test_a_template_that_the_engine_cannot_read_fails_at_its_start(
    bench: EngineBench, gguf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for")
    chat = ChatTemplate(digest="sha256:" + "d" * 64, file=file)
    with (
        pytest.raises(EngineError),
        served(replace(bench, start_timeout_s=60), gguf, tmp_path, CONFIG.model_copy(update={"chat": chat})),
    ):
        pass
