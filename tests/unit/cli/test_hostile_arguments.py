"""Every argument and option of every verb with odd paths, numbers and texts: one line and an exit code.

The verbs and their parameters are found in the command itself: a new option is in by itself, and a new verb fails
until `USES` says how it is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from deployments.cli.main import VERBS, main
from deployments.cli.params import GivenPath

pytestmark = pytest.mark.slow

LOCK = "idna==3.10 --hash=sha256:946d195a0d259cbba61165e88e65941f16e9b36ea6ddb97f00452bae8b1287d3\n"

USES: dict[str, tuple[str, ...]] = {
    "bench disk": ("file",),
    "bench load": ("folder",),
    "compat check": ("--facts", "facts.json"),
    "compat matrix": ("torch", "--facts", "facts.json"),
    "compat rules": ("--json",),
    "compat tables": ("--json",),
    "deploy": ("spec.yaml", "--dry-run"),
    "dify register": ("nosuch",),
    "doctor": ("--json",),
    "down": ("--json",),
    "engines": ("--need", "edge", "--facts", "facts.json"),
    "env bom": ("good.lock",),
    "env build": ("good.lock", "--wheels", "folder"),
    "env check": ("none",),
    "env gc": ("--dry-run",),
    "env lock": ("empty.txt", "-o", "out.lock"),
    "health": ("nosuch",),
    "kb explain": ("nosuch",),
    "kb matrix": ("--json",),
    "kb records": ("--json",),
    "leaks judge": ("series.csv",),
    "logs": ("nosuch",),
    "rollback": ("nosuch",),
    "history": ("nosuch",),
    "diff": ("nosuch", "0000", "0000"),
    "keys": ("nosuch",),
    "stage copy": ("model", "--to", "copy"),
    "stage gc": ("--limit", "1Gi", "--dry-run"),
    "stage ollama": ("folder", "--to", "store", "--name", "n"),
    "stage verify": ("folder",),
    "start": ("nosuch",),
    "status": ("nosuch",),
    "stop": ("nosuch",),
    "survey": ("--json",),
    "tune batch": ("--probe", "false {batch}", "--memory-bytes", "1000", "--max-batch", "1"),
    "tune quantization": ("spec.yaml", "--set", "tuning.quality_text=none"),
    "ui": (),
    "up": (),
}
"""A call of each verb that ends at once, in a folder with the files below."""

STARTS = {"ui", "up"}
"""These start servers when they are called rightly: only their help is asked for, and their wrong values."""

PATHS = {
    "missing": "none",
    "below a missing one": "none/none/none",
    "a folder": "folder",
    "a file": "file",
    "below a file": "file/x",
    "a pipe": "pipe",
    "an endless device": "/dev/zero",
    "a full device": "/dev/full",
    "a folder of the kernel": "/proc/self/fd",
    "a link to itself": "loop",
    "a dangling link": "dangling",
    "a long name": "x" * 300,
    "a long path": "x/" * 3000,
    "empty": "",
    "a dash": "-",
    "the root": "/",
    "a home that is not": "~nosuchuser/x",
    "control characters": "a\x1b[31m\tb",
    "two lines": "a\nb",
    "not UTF-8": "a\udcffb",
    "a large file": "large",
    "binary": "binary",
    "deep JSON": "deep.json",
    "an address": "s3://",
}
NUMBERS = ("nan", "inf", "-inf", "1e308", "1" + "0" * 30, "-1", "", "true", "1:30", "٣", "1" * 5000, "0x10")
TEXTS = (
    "",
    "x" * 300,
    "a\nb",
    "\x1b[31m",
    "a\udcffb",
    "../../etc",
    "'",
    "[",
    "a=b",
    "=",
    "~nosuchuser",
    "nan",
)


def verbs() -> Iterator[tuple[str, click.Command]]:
    def below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for verb, sub in command.commands.items():
                yield from below(f"{name} {verb}", sub)
        else:
            yield name, command

    for verb, (place, _) in VERBS.items():
        module, _, attribute = place.partition(":")
        yield from below(verb, getattr(importlib.import_module(module), attribute))


COMMANDS = dict(verbs())
PARAMETERS = [
    (verb, parameter)
    for verb, command in COMMANDS.items()
    for parameter in command.params
    if not (isinstance(parameter, click.Option) and parameter.is_flag)
]


def name_of(case: tuple[str, click.Parameter]) -> str:
    return f"{case[0]} {case[1].name}"


def of_kind(*kinds: type[click.ParamType]) -> list[tuple[str, click.Parameter]]:
    return [case for case in PARAMETERS if isinstance(case[1].type, kinds)]


@dataclass(frozen=True)
class Shown:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def workplace() -> Iterator[Path]:
    """A folder with a home, which all cases share: what takes long is done once."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setenv("SLIPWAY_HOME", str(folder / "home"))
        for variable in ("SLIPWAY_RECORDS", "SLIPWAY_REGISTRY", "SLIPWAY_S3_ENDPOINT"):
            patch.delenv(variable, raising=False)
        patch.chdir(folder)
        patch.setattr(sys, "stdin", sys.stdin)  # put back at the end
        yield folder


