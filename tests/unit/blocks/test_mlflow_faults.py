"""What stands in front of a tracking server, and answers that none should give: followed, waited for, or told in one
line."""

from __future__ import annotations

import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from certificates import write_certificate

from blocks.storage.sources import resolve
from tasks.core.errors import (
    AccessError,
    DeadlineError,
    ModelError,
    NetworkError,
    NotFoundError,
    SlipwayError,
    WrongUseError,
)
from tasks.core.settings import Settings

ANSWERS = {
    "registered-models/alias": {"model_version": {"version": "3"}},
    "model-versions/get-download-uri": {"artifact_uri": "s3://bucket/models/3"},
}
API = "/api/2.0/mlflow/"


class Front(ThreadingHTTPServer):
    """`answer` takes the path and the question, and gives status, headers and body; the default is MLflow's."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, str]], tuple[int, dict[str, str], bytes]] = mlflow
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.authorizations: list[str | None] = []
        self.ending = threading.Event()
        self.drips = False
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        question = dict(parse_qsl(url.query))
        self.server.asked.append((url.path, question))
        self.server.authorizations.append(self.headers["Authorization"])
        status, headers, body = self.server.answer(url.path, question)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not self.server.drips:
            self.wfile.write(body)
            return
        for place in range(len(body)):
            self.wfile.write(body[place : place + 1])
            if self.server.ending.wait(0.05):
                return

    def log_message(self, *_: object) -> None:
        pass


def mlflow(path: str, question: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    known = ANSWERS.get(path.removeprefix(API))
    if known is None:
        return 404, {}, b"{}"
    return 200, {}, json.dumps(known).encode()


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    for name in (
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_INSECURE_TLS",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "SSL_CERT_FILE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("blocks.storage.mlflow_client._PAUSE_S", 0.0)
    monkeypatch.setattr("blocks.storage.mlflow_registry.open_object_store", NoDescription)
    with Front() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.ending.set()
        server.shutdown()


class NoDescription:
    """A store without an `MLmodel`."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def read(self, path: str) -> bytes:
        raise NotFoundError(f"there is no {path}")


def ask(
    front: Front, reference: str = "models:/chat@champion", before: str = "http://", path: str = ""
) -> Any:
    registry = f"{before}127.0.0.1:{front.server_port}{path}"
    settings = Settings(home=Path("/nowhere"), records="", registry=registry, s3_endpoint=None)
    return resolve(reference, settings)


def always(
    status: int, body: bytes = b"", **headers: str
) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda path, question: (status, named, body)


def first(*answers: tuple[int, dict[str, str], bytes]) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    """These one after the other, then MLflow's own."""
    left = list(answers)
    return lambda path, question: left.pop(0) if left else mlflow(path, question)


def typed(kind: str) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    return lambda path, question: (200, {"Content-Type": kind}, mlflow(path, question)[2])


def below(path: str, question: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    if not path.startswith("/team/mlflow/"):
        return 404, {}, b"no"
    return mlflow(path.removeprefix("/team/mlflow"), question)


def moved(path: str, question: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    if path.startswith("/new"):
        return mlflow(path.removeprefix("/new"), question)
    asked = "&".join(f"{name}={value}" for name, value in question.items())
    return 308, {"Location": f"/new{path}?{asked}"}, b""


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (mlflow, ""),
        (mlflow, "/"),
        (below, "/team/mlflow"),
        (below, "/team/mlflow/"),
        (moved, ""),
        (typed("text/plain; charset=utf-8"), ""),
        (typed("application/json; charset=utf-8"), ""),
        (first((503, {"Retry-After": "0"}, b"busy"), (429, {}, b"{}"), (502, {}, b"<html>")), ""),
    ],
)
def test_an_alias_is_resolved_through(front: Front, answer: Any, path: str) -> None:
    front.answer = answer
    found = ask(front, path=path)
    assert (found.source, found.version) == ("s3://bucket/models/3", "3")


