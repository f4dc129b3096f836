"""An MLflow server as the model registry. Its answers are those of MLflow 3 (recorded), errors included."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from blocks.storage.sources import resolve
from tasks.core.errors import AccessError, ModelError, NetworkError, NotFoundError, SlipwayError
from tasks.core.settings import Settings


class Mlflow(ThreadingHTTPServer):
    """Knows the model `chat`, whose `champion` is version 3; asks for a password if it is given one."""

    def __init__(self, artifacts: str) -> None:
        self.artifacts = artifacts
        self.wanted = ""
        super().__init__(("127.0.0.1", 0), _Handler)

    def answer(self, path: str, asked: dict[str, str]) -> tuple[int, object]:
        name = path.removeprefix("/api/2.0/mlflow/")
        if name == "registered-models/alias":
            if asked["name"] != "chat":
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model …"}
            if asked["alias"] != "champion":
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias …"}
            return 200, {"model_version": {"name": "chat", "version": "3", "source": "models:/m-1"}}
        if name == "registered-models/search":
            if "page_token" in asked:
                return 200, {"registered_models": [{"name": "another"}]}
            aliases = [{"alias": "champion", "version": "3"}]
            return 200, {"registered_models": [{"name": "chat", "aliases": aliases}], "next_page_token": "x"}
        if name == "model-versions/get-download-uri":
            assert asked == {"name": "chat", "version": "3"}
            return 200, {"artifact_uri": self.artifacts}
        return 404, {}


class _Handler(BaseHTTPRequestHandler):
    server: Mlflow

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        status, content = self.server.answer(url.path, dict(parse_qsl(url.query)))
        if self.server.wanted and self.headers["Authorization"] != self.server.wanted:
            status, content = 401, {}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[Mlflow]:
    with Mlflow(f"file://{tmp_path}/art") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def settings(mlflow: Mlflow, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path, records="", registry=f"http://127.0.0.1:{mlflow.server_port}/", s3_endpoint=None
    )


def test_an_alias_resolves_to_the_place_of_its_versions_files(
    mlflow: Mlflow, settings: Settings, tmp_path: Path
) -> None:
    found = resolve("models:/chat@champion", settings)
    assert (found.source, found.version) == (f"file:{tmp_path}/art", "3")
    mlflow.artifacts = str(tmp_path / "art")
    assert resolve("models:/chat@champion", settings) == found


def test_a_place_that_is_not_an_address_is_told(mlflow: Mlflow, settings: Settings) -> None:
    mlflow.artifacts = "file://[::1/art"
    with pytest.raises(SlipwayError) as caught:
        resolve("models:/chat@champion", settings)
    assert "file://[::1/art" in caught.value.what


def test_of_a_transformers_model_the_folder_of_its_weights_is_meant(
    mlflow: Mlflow, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "art").mkdir()
    logged = tmp_path / "art" / "MLmodel"
    logged.write_text("flavors:\n  transformers:\n    model_binary: weights\n")
    assert resolve("models:/chat@champion", settings).source == f"file:{tmp_path}/art/weights"
    logged.write_text("flavors:\n  transformers: {}\n")
    assert resolve("models:/chat@champion", settings).source == f"file:{tmp_path}/art/model"


WEIGHTS = "flavors:\n  transformers:\n    model_binary: weights\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "other than transformers"),
        ("flavors:\n  sklearn: {}\n", "other than transformers"),
        ("flavors: [transformers]\n", "other than transformers"),
        ("[", "MLmodel cannot be read: it is not YAML"),
        (b"\xff\xfe\x00", "MLmodel cannot be read: it is not YAML"),
        ("a: 1\n---\nb: 2\n", "MLmodel cannot be read: it is not YAML"),
        (f"{WEIGHTS}a: {'[' * 3000}", "MLmodel cannot be read: its values are nested more than"),
        (f"{WEIGHTS}a: {'{a: ' * 20_000}", "MLmodel cannot be read: its values are nested more than"),
        (f"{WEIGHTS}a: [{'1,' * 150_000}]\n", "MLmodel cannot be read: it has more than 100000 bytes"),
        (WEIGHTS.replace("weights", "../.."), "names '../..' as the folder of its weights"),
        (WEIGHTS.replace("weights", "5"), "names 5 as the folder of its weights, which is not text"),
        (WEIGHTS.replace("weights", "null"), "names null as the folder of its weights, which is not text"),
        (WEIGHTS.replace("weights", "[a]"), "names a list or a mapping as the folder of its weights"),
    ],
)
def test_an_mlmodel_that_is_of_no_use_is_one_line(
    text: str | bytes, told: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "MLmodel").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as error:
        resolve("models:/chat@champion", settings)
    assert told in error.value.what


@pytest.mark.parametrize(
    "besides",
    [
        "utc: 2026-99-99\n",  # a date to YAML 1.1, and no day of any calendar
        "number: 0b2\n",
        "mine: !!python/object:os.system {}\n",
        "a: &a [x]\nb: *a\n",
        "a: &a {x: 1}\n" + "".join(f"{n}: &{n} {{<<: [*{m}, *{m}]}}\n" for m, n in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)),
    ],
)  # fmt: skip
def test_of_an_mlmodel_only_the_weights_folder_is_understood(
    besides: str, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "MLmodel").write_text(besides + WEIGHTS)
    assert resolve("models:/chat@champion", settings).source == f"file:{tmp_path}/art/weights"


def test_what_is_not_there_says_what_there_is(mlflow: Mlflow, settings: Settings) -> None:
    with pytest.raises(NotFoundError, match=r"does not have chat@next \(its aliases are champion\)"):
        resolve("models:/chat@next", settings)
    with pytest.raises(NotFoundError, match=r"does not have talk@champion \(its models are another, chat\)"):
        resolve("models:/talk@champion", settings)
    mlflow.artifacts = "gs://bucket/1/models/m-1/artifacts"
    with pytest.raises(ModelError, match="from where files cannot be read"):
        resolve("models:/chat@champion", settings)


def test_credentials_are_those_of_mlflows_clients(
    mlflow: Mlflow, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.wanted = "Basic " + base64.b64encode(b"me:secret").decode()
    with pytest.raises(AccessError, match=r"refused the credentials \(401\)"):
        resolve("models:/chat@champion", settings)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert resolve("models:/chat@champion", settings).version == "3"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    mlflow.wanted = "Bearer secret"
    assert resolve("models:/chat@champion", settings).version == "3"


def test_a_server_that_is_away_or_another_is_told(mlflow: Mlflow, tmp_path: Path) -> None:
    for registry, told in [
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached: "),
        (f"http://127.0.0.1:{mlflow.server_port}/other", "answered 404"),
    ]:
        settings = Settings(home=tmp_path, records="", registry=registry, s3_endpoint=None)
        with pytest.raises(NetworkError) as error:
            resolve("models:/chat@champion", settings)
        assert told in error.value.what
