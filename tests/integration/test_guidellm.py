"""guidellm in the environment that is built and locked for it, against the real engine and an odd one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from chat_models import chat_model
from strays import processes_of

from blocks.candidates.candidate_worker import make_gguf
from blocks.engine.bench import EngineBench
from blocks.engine.guidellm import Guidellm
from blocks.engine.tool_environment import tool_python
from tasks.batching.guidellm import REQUIREMENTS, Target
from tasks.batching.models import ProbeRequest
from tasks.core.serving import ChatTemplate, ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.recipe import RECIPES

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("torch_wheels")]


def test_guidellm_measures_what_the_built_in_client_does(
    engine_python: Path, slipway_home: Path, repository: Path, tmp_path: Path
) -> None:
    settings = Settings.load()

    def found(*, install: bool) -> Path | None:
        return tool_python(REQUIREMENTS, settings, name="guidellm", torch_backend="cpu", install=install)

    assert found(install=False) is None
    python = found(install=True)
    assert python is not None
    assert found(install=False) == python
    tokenizer = repository / "examples" / "tiny" / "model"
    bench = EngineBench(engine=LlamaCpp(), python=engine_python)
    model = tmp_path / "model.gguf"
    make_gguf(engine_python, RECIPES["gguf-file"].worker, tokenizer, CandidateFormat.Q8_0, model)
    config = ServingConfig(served_name="tiny", batch=2, context=256, threads=1)
    (own,) = bench.probe(
        ProbeRequest(model_file=model, config=config, log=tmp_path / "log", output_tokens=32, runs=1)
    )
    late = _late(python, repository, tmp_path)
    with_template = make_chat(engine_python, tmp_path)
    chat = ChatTemplate(digest="sha256:" + "a" * 64)
    chatting = replace(bench, load_by=lambda url, name: Guidellm(late, Target(url, name, tokenizer, True)))
    (in_chat,) = chatting.probe(
        ProbeRequest(
            model_file=with_template,
            config=config.model_copy(update={"chat": chat}),
            log=tmp_path / "log",
            output_tokens=32,
            runs=1,
        )
    )
    assert in_chat.answered, in_chat.failure
    assert set(in_chat.latency_ms) == set(own.latency_ms)
    assert 0.1 < (in_chat.throughput or 0) / (own.throughput or 1) < 10
    theirs = replace(bench, load_by=lambda url, name: Guidellm(late, Target(url, name, tokenizer)))
    (run,) = theirs.probe(
        ProbeRequest(model_file=model, config=config, log=tmp_path / "log", output_tokens=32, runs=1)
    )
    assert run.answered, run.failure
    assert set(run.latency_ms) == set(own.latency_ms)
    # The same load; on a busy host no two runs are alike, but neither is another thing measured.
    assert 0.2 < (run.throughput or 0) / (own.throughput or 1) < 5
    assert not processes_of(tmp_path)
    assert not processes_of(python.parent)


def make_chat(engine_python: Path, folder: Path) -> Path:
    """The tiny model with a chat template, as GGUF."""
    model = folder / "chat.gguf"
    source = chat_model(folder / "chat")
    make_gguf(engine_python, RECIPES["gguf-file"].worker, source, CandidateFormat.Q8_0, model)
    return model


def _late(python: Path, repository: Path, folder: Path) -> Path:
    """That Python, for guidellm on a busy host: it would wait forever at its end, if it were not mended."""
    late = folder / "python"
    support = repository / "tests" / "support" / "late_guidellm.py"
    late.write_text(f'#!/bin/sh\nexec "{python}" "{support}" "$@"\n')
    late.chmod(0o755)
    return late
