"""`slipway survey` and `slipway compat`: what they print, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from blocks.host.host import ThisHost
from deployments.cli.main import main
from tasks.compatibility.models import NvmlReading, SmiReading, ToolkitReading
from tasks.core.facts import Gpu

pytestmark = pytest.mark.slow

H200 = {"name": "NVIDIA H200", "compute_capability": "9.0", "memory_bytes": 150_754_820_096}
FACTS = {
    "driver": "570.124.06",
    "cuda_build": "12.8",
    "gpus": [H200],
    "engine": "vllm",
    "engine_version": "0.11.2",
}


def slipway(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def write(folder: Path, **facts: object) -> str:
    path = folder / "facts.json"
    path.write_text(json.dumps(facts))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [({}, "pass", 0), ({"cuda_build": "12.9"}, "warn", 0), ({"cuda_build": "13.0"}, "block", 3)],
)
def test_the_verdict_decides_the_exit_code(
    changes: dict[str, str], verdict: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("compat", "check", "--facts", write(tmp_path, **{**FACTS, **changes}), "--json") == code
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"verdict", "findings", "ways_out", "set_aside"}
    assert bool(answer["ways_out"]) is (verdict == "block")
    assert answer["verdict"] == verdict
    for finding in [*answer["findings"], *answer["set_aside"]]:
        keys = {"rule", "severity", "precedence", "message", "fix", "sources", "contradicted_by"}
        assert finding.keys() == keys
        assert finding["sources"]


def test_the_engine_is_judged_on_the_host_of_the_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `slipway survey` writes them, facts name no engine; on one machine, two engines get two verdicts."""
    facts = write(tmp_path, driver="580.95.05", gpus=[])
    assert slipway("compat", "check", "--facts", facts, "--engine", "vllm", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert "vllm needs a GPU" in found["findings"][0]["message"]
    assert slipway("compat", "check", "--facts", facts, "--engine", "llama.cpp", "--json") == 0


def test_packages_that_the_facts_name_are_kept_for_the_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = write(tmp_path, **{key: value for key, value in FACTS.items() if key != "engine"})
    assert slipway("compat", "check", "--facts", facts, "--engine", "vllm", "--json") == 0
    with_engine = json.loads(capsys.readouterr().out)
    assert slipway("compat", "check", "--facts", write(tmp_path, **FACTS), "--engine", "vllm", "--json") == 0
    assert json.loads(capsys.readouterr().out) == with_engine


def test_unknown_is_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        slipway("compat", "check", "--facts", write(tmp_path, driver=None, gpus=[], engine="llama.cpp")) == 3
    )
    assert capsys.readouterr().out.splitlines()[:3] == snapshot(
        [
            "unknown  CPU only, 1 finding",
            "  unknown  NOT-KNOWN-CUDA-BUILD (P1): `cuda_build` is not known. Not judged: BUILD-CONTRADICTS, CUDA-UNUSED, KB-02-A, KB-02-B.",
            "    fix: give all packages (--pip-freeze), the image's environment (--env), or `cuda_build` (torch.version.cuda); null if none",
        ]
    )


def test_this_host_with_the_engines_own_pins(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    slipway("survey", "--json")
    facts = json.loads(capsys.readouterr().out)
    code = slipway("compat", "check", "--json")
    here = json.loads(capsys.readouterr().out)
    wanted = {"engine": "llama.cpp", "packages": {}, "cuda_build": None}
    assert slipway("compat", "check", "--json", "--facts", write(tmp_path, **{**facts, **wanted})) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == here["verdict"]


def test_a_lock_says_what_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(name="Tesla V100", compute_capability="7.0")
    reading = NvmlReading(available=True, driver="570.124.06", cuda_driver="12.8", gpus=(gpu,))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: reading)
    lock = tmp_path / "lock.txt"
    lock.write_text("torch==2.11.0 \\\n    --hash=sha256:00\nnvidia-cuda-runtime-cu12==12.8.90\n")
    assert slipway("compat", "check", "--engine", "transformers", "--lock", str(lock), "--json") == 3
    assert "TORCH-KERNELS" in {finding["rule"] for finding in json.loads(capsys.readouterr().out)["findings"]}


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A real environment that holds the lists of two packages and torch's constants, and no more."""
    venv.create(tmp_path / "env", symlinks=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    for name, version in (("torch", "2.9.0"), ("transformers", "4.57.0")):
        folder = packages / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    (packages / "torch" / "version.py").write_text("__version__ = '2.9.0+cu130'\ncuda = '13.0'\n")
    return tmp_path / "env"


def test_an_environment_says_what_it_was_built_for(
    environment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(name="Tesla V100", compute_capability="7.0")
    reading = NvmlReading(available=True, driver="570.124.06", cuda_driver="12.8", gpus=(gpu,))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: reading)
    asked = ("compat", "check", "--environment", str(environment), "--json")
    assert slipway(*asked) == 3
    found = {
        finding["rule"]: finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]
    }
    assert found["DRV-FLOOR-13"].startswith("a CUDA 13.0 build needs a driver of at least 580")
    monkeypatch.setattr(ThisHost, "nvml", lambda _: NvmlReading())
    assert slipway(*asked) == 0
    found = {
        finding["rule"]: finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]
    }
    assert "CUDA-UNUSED" in found


