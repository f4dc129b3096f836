"""Models from a Hugging Face hub: real servers (olah), with the faults that a hub has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hub_server import TOKEN, Faults, HubServer, olah, running
from huggingface_hub import constants, snapshot_download
from plain_safetensors import read_model
from small_gguf import write_gguf
from tool_environment import UnavailableError, give_up

from blocks.processes.ports import free_port
from blocks.storage.sources import open_model, open_source, resolve
from deployments.cli.deploy import deploy
from tasks.core.errors import AccessError, NetworkError, NotFoundError, SlipwayError
from tasks.core.progress import added_listener
from tasks.core.settings import Settings
from tasks.core.sources import HubReference, parse_hub
from tasks.staging.apply import plan_copy, stage_model
from tasks.staging.source import Pinned, pin

pytestmark = pytest.mark.hub


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[HubServer]:
    """A hub with `acme/tiny`, which holds everything that repositories hold."""
    try:
        with running(tmp_path_factory.mktemp("hub")) as hub:
            folder = tmp_path_factory.mktemp("repositories") / "tiny"
            shutil.copytree(random_model, folder)
            (folder / "original").mkdir()
            (folder / "original" / "consolidated.00.safetensors").write_bytes(b"o" * 1000)
            (folder / "pytorch_model.bin").write_bytes(b"p" * 1000)
            (folder / "tiny-F16.gguf").write_bytes(b"g" * 1000)
            hub.push("acme/tiny", folder)
            yield hub
    except UnavailableError as error:
        give_up("hub", error)


@pytest.fixture
def hub(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same, without faults, for a user with an empty cache and no token."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "SLIPWAY_HF_BLOCK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("blocks.storage.ranges._PAUSE_S", 0.0)
    monkeypatch.setattr("blocks.storage.ranges._SLOW_DOWN_PAUSE_S", 0.0)
    server.faults = Faults()
    server.asked.clear()
    return server


@dataclass
class Copy:
    """A model that was resolved and pinned, and can be copied."""

    pinned: Pinned
    commit: str | None
    said: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: str) -> Copy:
        found = resolve(model, Settings.load())
        return cls(pin(open_model(found.source, (), endpoint=None)), found.version)

    def into(self, folder: Path) -> Path:
        with added_listener(lambda _, line: self.said.append(line)):
            plan = plan_copy(self.pinned, "auto", convertible=False)
            stage_model(
                self.pinned, plan, folder, leases=folder.parent / "leases", own=True, chunk_bytes=1 << 16
            )
        return folder


def test_what_is_served_comes_from_a_hub_and_nothing_else(
    hub: HubServer, random_model: Path, tmp_path: Path
) -> None:
    copy = Copy.of("hf:acme/tiny@main")
    assert copy.pinned.source.name == f"hf:acme/tiny@{copy.commit}"
    assert read_model(copy.into(tmp_path / "staged")) == read_model(random_model)
    assert not [line for line in hub.asked if line.startswith("GET") and line.endswith((".bin", ".gguf"))]
    assert not [line for line in hub.asked if "original" in line]


def test_a_commit_stays_when_its_branch_moves(hub: HubServer, random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moving"
    shutil.copytree(random_model, folder)
    (folder / "generation_config.json").write_text("{}")
    first = hub.push("acme/moving", folder)
    copy = Copy.of("hf:acme/moving")
    (folder / "generation_config.json").write_text('{"top_k": 1}')
    second = hub.push("acme/moving", folder)
    assert (copy.into(tmp_path / "staged") / "generation_config.json").read_text() == "{}"
    assert (copy.commit, Copy.of("hf:acme/moving").commit) == (first, second)


@pytest.mark.parametrize(("fault", "times"), [("breaks", 2), ("expired", 1), ("busy", 2)])
def test_a_hub_that_stumbles_is_asked_again(
    hub: HubServer, random_model: Path, tmp_path: Path, fault: str, times: int
) -> None:
    copy = Copy.of("hf:acme/tiny")
    setattr(hub.faults, fault, times)
    assert read_model(copy.into(tmp_path / "staged")) == read_model(random_model)
    assert getattr(hub.faults, fault) == 0
    waits = [line for line in copy.said if "the hub is busy (429), asked again in 1 s" in line]
    assert bool(waits) == (fault == "busy")


def use(hub: HubServer, **faults: Any) -> None:
    hub.faults = Faults(**faults)


@pytest.mark.parametrize(
    ("model", "faults", "kind", "said"),
    [
        ("hf:acme/none", {}, NotFoundError, "hf:acme/none@main does not exist on {host}, or is private"),
        ("hf:acme/tiny@beta", {}, NotFoundError, "has no such branch, tag or commit"),
        (
            "hf:acme/tiny",
            {"token": "t"},
            NotFoundError,
            "for a private model set HF_TOKEN, or SLIPWAY_HF_BLOCK",
        ),
        (
            "hf:acme/tiny",
            {"gated": True},
            AccessError,
            "is gated: .*accept them on its page, then set HF_TOKEN",
        ),
        ("hf:acme/tiny", {"busy": 9, "retry_after": "2000"}, NetworkError, "answered 429"),
        ("hf:acme/tiny", {"ignores_ranges": True}, NetworkError, "the hub ignores ranges"),
        ("hf:acme/tiny", {"breaks": 99}, NetworkError, "model.safetensors cannot be read"),
    ],
)
def test_every_failure_is_one_line_with_the_way_out(
    hub: HubServer,
    tmp_path: Path,
    model: str,
    faults: dict[str, object],
    kind: type[SlipwayError],
    said: str,
) -> None:
    use(hub, **faults)
    with pytest.raises(kind, match=said.format(host=hub.url.removeprefix("http://"))) as error:
        Copy.of(model).into(tmp_path / "staged")
    assert "\n" not in str(error.value)


def test_a_token_goes_to_the_hub_and_not_to_its_store(
    hub: HubServer, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, token=TOKEN)
    monkeypatch.setenv("SLIPWAY_HF_BLOCK", "hub")
    monkeypatch.setattr("blocks.storage.secret_block.load_secret", lambda *_, **__: f"{TOKEN}\n")
    assert read_model(Copy.of("hf:acme/tiny").into(tmp_path / "staged")) == read_model(random_model)


def test_a_full_cache_needs_neither_network_nor_hub(
    hub: HubServer, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = Copy.of("hf:acme/tiny")
    snapshot_download("acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", token=False)
    hub.asked.clear()
    online.into(tmp_path / "without")
    assert any(line.startswith("GET /store") for line in hub.asked)  # it had been opened before the download
    hub.asked.clear()
    assert read_model(Copy.of("hf:acme/tiny").into(tmp_path / "online")) == read_model(random_model)
    assert not [line for line in hub.asked if "/resolve/" in line]

    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    offline = Copy.of("hf:acme/tiny")
    assert offline.pinned.digest == online.pinned.digest
    assert read_model(offline.into(tmp_path / "offline")) == read_model(random_model)


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_and_an_empty_cache_is_one_line(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    said = "HF_HUB_OFFLINE is set .*hf download acme/tiny" if offline else "check HF_ENDPOINT and the network"
    with pytest.raises(NetworkError, match=said):
        Copy.of("hf:acme/tiny")


def test_a_mirror_that_caches_serves_ranges(
    hub: HubServer, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = hub.url.removeprefix("http://")
    behind = ("hf-scheme = 'http'", f"hf-netloc = '{host}'", f"hf-lfs-netloc = '{host}'")
    with olah(tmp_path / "mirror", *behind) as mirror:
        monkeypatch.setenv("HF_ENDPOINT", mirror)
        assert read_model(Copy.of("hf:acme/tiny").into(tmp_path / "staged")) == read_model(random_model)


def test_one_quantization_of_a_repository_is_chosen(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("tiny-Q4_K_M", "tiny-Q8_0"):
        write_gguf(folder / f"{name}.gguf")
    commit = hub.push("acme/tiny-GGUF", folder)
    found = resolve("hf:acme/tiny-GGUF#q8_0", Settings.load())
    chosen = open_model(found.source, (), endpoint=None)
    assert chosen.name == f"hf:acme/tiny-GGUF@{commit}/tiny-Q8_0.gguf"
    (file,) = open_source(chosen.name, endpoint=None).list_files()
    assert chosen.read(file, 0, file.size_bytes) == (folder / file.path).read_bytes()


def test_the_plan_of_a_deploy_names_the_commit_and_a_gated_model_has_none(
    hub: HubServer, random_model: Path, tmp_path: Path
) -> None:
    commit = Copy.of("hf:acme/tiny").commit
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: tiny\nmodel: hf:acme/tiny\nengine: transformers\n")
    shown = CliRunner().invoke(deploy, [str(spec), "--dry-run"])
    assert (shown.exit_code, f"copy hf:acme/tiny@{commit} (qwen3, " in " ".join(shown.output.split())) == (
        0,
        True,
    )
    use(hub, gated=True)
    with pytest.raises(AccessError, match="is gated"):
        CliRunner().invoke(deploy, [str(spec), "--dry-run"], catch_exceptions=False)


REFERENCES: list[tuple[str, HubReference | None]] = [
    ("hf:a/b", HubReference("a/b")),
    ("hf:a/b@v1.0", HubReference("a/b", "v1.0")),
    ("hf:a/b@refs/pr/1", HubReference("a/b", "refs/pr/1")),
    ("hf:a/b@main/x.gguf", HubReference("a/b", "main", "x.gguf")),
    ("hf:a/b/x.gguf", HubReference("a/b", "main", "x.gguf")),
    ("hf:a/b.gguf@main", HubReference("a/b.gguf")),
    ("hf:b", None),
    ("hf:a/b@", None),
    ("hf:a/b@../c", None),
    ("hf:a//b", None),
    ("hf:a/b/c", None),
    ("hf:a/b@main@c", None),
    ("hf:a/b\n", None),
]


@pytest.mark.parametrize(("source", "reference"), REFERENCES)
def test_a_reference_is_read_strictly(source: str, reference: HubReference | None) -> None:
    assert parse_hub(source) == reference
    if reference is not None:
        assert parse_hub(str(reference)) == reference
