"""`slipway env` as a user calls it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from package_index import write_wheel

from deployments.cli.main import main


@pytest.fixture
def requirements(tmp_path: Path, slipway_home: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text("idna==3.10  # small\n")
    return path


def slipway(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["env", *map(str, arguments)])
    return int(caught.value.code or 0)


def slipway_json(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    code = slipway(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_lock_build_check(requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock, home = tmp_path / "idna.lock", tmp_path / "idna"
    assert slipway("lock", requirements, "-o", lock, "--python", "3.11") == 0
    assert capsys.readouterr().out.startswith("1 packages pinned for Python 3.11 on linux-")
    assert slipway("build", lock, "--into", home) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["import idna: works", "sound"]
    code, answer = slipway_json(capsys, "check", home)
    assert code == 0
    assert answer["verdict"] == "sound"
    assert answer["packages"] == {"idna": "3.10"}
    assert answer["required_by"] == {"idna": []}
    assert not list(tmp_path.rglob("*.part"))


def test_json_of_lock_and_build(
    requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "idna.lock"
    code, locked = slipway_json(capsys, "lock", requirements, "-o", lock, "--exclude-newer", "2026-01-01")
    assert code == 0
    assert locked["path"] == str(lock)
    assert sorted(locked) == snapshot(
        ["conflicts", "digest", "manager", "packages", "path", "platform", "python", "torch_backend"]
    )
    code, built = slipway_json(capsys, "build", lock)
    assert code == 0
    assert sorted(built) == snapshot(
        ["conflicts", "environment", "packages", "proof", "reason", "required_by", "verdict"]
    )
    assert sorted(built["environment"]) == snapshot(
        ["build_s", "lock_digest", "path", "python_path", "python_version", "size_bytes"]
    )


def test_a_refusal_exits_with_3_and_writes_no_lock(
    requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements.write_text("idna==3.10\nidna==3.9\n")
    lock = tmp_path / "no.lock"
    assert slipway("lock", requirements, "-o", lock) == 3
    said = capsys.readouterr().out
    assert said.startswith("conflicting: Because you require idna==3.")
    assert "asked for, or found, by" in said
    code, answer = slipway_json(capsys, "lock", requirements, "-o", lock)
    assert code == 3
    assert answer["verdict"] == "conflicting"
    assert {one["requirement"] for one in answer["conflicts"]} == {"idna==3.10", "idna==3.9"}
    assert not lock.exists()


def test_a_broken_environment_exits_with_3(
    requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock, home = tmp_path / "idna.lock", tmp_path / "idna"
    assert slipway("lock", requirements, "-o", lock) == 0
    assert slipway("build", lock, "--into", home) == 0
    (package,) = home.rglob("site-packages/idna")
    (package / "core.py").unlink()
    capsys.readouterr()
    assert slipway("check", home) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("conflicting: importing idna failed: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("lock", "absent.txt", "-o", "x.lock"),
            snapshot("""\
error: no requirements file absent.txt
  fix: give the path of a file
"""),
        ),
        (
            ("lock", ".", "-o", "x.lock"),
            snapshot("""\
error: the requirements file . is a folder
  fix: give the path of a file
"""),
        ),
        (
            ("lock", "bad.txt", "-o", "x.lock"),
            snapshot("""\
error: bad.txt, line 2: 'not a requirement' is not a requirement: Expected semicolon (after name with no version specifier) or end
  fix: write it as PEP 508 says, for example numpy>=2,<3
"""),
        ),
        (
            ("lock", "good.txt", "-o", "x.lock", "--python", "three"),
            snapshot("""\
error: python: String should match pattern '^3\\.[0-9]{1,2}$'
  fix: see slipway env lock --help
"""),
        ),
        (
            ("build", "absent.lock"),
            snapshot("""\
error: no lock absent.lock
  fix: give the path of a file
"""),
        ),
        (
            ("build", "good.txt"),
            snapshot("""\
error: TMP/good.txt is not a hash lock: 'idna' is not pinned with a hash
  fix: make one: slipway env lock
"""),
        ),
        (
            ("check", "absent"),
            snapshot("""\
error: absent is not a Python environment
  fix: name a folder that contains bin/python
