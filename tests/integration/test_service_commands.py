"""`slipway status | logs | stop | rollback`, as users and programs run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from inline_snapshot import snapshot
from releases import make_release
from strays import processes_of, supervisors_of
from waiting import wait_until

from blocks.engine.api import EngineApi
from blocks.services.supervisor import SupervisedService
from blocks.storage.record_store import FolderRecordStore
from deployments.cli.main import main
from tasks.core.digests import short
from tasks.core.errors import CommandError
from tasks.core.files import file_lock
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.rollout.apply import roll_out

pytestmark = pytest.mark.engine


class Command:
    """Runs the command in this process and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, self.err = self._capsys.readouterr()
        assert ended.value.code == code, self.err
        return out

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def slipway(capsys: pytest.CaptureFixture[str], slipway_home: Path) -> Command:
    return Command(capsys)


@pytest.fixture
def releases(
    engine_python: Path,
    random_ggufs: tuple[Path, Path],
    slipway_home: Path,
    services: Callable[[str], ServiceFolder],
) -> list[Release]:
    """Two releases of `chat`: the first served before, the second serves."""
    folder = slipway_home / "candidates"
    slipway_home.mkdir(mode=0o700)
    folder.mkdir()
    made = [make_release(engine_python, Path(shutil.copy(file, folder))) for file in random_ggufs]
    for release in made:
        with SupervisedService(services("chat")) as target:
            roll_out(release, services("chat"), target, EngineApi)
    return made


def test_status_shows_what_serves(slipway: Command, releases: list[Release]) -> None:
    one = slipway.json("status", "chat")
    assert (one["name"], one["state"], one["release"], one["previous"]) == (
        "chat", "up", releases[1].id, releases[0].id,
    )  # fmt: skip
    assert (one["target"], one["format"], one["batch"], one["restarts"]) == ("process", "f32", 4, 0)
    assert one["endpoint"].startswith("http://127.0.0.1:")
    assert slipway.json("status") == {"services": [one]}
    table = slipway("status").splitlines()
    assert table[0].split() == snapshot(
        ["name", "state", "endpoint", "target", "release", "model", "format", "batch", "since", "restarts"]
    )
    row = next(line for line in table if line.split()[:1] == ["chat"])
    assert row.split()[:5] == ["chat", "up", one["endpoint"], "process", short(releases[1].id)]


def test_status_of_a_service_whose_processes_are_gone(
    slipway: Command, releases: list[Release], slipway_home: Path
) -> None:
    supervisors_of(slipway_home)[0].kill()
    wait_until(lambda: not processes_of(slipway_home), "everything ended")
    assert slipway.json("status", "chat")["state"] == "down"


def test_a_release_that_cannot_be_read_hides_no_other_and_can_be_stopped(
    slipway: Command, releases: list[Release], services: Callable[[str], ServiceFolder]
) -> None:
    """As after a change of what a release holds: the service still runs, and has to be ended first."""
    folder = services("chat")
    document = folder.release_file(releases[1].id)
    document.write_text(document.read_text().replace("slipway.release/2", "slipway.release/1"))
    (shown,) = slipway.json("status")["services"]
    assert (shown["name"], shown["state"]) == ("chat", "unreadable")
    assert "from another version of Slipway" in shown["error"]
    assert "chat" in slipway("status")
    slipway("stop", "chat")
    assert folder.state() is None
    assert not processes_of(folder.root)
    (shown,) = slipway.json("status")["services"]
    assert shown["state"] in ("stopped", "unreadable")


def test_nothing_deployed_yet(slipway: Command) -> None:
    assert slipway("status") == snapshot("no services yet: slipway deploy SPEC.yaml\n")
    assert slipway.json("status") == {"services": []}
    slipway("stop", "chat", code=2)
    assert slipway.err == snapshot("""\
error: there is no service chat
  fix: there are none yet: slipway deploy SPEC.yaml
""")


def test_an_unknown_name_lists_the_known_ones(slipway: Command, releases: list[Release]) -> None:
    for verb in ("status", "logs", "stop", "rollback"):
        slipway(verb, "chatt", code=2)
        assert slipway.err == "error: there is no service chatt\n  fix: known: chat\n"


def test_logs_are_those_of_the_engine_that_serves(slipway: Command, releases: list[Release]) -> None:
    lines = slipway("logs", "chat", "-n", "500").splitlines()
    assert any(releases[1].launch.model_file.name in line for line in lines)
    assert not any(releases[0].launch.model_file.name in line for line in lines)
    assert slipway.json("logs", "chat", "-n", "2") == {"name": "chat", "lines": lines[-2:]}


