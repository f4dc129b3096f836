"""Every command where the home belongs to another user, is read-only, or its disk is full: one line, no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from releases import make_release
from small_disk import small_disk_at

from deployments.cli.main import slipway
from tasks.core.files import write_atomically
from tasks.core.release import ServiceFolder, ServiceState

REPOSITORY = Path(__file__).parents[2]
RUNNER = REPOSITORY / "tests" / "support" / "run_commands.py"
TINY = REPOSITORY / "examples" / "tiny"
HOME, PLACE = "{home}", "{place}"
"""The home, and the folder that it is in."""
COMMANDS: dict[str, list[str]] = {
    "deploy": [str(TINY / "slipway.yaml")],
    "status": [],
    "start": ["tiny"],
    "logs": ["tiny"],
    "rollback": ["tiny"],
    "history": ["tiny"],
    "diff": ["tiny", "0000"],
    "keys": ["tiny"],
    "stop": ["tiny"],
    "up": ["--port", "1"],
    "ui": [],
    "down": [],
    "doctor": [],
    "survey": [],
    "compat check": ["--engine", "vllm"],
    "compat matrix": ["ollama"],
    "compat rules": [],
    "compat tables": [],
    "env bom": [f"{PLACE}/lock.txt"],
    "env build": [f"{PLACE}/lock.txt"],
    "env check": [f"{HOME}/environments/none"],
    "env gc": [],
    "env lock": [f"{PLACE}/requirements.txt", "-o", f"{HOME}/lock"],
    "stage copy": [str(TINY / "model"), "--to", f"{HOME}/copy"],
    "stage gc": ["--limit", "1B"],
    "stage ollama": [f"{HOME}/models/none", "--to", f"{HOME}/ollama", "--name", "tiny"],
    "stage verify": [f"{HOME}/models/none"],
    "bench disk": [HOME],
    "bench load": [f"{HOME}/models/none"],
    "tune batch": ["--probe", "true {batch}", "--memory-bytes", "100", "--max-batch", "1"],
    "tune quantization": [str(TINY / "slipway.yaml")],
    "health": ["tiny"],
    "leaks judge": [str(REPOSITORY / "examples" / "leak" / "leak.csv")],
    "kb explain": ["tiny"],
    "kb matrix": [],
    "kb records": [],
    "dify register": ["tiny"],
    "engines": [],
}
"""Every command, with arguments that would do something in a home that can be used."""

WRITING = frozenset(
    {"deploy", "up", "env lock", "env build", "stage copy", "bench disk", "tune quantization"}
)
"""Those that cannot do anything without writing: they name the home."""


def commands(command: click.Command, path: str = "") -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, f"{path} {name}".strip())


def test_every_command_is_tried() -> None:
    assert set(commands(slipway)) == set(COMMANDS)


def fill(home: Path) -> None:
    """A home in which a service was deployed and stopped, and what the commands read beside it."""
    (home.parent / "lock.txt").write_text(f"idna==3.10 --hash=sha256:{'0' * 64}\n")
    (home.parent / "requirements.txt").write_text("idna==3.10\n")
    gguf = home.parent / "model.gguf"
    gguf.write_bytes(b"GGUF")
    folder = ServiceFolder(home / "services", "tiny")
    release = make_release(Path(sys.executable), gguf, name="tiny")
    write_atomically(folder.release_file(release.id), release.model_dump_json(by_alias=True))
    state = ServiceState(
        name="tiny", target=release.target, host="127.0.0.1", port=1, release=release.id, since=release.at
    )
    write_atomically(folder.state_file, state.model_dump_json(by_alias=True))
    (home / "leases").mkdir()
    (home / "records").mkdir()


@pytest.fixture
def home() -> Iterator[Path]:
    """The path of a home in a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place) / "home"


def told(home: Path, *wrapper: str, **env: str) -> dict[str, tuple[int, str, str]]:
    """Exit status, output and error output of each command, run by `wrapper`."""
    places = {HOME: str(home), PLACE: str(home.parent)}
    lines = [
        [*name.split(), *(one.replace(HOME, places[HOME]).replace(PLACE, places[PLACE]) for one in arguments)]
        for name, arguments in COMMANDS.items()
    ]
    script = home.parent / "commands.json"
    script.write_text(json.dumps(lines))
    unset = ("PREFECT_API_URL", "SLIPWAY_RECORDS", "SLIPWAY_REGISTRY")
    finished = subprocess.run(
        [*wrapper, sys.executable, RUNNER, script],
        env={key: value for key, value in os.environ.items() if key not in unset}
        | {"SLIPWAY_HOME": str(home), "PREFECT_HOME": str(home / "prefect"), **env},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(answers) == len(COMMANDS), finished.stderr
    return {
        name: (answer["code"], answer["out"], answer["err"])
        for name, answer in zip(COMMANDS, answers, strict=True)
    }


def check(answers: dict[str, tuple[int, str, str]], home: Path, words: str) -> None:
    for name, (code, out, err) in answers.items():
        assert "Traceback" not in out + err, (name, err)
        errors = [line for line in err.splitlines() if line.lower().startswith("error: ")]
        assert code in (0, 3) or len(errors) == 1, (name, code, err)
        if name in WRITING:
            assert code in (1, 2), (name, out, err)
            assert str(home) in errors[0], (name, err)
        if name in WRITING and code == 1:  # 2: the command line's own check of its arguments
            assert re.search(words, errors[0]), (name, err)
            assert "\n  fix: " in err, (name, err)


@pytest.mark.another_user
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_home_of_another_user(home: Path, mode: int) -> None:
    other = ("--reuid=65534", "--regid=65534", "--clear-groups")
    fill(home)
    home.chmod(mode)
    check(told(home, "setpriv", *other, HOME="/nonexistent"), home, "may not use")


@pytest.mark.mount
def test_a_home_that_is_mounted_read_only(home: Path) -> None:
    fill(home)
    mounted = f'mount --bind {home} {home} && mount -o remount,ro,bind {home} && exec "$@"'
    check(
        told(home, "unshare", "--map-root-user", "--mount", "sh", "-c", mounted, "sh"),
        home,
        "mounted read-only",
    )


def test_a_home_on_a_full_disk(home: Path) -> None:
    with small_disk_at(home, "1m"):
        fill(home)
        with (home / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        check(told(home), home, "no space left|do not fit|too little space")