@pytest.fixture
def place(workplace: Path, random_model: Path) -> Path:
    """The same, with files of many kinds as no case before has left them."""
    for left in workplace.iterdir():
        if left.name == "home":
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    (workplace / "model").symlink_to(random_model)
    texts = {
        "spec.yaml": f"name: tiny\nmodel: file:{random_model}\n",
        "facts.json": '{"driver": null, "gpus": [], "memory_bytes": 16000000000}',
        "good.lock": LOCK,
        "empty.txt": "# nothing\n",
        "series.csv": "t_s,bytes\n0,1\n60,1\n",
        "file": "a file\n",
        "deep.json": "[" * 100_000,
    }
    for name, text in texts.items():
        (workplace / name).write_text(text)
    (workplace / "binary").write_bytes(bytes(range(256)))
    with (workplace / "large").open("wb") as file:
        file.truncate(10**11)
    (workplace / "folder").mkdir()
    os.mkfifo(workplace / "pipe")
    (workplace / "loop").symlink_to("loop")
    (workplace / "dangling").symlink_to("nowhere")
    return workplace


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Shown:
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    shown = capsys.readouterr()
    return Shown(int(ended.value.code or 0), shown.out, shown.err)


def check(shown: Shown) -> None:
    """A code of those that are documented; where it is a fault, one clear line that Slipway meant."""
    lines = shown.err.splitlines()
    assert shown.code in (0, 1, 2, 3), shown
    assert "Traceback" not in shown.err
    assert "failed unexpectedly" not in shown.err
    assert not set(shown.err) & {"\x1b", "\0"}, shown.err
    errors = [line for line in lines if line.startswith(("error: ", "Error: "))]
    assert len(errors) == (1 if shown.code in (1, 2) else 0), shown
    assert all(len(line) < 700 for line in errors)


def with_value(verb: str, parameter: click.Parameter, value: str) -> list[str]:
    """The verb's usual call, with this value for the parameter."""
    usual = list(USES[verb])
    if isinstance(parameter, click.Argument):
        places = [one for one in COMMANDS[verb].params if isinstance(one, click.Argument)]
        usual[places.index(parameter)] = value
        if value.startswith("-"):
            usual.insert(places.index(parameter), "--")
            usual = usual[len(places) + 1 :] + usual[: len(places) + 1]
        return [*verb.split(), *usual]
    option = parameter.opts[-1]
    for spelled in parameter.opts:
        if spelled in usual and not parameter.multiple:
            at = usual.index(spelled)
            del usual[at : at + 2]
    return [*verb.split(), *usual, f"{option}={value}" if option.startswith("--") else f"{option}{value}"]


def test_every_verb_has_a_use() -> None:
    assert sorted(COMMANDS) == sorted(USES)


@pytest.mark.parametrize("verb", sorted(set(USES) - STARTS))
def test_the_usual_call_ends_in_words(verb: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, *verb.split(), *USES[verb])
    check(shown if verb != "doctor" else Shown(0, shown.out, shown.err))