def test_requests_and_metrics_of_the_proxy(slipway: Command, releases: list[Release]) -> None:
    last = slipway.json("logs", "chat", "--requests", "-n", "1")["lines"][0]
    assert "POST /v1/completions status=200 engine=" in last, "the rollout's own"
    metrics = httpx.get(slipway.json("status", "chat")["metrics"], trust_env=False).text
    assert 'haproxy_frontend_http_requests_total{proxy="service"}' in metrics
    slipway("stop", "chat")
    assert slipway("logs", "chat", "--requests") == "\n"


def test_rollback_goes_back_and_forth_and_is_recorded(
    slipway: Command, releases: list[Release], slipway_home: Path
) -> None:
    back = slipway.json("rollback", "chat")
    assert (back["verdict"], back["serving"], back["previous"]) == ("serving", releases[0].id, releases[1].id)
    record = FolderRecordStore(slipway_home / "records").get(back["record"])
    assert (record.stage, record.subject, record.outcome) == ("rollout", "chat", "serving")
    assert record.numbers["first_completion_s"].unit == "s"
    text = slipway("rollback", "chat")
    assert text.startswith(f"chat {short(releases[1].id)}: serving: http://127.0.0.1:")
    assert slipway.json("status", "chat")["release"] == releases[1].id


def test_history_names_every_rollout_and_any_kept_release_can_be_gone_back_to(
    slipway: Command, releases: list[Release]
) -> None:
    first, second = (release.id.removeprefix("sha256:") for release in releases)
    slipway("rollback", "chat", "--to", first[:8])
    slipway("rollback", "chat", "--to", first[:8])  # it serves already
    slipway("stop", "chat")
    slipway("rollback", "chat", "--to", second, code=2)
    assert "there is nothing to roll back" in slipway.err
    slipway("start", "chat")
    slipway("rollback", "chat", "--to", "beef", code=2)
    assert slipway.err == snapshot("""\
error: chat has no kept release beef
  fix: list them: slipway history chat
""")
    told = slipway.json("history", "chat")["events"]
    assert [(one["by"], one["outcome"], one["release"] == releases[0].id) for one in told] == [
        ("rollback", "serving", True),
        ("rollback", "serving", True),
        ("stop", "stopped", True),
        ("start", "serving", True),
    ]
    assert f"{first[:12]} *" in slipway("history", "chat", "-n", "1") + slipway("history", "chat")
    changed = slipway.json("diff", "chat", second[:8])["changed"]
    assert [one["key"] for one in changed] == ["release.candidate_digest"]
    assert "release.candidate_digest" in slipway("diff", "chat", second[:8], first[:8])
    assert "are the same release" in slipway("diff", "chat", first[:8])


