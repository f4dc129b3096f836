"""Samples of a service that answers wrongly, or only sometimes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from releases import make_release

from blocks.engine.api import Completion
from tasks.core.contract import ContractResult
from tasks.core.errors import EngineError, NotFoundError
from tasks.core.files import write_atomically
from tasks.core.model_task import Task
from tasks.core.records import Record, new_record
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.serving import ChatTemplate, ServingConfig
from tasks.core.verdicts import StageName
from tasks.engines.card import Metrics
from tasks.health import apply, plan
from tasks.health.apply import ServiceApi
from tasks.health.models import (
    GpuSample,
    HealthResult,
    ProcessSample,
    ServiceSample,
)

METRICS = Metrics(
    requests_waiting="engine:waiting", work="requests", work_counters=("engine:done",), sources=("here",)
)

CONFIG = ServingConfig(served_name="chat", batch=1, context=64, threads=1)


class FakeApi:
    """Answers as it is told: None is a fault."""

    def __init__(self, *answers: float | None, metrics: dict[str, float] | None = None) -> None:
        self._answers = list(answers)
        self._metrics = metrics
        self.prompts: list[str] = []
        self.chats = 0
        self.others: list[str] = []

    def ready(self) -> bool:
        return True

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion:
        self.prompts.append(prompt)
        seconds = self._answers.pop(0)
        if seconds is None:
            raise EngineError("answered 500")
        return Completion("text", 1, max_tokens, seconds)

    def chat(self, model: str, message: str, max_tokens: int, /) -> Completion:
        self.chats += 1
        return self.complete(model, message, max_tokens)

    def embed(self, model: str, text: str, /) -> Completion:
        self.others.append("embed")
        return self.complete(model, text, 1)

    def rank(self, model: str, query: str, documents: tuple[str, ...], /) -> Completion:
        assert len(set(documents)) == 2
        self.others.append("rank")
        return self.complete(model, query, 1)

    def metrics(self, path: str) -> dict[str, float]:
        if self._metrics is None:
            raise EngineError("no metrics")
        return self._metrics


def test_latency_is_that_of_single_tokens_after_the_first_completion() -> None:
    api = FakeApi(9.0, 0.01, 0.02, 0.03, 0.04, 0.05, metrics={"engine:waiting": 2})
    sample = apply.sample_service(api, CONFIG, "The", METRICS)
    assert sample.latencies_ms == pytest.approx((10, 20, 30, 40, 50))
    assert (sample.completion, sample.failed, sample.requests_deferred) == ("text", 0, 2)
    assert len(set(api.prompts)) == 6, "a prompt asked twice is answered from the cache"


def test_a_model_that_chats_is_asked_in_chat() -> None:
    api = FakeApi(*[0.01] * 6)
    chat = CONFIG.model_copy(update={"chat": ChatTemplate(digest="sha256:" + "a" * 64)})
    assert apply.sample_service(api, chat, "The", METRICS).failed == 0
    assert api.chats == len(api.prompts) == 6


@pytest.mark.parametrize(("task", "asked"), [(Task.EMBED, "embed"), (Task.RERANK, "rank")])
def test_a_model_for_another_task_is_asked_for_it(task: Task, asked: str) -> None:
    api = FakeApi(*[0.01] * 6)
    sample = apply.sample_service(api, CONFIG.model_copy(update={"task": task}), "The", METRICS)
    assert (sample.failed, sample.waited_for) == (0, "answer")
    assert api.others == [asked] * 6
    assert len(set(api.prompts)) == 6


def test_requests_that_fail_are_counted() -> None:
    sample = apply.sample_service(FakeApi(1.0, 0.01, None, 0.01, None, 0.01), CONFIG, "The", METRICS)
    assert (sample.failed, len(sample.latencies_ms), sample.fault) == (2, 3, "answered 500")
    assert sample.requests_deferred is None, "an engine without metrics is not ill"


def test_without_a_completion_nothing_more_is_asked() -> None:
    api = FakeApi(None)
    assert apply.sample_service(api, CONFIG, "The", METRICS) == ServiceSample(
        ready=True, fault="answered 500"
    )
    assert len(api.prompts) == 1


class FakeInstruments:
    """A host with one GPU, and a service that answers."""

    def gpus(self) -> tuple[GpuSample, ...]:
        return (GpuSample(index=0, name="NVIDIA H200", uuid="GPU-1", temperature_c=99),)

    def process(self, folder: ServiceFolder, state: ServiceState) -> ProcessSample:
        return ProcessSample(alive=True, restarts=3)

    def api(self, base_url: str) -> AbstractContextManager[ServiceApi]:
        @contextmanager
        def opened() -> Iterator[ServiceApi]:
            assert base_url == "http://127.0.0.1:8080"
            yield FakeApi(*[0.01] * 6)

        return opened()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    return make_release(Path("/engine/bin/python"), gguf)


@pytest.fixture
def folder(release: Release, tmp_path: Path) -> ServiceFolder:
    """A service that is said to serve."""
    folder = ServiceFolder(tmp_path, "chat")
    state = ServiceState(
        name="chat", target=release.target, host="127.0.0.1", port=8080, release=release.id, since=release.at
    )
    write_atomically(folder.release_file(release.id), release.model_dump_json(by_alias=True))
    write_atomically(folder.state_file, state.model_dump_json(by_alias=True))
    return folder


def record_of(result: HealthResult) -> Record:
    return new_record(
        stage=StageName.HEALTH,
        subject=result.name,
        host_fingerprint="h",
        inputs_digest="d",
        outcome=result.verdict,
        seconds=0,
        evidence={"result": result.model_dump(mode="json")},
    )


def test_a_check_judges_all_levels_and_remembers(folder: ServiceFolder, release: Release) -> None:
    result = apply.check(folder, FakeInstruments(), None)
    assert [finding.level for finding in result.findings] == ["gpu", "process"]
    before = plan.last_check(record_of(result), release.id)
    again = apply.check(folder, FakeInstruments(), before)
    assert [finding.level for finding in again.findings] == ["gpu"], "the restarts have been seen"
    assert plan.last_check(record_of(result), "another release") is None
    assert plan.last_check(None, release.id) is None


def test_the_contract_judges_the_result_without_it(folder: ServiceFolder) -> None:
    seen: list[HealthResult] = []

    def contract(result: HealthResult) -> ContractResult:
        seen.append(result)
        return ContractResult(rows=7, expectations=1)

    result = apply.check(folder, FakeInstruments(), None, contract=contract)
    assert result.contract == ContractResult(rows=7, expectations=1)
    assert seen[0].contract is None


def test_a_release_that_is_gone_is_said_so(folder: ServiceFolder, release: Release) -> None:
    folder.release_file(release.id).unlink()
    with pytest.raises(NotFoundError, match="the release of chat is gone"):
        apply.check(folder, FakeInstruments(), None)
