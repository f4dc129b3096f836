"""Models, records and the registry on a real S3 server."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from breaking_proxy import breaking_proxy
from inline_snapshot import snapshot
from plain_safetensors import read_model, write_plain
from swift_server import SwiftServer
from ulid import ULID

from blocks.storage.model_registry import list_aliases, list_models
from blocks.storage.ranges import RangeReader
from blocks.storage.record_store import open_record_store
from blocks.storage.s3 import S3Folder, S3RecordStore
from blocks.storage.s3_errors import S3Answers
from blocks.storage.sources import open_source, resolve
from flows.stage_model import stage_model
from tasks.core.direct_io import ring
from tasks.core.errors import AccessError, ModelError, NetworkError, NotFoundError, RecordError, WrongUseError
from tasks.core.manifest import verify
from tasks.core.progress import listen
from tasks.core.records import Record, RecordStore, new_record
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.staging.ledger import LEDGER_FILE
from tasks.staging.models import SourceFile, StagingRequest
from tasks.staging.source import ModelSource

pytestmark = pytest.mark.s3
numbers = itertools.count()


@pytest.fixture
def bucket(s3: SwiftServer, slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of this test's own."""
    monkeypatch.setenv("SLIPWAY_S3_ENDPOINT", s3.endpoint)
    name = f"bucket-{next(numbers)}"
    s3.upload(slipway_home, name, "")
    return name


def folder_at(s3: SwiftServer, url: str) -> S3Folder:
    return S3Folder.open(url, endpoint=s3.endpoint)


def record(
    subject: str = "tiny", stage: StageName = StageName.STAGING, store: RecordStore | None = None
) -> Record:
    return new_record(
        store=store,
        stage=stage,
        subject=subject,
        host_fingerprint="sha256:0",
        inputs_digest="sha256:1",
        outcome="verified",
        seconds=1,
    )


def test_records_are_created_once_and_read_in_the_order_of_their_ids(s3: SwiftServer, bucket: str) -> None:
    store = S3RecordStore.open(f"s3://{bucket}/knowledge", endpoint=s3.endpoint)
    assert store.list() == []
    made = [record(stage=stage) for stage in (StageName.STAGING, StageName.DISK) * 10]
    for item in made:
        store.put(item)
    with pytest.raises(RecordError, match=f"the record {made[0].id} exists already"):
        store.put(made[0].model_copy(update={"subject": "another"}))
    store.put(made[0])  # sent again because its answer was lost: it is there, once
    assert store.list() == sorted(made, key=lambda item: item.id)
    assert [item.stage for item in store.list(StageName.DISK)] == [StageName.DISK] * 10
    assert store.get(made[3].id) == made[3]
    with pytest.raises(NotFoundError, match="no record 01X in s3://"):
        store.get("01X")


def test_a_new_record_comes_last_whatever_the_clock_says(s3: SwiftServer, bucket: str) -> None:
    store = S3RecordStore.open(f"s3://{bucket}/knowledge", endpoint=s3.endpoint)
    assert store.newest_after("0") is None
    ahead = str(ULID.from_datetime(datetime.now(UTC) + timedelta(days=30)))
    store.put(record(stage=StageName.REGISTRY))
    store.put(record(stage=StageName.DISK).model_copy(update={"id": ahead}))
    late = [record(store=store) for _ in range(2)]
    store.put(late[0])
    assert store.newest_after(ahead) == late[0].id
    assert late[0].id > ahead
    assert store.newest_after(late[0].id) is None


def test_an_object_that_is_no_record_is_named(s3: SwiftServer, bucket: str) -> None:
    store = S3RecordStore.open(f"s3://{bucket}/knowledge", endpoint=s3.endpoint)
    made = record()
    store.put(made)
    store.folder.create("staging/01X-1.json", b"{}")
    with pytest.raises(RecordError, match=r"s3://bucket-\d+/knowledge/staging/01X-1.json is not a record"):
        store.get("01X")
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    assert store.list() == [made]
    assert len(heard) == 1
    assert re.search(r"skipped: s3://bucket-\d+/knowledge/staging/01X-1.json is not a record", heard[0])