MEASURED = {
    *(
        "missing",
        "below a missing one",
        "a folder",
        "the root",
        "a folder of the kernel",
        "a dash",
        "an address",
    ),
}
"""A disk can be measured at these, which takes a minute."""


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize("case", [case for case in of_kind(GivenPath) if case[0] not in STARTS], ids=name_of)
def test_an_odd_path_is_one_line(
    case: tuple[str, click.Parameter], value: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name_of(case) == "bench disk folder" and value in MEASURED:
        value = "a file"
    check(call(capsys, *with_value(*case, PATHS[value])))


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("case", of_kind(click.IntRange, click.FloatRange), ids=name_of)
def test_an_odd_number_is_wrong_use(
    case: tuple[str, click.Parameter], value: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = call(capsys, *with_value(*case, value))
    check(shown)
    assert shown.code == 2


@pytest.mark.parametrize("case", PARAMETERS, ids=name_of)
def test_every_number_has_both_bounds_and_every_path_is_checked(case: tuple[str, click.Parameter]) -> None:
    kind = case[1].type
    assert not isinstance(kind, click.types.IntParamType | click.types.FloatParamType) or (
        isinstance(kind, click.IntRange | click.FloatRange) and None not in (kind.min, kind.max)
    )
    assert isinstance(kind, GivenPath) or not isinstance(kind, click.Path | click.File)
    file_like = {"FILE", "PATH", "ENV", "LOCK", "SPEC", "DIR"}
    assert isinstance(kind, GivenPath) or case[1].metavar not in file_like


@pytest.mark.parametrize("value", TEXTS)
@pytest.mark.parametrize(
    "case",
    [
        case
        for case in PARAMETERS
        if not isinstance(case[1].type, GivenPath | click.IntRange | click.FloatRange)
    ],
    ids=name_of,
)
def test_an_odd_text_is_one_line(
    case: tuple[str, click.Parameter], value: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(call(capsys, *with_value(*case, value)))


@contextlib.contextmanager
def no_privileges() -> Iterator[None]:
    """Root's right to pass by the permissions of files is laid down: capabilities(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    kept = ctypes.create_string_buffer(24)
    assert libc.capget(header, kept) == 0
    effective, *others = struct.unpack("=6I", kept.raw)
    bypass = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, struct.pack("=6I", effective & ~bypass, *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, kept.raw) == 0


@pytest.mark.parametrize("denied", ["closed/file", "closed", "shut"])
@pytest.mark.parametrize("case", [case for case in of_kind(GivenPath) if case[0] not in STARTS], ids=name_of)
def test_a_path_that_is_denied_is_one_line(
    case: tuple[str, click.Parameter],
    denied: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed, shut = place / "closed", place / "shut"
    closed.mkdir()
    (closed / "file").write_text("a file\n")
    closed.chmod(0o000)
    shut.write_text("a file\n")
    shut.chmod(0o000)
    with no_privileges():
        shown = call(capsys, *with_value(*case, denied))
    check(shown)
    assert shown.code != 0 or denied == "shut"  # which a new file can take the place of


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"gpus": ' * 50_000,
        b'{"memory_bytes": 1e999}',
        b'{"memory_bytes": NaN}',
        b'{"memory_bytes": true}',
        b'{"memory_bytes": ' + b"9" * 5000 + b"}",
        b'{"memory_bytes": -1}',
        b'{"memory_bytes": ' + b"9" * 400 + b"}",
        b'{"driver": "\\u0000"}',
        b'{"driver": "\\ud800"}',
        b'{"driver": "1", "driver": "2"}',
        b"\xff\xfe{}",
        b'{"engine": "' + b"x" * 100_000 + b'"}',
        b'{"' + b"k" * 100_000 + b'": 1}',
    ],
)
@pytest.mark.parametrize("verb", ["compat check", "engines"])
def test_odd_facts_are_one_line(
    verb: str, content: bytes, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "odd.json").write_bytes(content)
    need = ["--need", "edge"] if verb == "engines" else []
    check(call(capsys, *verb.split(), *need, "--facts", "odd.json"))


@pytest.mark.parametrize(
    "printed",
    [
        '{"peak_bytes": Infinity, "latency_ms": 1, "throughput": 1}',
        '{"peak_bytes": NaN, "latency_ms": 1, "throughput": 1}',
        '{"peak_bytes": 1e308, "latency_ms": 1e308, "throughput": 1e308}',
        '{"peak_bytes": true, "latency_ms": 1, "throughput": 1}',
        '{"peak_bytes": -1, "latency_ms": 1, "throughput": 1}',
        '{"peak_bytes": ' + "9" * 5000 + ', "latency_ms": 1, "throughput": 1}',
        '{"peak_bytes": ' + "9" * 400 + ', "latency_ms": 1, "throughput": 1}',
        "[" * 50_000,
        "{}",
        "",
    ],
)
def test_an_odd_answer_of_a_probe_is_no_size(
    printed: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "answer").write_text(printed)
    shown = call(
        capsys, "tune", "batch", "--probe", "sh -c 'cat answer; exit 0' {batch}", "--memory-bytes", "1000",
        "--max-batch", "1", "--json",
    )  # fmt: skip
    check(shown)
    assert shown.code == 3
    answer = json.loads(shown.out)
    assert (answer["batch"], answer["failures"][0]["kind"]) == (None, "garbage")
