"""`slipway leaks judge` and `slipway kb`, as programs call them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_snapshot import snapshot

from blocks.storage.record_store import FolderRecordStore
from deployments.cli.main import main
from tasks.core.records import Number, Record, new_record
from tasks.core.verdicts import StageName

HOUR_S = 3600.0


def slipway(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


def write_series(path: Path, growth: float, hours: float = 48) -> Path:
    """One gibibyte that grows by `growth` of itself."""
    t = np.arange(0, hours * HOUR_S, 300)
    y = 2**30 * (1 + growth * t / t[-1] + np.random.default_rng(1).normal(0, 1e-3, t.size))
    lines = [f"{at:.0f},{value:.0f}" for at, value in zip(t, y, strict=True)]
    path.write_text("\n".join(["t_s,bytes", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("growth", "hours", "code", "verdict"),
    [(0.5, 48, 3, "confirmed"), (0.5, 12, 0, "suspected"), (0.0, 48, 0, "none")],
)
def test_the_verdict_is_the_exit_code(
    growth: float, hours: float, code: int, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = write_series(tmp_path / "s.csv", growth, hours)
    done, out, _ = slipway("leaks", "judge", series, "--json", "--limit-bytes", str(2**31), capsys=capsys)
    answer = json.loads(out)
    assert (done, answer["verdict"]) == (code, verdict)
    assert set(answer) == {"verdict", "slope_bytes_per_s", "oom_at_s", "reason"}
    assert (answer["oom_at_s"] is None) == (verdict == "none")


def test_people_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = write_series(tmp_path / "s.csv", 0.5)
    code, out, _ = slipway("leaks", "judge", series, "--limit-bytes", str(2**31), capsys=capsys)
    assert code == 3
    assert out.startswith("confirmed: the floor grows by ")
    assert "; memory runs out at t_s = " in out
    assert out.count("\n") == 1


def test_the_time_that_confirms_is_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = write_series(tmp_path / "s.csv", 0.5, hours=12)
    assert slipway("leaks", "judge", series, "--confirm-after-s", "14400", capsys=capsys)[0] == 3


def test_wrong_use_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("t_s,bytes\n0,many\n")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    seen = [
        slipway("leaks", "judge", path, capsys=capsys)
        for path in (bad, tmp_path / "none.csv", binary, tmp_path)
    ]
    assert [code for code, _, _ in seen] == [2, 2, 2, 2]
    lines = [err.replace(str(tmp_path), "…").splitlines() for _, _, err in seen]
    assert [line[0] for line in lines] == snapshot(
        [
            "error: …/bad.csv, line 2: bytes is 'many', not a number",
            "error: no series …/none.csv",
            "error: cannot read the series …/binary.csv: byte 0 is not UTF-8",
            "error: the series … is a folder",
        ]
    )
    assert slipway("leaks", "judge", bad, "--limit-bytes", "0", capsys=capsys)[0] == 2


def test_judging_loads_no_orchestrator(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s.csv", 0.0)
    code = (
        "import sys\nfrom deployments.cli.main import main\n"
        f"try: main(['leaks', 'judge', {str(series)!r}])\nexcept SystemExit as ended: assert not ended.code\n"
        "heavy = {'prefect', 'docker', 'boto3', 'pandas', 'great_expectations', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def put(home: Path, stage: StageName, outcome: str, evidence: dict[str, Any]) -> Record:
    record = new_record(
        stage=stage,
        subject="chat",
        host_fingerprint="sha256:" + "b" * 64,
        inputs_digest="d",
        outcome=outcome,
        seconds=1,
        numbers={"throughput": Number(value=900, unit="token/s")},
        evidence=evidence,
    )
    FolderRecordStore(home / "records").put(record)
    return record


BATCHING = {
    "inputs": {"engine": "llama.cpp", "model_digest": "sha256:" + "a" * 64, "format": "q8_0", "context": 512},
    "result": {"chosen": {"batch": 4, "throughput": 900.0, "peak_bytes": 9e7, "latency_ms": {}}},
}


def test_records_are_listed_and_filtered(slipway_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("kb", "records", capsys=capsys) == (0, "no records yet: slipway deploy SPEC.yaml\n", "")
    made = [put(slipway_home, StageName.BATCHING, "chosen", BATCHING) for _ in range(3)]
    put(slipway_home, StageName.HEALTH, "healthy", {})
    code, out, _ = slipway("kb", "records", "--stage", "batching", "--limit", "2", "--json", capsys=capsys)
    assert code == 0
    assert [Record.model_validate(row) for row in json.loads(out)["records"]] == made[1:]
    code, out, _ = slipway("kb", "records", capsys=capsys)
    assert code == 0
    assert out.count("throughput 900 token/s") == 4
    code, _, err = slipway("kb", "records", "--stage", "bathing", capsys=capsys)
    assert code == 2
    assert "'bathing' is not one of" in err


def test_the_matrix(slipway_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slipway("kb", "matrix", capsys=capsys)[1].startswith("nothing was measured yet")
    record = put(slipway_home, StageName.BATCHING, "chosen", BATCHING)
    code, out, _ = slipway("kb", "matrix", "--json", capsys=capsys)
    (row,) = json.loads(out)["matrix"]
    assert code == 0
    assert (row["engine"], row["batch"], row["throughput"], row["record"]) == (
        "llama.cpp",
        4,
        900.0,
        record.id,
    )
    assert (row["kv_tokens"], row["memory_at_kv"]) == (4096, None)
    assert record.id in slipway("kb", "matrix", capsys=capsys)[1]


def test_the_matrix_at_a_budget(slipway_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [{"batch": batch, "peak_bytes": 10**9 + 10**8 * batch} for batch in (1, 4)]
    put(
        slipway_home,
        StageName.BATCHING,
        "chosen",
        {**BATCHING, "result": BATCHING["result"] | {"sizes": sizes}},
    )

    def at(tokens: str) -> Any:
        _, out, _ = slipway("kb", "matrix", "--kv-tokens", tokens, "--json", capsys=capsys)
        return json.loads(out)["matrix"][0]["memory_at_kv"]

    assert at("2048") == {"value": 1.4e9, "unit": "byte", "kind": "measured"}
    assert at("1024") == {"value": 1.2e9, "unit": "byte", "kind": "predicted"}
    code, _, err = slipway("kb", "matrix", "--kv-tokens", "0", capsys=capsys)
    assert code == 2
    assert "'--kv-tokens': 0 is not in the range" in err


def test_an_explanation_needs_a_service(slipway_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = slipway("kb", "explain", "chat", "--json", capsys=capsys)
    assert code == 2
    assert json.loads(out)["error"] == "NotFoundError"
    assert err.startswith("error: the service chat is not running: it was never deployed")
