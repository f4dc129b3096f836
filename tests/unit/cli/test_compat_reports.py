"""`compat check` on what people paste into reports, `compat matrix`, and the age of the tables in `doctor`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from deployments.cli.doctor import fact_tables
from deployments.cli.main import main
from tasks.compatibility.fact_tables import FRESH_DAYS, last_checked_on, read_rows

SMI = """\
$ nvidia-smi
| NVIDIA-SMI 550.142                Driver Version: 550.142        CUDA Version: 12.4     |
|   0  NVIDIA GeForce RTX 3090        Off |   00000000:01:00.0 Off |                  N/A |
| 30%   40C    P8             20W /  350W |       1MiB /  24576MiB |      0%      Default |
"""
FREEZE = "vllm==0.10.2\ntorch==2.8.0+cu126\ntransformers==4.55.2\n"
ENV = "NVIDIA_REQUIRE_CUDA=cuda>=12.6 brand=tesla,driver>=550,driver<551\nCUDA_VERSION=12.6.3\n"
LLAMA = "ghcr.io/ggml-org/llama.cpp:server-cuda"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    texts = {
        "smi": SMI,
        "freeze": FREEZE,
        "env": ENV,
        "nvcc": "Cuda compilation tools, release 12.4, V12.4.131",
        "facts": json.dumps({"driver": "580.95.05", "gpus": [], "glibc": "2.35"}),
        "bug": f"{SMI}\nwith these:\n{FREEZE}",
        "empty": "",
        "prose": "it does not work",
        "vllm.json": '{"engine": "vllm", "driver": "550.1"}',
    }
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("binary").write_bytes(bytes(range(256)))
    Path("nul").write_bytes(b"Driver Version: 550.1\x00\n")
    Path("huge").write_bytes(b"torch==2.8.0\n" * 200_000)
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compat", "check", *arguments])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@pytest.mark.parametrize(
    ("arguments", "verdict", "head"),
    [
        (
            "--nvidia-smi smi --pip-freeze freeze",
            "warn",
            "GeForce RTX 3090, driver 550.142, CUDA 12.6 build: warn",
        ),
        ("--report bug", "warn", "GeForce RTX 3090, driver 550.142, CUDA 12.6 build: warn"),
        ("--report bug --driver 470.82.01", "block", "driver 470.82.01"),
        ("--report bug --gpu Tesla-V100", "warn", "Tesla-V100, driver 550.142"),
        ("--report bug --gpu Tesla-P100", "block", "Tesla-P100, driver 550.142"),
        ("--facts facts --nvidia-smi smi --pip-freeze freeze", "warn", "GeForce RTX 3090, driver 550.142"),
        (f"--nvidia-smi smi --image {LLAMA} --env env", "block", "CUDA 12.6 build"),
        (
            f"--nvidia-smi smi --image {LLAMA} --env env --env NVIDIA_DISABLE_REQUIRE=1",
            "warn",
            "CUDA 12.6 build",
        ),
        (f"--nvidia-smi smi --image {LLAMA} --env CUDA_VERSION=12.4.1", "pass", "CUDA 12.4 build"),
        ("--nvidia-smi smi --image vllm/vllm-openai:v0.20.2-cu130", "block", "CUDA 13.0 build"),
        ("--nvidia-smi smi --image vllm/vllm-openai:v0.20.2-cu129", "warn", "CUDA 12.9 build"),
        ("--nvidia-smi smi --image vllm/vllm-openai:v0.10.2", "unknown", "driver 550.142"),
        ("--gpu L4 --driver 580.95.05 --engine vllm", "pass", "L4, driver 580.95.05, CUDA 13.0 build"),
        ("--gpu L4 --driver 470.82.01 --engine vllm", "block", "L4, driver 470.82.01, CUDA 13.0 build"),
        ("--nvidia-smi smi --engine vllm==0.19.1", "warn", "driver 550.142, CUDA 12.8 build"),
        ("--engine vllm==0.19.1", "block", "CPU only: vllm needs a GPU"),
        ("--nvidia-smi smi", "unknown", "GeForce RTX 3090, driver 550.142"),
        ("--facts facts --engine llama.cpp --target docker", "pass", "CPU only"),
    ],
)
def test_what_people_have_is_judged(
    arguments: str, verdict: str, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.replace("Tesla-", "Tesla ") for part in arguments.split()]
    code, out, _ = check(capsys, *given)
    first = out.splitlines()[0]
    assert (first.split()[0], code) == (verdict, 3 if verdict in ("block", "unknown") else 0), out
    assert head.replace("Tesla-", "Tesla ") in first
    assert "?" not in out


def test_a_refused_image_comes_with_its_ways_out(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, "--nvidia-smi", "smi", "--image", LLAMA, "--env", "env")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[1].startswith(
        "block  IMAGE-REFUSED (P1): NVIDIA's container toolkit refuses to start the image"
    )
    ways = [line for line in lines if line.startswith("way out: ")]
    assert ways[0].startswith("way out: NVIDIA_DISABLE_REQUIRE none -> true, in the container, then warn")
    assert ways[1].startswith("way out: driver 550.142 -> 560 or newer, then pass")
    assert lines.index(ways[-1]) < next(place for place, line in enumerate(lines) if line.startswith("warn"))


def test_what_was_set_aside_is_one_line_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, "--report", "bug")
    assert out.splitlines()[-1].endswith("(--all shows them)")
    assert "NOT-KNOWN" not in out
    _, everything, _ = check(capsys, "--report", "bug", "--all")
    assert "NOT-KNOWN-GLIBC" in everything
    assert "(--all" not in everything
    assert "and 3 more" in out
    assert "more" not in next(line for line in everything.splitlines() if "source:" in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nvidia-smi", "missing"], "no output of nvidia-smi missing"),
        (["--nvidia-smi", "."], "the output of nvidia-smi . is a folder"),
        (["--nvidia-smi", "empty"], "empty does not name a driver or GPU"),
        (["--nvidia-smi", "prose"], "prose does not name a driver or GPU"),
        (["--nvidia-smi", "binary"], "the output of nvidia-smi binary is not text"),
        (["--nvidia-smi", "nul"], "the output of nvidia-smi nul is not text"),
        (["--nvcc", "prose"], "prose does not name a release of nvcc"),
        (["--pip-freeze", "empty"], "empty does not name a package with its version"),
        (["--pip-freeze", "huge"], "the list of packages huge is too large: at most 2 MB are read"),
        (["--report", "prose"], "prose does not name a driver, GPU or package"),
        (["--env", "prose"], "prose does not name a variable KEY=VALUE"),
        (["--env", "missing"], "no environment of the image missing"),
        (["--image", "two words"], "'two words' is not the name of an image"),
        (["--driver", "new"], "'new' is not the version of a driver"),
        (["--gpu", "L4", "--engine", "nosuch"], "'nosuch' is not an engine in the tables"),
        (["--facts", "vllm.json", "--engine", "sglang"], "the facts are for the engine 'vllm'"),
        (["--nvidia-smi", "-", "--pip-freeze", "-"], "two options read standard input"),
        (["--driver", "580", "--lock", "x"], "--lock describes this host's environment"),
        (["--engine", "dify"], "--engine 'dify' has no pinned requirements"),
        (
            ["--engine", "vllm==0.19.1", "--lock", "freeze"],
            "--engine 'vllm==0.19.1' has no pinned requirements",
        ),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SMI.encode())))
    code, out, error = check(capsys, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert len(error.splitlines()) <= 2


def test_a_report_from_standard_input() -> None:
    command = [str(Path(sys.executable).with_name("slipway")), "compat", "check", "--report", "-", "--json"]
    done = subprocess.run(command, input=SMI + FREEZE, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "warn"), done.stderr


def test_a_matrix_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compat", "matrix", "vllm", "--facts", "facts"])
    assert not ended.value.code
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["release", "torch", "CUDA"]
    assert {line[-1] for line in lines[2:]} == {"block"}, "there is no GPU"
    with pytest.raises(SystemExit):
        main(["compat", "matrix", "torch", "--facts", "facts", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {"release", "cuda", "driver", "gpus", "glibc", "python", "transformers", "here"} <= rows[0].keys()


def test_doctor_warns_of_old_tables() -> None:
    read = sorted({day for rows in read_rows().values() if (day := last_checked_on(rows))})
    fresh = fact_tables(read[0] + timedelta(days=FRESH_DAYS))
    assert (fresh.there, fresh.thing) == (True, "fact tables")
    assert f"all read until {read[0]} or later" in fresh.found
    old = fact_tables(read[0] + timedelta(days=FRESH_DAYS + 1))
    assert not old.there
    assert f"until {read[0]}" in old.found
    assert "docs/facts.md" in old.fix
    assert fact_tables(date(2036, 1, 1)).found.count(" until ") == len(read_rows())