"""),
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    said: str,
    slipway_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("idna\n")
    Path("bad.txt").write_text("idna\nnot a requirement\n")
    assert slipway(*arguments) == 2
    assert capsys.readouterr().err.replace(str(tmp_path), "TMP") == said
    assert not slipway_home.exists()
    assert not Path("x.lock").exists()


def test_a_bill_of_materials(requirements: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock, bill = tmp_path / "idna.lock", tmp_path / "idna.cdx.json"
    assert slipway("lock", requirements, "-o", lock) == 0
    assert slipway("bom", lock, "-o", bill) == 0
    capsys.readouterr()
    assert slipway("bom", lock) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(bill.read_text())
    assert (printed["bomFormat"], printed["specVersion"]) == ("CycloneDX", "1.6")
    assert [one["purl"] for one in printed["components"]] == ["pkg:pypi/idna@3.10"]


def test_garbage_is_told_then_removed(
    requirements: Path, tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "idna.lock"
    assert slipway("lock", requirements, "-o", lock) == 0
    assert slipway("build", lock) == 0
    (standing,) = (slipway_home / "environments").iterdir()
    capsys.readouterr()
    assert slipway("gc") == 0
    assert capsys.readouterr().out == "0 environments, 0 MB freed\n"
    assert slipway("gc", "--unused-for", "0", "--dry-run") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"would remove {standing} (")
    assert standing.exists()
    code, answer = slipway_json(capsys, "gc", "--unused-for", "0")
    assert (code, [one["path"] for one in answer["removed"]]) == (0, [str(standing)])
    assert not standing.exists()


def test_a_lock_from_wheels_is_built_from_wheels_elsewhere(
    tmp_path: Path, slipway_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    write_wheel(tmp_path / "here", "probe", "1.0")
    wanted, lock = tmp_path / "requirements.txt", tmp_path / "probe.lock"
    wanted.write_text("probe\n")
    assert slipway("lock", wanted, "-o", lock, "--wheels", tmp_path / "here") == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert slipway("build", lock, "--wheels", tmp_path / "there") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sound"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--manager", "conda"),
            snapshot("""\
error: the manager conda needs channels
  fix: see slipway env lock --help
"""),
        ),
        (
            ("--channel", "https://host/c"),
            snapshot("""\
error: channels is for the manager conda, not for uv
  fix: see slipway env lock --help
"""),
        ),
        (
            ("--torch-backend", "rocm"),
            snapshot("""\
error: torch_backend: String should match pattern '^(auto|cpu|cu[0-9]{3})$'
  fix: see slipway env lock --help
"""),
        ),
    ],
)
def test_options_go_with_their_manager(
    options: tuple[str, ...],
    said: str,
    requirements: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert slipway("lock", requirements, "-o", tmp_path / "x.lock", *options) == 2
    assert capsys.readouterr().err == said


def locked_from(folder: Path, wanted: str, *options: str) -> int:
    (folder / "wanted.txt").write_text(wanted)
    return slipway("lock", folder / "wanted.txt", "-o", folder / "wanted.lock", "--wheels", folder, *options)


def test_what_is_known_to_fail_is_told_at_the_lock(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM 0.9.2 allows every newer transformers, and does not import with one from 4.54 on: nothing is installed yet."""
    write_wheel(tmp_path, "vllm", "0.9.2", "transformers>=4.51.1")
    write_wheel(tmp_path, "transformers", "5.24.0")
    assert locked_from(tmp_path, "vllm==0.9.2\n") == 0
    said = capsys.readouterr().out
    assert "warning: this set is known to fail: vllm 0.9.2 asks for transformers >=4.51.1,<4.54" in said
    assert "what to do: install transformers 4.53" in said
    assert locked_from(tmp_path, "vllm==0.9.2\n", "--json") == 0
    (known,) = json.loads(capsys.readouterr().out)["conflicts"]
    assert (known["rule"], known["severity"]) == ("PIN-BROKEN", "block")


def test_two_cudas_are_told_at_the_lock(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nvidia-nccl-cu11", "nvidia-nccl-cu12"):
        write_wheel(tmp_path, name, "2.23.4")
    assert locked_from(tmp_path, "nvidia-nccl-cu11\nnvidia-nccl-cu12\n") == 0
    assert "warning: CUDA 11 and CUDA 12 in one environment" in capsys.readouterr().out


def test_the_way_out_may_be_another_python(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = write_wheel(tmp_path, "probe", "1.0")
    wheel.rename(tmp_path / "probe-1.0-cp312-none-any.whl")
    assert locked_from(tmp_path, "probe==1.0\n", "--python", "3.13") == 3
    assert "way out: take Python 3.12: with it everything resolves." in capsys.readouterr().out


def test_a_way_out_that_goes_back_over_a_major_version_says_so(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newer release is told, though an ancient one without any requirement would do as well."""
    for version, *requires in (("2.3",), ("4.57", "hub<1"), ("5.0", "hub>=1")):
        write_wheel(tmp_path, "tool", version, *requires)
    for version in ("0.36", "1.0"):
        write_wheel(tmp_path, "hub", version)
    assert locked_from(tmp_path, "tool==4.57\nhub==1.0\n") == 3
    said = capsys.readouterr().out
    assert "hub==1.0 (it would go back over a major version, to 0.36)" in said
    assert "tool==4.57 (it would become 5.0)" in said


def test_a_package_that_is_offered_as_source_only_is_explained(
    tmp_path: Path, slipway_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "flash_attn-2.8.3.tar.gz", "w:gz"):
        pass
    assert locked_from(tmp_path, "flash-attn==2.8.3\n") == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "the index has no wheel of flash-attn for Python" in said
    assert "https://github.com/Dao-AILab/flash-attention/releases" in said
