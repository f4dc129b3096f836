"""The script that starts `trtllm-serve`, with a program in its place that says how it was started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine

ENGINE = get_engine(EngineKind("tensorrt-llm"))
SAY = """#!{python}
import json, os, sys
link, options = sys.argv[1], sys.argv[-1]
print(json.dumps({{"argv": sys.argv[1:], "real": os.path.realpath(link), "options": json.load(open(options)), "pid": os.getpid()}}))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an environment whose `trtllm-serve` is that program."""
    folder = tmp_path / "bin"
    folder.mkdir()
    server = folder / "trtllm-serve"
    server.write_text(SAY.format(python=sys.executable))
    server.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return folder / "python"


def start(python: Path, dtype: str | None = "bfloat16") -> tuple[dict[str, object], int]:
    model = python.parent.parent / "candidate"
    model.mkdir(exist_ok=True)
    config = ServingConfig(served_name="chat", batch=4, context=512, threads=1, gpus=1, dtype=dtype)
    command = ENGINE.command(str(python), str(ENGINE.server_worker), str(model), config)
    scratch = python.parent.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    with subprocess.Popen(
        command.at("127.0.0.1", 8000), stdout=subprocess.PIPE, env={**command.env, "TMPDIR": str(scratch)}
    ) as process:
        said = process.communicate()[0]
    assert process.returncode == 0
    return json.loads(said), process.pid


def test_the_server_finds_the_model_under_its_name_and_shows_metrics(python: Path) -> None:
    said, pid = start(python)
    argv = said["argv"]
    assert isinstance(argv, list)
    assert Path(argv[0]).name == "chat"
    assert said["real"] == str(python.parent.parent / "candidate")
    assert said["options"] == {
        "return_perf_metrics": True,
        "enable_iter_perf_stats": True,
        "dtype": "bfloat16",
    }
    assert argv[1:-1] == [
        *("--host", "127.0.0.1", "--port", "8000", "--backend", "pytorch", "--max_batch_size", "4"),
        *("--max_seq_len", "512", "--tp_size", "1", "--free_gpu_memory_fraction", "0.9"),
        "--extra_llm_api_options",
    ]
    assert said["pid"] == pid, "signals reach the server itself"


def test_what_a_server_left_the_next_one_removes(python: Path) -> None:
    start(python)
    start(python, dtype=None)
    assert len(list(Path(python.parent.parent, "tmp").iterdir())) == 1