@pytest.mark.parametrize("verb", ["rollback", "start"])
def test_what_serves_is_recorded_though_its_sampler_cannot_be_started(
    verb: str,
    slipway: Command,
    releases: list[Release],
    slipway_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if verb == "start":
        slipway("stop", "chat")
    monkeypatch.setattr(
        "blocks.services.sampler.lasting_python", lambda: "/nowhere/python"
    )  # it was uninstalled
    answer = slipway.json(verb, "chat")
    row = answer if verb == "rollback" else answer["services"][0]
    assert row["verdict"] == "serving"
    record = FolderRecordStore(slipway_home / "records").get(row["record"])
    assert (record.outcome, record.evidence["by"]) == ("serving", verb)


def test_a_stop_that_fails_is_recorded(
    slipway: Command, releases: list[Release], slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise CommandError("the sampler does not end")

    monkeypatch.setattr("blocks.services.sampler.stop_sampler", fails)
    assert slipway.json("stop", "chat", code=1)["what"] == "the sampler does not end"
    (record,) = FolderRecordStore(slipway_home / "records").list()
    assert (record.outcome, record.evidence["error"]["what"]) == ("fault", "the sampler does not end")


def test_rollback_goes_from_what_serves_whatever_is_written_down(
    slipway: Command, releases: list[Release], services: Callable[[str], ServiceFolder]
) -> None:
    """As after a rollout of the second release that was killed before it was written down."""
    folder = services("chat")
    state = folder.state()
    assert state is not None
    for previous in ("sha256:before that", None):
        killed = state.model_copy(update={"release": releases[0].id, "previous": previous})
        folder.state_file.write_text(killed.model_dump_json(by_alias=True))
        shown = slipway.json("status", "chat")
        assert (shown["release"], shown["previous"]) == (releases[1].id, releases[0].id)
        back = slipway.json("rollback", "chat")
        assert (back["serving"], back["previous"]) == (releases[0].id, releases[1].id)
        slipway("rollback", "chat")
    folder.state_file.unlink()  # its copy tells it, too
    assert slipway.json("rollback", "chat")["serving"] == releases[0].id
    slipway("rollback", "chat")
    for document in (folder.state_file, folder.last_file):
        document.unlink()
    slipway("rollback", "chat", code=2)
    assert slipway.err == (
        f"error: chat has no release before {short(releases[1].id)}\n  fix: deploy the spec that you want\n"
    )


def test_rollback_to_what_does_not_start_any_more_says_no(
    slipway: Command, releases: list[Release], slipway_home: Path
) -> None:
    worker = slipway_home / "worker.py"
    worker.write_text("raise SystemExit('the engine is not what it was')")
    folder = ServiceFolder(slipway_home / "services", "chat")
    launch = releases[0].launch
    argv = tuple(str(worker) if arg.endswith("llama_cpp_server.py") else arg for arg in launch.argv)
    broken = releases[0].model_copy(update={"launch": launch.model_copy(update={"argv": argv})})
    folder.release_file(releases[0].id).write_text(broken.model_dump_json(by_alias=True))
    text = slipway("rollback", "chat", code=3)
    assert (
        f"rolled back: {short(releases[1].id)} serves: the engine died while starting: exit status 1" in text
    )
    assert slipway.err == "  | the engine is not what it was\n"
    assert slipway.json("status", "chat")["state"] == "up"


def test_rollback_without_a_way_back(slipway: Command, releases: list[Release], slipway_home: Path) -> None:
    folder = ServiceFolder(slipway_home / "services", "chat")
    folder.release_file(releases[0].id).unlink()
    slipway("rollback", "chat", code=1)
    assert "is gone from" in slipway.err
    state = folder.state()
    assert state is not None
    folder.state_file.write_text(state.model_copy(update={"previous": None}).model_dump_json(by_alias=True))
    slipway("rollback", "chat", code=2)
    assert slipway.err == (
        f"error: chat has no release before {short(releases[1].id)}\n  fix: deploy the spec that you want\n"
    )


def test_stop_ends_the_service_and_says_so(
    slipway: Command, releases: list[Release], slipway_home: Path
) -> None:
    stopped = slipway.json("stop", "chat")
    assert stopped["stopped"]
    assert FolderRecordStore(slipway_home / "records").get(stopped["record"]).outcome == "stopped"
    assert processes_of(slipway_home) == []
    assert slipway("stop", "chat") == "chat was stopped already\n"
    assert slipway.json("stop", "chat") == {"name": "chat", "stopped": False, "record": None}
    status = slipway.json("status", "chat")
    assert (status["state"], status["endpoint"], status["since"]) == ("stopped", None, None)
    assert "stopped" in slipway("status")
    slipway("rollback", "chat", code=2)
    assert slipway.err == snapshot("""\
error: chat is stopped: there is nothing to roll back
  fix: slipway start chat
""")
    assert slipway("logs", "chat")


def test_a_deploy_in_progress_is_not_disturbed(
    slipway: Command, releases: list[Release], slipway_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.core.leases.WAIT_S", 0.0)
    with file_lock(Settings.load().service_lease("chat"), wait=False, holder="chat"):
        for verb in ("stop", "rollback"):
            error = slipway.json(verb, "chat", code=1)
            assert (error["error"], error["retryable"]) == ("BusyError", True)
    assert slipway.json("status", "chat")["state"] == "up"


@pytest.mark.parametrize("verb", ["start", "rollback", "stop"])
def test_what_is_over_in_a_moment_fails_no_command(
    verb: str, slipway: Command, releases: list[Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what the look of each minute does."""
    with ExitStack() as look:
        look.enter_context(file_lock(Settings.load().service_lease("chat"), wait=False, holder="chat"))
        monkeypatch.setattr("tasks.core.leases._pause", look.close)
        slipway(verb, "chat")


def test_these_commands_load_no_orchestrator(slipway_home: Path) -> None:
    code = (
        "import sys\n"
        "from deployments.cli.main import main\n"
        "try: main(['status'])\n"
        "except SystemExit: pass\n"
        "import blocks.services.supervisor, blocks.engine.api, blocks.storage.record_store, blocks.host.host, tasks.rollout.apply\n"
        "assert 'prefect' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