def test_records_with_other_inputs_are_not_read(s3: SwiftServer, bucket: str) -> None:
    store = S3RecordStore.open(f"s3://{bucket}/knowledge", endpoint=s3.endpoint)
    made = [record() for _ in range(3)]
    for item in made:
        store.put(item)
    store.folder.create("staging/01X-2.json", b"would be told of if it were read")
    heard: list[str] = []
    listen(lambda _, line: heard.append(line))
    assert store.with_inputs(StageName.STAGING, "sha256:1") == made
    assert store.with_inputs(StageName.STAGING, "sha256:1", newest=2) == made[1:]
    assert store.with_inputs(StageName.DISK, "sha256:1") == []
    assert not heard
    assert store.latest(StageName.STAGING, made[-1].subject) == made[-1]
    assert store.latest(StageName.STAGING, "another") is None


def test_wrong_secrets_are_one_clear_line(
    s3: SwiftServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    said = []
    store = S3RecordStore.open(f"s3://{bucket}/k", endpoint=s3.endpoint)
    source = open_source(f"s3://{bucket}/m", endpoint=s3.endpoint)
    for call in (store.list, source.list_files, lambda: store.put(record())):
        with pytest.raises(AccessError) as error:
            call()
        assert "\n" not in str(error.value)
        said.append(re.sub(r"/01[\w-]+", "/ID", error.value.what.replace(bucket, "BUCKET")))
    assert said == snapshot(
        [
            "s3://BUCKET/k refused the credentials (SignatureDoesNotMatch)",
            "s3://BUCKET/m refused the credentials (SignatureDoesNotMatch)",
            "s3://BUCKET/k/staging/ID.json refused the credentials (SignatureDoesNotMatch)",
        ]
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(AccessError, match="no credentials for s3://"):
        S3RecordStore.open(f"s3://{bucket}/k", endpoint=s3.endpoint).list()


def test_missing_buckets_unreachable_servers_and_wrong_names_are_told_apart(
    s3: SwiftServer, bucket: str
) -> None:
    with pytest.raises(NotFoundError, match="s3://nowhere/m does not exist"):
        folder_at(s3, "s3://nowhere/m").objects()
    with pytest.raises(NotFoundError, match=f"there are no objects below s3://{bucket}/none"):
        open_source(f"s3://{bucket}/none", endpoint=s3.endpoint).list_files()
    with pytest.raises(NetworkError, match=f"s3://{bucket}/m cannot be reached"):
        S3Folder.open(f"s3://{bucket}/m", endpoint="http://127.0.0.1:9").objects()
    with pytest.raises(WrongUseError, match="is not a valid S3 address"):
        folder_at(s3, "s3://bad bucket!/m").objects()
    with pytest.raises(WrongUseError, match="does not name a bucket"):
        folder_at(s3, "s3:///m")


def test_a_registry_on_s3_resolves_aliases(
    s3: SwiftServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_REGISTRY", f"s3://{bucket}/registry")
    folder = folder_at(s3, f"s3://{bucket}/registry")
    folder.create("tiny/aliases/champion", b"7\n")
    folder.create("tiny/versions/7/config.json", b"{}")
    settings = Settings.load()
    assert list_models(settings) == ["tiny"]
    assert list_aliases("tiny", settings) == ["champion"]
    found = resolve("models:/tiny@champion", settings)
    assert (found.source, found.version) == (f"s3://{bucket}/registry/tiny/versions/7", "7")
    with pytest.raises(NotFoundError, match="its aliases are champion"):
        resolve("models:/tiny@next", settings)


def request(bucket: str, **changes: object) -> StagingRequest:
    values = {"model": f"s3://{bucket}/model", "shards": 3, "disk_benchmark": False}
    return StagingRequest.model_validate(values | changes)


def test_a_model_from_s3_is_staged_bit_for_bit(s3: SwiftServer, bucket: str, random_model: Path) -> None:
    s3.upload(random_model, bucket, "model")
    s3.upload(random_model, bucket, "model/nested")
    outcome = stage_model.plain(request(bucket))
    assert read_model(outcome.result.model_dir) == read_model(random_model)
    assert verify(outcome.result.model_dir)[1] == ()
    assert outcome.result.source == f"s3://{bucket}/model"
    assert stage_model.plain(request(bucket)).cached
    (outcome.result.model_dir / "model-00002-of-00003.safetensors").unlink()
    assert stage_model.plain(request(bucket)).result.restaged == ("model-00002-of-00003.safetensors",)


def test_folders_that_belong_to_a_model_are_listed_and_no_others(
    s3: SwiftServer, bucket: str, tmp_path: Path
) -> None:
    for name in ("modules.json", "1_Pooling/config.json", "1_Pooling/deep/er.json", "original/params.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    s3.upload(tmp_path, bucket, "embedder")
    source = open_source(f"s3://{bucket}/embedder", endpoint=s3.endpoint)
    assert [file.path for file in source.list_files()] == ["modules.json", "1_Pooling/config.json"]
    (pooling,) = (file for file in source.list_files() if "/" in file.path)
    assert source.read(pooling, 0, 2) == b"{}"


def test_records_of_a_staging_lie_on_s3_too(
    s3: SwiftServer, bucket: str, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_RECORDS", f"s3://{bucket}/knowledge")
    s3.upload(random_model, bucket, "model")
    outcome = stage_model.plain(request(bucket))
    assert open_record_store(Settings.load()).get(outcome.record).outcome == "verified"
    assert stage_model.plain(request(bucket)).record == outcome.record


def test_an_object_replaced_underneath_is_seen(s3: SwiftServer, bucket: str, random_model: Path) -> None:
    s3.upload(random_model, bucket, "model")
    source = open_source(f"s3://{bucket}/model", endpoint=s3.endpoint)
    (config,) = (file for file in source.list_files() if file.path == "config.json")
    with pytest.raises(ModelError, match=r"config\.json changed while it was read"):
        source.read(config, 0, config.size_bytes + 1)
    folder = folder_at(s3, f"s3://{bucket}/model")
    folder.client.put_object(Bucket=bucket, Key="model/config.json", Body=b"{}")
    with pytest.raises(ModelError, match=r"config\.json changed while it was read"):
        source.read(config, 0, config.size_bytes)
    folder.client.delete_object(Bucket=bucket, Key="model/config.json")
    with pytest.raises(ModelError, match=r"config\.json changed while it was read"):
        source.read(config, 0, config.size_bytes)


def test_a_connection_that_breaks_is_tried_again(s3: SwiftServer, bucket: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "w").write_bytes(content)
    s3.upload(tmp_path, bucket, "model")
    for broken, message in [(3, None), (4, "cannot be reached")]:
        with breaking_proxy(s3.endpoint) as proxy:
            source = open_source(f"s3://{bucket}/model", endpoint=proxy.endpoint)
            (file,) = (file for file in source.list_files() if file.path == "w")
            proxy.break_next(broken)
            if message is None:
                assert source.read(file, 1, len(content) - 1) == content[1:]
            else:
                with pytest.raises(NetworkError, match=message):
                    source.read(file, 1, len(content) - 1)


def read_into(source: ModelSource, file: SourceFile, offset: int, length: int) -> tuple[bytes, bytes]:
    """What is in the buffer, and what was told while it was filled."""
    (buffer,) = ring(1, length + 100)
    told = bytearray()
    source.read_into(file, offset, length, buffer, 100, told.extend)
    return bytes(buffer.view[100 : 100 + length]), bytes(told)


def test_long_ranges_are_taken_up_where_the_connection_broke(
    s3: SwiftServer, bucket: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 8192
    (tmp_path / "w").write_bytes(content)
    s3.upload(tmp_path, bucket, "model")
    with breaking_proxy(s3.endpoint) as proxy:
        source = open_source(f"s3://{bucket}/model", endpoint=proxy.endpoint)
        (file,) = source.list_files()
        proxy.break_next(5)  # each brings a little more
        assert read_into(source, file, 1, len(content) - 1) == (content[1:], content[1:])
        assert read_into(source, file, 7, 9) == (content[7:16], content[7:16])


def test_long_ranges_tell_what_is_wrong_in_one_line(
    s3: SwiftServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").write_bytes(b"one")
    s3.upload(tmp_path, bucket, "model")
    source = open_source(f"s3://{bucket}/model", endpoint=s3.endpoint)
    (file,) = source.list_files()
    with pytest.raises(ModelError, match="w changed while it was read"):
        read_into(source, file, 0, 4)
    owner = folder_at(s3, f"s3://{bucket}/model").client
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessError, match=r"/model/w refused the credentials \(403\)"):
        read_into(open_source(f"s3://{bucket}/model", endpoint=s3.endpoint), file, 0, 3)
    with pytest.raises(NetworkError, match=r"/model/w cannot be reached: .*Connection refused"):
        read_into(open_source(f"s3://{bucket}/model", endpoint="http://127.0.0.1:9"), file, 0, 3)
    with (
        pytest.raises(NetworkError, match="/model/w cannot be reached: it answered 5"),
        refusing() as endpoint,
    ):
        read_into(open_source(f"s3://{bucket}/model", endpoint=endpoint), file, 0, 3)
    owner.put_object(Bucket=bucket, Key="model/w", Body=b"two")
    with pytest.raises(ModelError, match="w changed while it was read"):
        read_into(source, file, 0, 3)
    owner.delete_object(Bucket=bucket, Key="model/w")
    with pytest.raises(ModelError, match="w changed while it was read"):
        read_into(source, file, 0, 3)


def test_an_address_whose_signature_has_ended_is_signed_once_more(
    s3: SwiftServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of temporary credentials does, whatever time the address was given."""
    (tmp_path / "w").write_bytes(b"one")
    s3.upload(tmp_path, bucket, "model")
    folder = folder_at(s3, f"s3://{bucket}/model")
    (etag,) = (found.etag for found in folder.objects())
    good, ended, broken = signed(folder), signed(folder, hours_ago=2), signed(folder, valid_s=-1)
    assert [status_of(address) for address in (good, ended, broken)] == [200, 403, 400]
    monkeypatch.setattr("blocks.storage.ranges._PAUSE_S", 0.0)

    def read(*addresses: str) -> tuple[bytes, int]:
        """What came, and how many of the addresses were not asked for."""
        left = list(addresses)
        (buffer,) = ring(1, 3)
        reader = RangeReader(lambda _: left.pop(0), folder.url, S3Answers())
        reader.read_into("w", etag, 0, 3, buffer, 0, len)
        reader.read_into("w", etag, 0, 3, buffer, 0, len)
        return bytes(buffer.view[:3]), len(left)

    assert read(ended, good, good) == (b"one", 1)
    assert read(broken, good, good) == (b"one", 1)
    with pytest.raises(AccessError, match=r"/model/w refused the credentials \(403\)"):
        read(ended, ended)
    with pytest.raises(NetworkError, match=r"/model/w cannot be reached: it answered 400"):
        read(*[broken] * 8)


def signed(folder: S3Folder, *, hours_ago: float = 0, valid_s: int = 3600) -> str:
    """An address of the object `w` that was signed that long ago."""
    then = datetime.now(UTC) - timedelta(hours=hours_ago)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.auth.get_current_datetime", lambda: then)
        return folder.client.generate_presigned_url(
            "get_object", Params={"Bucket": folder.bucket, "Key": f"{folder.prefix}w"}, ExpiresIn=valid_s
        )


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """A server that has no time for anybody."""

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_long_ranges_go_through_the_proxy_that_the_environment_names(
    s3: SwiftServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").write_bytes(b"one")
    s3.upload(tmp_path, bucket, "model")
    source = open_source(f"s3://{bucket}/model", endpoint=s3.endpoint)
    (file,) = source.list_files()
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            wanted = urllib.request.Request(self.path, headers=dict(self.headers))
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(wanted) as answer:
                body = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        assert read_into(source, file, 1, 2)[0] == b"ne"
        server.shutdown()
    assert asked[0].startswith(f"{s3.endpoint}/{bucket}/model/w?")


def test_a_copy_killed_in_the_middle_goes_on(s3: SwiftServer, bucket: str, tmp_path: Path) -> None:
    """`kill -9` of the real command after its first finished chunk."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    tensor = bytes(range(256)) * 4096
    write_plain(source / "model.safetensors", {f"w{i}": ("U8", (len(tensor),), tensor) for i in range(32)})
    s3.upload(source, bucket, "model")
    folder = tmp_path / "staged"
    options = ["--to", str(folder), "--shards", "32", "--json"]
    copy = [sys.executable, "-m", "deployments.cli.main", "stage", "copy", f"s3://{bucket}/model", *options]
    with subprocess.Popen(copy, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while finished(folder) < 1:
            assert child.poll() is None
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGKILL)
    done_before = finished(folder)
    assert 1 <= done_before < 32
    assert not (folder / "manifest.json").exists()
    again = subprocess.run(copy, check=True, capture_output=True, text=True)
    answer = json.loads(again.stdout)
    assert answer["copied_bytes"] <= answer["bytes"] - done_before * len(tensor)
    assert read_model(folder) == read_model(source)
    assert not list(folder.rglob("*.part"))


def finished(folder: Path) -> int:
    """Chunks of shards that the ledger names; each shard is one."""
    try:
        lines = (folder / LEDGER_FILE).read_text().splitlines()[1:]
    except FileNotFoundError:
        return 0
    return sum(line.endswith("]") and '.safetensors"' in line for line in lines)
