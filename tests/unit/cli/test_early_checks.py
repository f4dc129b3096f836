"""A deploy that cannot succeed on this host ends in one line before a Prefect server is started for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.processes.ports import free_port
from blocks.services.door import read_keys
from blocks.services.early_checks import check_address
from deployments.cli.main import main
from tasks.core.api_keys import digest_of_key
from tasks.core.errors import PortTakenError, SpecError, WrongUseError
from tasks.core.redaction import redacted
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.spec_kinds import Target


@pytest.fixture(autouse=True)
def no_server(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise AssertionError("a Prefect server would be started")

    monkeypatch.setattr("deployments.prefect_api.prefect_api", start)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback that something else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def here(tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, a spec, and what is not what it should be."""
    (tmp_path / "spec.yaml").write_text(f"name: tiny\nmodel: file:{random_model}\n")
    (tmp_path / "file").write_text("a file\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TEXTS = {"quality_text": "{}", "task_set": "{}, quality_text: file"}
LATE = {
    "model: no folder": (["model=file:none"], "the model folder"),
    "model: a file": (["model=file:file"], "the model folder"),
    "rollout: a host elsewhere": (["rollout.host=192.0.2.1"], "nothing can listen on 192.0.2.1"),
    "rollout: an address elsewhere": (["rollout.host=2001:db8::1"], "nothing can listen on 2001:db8::1"),
    "rollout: an unknown name": (["rollout.host=no-such-host.invalid"], "nothing can listen on no-such-host"),
    "rollout: elsewhere with a port": (
        ["rollout={host: 192.0.2.1, port: 8000}"],
        "nothing can listen on port 8000",
    ),
    "hardware: no such GPU": (["hardware.gpus=64"], "hardware.gpus is 64, but only "),
    "tuning: a format of another engine": (["tuning.candidates=[fp8]"], "llama.cpp does not load fp8"),
    "task: of another kind of model": (
        ["task=rerank"],
        "task is rerank, but file:",
    ),
    "objectives: of another task": (["objectives.latency_ms=9"], "objectives.latency_ms is not for a model"),
    "engine_args: Slipway's own": (
        ["engine_args={ctx_size: 5}"],
        "engine_args.ctx-size: Slipway sets --ctx-size of llama.cpp itself\n  fix: set tuning.context instead",
    ),
    "engine_args: unknown": (["engine_args={temperature: 1}"], "engine_args.temperature: llama.cpp has no"),
    "engine_env: this host's": (
        ["engine_env={PATH: /x}"],
        "spec.yaml: engine_env: PATH is set by Slipway or",
    ),
    "environment: no requirement": (
        ["environment.requirements=[numpy, a b]"],
        "environment.requirements, line 2: 'a b' is not a requirement",
    ),
    "environment: no wheels": (["environment.wheels=none"], "environment.wheels: there is no folder"),
    "environment: a file": (["environment.wheels=file"], "environment.wheels: there is no folder"),
    "environment: no path": (["environment={manager: system, path: none}"], "environment.path: "),
    **{
        f"tuning: {key}: {kind}": ([f"tuning={{{key}: {text.format(kind)}}}"], message.format(key))
        for key, text in TEXTS.items()
        for kind, message in (
            ("none", "no tuning.{} "),
            ("folder", "the tuning.{} "),
            ("pipe", "the tuning.{} "),
            ("/dev/zero", "the tuning.{} /dev/zero is not a regular file"),
        )
    },
    "tuning: no tasks": (["tuning={quality_text: file, task_set: file}"], "file:1 is not JSON"),
    "tuning: calibrated on nothing": (
        ["engine=transformers", "tuning={candidates: [w4a16], calibration_text: none}"],
        "no tuning.calibration_text ",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_what_would_break_late_is_told_first(
    case: str, here: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, message = LATE[case]
    settings = [part for override in overrides for part in ("--set", override)]
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "spec.yaml", *settings])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {message}")
    assert not shown.out
    assert not slipway_home.exists()


def test_a_taken_port_is_told_first(here: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["deploy", "spec.yaml", "--set", f"rollout.port={taken}"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: port {taken} of 127.0.0.1 is taken by ")


def test_tuning_alone_looks_at_its_inputs_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "quantization", "spec.yaml", "--set", "tuning.quality_text=none"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: no tuning.quality_text ")


def _spec(port: int | None, host: str = "127.0.0.1") -> DeploySpec:
    return parse_spec({"name": "tiny", "model": "file:m", "rollout": {"host": host, "port": port}})


def _write_state(host: str, port: int) -> None:
    folder = ServiceFolder(Settings.load().services, "tiny")
    folder.root.mkdir(parents=True)
    state = ServiceState(
        name="tiny", target=Target.PROCESS, host=host, port=port, release="sha256:r", since=datetime.now(UTC)
    )
    folder.state_file.write_text(state.model_dump_json(by_alias=True))


@contextmanager
def _listening(*arguments: str) -> Iterator[int]:
    """Another process that listens on a port, with these words in its command line."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.communicate("\n")


@pytest.mark.parametrize("written", [True, False], ids=["written down", "rollout killed before"])
def test_the_services_own_address_is_not_a_taken_one(written: bool, slipway_home: Path) -> None:
    """Its supervisor or its proxy has it, whether or not a release serves behind it now."""
    with _listening("--folder", str(slipway_home / "services" / "tiny")) as port:
        if written:
            _write_state("127.0.0.1", port)
        check_address(_spec(port), Settings.load())
        check_address(_spec(None), Settings.load())
        with pytest.raises(WrongUseError):
            check_address(_spec(None, "192.0.2.1"), Settings.load())


def test_an_address_that_was_the_services_once_may_be_taken_by_now(slipway_home: Path) -> None:
    with _listening("--folder", str(slipway_home / "services" / "tiny-2")) as port:
        _write_state("127.0.0.1", port)
        for asked in (port, None):
            with pytest.raises(PortTakenError):
                check_address(_spec(asked), Settings.load())


def test_a_service_that_moves_does_not_move_to_a_taken_port(taken: int) -> None:
    _write_state("127.0.0.1", free_port())
    with pytest.raises(PortTakenError):
        check_address(_spec(taken), Settings.load())


def test_a_damaged_state_is_left_to_the_rollout(taken: int) -> None:
    _write_state("127.0.0.1", taken)
    ServiceFolder(Settings.load().services, "tiny").state_file.write_text("{")
    check_address(_spec(free_port()), Settings.load())


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0, "no key file {file}"),
        ("", 0o600, "the key file {file} contains no key"),
        ("# none\n", 0o600, "the key file {file} contains no key"),
        ("the-key-of-today", 0o640, "the key file {file} is open to other users (mode 640)"),
        ("the-key-of-today", 0o604, "the key file {file} is open to other users (mode 604)"),
        ("two words 1\n", 0o600, "line 1 of the key file {file} is not a key"),
        (b"\xff" * 9, 0o600, "cannot read the key file {file}: byte 0 is not UTF-8"),
        ("k" * 100_000, 0o600, "the key file {file} is too large"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_key_file_that_cannot_be_used_ends_a_deploy_at_once(
    content: str | bytes | None,
    mode: int,
    said: str,
    options: tuple[str, ...],
    tmp_path: Path,
    random_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, spec = tmp_path / "keys", tmp_path / "spec.yaml"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
    spec.write_text(f"name: chat\nmodel: file:{random_model}\nserving:\n  api_key: file:keys\n")
    with pytest.raises(SystemExit) as ended:
        main(["deploy", str(spec), *options])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith(f"error: {said.format(file=file)}")
    assert err.count("error:") == 1
    assert "the-key-of-today" not in err


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_no_key_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "keys")
    with pytest.raises(SpecError, match=r"the key file .* is (a folder|not a regular file)"):
        read_keys(f"file:{tmp_path / 'keys'}")


@pytest.mark.another_user
def test_a_key_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text("the-key-of-today")
    os.chown(file, 65534, 65534)
    with pytest.raises(SpecError, match="belongs to another user"):
        read_keys(f"file:{file}")


def test_the_keys_of_a_file_are_redacted_from_then_on(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text("plain-words-of-a-key")
    assert read_keys(f"file:{file}") == (digest_of_key("plain-words-of-a-key"),)
    assert redacted("sent plain-words-of-a-key there") == "sent *** there"
