"""What only a target that fails at the worst moment shows: a fake one, in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from releases import make_release

from tasks.core import cancellation
from tasks.core.digests import digest_of_file, short
from tasks.core.errors import (
    EngineError,
    ModelError,
    NotFoundError,
    RolloutError,
    SpecError,
    StageCancelledError,
)
from tasks.core.model_task import Task
from tasks.core.prefetch import Prefetched
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.serving import ChatTemplate
from tasks.core.spec_kinds import Target as TargetKind
from tasks.core.spec_sections import Serving
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out, still_serves, stop_service
from tasks.rollout.documents import write_state
from tasks.rollout.models import RolloutAction, Running
from tasks.rollout.proxy.keys import Digests
from tasks.rollout.recovery.apply import start_service
from tasks.rollout.report import headline, markdown, numbers
from tasks.rollout.target import Completion, NewRelease

EARLIER_RELEASE = Path(__file__).parents[2] / "golden" / "releases" / "with-image-key.json"
EARLIER_ID = "sha256:69f5afb753e8ea17db412b835af656c09d044a3fdeb5ac763c6496ea5cdfe7f6"
"""As the version before wrote and named it."""

PUBLIC = "http://127.0.0.1:8000"
PRIVATE = "http://127.0.0.1:9999"


@dataclass(frozen=True)
class Text:
    text: str
    prompt_tokens: int = 1


@dataclass
class FakeTarget:
    """Keeps what a target keeps, writes down what it is asked, and fails where it is told to."""

    serving: str | None = None
    traffic: str | None = None
    calls: list[str] = field(default_factory=list)
    failing: dict[str, Exception] = field(default_factory=dict)
    restores: str | None = None
    dead: str | None = None
    engine_up: bool = True
    digests: Digests = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    def running(self) -> Running | None:
        if self.serving is None:
            return None
        return Running(
            release=self.serving,
            host="127.0.0.1",
            port=8000,
            up=self.engine_up,
            locked=self.digests is not None,
        )

    def written(self) -> Running | None:
        if self.restores is None:
            return None
        return Running(release=self.restores, host="127.0.0.1", port=8000, up=False)

    def claim(self, host: str, port: int | None, digests: Digests = None, /) -> int:
        self._call("claim")
        if self.serving is None and self.restores is None:
            self.digests = digests
        self.serving = self.traffic = self.serving or self.restores
        return port or 8000

    def lock(self, digests: Digests) -> None:
        self._call("lock")
        self.digests = digests

    def start(self, release: Release) -> NewRelease:
        self._call("start")
        return NewRelease(release.id, PRIVATE)

    def fault(self, new: NewRelease) -> str | None:
        return self.dead

    def new_release_log(self, new: NewRelease, lines: int) -> str:
        self._call("new_release_log")
        return "last words"

    def switch(self, new: NewRelease) -> None:
        self._call("switch")
        self.traffic = new.release

    def settle(self, new: NewRelease, *, drain_s: float) -> None:
        self._call("settle")
        self.serving = new.release

    def end_previous(self, *, drain_s: float) -> None:
        self._call("end_previous")

    def revert(self, new: NewRelease, *, drain_s: float) -> None:
        self._call("revert")
        self.traffic = self.serving

    def stop(self, *, drain_s: float) -> None:
        self._call("stop")
        self.serving = self.traffic = None

    def log_tail(self, lines: int) -> str:
        return ""


@dataclass
class FakeApi:
    """Answers at the addresses that are well; at the public one only after `busy_asks` asks for readiness."""

    well: set[str] = field(default_factory=lambda: {PUBLIC, PRIVATE})
    ready_at: set[str] = field(default_factory=lambda: {PUBLIC, PRIVATE})
    busy_asks: int = 0

    @contextlib.contextmanager
    def open(self, base_url: str) -> Iterator[_At]:
        yield _At(self, base_url)


@dataclass
class _At:
    api: FakeApi
    base_url: str

    def ready(self) -> bool:
        if self.base_url == PUBLIC and self.api.busy_asks > 0:
            self.api.busy_asks -= 1
            return False
        return self.base_url in self.api.ready_at

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion:
        if self.base_url not in self.api.well:
            raise EngineError(f"{self.base_url} returned an empty completion")
        return Text(" fox")

    def chat(self, model: str, message: str, max_tokens: int, /) -> Completion:
        answer = self.complete(model, message, max_tokens)
        return Text(f"{answer.text} in chat", len(message))

    def post(self, path: str, body: dict[str, Any], /) -> dict[str, Any]:
        raise NotImplementedError(path)

    def embed(self, model: str, text: str, /) -> Completion:
        return Text(f"{self.complete(model, text, 1).text} as numbers")

    def rank(self, model: str, query: str, documents: tuple[str, ...], /) -> Completion:
        return Text(f"{self.complete(model, query, 1).text} in {len(documents)} documents")


@pytest.fixture
def wanted(tmp_path: Path) -> Release:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"weights")
    return make_release(tmp_path / "bin" / "python", gguf, gate={"start_timeout_s": 0.2})


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.rollout.apply._BUSY_S", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> ServiceFolder:
    return ServiceFolder(tmp_path / "services", "chat")


def test_the_steps_come_in_order(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget()
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert target.calls == ["claim", "start", "switch", "settle", "end_previous"]
    assert (result.verdict, result.completion) == (RolloutVerdict.SERVING, " fox")
    assert folder.release(wanted.id) == wanted
    assert folder.state() is not None


def test_a_model_with_a_chat_template_passes_its_gate_in_chat(wanted: Release, folder: ServiceFolder) -> None:
    chat = ChatTemplate(digest="sha256:" + "a" * 64)
    chatty = wanted.model_copy(update={"config": wanted.config.model_copy(update={"chat": chat})})
    assert chatty.id != wanted.id, "another template is another release"
    result = roll_out(chatty, folder, FakeTarget(), FakeApi().open)
    assert result.completion == " fox in chat"


@pytest.mark.parametrize(
    ("task", "said"), [(Task.EMBED, " fox as numbers"), (Task.RERANK, " fox in 2 documents")]
)
def test_a_model_for_another_task_passes_the_gate_by_it(
    task: Task, said: str, wanted: Release, folder: ServiceFolder
) -> None:
    release = wanted.model_copy(update={"config": wanted.config.model_copy(update={"task": task})})
    assert release.id != wanted.id
    result = roll_out(release, folder, FakeTarget(), FakeApi().open)
    assert (result.verdict, result.completion) == (RolloutVerdict.SERVING, said)


def test_a_release_whose_chat_template_is_gone_is_not_started(
    wanted: Release, folder: ServiceFolder, tmp_path: Path
) -> None:
    chat = ChatTemplate(digest="sha256:" + "a" * 64, file=tmp_path / "gone.jinja")
    lost = wanted.model_copy(update={"config": wanted.config.model_copy(update={"chat": chat})})
    target = FakeTarget()
    with pytest.raises(ModelError, match=r"gone\.jinja is gone"):
        roll_out(lost, folder, target, FakeApi().open)
    assert target.calls == []


def test_a_release_of_before_is_asked_to_complete_prompts() -> None:
    kept = Release.model_validate_json(EARLIER_RELEASE.read_bytes())
    assert kept.id == EARLIER_ID
    assert kept.config.chat is None
    assert (kept.config.task, kept.config.pooling, kept.spec.task) == (Task.GENERATE, None, None)
    assert (kept.config.names, kept.config.tool_parser, kept.spec.serving.names) == ((), None, ())
    assert kept.spec.serving.chat_template is None


@pytest.mark.parametrize("step", ["start", "switch", "settle"])
@pytest.mark.parametrize("previous", [None, "sha256:old"])
def test_a_step_that_fails_leaves_what_served(
    wanted: Release, folder: ServiceFolder, step: str, previous: str | None
) -> None:
    target = FakeTarget(serving=previous, traffic=previous, failing={step: RolloutError("no", detail="why")})
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.verdict, result.serving) == (RolloutVerdict.ROLLED_BACK, previous)
    assert result.endpoint == (PUBLIC if previous else None)
    assert target.traffic == previous
    assert ("revert" in target.calls) == (step != "start")
    assert ("stop" in target.calls) == (previous is None)
    assert folder.state() is None
    assert result.log_tail == ("why" if step == "start" else "last words")


def test_a_rollout_that_is_interrupted_in_the_drain_is_done_and_written_down(
    wanted: Release, folder: ServiceFolder
) -> None:
    interrupt = KeyboardInterrupt()
    target = FakeTarget(serving="sha256:old", traffic="sha256:old", failing={"end_previous": interrupt})
    with pytest.raises(KeyboardInterrupt):
        roll_out(wanted, folder, target, FakeApi().open)
    assert target.calls[-2:] == ["settle", "end_previous"]
    state = folder.state()
    assert state is not None
    assert (target.traffic, state.release, state.previous) == (wanted.id, wanted.id, "sha256:old")


def test_a_former_release_that_cannot_be_ended_fails_no_rollout(
    wanted: Release, folder: ServiceFolder
) -> None:
    stuck = RolloutError("the Docker engine could not remove a container")
    target = FakeTarget(serving="sha256:old", traffic="sha256:old", failing={"end_previous": stuck})
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.verdict, result.serving) == (RolloutVerdict.SERVING, wanted.id)


def test_a_release_that_answers_privately_but_not_publicly_is_taken_back(
    wanted: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(serving="sha256:old", traffic="sha256:old")
    result = roll_out(wanted, folder, target, FakeApi(well={PRIVATE}).open)
    assert target.calls == ["claim", "start", "switch", "new_release_log", "revert"]
    assert (result.serving, target.traffic) == ("sha256:old", "sha256:old")
    assert result.reason == f"{PUBLIC} returned an empty completion"


def test_healthy_is_not_enough(wanted: Release, folder: ServiceFolder) -> None:
    result = roll_out(wanted, folder, FakeTarget(), FakeApi(well={PUBLIC}).open)
    assert result.verdict is RolloutVerdict.ROLLED_BACK
    assert not folder.release_file(wanted.id).exists()


def test_an_engine_that_never_gets_ready(wanted: Release, folder: ServiceFolder) -> None:
    result = roll_out(wanted, folder, FakeTarget(), FakeApi(ready_at=set()).open)
    assert result.reason == "the engine was not ready within 0.2 s (raise rollout.gate.start_timeout_s)"


def test_a_target_that_dies_with_its_new_release_is_still_a_verdict(
    wanted: Release, folder: ServiceFolder
) -> None:
    gone = RolloutError("the supervisor does not answer")
    target = FakeTarget(failing={"switch": gone, "new_release_log": gone})
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.reason, result.log_tail) == ("the supervisor does not answer", None)


def test_a_fault_of_ours_gives_the_traffic_back_and_goes_on_up(
    wanted: Release, folder: ServiceFolder
) -> None:
    fault = OSError("the disk is gone")
    target = FakeTarget(serving="sha256:old", traffic="sha256:old", failing={"switch": fault})
    with pytest.raises(OSError, match="disk"):
        roll_out(wanted, folder, target, FakeApi().open)
    assert target.calls[-1] == "revert"
    assert target.traffic == "sha256:old"


def test_a_cancelled_rollout_ends_its_new_release(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget(serving="sha256:old", traffic="sha256:old")
    cancellation.begin().cancel("another stage said no")
    with pytest.raises(StageCancelledError):
        roll_out(wanted, folder, target, FakeApi(ready_at=set()).open)
    cancellation.begin()
    assert target.calls[-1] == "revert"


def test_a_former_release_that_comes_back_with_the_claim_is_kept_when_the_new_one_fails(
    wanted: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(restores="sha256:old", dead="exit status 1")
    result = roll_out(wanted, folder, target, FakeApi(ready_at={PUBLIC}).open)
    assert (result.verdict, result.serving) == (RolloutVerdict.ROLLED_BACK, "sha256:old")
    assert "stop" not in target.calls


def test_the_wanted_release_that_comes_back_with_the_claim_is_adopted(
    wanted: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(restores=wanted.id)
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.action, target.calls) == (RolloutAction.ADOPT, ["claim", "claim"])


def test_the_wanted_release_that_comes_back_mute_is_replaced(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget(restores=wanted.id)
    result = roll_out(wanted, folder, target, FakeApi(well={PRIVATE}).open)
    assert target.calls[:3] == ["claim", "start", "switch"]
    assert result.action is RolloutAction.REPLACE


def test_documents_that_a_killed_rollout_left_unfinished_are_removed(
    wanted: Release, folder: ServiceFolder
) -> None:
    (folder.root / "releases").mkdir(parents=True)
    unfinished = [folder.root / "current.json.17.part", folder.root / "releases" / "ab.json.17.part"]
    for part in (*unfinished, folder.root / "supervisor.json.part"):
        part.touch()
    roll_out(wanted, folder, FakeTarget(), FakeApi().open)
    assert [part.name for part in folder.root.rglob("*.part")] == ["supervisor.json.part"]


def test_a_model_file_that_is_gone_starts_nothing(wanted: Release, folder: ServiceFolder) -> None:
    wanted.launch.model_file.unlink()
    target = FakeTarget()
    with pytest.raises(ModelError, match="is gone"):
        roll_out(wanted, folder, target, FakeApi().open)
    assert target.calls == []


def test_another_target_has_to_be_asked_for_openly(wanted: Release, folder: ServiceFolder) -> None:
    state = ServiceState(
        name="chat", target=TargetKind.DOCKER, host="127.0.0.1", port=8000, release="sha256:old", since=wanted.at
    )  # fmt: skip
    folder.root.mkdir(parents=True)
    folder.state_file.write_text(state.model_dump_json(by_alias=True))
    with pytest.raises(RolloutError) as caught:
        roll_out(wanted, folder, FakeTarget(), FakeApi().open)
    assert caught.value.fix == "stop it first: slipway stop chat"


def test_a_recorded_rollout_stands_only_while_it_answers(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget()
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert still_serves(result, wanted, folder, target, FakeApi().open)
    assert not still_serves(result, wanted, folder, target, FakeApi(well=set()).open)
    assert not still_serves(result, wanted, folder, target, FakeApi(ready_at=set()).open)
    assert not still_serves(result, wanted, folder, FakeTarget(), FakeApi().open)
    assert not still_serves(result, wanted, folder, FakeTarget(serving="sha256:old"), FakeApi().open)
    document = folder.release_file(wanted.id).read_text()
    for damaged in (document[:100], ""):
        folder.release_file(wanted.id).write_text(damaged)
        assert not still_serves(result, wanted, folder, target, FakeApi().open)
    folder.release_file(wanted.id).write_text(document)
    moved = result.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    assert not still_serves(moved, wanted, folder, target, FakeApi().open)


@pytest.mark.parametrize("written", [{"release": "sha256:old"}, {"host": "::1"}, {"port": 1}, None])
def test_a_recorded_rollout_stands_only_while_it_is_written_down(
    wanted: Release, folder: ServiceFolder, written: dict[str, Any] | None
) -> None:
    """As where it is brought into service a second time, and killed before it is written down again."""
    target = FakeTarget()
    result = roll_out(wanted, folder, target, FakeApi().open)
    state = folder.state()
    assert state is not None
    if written is None:
        folder.state_file.unlink()
    else:
        folder.state_file.write_text(state.model_copy(update=written).model_dump_json(by_alias=True))
    target.calls.clear()
    assert not still_serves(result, wanted, folder, target, FakeApi().open)
    assert target.calls == []


@dataclass
class FakePrefetch:
    """Reads nothing, and knows whether it is over."""

    read_bytes: int
    paths: list[Path] = field(default_factory=list)
    open: int = 0

    @contextlib.contextmanager
    def __call__(self, paths: Sequence[Path]) -> Iterator[Prefetched]:
        self.paths += paths
        self.open += 1
        yield Prefetched(read_bytes=self.read_bytes, seconds=0.5)
        self.open -= 1


def test_what_the_engine_maps_is_read_ahead_during_its_start(wanted: Release, folder: ServiceFolder) -> None:
    prefetch = FakePrefetch(7)
    result = roll_out(wanted, folder, FakeTarget(), FakeApi().open, prefetch)
    assert (prefetch.paths, prefetch.open) == ([wanted.launch.model_file], 0)
    assert (result.prefetched_bytes, result.prefetch_s) == (7, 0.5)
    assert "| prefetched during the start" in markdown(result)
    assert set(numbers(result)) == {"first_completion_s", "prefetched", "prefetch_s"}


def test_what_was_in_memory_leaves_no_figures(wanted: Release, folder: ServiceFolder) -> None:
    result = roll_out(wanted, folder, FakeTarget(), FakeApi().open, FakePrefetch(0))
    assert (result.prefetched_bytes, result.prefetch_s) == (None, None)
    assert set(numbers(result)) == {"first_completion_s"}


def test_a_rollout_that_fails_ends_its_prefetch(wanted: Release, folder: ServiceFolder) -> None:
    prefetch = FakePrefetch(7)
    result = roll_out(
        wanted, folder, FakeTarget(dead="exit status 1"), FakeApi(ready_at=set()).open, prefetch
    )
    assert (result.verdict, prefetch.open) == (RolloutVerdict.ROLLED_BACK, 0)


@pytest.fixture
def previous(wanted: Release, folder: ServiceFolder) -> Release:
    """A release that was brought into service before the wanted one."""
    config = wanted.config.model_copy(update={"batch": 1})
    release = wanted.model_copy(update={"config": config})
    roll_out(release, folder, FakeTarget(), FakeApi().open)
    return release


def test_a_rollback_says_that_the_previous_release_completed_a_prompt(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(serving=previous.id, traffic=previous.id, failing={"start": RolloutError("no")})
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.serving, result.answers) == (previous.id, True)
    assert headline(result) == f"{short(previous.id)} serves: no"
    assert "which completed a prompt after the rollback" in markdown(result)


@dataclass
class DiesOnce(FakeTarget):
    """Whose traffic ends with the first start that fails, as a supervisor that is killed in a rollout."""

    def start(self, release: Release) -> NewRelease:
        try:
            return super().start(release)
        except RolloutError:
            self.failing.pop("start")
            self.serving = self.traffic = None
            raise


def test_a_previous_release_that_died_in_the_rollout_is_brought_back(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = DiesOnce(serving=previous.id, traffic=previous.id, failing={"start": RolloutError("no")})
    result = roll_out(wanted, folder, target, FakeApi().open)
    assert (result.verdict, result.release) == (RolloutVerdict.ROLLED_BACK, wanted.id)
    assert (result.serving, result.answers, result.endpoint) == (previous.id, True, PUBLIC)
    assert target.calls.count("start") == 2


@pytest.mark.parametrize(
    ("runs", "words"),
    [(True, "{previous} does not answer"), (False, "nothing serves any more")],
)
def test_a_rollback_after_which_nothing_answers_says_so_and_how_to_bring_it_back(
    wanted: Release, previous: Release, folder: ServiceFolder, runs: bool, words: str
) -> None:
    previous.launch.model_file.unlink()
    wanted.launch.model_file.touch()
    serving = previous.id if runs else None
    target = FakeTarget(serving=serving, traffic=serving, failing={"start": RolloutError("no")})
    wanted = wanted.model_copy(update={"candidate_digest": digest_of_file(wanted.launch.model_file)})
    result = roll_out(wanted, folder, target, FakeApi(well=set()).open)
    assert (result.serving, result.answers) == (serving, False)
    assert headline(result) == (
        f"{words.format(previous=short(previous.id))} (bring the previous release back: slipway start chat): no"
    )


def test_a_release_that_serves_and_lost_its_document_gets_it_back(
    wanted: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget()
    roll_out(wanted, folder, target, FakeApi().open)
    for damage in (b"", b"{", b'{"schema": "slipway.release/2", "spec": {}}'):
        folder.release_file(wanted.id).write_bytes(damage)
        assert roll_out(wanted, folder, target, FakeApi().open).action is RolloutAction.NOTHING
        assert folder.release(wanted.id) == wanted


def test_what_was_stopped_is_started_at_its_address_with_its_way_back(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(serving=previous.id, traffic=previous.id)
    roll_out(wanted, folder, target, FakeApi().open)
    stop_service(folder, target, drain_s=0)
    assert folder.state() is None
    result = start_service(folder, target, FakeApi().open)
    assert (result.serving, result.previous, result.endpoint) == (wanted.id, previous.id, PUBLIC)


def test_what_the_target_wrote_down_came_after_the_services_own_document(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    """As after a rollout that was killed between the two, and a reboot."""
    roll_out(wanted, folder, FakeTarget(serving=previous.id), FakeApi().open)
    state = folder.state()
    assert state is not None
    killed = state.model_copy(update={"release": previous.id, "previous": None})
    folder.state_file.write_text(killed.model_dump_json(by_alias=True))
    result = start_service(folder, FakeTarget(restores=wanted.id), FakeApi().open)
    assert (result.serving, result.previous) == (wanted.id, previous.id)


def test_a_service_of_an_earlier_version_is_left_alone(folder: ServiceFolder) -> None:
    """Its release is of the time when `rollout.image` could only be empty."""
    document, stored = EARLIER_RELEASE.read_bytes(), EARLIER_ID
    folder.release_file(stored).parent.mkdir(parents=True)
    folder.release_file(stored).write_bytes(document)
    release = folder.release(stored)
    assert release is not None
    write_state(release, folder, "127.0.0.1", 8000, "sha256:before")
    target = FakeTarget(serving=stored, traffic=stored)
    result = start_service(folder, target, FakeApi().open)
    assert (result.action, result.serving) == (RolloutAction.NOTHING, stored)
    assert "start" not in target.calls
    state = folder.state()
    assert state is not None
    assert (state.release, state.previous) == (stored, "sha256:before")
    assert [file.read_bytes() for file in folder.release_file(stored).parent.iterdir()] == [document]


def test_without_any_trace_of_what_served_start_says_what_to_do(folder: ServiceFolder) -> None:
    folder.root.mkdir(parents=True)
    with pytest.raises(NotFoundError) as caught:
        start_service(folder, FakeTarget(), FakeApi().open)
    assert caught.value.fix == "deploy its spec again"


def test_start_waits_for_a_service_that_is_busy_or_loads(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget()
    roll_out(wanted, folder, target, FakeApi().open)
    target.calls.clear()
    result = start_service(folder, target, FakeApi(busy_asks=3).open)
    assert (result.action, result.serving) == (RolloutAction.NOTHING, wanted.id)
    assert "start" not in target.calls


def test_start_replaces_a_service_that_stays_mute(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget()
    roll_out(wanted, folder, target, FakeApi().open)
    target.calls.clear()
    result = start_service(folder, target, FakeApi(well={PRIVATE}).open)
    assert result.action is RolloutAction.REPLACE
    assert "start" in target.calls


def test_start_replaces_at_once_what_does_not_run(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget()
    roll_out(wanted, folder, target, FakeApi().open)
    target.engine_up = False
    api = FakeApi(busy_asks=1)
    assert start_service(folder, target, api.open).action is RolloutAction.REPLACE
    assert api.busy_asks == 1, "an engine that does not run is not asked"


def test_a_previous_release_that_is_busy_after_a_rollback_is_left_alone(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = FakeTarget(serving=previous.id, traffic=previous.id, failing={"start": RolloutError("no")})
    result = roll_out(wanted, folder, target, FakeApi(busy_asks=3).open)
    assert (result.serving, result.answers) == (previous.id, True)
    assert target.calls.count("start") == 1


def test_a_previous_release_that_runs_and_stays_mute_is_told_and_left_alone(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = FailsOnce(serving=previous.id, traffic=previous.id, failing={"start": RolloutError("no")})
    result = roll_out(wanted, folder, target, FakeApi(ready_at={PRIVATE}).open)
    assert (result.serving, result.answers) == (previous.id, False)
    assert target.calls.count("start") == 1


@dataclass
class FailsOnce(FakeTarget):
    """Whose first start fails, and no later one."""

    def start(self, release: Release) -> NewRelease:
        try:
            return super().start(release)
        except RolloutError:
            self.failing.pop("start")
            raise


@dataclass
class CancelledWhenDead(DiesOnce):
    """Whose run is cancelled as soon as the previous release is started again."""

    def claim(self, host: str, port: int | None, digests: Digests = None, /) -> int:
        if "start" in self.calls:
            raise StageCancelledError("another stage said no")
        return super().claim(host, port)


def test_a_run_that_is_cancelled_while_the_previous_release_is_brought_back_ends_so(
    wanted: Release, previous: Release, folder: ServiceFolder
) -> None:
    target = CancelledWhenDead(
        serving=previous.id, traffic=previous.id, failing={"start": RolloutError("no")}
    )
    with pytest.raises(StageCancelledError):
        roll_out(wanted, folder, target, FakeApi().open)


KEYS = ("1" * 64,)


def locked(release: Release) -> Release:
    spec = release.spec.model_copy(update={"serving": Serving(api_key="file:/keys")})
    return release.model_copy(update={"spec": spec})


def test_the_door_changes_once_the_release_serves(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget(serving="sha256:before")
    result = roll_out(locked(wanted), folder, target, FakeApi().open, read_keys=lambda source: KEYS)
    assert result.verdict is RolloutVerdict.SERVING
    assert target.calls == ["claim", "start", "switch", "settle", "lock", "end_previous"]
    assert target.digests is not None
    assert target.digests[0] == KEYS[0]
    roll_out(wanted, folder, target, FakeApi().open, reopen=False)
    assert target.digests[0] == KEYS[0]
    roll_out(wanted, folder, target, FakeApi().open)
    assert target.digests is None


def test_a_first_release_is_locked_with_the_claim(wanted: Release, folder: ServiceFolder) -> None:
    target = FakeTarget(failing={"switch": RolloutError("no")})
    roll_out(locked(wanted), folder, target, FakeApi().open, read_keys=lambda source: KEYS)
    assert target.digests is not None
    assert not folder.door_file.exists()


def test_keys_that_cannot_be_read_start_nothing(wanted: Release, folder: ServiceFolder) -> None:
    def read(source: str) -> tuple[str, ...]:
        raise SpecError(f"{source} cannot be read")

    target = FakeTarget()
    with pytest.raises(SpecError):
        roll_out(locked(wanted), folder, target, FakeApi().open, read_keys=read)
    assert target.calls == []


def test_keys_that_changed_while_the_engine_started_are_used(wanted: Release, folder: ServiceFolder) -> None:
    answers = iter([KEYS, ("2" * 64,)])
    target = FakeTarget(serving="sha256:before")
    roll_out(locked(wanted), folder, target, FakeApi().open, read_keys=lambda source: next(answers))
    assert target.digests is not None
    assert target.digests[0] == "2" * 64
