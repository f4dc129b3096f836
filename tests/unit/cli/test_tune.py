"""`slipway tune batch` with commands as probes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from strays import processes_of

from deployments.cli.main import main
from deployments.cli.tune import parse_probe
from tasks.engines.failures import FailureKind

pytestmark = pytest.mark.slow

PROBE = """\
import json, pathlib, sys
batch = int(sys.argv[1])
log = pathlib.Path(sys.argv[0]).with_suffix(".log")
log.open("a").write(f"{batch}\\n")
print("warming up")
if batch > 40:
    print(json.dumps({"oom": True}))
elif batch == 4 and log.read_text().split().count("4") == 1:
    sys.exit("connection reset")
else:
    figures = {"peak_bytes": 1e9 + 1e8 * batch, "latency_ms": 10 + batch, "throughput": 1000 * batch / (batch + 8)}
    print(json.dumps(figures | {"oom": False}))
"""


@pytest.fixture
def probe(tmp_path: Path) -> str:
    script = tmp_path / "a probe.py"
    script.write_text(PROBE)
    return f"{sys.executable} '{script}' {{batch}}"


def slipway(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "batch", *arguments])
    return int(ended.value.code or 0)


def test_the_answer_for_programs(probe: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = slipway("--probe", probe, "--memory-bytes", "3000000000", "--slo-ms", "100", "--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out) == snapshot(
        {
            "batch": 16,
            "probes": 6,
            "runs": 15,
            "oom_hits": 0,
            "throughput": 666.6666666666666,
            "reason": "the smallest of 6 sizes with 98% of the most throughput (batch 17)",
            "failures": [
                {
                    "batch": 4,
                    "kind": "crashed",
                    "what": "exit status 1: connection reset",
                    "exit_status": 1,
                    "signal": None,
                    "log_tail": "connection reset",
                }
            ],
        }
    )


def test_the_answer_for_people(probe: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = slipway("--probe", probe, "--memory-bytes", "9000000000", "--slo-ms", "24", "--max-batch", "64")
    assert code == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == snapshot(
        [
            " batch  runs  throughput  latency ms  peak MB  why",
            " ──────────────────────────────────────────────────────────────────────────────────",
            "     1     1       111.1          11     1100",
            "     2     1         200          12     1200",
            "     4     1       333.3          14     1400",
            "     8     1         500          18     1800",
            "    12     1         600          22     2200",
            "    14     5       636.4          24     2400  chosen",
            "    15     3       652.2          25     2500  latency is 25 ms, the limit is 24 ms",
            "    16     3       666.7          26     2600  latency is 26 ms, the limit is 24 ms",
            "batch 4, last words:",
            "  connection reset",
            "batch 14: the most throughput of 8 sizes; batch 15 latency is 25 ms, the limit is 24 ms",
        ]
    )


def test_none_ends_with_three(probe: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = slipway("--probe", probe, "--memory-bytes", "1000000000", "--slo-ms", "100", "--json")
    assert code == 3
    assert json.loads(capsys.readouterr().out) == snapshot(
        {
            "batch": None,
            "probes": 1,
            "runs": 1,
            "oom_hits": 0,
            "throughput": None,
            "reason": "not even batch 1 works: needs 1.10 GB of memory, 900 MB may be used",
            "failures": [],
        }
    )
    assert slipway("--probe", "false {batch}", "--memory-bytes", "1", "--start", "8") == 3
    assert "none: not even batch 1 works: crashed: exit status 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program {batch}", "the program no-such-program does not exist"),
        ("echo 'x {batch}", "is not a valid command: No closing quotation"),
        ("echo hello", "does not contain {batch}"),
    ],
)
def test_a_probe_that_cannot_run_is_wrong_use(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slipway("--probe", command, "--memory-bytes", "1") == 2
    assert message in capsys.readouterr().err


ODD_PROBE = """\
import json, os, signal, subprocess, sys, threading
batch, how = int(sys.argv[1]), sys.argv[2]
print("loading the model", file=sys.stderr, flush=True)
figures = {"peak_bytes": 1e9, "latency_ms": 10 * batch, "throughput": 100 * batch, "oom": False}
if batch == 1:
    how = "well"
if how == "crash":
    sys.exit("assertion failed: n_past < n_ctx")
if how == "segv":
    os.kill(os.getpid(), signal.SIGSEGV)
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "cuda":
    sys.exit("torch.cuda.OutOfMemoryError: CUDA out of memory.")