@pytest.mark.parametrize(
    "name", ["My Model", "main.prod.llm", "_private", "chat-中文", "a@b", "100%&x=y", "-x"]
)
def test_a_models_name_is_any_that_mlflow_takes(front: Front, name: str) -> None:
    assert ask(front, f"models:/{name}@prod_eu-1").version == "3"
    assert front.asked[0][1] == {"name": name, "alias": "prod_eu-1"}


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (
            always(302, Location="https://sso.example/login?next=x"),
            AccessError,
            "it redirects to https://sso.example",
        ),
        (always(308, Location="http://localhost:1/x"), AccessError, "requires a login, or has moved"),
        (always(302, Location="/api/2.0/mlflow/x"), NetworkError, "redirects endlessly"),
        (always(302, Location="http://[bad/"), AccessError, "requires a login, or has moved"),
        (
            always(200, b"<html><form action=/login>Sign in</form></html>", Content_Type="text/html"),
            AccessError,
            "requires a login, or is another server: it answered with a web page",
        ),
        (always(401, b"You are not authenticated."), AccessError, "refused the credentials (401)"),
        (always(403, b"<html>"), AccessError, "refused the credentials (403)"),
        (always(407), AccessError, "the proxy requires user and password (407)"),
        (always(200, b"{}"), NetworkError, "answered without a version"),
        (always(200, b"[]"), NetworkError, "did not answer with a JSON object"),
        (always(200, b""), NetworkError, "did not answer with a JSON object"),
        (always(200, b"[" * 100_000), NetworkError, "did not answer with a JSON object"),
        (always(200, b'{"model_version": null}'), NetworkError, "answered without a version"),
        (
            always(200, b'{"model_version": {"version": "../../x"}}'),
            NetworkError,
            "answered without a version",
        ),
        (always(200, b"x" * (17 << 20)), NetworkError, "sent more than 16777216 bytes"),
        (always(404, b"no"), NetworkError, "answered 404"),
        (
            always(400, json.dumps({"error_code": "x" * 5000}).encode()),
            NetworkError,
            "answered 400 xxx",
        ),
    ],
)
def test_what_is_no_answer_is_told_in_one_bounded_line(
    front: Front, answer: Any, kind: type[SlipwayError], told: str
) -> None:
    front.answer = answer
    with pytest.raises(kind) as error:
        ask(front)
    assert told in error.value.what
    assert error.value.fix
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "answer",
    [
        always(429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED"}', Retry_After="1"),
        always(503, Retry_After="99999999"),
    ],
)
def test_a_server_that_stays_busy_is_told(front: Front, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blocks.storage.mlflow_client._PATIENCE_S", 0.5)
    front.answer = answer
    with pytest.raises(NetworkError, match=r"is busy: it answered (429 REQUEST_LIMIT_EXCEEDED|503)"):
        ask(front)


def test_a_server_that_sends_a_byte_now_and_then_is_left(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.storage.mlflow_client._DEADLINE_S", 0.2)
    front.drips = True
    with pytest.raises(DeadlineError, match=r"the model registry http://.* did not answer in time"):
        ask(front)


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("file:///art/a%20b%2B%2520c", "file:/art/a b+%20c"),
        ("file://localhost/art", "file:/art"),
        ("/art/a%20b#1?x", "file:/art/a%20b#1?x"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
        ("s3a://bucket/x", "s3://bucket/x"),
    ],
)
def test_an_address_of_artifacts_means_what_mlflow_means(
    front: Front, uri: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "model-versions/get-download-uri", {"artifact_uri": uri})
    assert ask(front).source == source


@pytest.mark.parametrize(
    "uri",
    [
        "runs:/0123456789abcdef/model",
        "gs://bucket/models/1",
        "dbfs:/x",
        "hdfs://ci:TopSecret1@host/x",
        "file://elsewhere/art",
        "./mlruns/0",
        "s3://",
        "file:///art/%0Ax",
        "/art/\n",
    ],
)
def test_artifacts_that_cannot_be_read_are_named(
    front: Front, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "model-versions/get-download-uri", {"artifact_uri": uri})
    with pytest.raises(ModelError, match="from where files cannot be read") as error:
        ask(front)
    assert str(error.value).isprintable()
    assert "TopSecret1" not in str(error.value)


@pytest.mark.parametrize("answer", [{}, {"artifact_uri": None}, {"artifact_uri": 7}, {"artifact_uri": ""}])
def test_a_version_without_artifacts_is_told(
    front: Front, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "model-versions/get-download-uri", answer)
    with pytest.raises(NetworkError, match="answered without an address of artifacts"):
        ask(front)


@pytest.mark.parametrize(
    "answer", [mlflow, always(401), always(302, Location="https://sso.example/"), always(404)]
)
def test_the_password_in_the_address_is_sent_and_never_told(front: Front, answer: Any) -> None:
    front.answer = answer
    try:
        ask(front, before="http://ci:TopSecret1@")
    except SlipwayError as error:
        assert "TopSecret1" not in f"{error}{error.detail}{error.__cause__}"
    assert front.authorizations[0] == "Basic Y2k6VG9wU2VjcmV0MQ=="


def test_a_dead_servers_password_is_not_told(front: Front) -> None:
    settings = Settings(
        home=Path("/nowhere"), records="", registry="http://ci:TopSecret1@127.0.0.1:9", s3_endpoint=None
    )
    with pytest.raises(
        NetworkError, match=r"the model registry http://127\.0\.0\.1:9 cannot be reached"
    ) as error:
        resolve("models:/a@b", settings)
    assert "TopSecret1" not in str(error.value)


def test_credentials_do_not_follow_to_another_port(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "TopSecret1")
    with Front() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        front.answer = lambda path, _: (308, {"Location": f"http://127.0.0.1:{other.server_port}{path}"}, b"")
        ask(front)
        other.shutdown()
    assert front.authorizations[0] == "Bearer TopSecret1"
    assert set(other.authorizations) == {None}


@pytest.mark.parametrize("token", ["TopSecret1\n", "TopSecret1é"])
def test_a_token_that_cannot_be_sent_is_not_told(
    front: Front, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    with pytest.raises(AccessError, match="contains a character that a request cannot carry") as error:
        ask(front)
    assert "TopSecret1" not in str(error.value)


@pytest.mark.parametrize("model", ["models:/ok/1", "models:/ok/Production", "models:/My Model/latest"])
def test_a_version_or_a_stage_instead_of_an_alias_is_told(front: Front, model: str) -> None:
    with pytest.raises(
        WrongUseError, match=r"names a version or a stage of .*, but Slipway follows aliases"
    ) as error:
        ask(front, model)
    assert "@ALIAS" in (error.value.fix or "")


@pytest.fixture
def tls(front: Front, tmp_path: Path) -> Path:
    """The front behind TLS; its certificate."""
    certificate = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    front.socket = context.wrap_socket(front.socket, server_side=True, do_handshake_on_connect=False)
    return certificate


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
)
def test_a_server_is_known_by_the_bundle_that(
    front: Front, tls: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tls))
    assert ask(front, before="https://").version == "3"
    for wrong in (tls.with_name("none.pem"), tls.with_name("key.pem")):
        monkeypatch.setenv(name, str(wrong))
        with pytest.raises(
            WrongUseError, match=f"{name} is .*, which does not contain a readable certificate"
        ):
            ask(front, before="https://")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH"])
