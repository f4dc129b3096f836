"""`rollout.image`: what Docker makes of the container of an engine's own image.

No maker's image can be had without a registry, and none runs without a GPU: the image here has a program named `vllm`
that answers as vLLM does, and says in its answers where it finds itself.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from makers_golden import makers_release

from blocks.engine.api import EngineApi
from blocks.services.door import open_service, read_keys
from blocks.services.targets import check_image, open_target, prepare
from tasks.core.digests import digest_of_model
from tasks.core.errors import NetworkError, RolloutError
from tasks.core.home import make_home
from tasks.core.release import Launch, Release, ServiceFolder
from tasks.core.serving import ServingConfig
from tasks.core.settings import Settings
from tasks.core.spec import parse_spec
from tasks.core.spec_kinds import Target
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.apply import roll_out

pytestmark = [pytest.mark.docker, pytest.mark.haproxy]

BASE, IMAGE = "slipway/base:bookworm", "slipway-test/vllm-openai:v0.32.0"
PACKAGES = "/usr/lib/python3/dist-packages"
DOCKERFILE = f"""\
FROM {BASE}
COPY vllm /usr/local/bin/vllm
COPY METADATA {PACKAGES}/vllm-0.32.0+cu129.dist-info/METADATA
WORKDIR /vllm-workspace
ENTRYPOINT ["/bin/false"]
"""
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cu129\n"
SERVER = r"""#!/usr/bin/python3
import getpass, http.server, json, os, subprocess, sys, tempfile
from pathlib import Path

def writes(folder):
    try:
        Path(folder, "x").write_text("")
    except OSError:
        return False
    return True

def runs_code():
    program = Path(os.environ["HOME"], "program")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return subprocess.run([program]).returncode == 0

FOUND = {
    "argv": sys.argv[1:], "uid": os.getuid(), "name": getpass.getuser(), "home": os.environ["HOME"],
    "temporary": tempfile.gettempdir(), "mine": os.environ.get("MINE"), "cache_runs_code": runs_code(),
    "writes": [folder for folder in ("/", "/usr/local", os.environ["HOME"], sys.argv[2]) if writes(folder)],
    "config": Path(sys.argv[2], "config.json").read_text(),
    "shm_bytes": (lambda found: found.f_blocks * found.f_frsize)(os.statvfs("/dev/shm")),
}

class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(b"")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        self.answer(json.dumps({"choices": [{"text": json.dumps(FOUND)}], "usage": usage}).encode())

given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
http.server.ThreadingHTTPServer((given["--host"], int(given["--port"])), Server).serve_forever()
"""


@pytest.fixture(scope="module")
def image(repository: Path) -> Iterator[str]:
    subprocess.run([repository / "infra" / "images" / "base.sh", BASE], check=True)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, text in (("Dockerfile", DOCKERFILE), ("vllm", SERVER), ("METADATA", METADATA)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
    context.seek(0)
    client = docker.from_env()
    client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True, network_mode="none")
    yield IMAGE
    client.images.remove(IMAGE, force=True)
    client.close()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    settings = Settings.load()
    make_home(settings.home)
    yield settings
    with open_target(Target.DOCKER, ServiceFolder(settings.services, "chat"), settings) as target:
        target.stop(drain_s=0)


def release(image: str, model: Path, **changes: Any) -> Release:
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    config = ServingConfig(served_name="chat", batch=2, context=64, threads=1, engine_env={"MINE": "1"})
    spec = {
        "name": "chat", "model": f"file:{model}", "engine": "vllm", "target": "docker",
        "hardware": {"memory": "256Mi", "cpus": 1}, "rollout": {"image": image},
    }  # fmt: skip
    launch = Launch(argv=("/e/bin/vllm",), model_file=model)
    return makers_release(
        "vllm",
        **{
            "spec": spec,
            "config": config,
            "launch": launch,
            "candidate_digest": digest_of_model(model),
            **changes,
        },
    )


def test_the_engine_is_started_by_its_own_program_with_little_more_than_it_needs(
    image: str, settings: Settings, tmp_path: Path
) -> None:
    made = prepare(release(image, tmp_path / "m"), settings)
    folder = ServiceFolder(settings.services, "chat")
    with open_target(Target.DOCKER, folder, settings) as target:
        result = roll_out(made, folder, target, open_service(folder), read_keys=read_keys)
    assert result.verdict is RolloutVerdict.SERVING
    with EngineApi(result.endpoint or "") as api:
        found = json.loads(api.complete("chat", "The", 1).text)
    argv = found.pop("argv")
    assert argv[:6] == ["serve", "/model/m", "--served-model-name", "chat", "--host", "0.0.0.0"]
    assert found.pop("uid") != 0
    assert found == {
        "name": "slipway",
        "home": "/cache",
        "temporary": "/cache",
        "mine": "1",
        "cache_runs_code": True,
        "writes": ["/cache"],
        "config": "{}",
        "shm_bytes": 1 << 30,
    }


def test_an_image_of_another_release_is_refused(image: str, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"contains vLLM 0\.32\.0\+cu129, but 0\.31\.0 is measured"):
        prepare(release(image, tmp_path / "m", engine_version="0.31.0"), settings)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        (IMAGE, RolloutError, "but 0.33.0 is measured"),
        (BASE, RolloutError, f"{BASE} does not contain vLLM"),
        ("127.0.0.1:1/vllm-openai:v0", NetworkError, "is not on this host and cannot be pulled"),
    ],
)
def test_an_image_is_looked_into_before_anything_is_measured(
    image: str, name: str, error: type[Exception], says: str
) -> None:
    spec = parse_spec(
        {
            "name": "chat", "model": "file:/m", "engine": "vllm", "engine_version": "0.33.0", "target": "docker",
            "rollout": {"image": name},
        }
    )  # fmt: skip
    with pytest.raises(error, match=says):
        check_image(spec)