if how == "hang":
    stubborn = (
        "import pathlib, signal, sys, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pathlib.Path(sys.argv[1]).touch(); threading.Event().wait()"
    )
    parent = (
        "import subprocess, sys;"
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}, sys.argv[1]], start_new_session=True).wait()"
    )
    subprocess.Popen([sys.executable, "-c", parent, sys.argv[0] + ".grandchild"], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", stubborn, sys.argv[0] + ".child"])
    threading.Event().wait()
if how == "garbage":
    print("Segment 1 of 3 done")
elif how == "nan":
    print(json.dumps(figures | {"latency_ms": float("nan")}))
else:
    print(json.dumps(figures))
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (
            "crash",
            {
                "kind": "crashed",
                "what": "exit status 1: assertion failed: n_past < n_ctx",
                "exit_status": 1,
                "signal": None,
                "log_tail": "loading the model\nassertion failed: n_past < n_ctx",
            },
        ),
        (
            "segv",
            {
                "kind": "crashed",
                "what": "killed by SIGSEGV: loading the model",
                "exit_status": None,
                "signal": "SIGSEGV",
                "log_tail": "loading the model",
            },
        ),
        (
            "killed",
            {
                "kind": "crashed",
                "what": "killed by SIGKILL: loading the model",
                "exit_status": None,
                "signal": "SIGKILL",
                "log_tail": "loading the model",
            },
        ),
        (
            "cuda",
            {
                "kind": "out of memory",
                "what": "exit status 1: torch.cuda.OutOfMemoryError: CUDA out of memory.",
                "exit_status": 1,
                "signal": None,
                "log_tail": "loading the model\ntorch.cuda.OutOfMemoryError: CUDA out of memory.",
            },
        ),
        ("garbage", {"kind": "garbage", "what": "printed 'Segment 1 of 3 done' instead of a JSON object"}),
        ("nan", {"kind": "garbage", "what": "latency_ms is nan, not a number from 0 to 1e+18"}),
        ("well", {"kind": "slow", "what": "latency is 20 ms, the limit is 15 ms"}),
    ],
)
def test_each_way_of_failing_is_told_apart(
    how: str, expected: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "probe.py"
    script.write_text(ODD_PROBE)
    command = f"{sys.executable} '{script}' {{batch}} {how}"
    code = slipway(
        *("--probe", command, "--memory-bytes", "9000000000", "--slo-ms", "15", "--max-batch", "2", "--json")
    )
    answer = json.loads(capsys.readouterr().out)
    assert (code, answer["batch"]) == (0, 1)
    empty = {"exit_status": None, "signal": None, "log_tail": None}
    assert answer["failures"][0] == {"batch": 2} | empty | expected
    assert len({one["kind"] for one in answer["failures"]}) == 1
    assert answer["oom_hits"] == (expected["kind"] == "out of memory")
    assert not processes_of(tmp_path)


def test_a_probe_that_hangs_leaves_no_grandchild(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "probe.py"
    script.write_text(ODD_PROBE)
    command = f"{sys.executable} '{script}' {{batch}} hang"
    code = slipway(
        *("--probe", command, "--memory-bytes", "9000000000", "--max-batch", "2", "--timeout-s", "1.5")
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "hung: python did not end within 1.5 s" in " ".join(out.split())
    assert "batch 2, last words:\n  loading the model\n" in out
    assert {path.suffix for path in tmp_path.iterdir()} == {".py", ".child", ".grandchild"}  # they did live
    assert not processes_of(tmp_path)


def test_a_hanging_probe_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code = slipway("--probe", "sleep 60{batch}", "--memory-bytes", "1", "--timeout-s", "0.05", "--json")
    assert code == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["reason"] == "not even batch 1 works: hung: sleep did not end within 0.05 s"
    assert [one["kind"] for one in answer["failures"]] == ["hung", "hung"]


def test_what_probes_print() -> None:
    printed = [
        '{"oom": true}',
        'log\n{"peak_bytes": 1.5, "latency_ms": 2, "throughput": 3, "oom": false}\n',
        '{"peak_bytes": 1,\n "latency_ms": 2,\n "throughput": 3}',
        "",
        "[1, 2]",
        '{"peak_bytes": null, "latency_ms": 2, "throughput": 3}',
        '{"peak_bytes": 1, "latency_ms": NaN, "throughput": 3}',
        '{"peak_bytes": 1, "latency_ms": 2, "throughput": -3}',
        '{"peak_bytes": 1, "latency_ms": true, "throughput": 3}',
    ]
    found = [parse_probe(4, text).model_dump(exclude_defaults=True, exclude={"batch"}) for text in printed]
    assert found == snapshot(
        [
            {"oom": True},
            {"peak_bytes": 2, "latency_ms": {"latency": 2.0}, "throughput": 3.0},
            {"peak_bytes": 1, "latency_ms": {"latency": 2.0}, "throughput": 3.0},
            {"failure": {"kind": FailureKind.GARBAGE, "what": "printed '' instead of a JSON object"}},
            {"failure": {"kind": FailureKind.GARBAGE, "what": "printed '[1, 2]' instead of a JSON object"}},
            {
                "failure": {
                    "kind": FailureKind.GARBAGE,
                    "what": "peak_bytes is None, not a number from 0 to 1e+18",
                }
            },
            {
                "failure": {
                    "kind": FailureKind.GARBAGE,
                    "what": "latency_ms is nan, not a number from 0 to 1e+18",
                }
            },
            {
                "failure": {
                    "kind": FailureKind.GARBAGE,
                    "what": "throughput is -3, not a number from 0 to 1e+18",
                }
            },
            {
                "failure": {
                    "kind": FailureKind.GARBAGE,
                    "what": "latency_ms is True, not a number from 0 to 1e+18",
                }
            },
        ]
    )


def test_the_search_loads_no_orchestrator() -> None:
    code = "import sys, deployments.cli.tune; print([name for name in ('prefect', 'pandas') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