def test_a_pipe_is_not_waited_for_as_a_certificate(
    front: Front, tls: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tls.with_name("pipe.pem")
    os.mkfifo(pipe)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls))
    monkeypatch.setenv(name, str(pipe))
    with pytest.raises(WrongUseError, match=rf"{name} is .*: {pipe} is a pipe, not a file"):
        ask(front, before="https://")


def test_a_server_that_nobody_knows_is_refused_unless_that_is_allowed(
    front: Front, tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NetworkError, match=r"certificate verify failed.*MLFLOW_TRACKING_SERVER_CERT_PATH"):
        ask(front, before="https://")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert ask(front, before="https://").version == "3"
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tls))
    with pytest.raises(WrongUseError, match="contradict each other"):
        ask(front, before="https://")


def test_a_bundle_that_is_not_there_does_not_matter_without_tls(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert ask(front).version == "3"


@pytest.mark.parametrize("registry", ["http://", "http://[bad", "http://host:port/x", "http://a b/"])
def test_an_address_that_is_none_is_told(registry: str, front: Front) -> None:
    settings = Settings(home=Path("/nowhere"), records="", registry=registry, s3_endpoint=None)
    with pytest.raises(SlipwayError) as error:
        resolve("models:/a@b", settings)
    assert str(error.value).isprintable()