def test_a_target_is_judged_where_it_is_named(
    environment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = NvmlReading(available=True, driver="580.95.05", cuda_driver="13.0", gpus=(Gpu(**H200),))
    monkeypatch.setattr(ThisHost, "nvml", lambda _: reading)
    monkeypatch.setattr(ThisHost, "container_toolkit", lambda _: ToolkitReading())
    monkeypatch.setattr(ThisHost, "docker_runtimes", lambda _: ("runc",))
    asked = ("compat", "check", "--environment", str(environment))
    assert slipway(*asked, "--target", "process") == 0
    assert slipway(*asked, "--target", "docker") == 3
    assert "way out: target docker -> process" in capsys.readouterr().out


def test_survey_shows_faults_and_disagreement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ThisHost, "nvml", lambda _: NvmlReading(available=True, driver="580.1", fault="NVML: x")
    )
    monkeypatch.setattr(ThisHost, "nvidia_smi", lambda _: SmiReading(driver="570.2"))
    assert slipway("survey") == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["driver", "580.1"] in shown
    assert ["disagreement", "driver: NVML says 580.1, nvidia-smi says 570.2"] in shown
    assert ["fault", "NVML: x"] in shown


def test_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("compat", "rules") == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.split()[0] == "DRV-FLOOR-12").split() == snapshot(
        [
            "DRV-FLOOR-12",
            "P1",
            "block",
            "driver",
            "<525.60.13,",
            "cuda_build",
            ">=12,<13",
            "gpus",
            "none,",
            "compat_cuda",
            ">=12",
        ]
    )
    assert slipway("compat", "rules", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == len(lines) - 2, "a line each, below the head"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--facts", "missing.json"], "no facts file missing.json"),
        (["--facts", "."], "the facts file . is a folder"),
        (["--lock", "missing.txt"], "no lock missing.txt"),
        (["--lock", "empty.txt"], "empty.txt pins no package"),
        (["--facts", "a", "--lock", "b"], "--lock describes this host's environment"),
        (["--facts", "a", "--environment", "b"], "--environment describes this host's environment"),
        (
            ["--lock", "a", "--environment", "b"],
            "--lock and --environment exclude each other",
        ),
        (["--environment", "b"], "b is not a Python environment"),
        (["--facts", "typo.json"], "typo.json: unknown key 'drivr'"),
        (
            ["--facts", "vllm.json", "--engine", "sglang"],
            "the facts are for the engine 'vLLM', but --engine is",
        ),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("# nothing\n")
    Path("typo.json").write_text('{"drivr": "580"}')
    Path("vllm.json").write_text('{"engine": "vLLM"}')
    assert slipway("compat", "check", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "Traceback" not in error


def test_facts_are_judged_without_loading_what_takes_long(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom deployments.cli.main import main\n"
        f"try: main(['compat', 'check', '--facts', {write(tmp_path, **FACTS)!r}, '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'prefect', 'pandas', 'docker', 'boto3', 'rich', 'httpx', 'pynvml', 'psutil'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_facts_from_standard_input() -> None:
    command = [str(Path(sys.executable).with_name("slipway")), "compat", "check", "--facts", "-", "--json"]
    done = subprocess.run(command, input=json.dumps(FACTS), capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "pass")
