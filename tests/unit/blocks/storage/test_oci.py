"""Models in a real registry of images, and manifests that are of no use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from breaking_proxy import breaking_proxy
from oci_registry import WEIGHT, OciRegistry, running
from plain_safetensors import read_model
from small_gguf import write_gguf
from tool_environment import UnavailableError, give_up

from blocks.processes.ports import free_port
from blocks.storage.oci import list_layers
from blocks.storage.sources import open_model, resolve
from tasks.core.errors import AccessError, ModelError, NetworkError, NotFoundError, UnsafeNameError
from tasks.core.settings import Settings
from tasks.core.sources import OciReference, parse_oci
from tasks.staging.apply import plan_copy, stage_model
from tasks.staging.source import pin

TITLE, UNPACK = "org.opencontainers.image.title", "io.deis.oras.content.unpack"
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    try:
        with running(tmp_path_factory.mktemp("registry")) as server:
            yield server
    except UnavailableError as error:
        give_up("oci", error)


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has not logged in."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setattr("blocks.storage.ranges._PAUSE_S", 0.0)
    monkeypatch.setattr("blocks.storage.ranges._SLOW_DOWN_PAUSE_S", 0.0)


def stage(model: str, folder: Path) -> Path:
    pinned = pin(open_model(resolve(model, Settings.load()).source, (), endpoint=None))
    plan = plan_copy(pinned, "auto", convertible=False)
    stage_model(pinned, plan, folder, leases=folder.parent / "leases", own=True, chunk_bytes=1 << 18)
    return folder


@pytest.mark.oci
def test_a_model_is_staged_from_the_digest_of_its_tag(
    registry: OciRegistry, random_model: Path, tmp_path: Path
) -> None:
    digest = registry.push("models/tiny", "v1", random_model)
    found = resolve(f"oci://{registry.host}/models/tiny:v1", Settings.load())
    assert (found.source, found.version) == (f"oci://{registry.host}/models/tiny@{digest}", digest)
    assert read_model(stage(found.source, tmp_path / "staged")) == read_model(random_model)


@pytest.mark.oci
def test_a_registry_that_breaks_off_is_asked_again(
    registry: OciRegistry, random_model: Path, tmp_path: Path
) -> None:
    registry.push("models/tiny", "v1", random_model)
    with breaking_proxy(f"http://{registry.host}") as proxy:
        proxy.break_next(3)
        staged = stage(f"oci://{proxy.endpoint.removeprefix('http://')}/models/tiny:v1", tmp_path / "staged")
    assert read_model(staged) == read_model(random_model)


@pytest.mark.oci
def test_a_blob_that_is_not_its_digest_is_refused(
    registry: OciRegistry, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("models/tiny", "v1", random_model)

    def damaged(content: bytes, name: str) -> list[Any]:
        files = list_layers(content, name)
        return [
            file.model_copy(update={"sha256": "0" * 64}) if file.path.endswith(".safetensors") else file
            for file in files
        ]

    monkeypatch.setattr("blocks.storage.oci.list_layers", damaged)
    with pytest.raises(ModelError, match="does not have the SHA-256 that the source states for it"):
        stage(f"oci://{registry.host}/models/tiny:v1", tmp_path / "staged")


@pytest.mark.oci
def test_one_gguf_model_of_an_artifact_is_chosen(registry: OciRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("tiny-Q4_K_M", "tiny-Q8_0"):
        write_gguf(folder / f"{name}.gguf")
    digest = registry.push("models/gguf", "latest", folder)
    found = resolve(f"oci://{registry.host}/models/gguf#q8_0", Settings.load())
    chosen = open_model(found.source, (), endpoint=None)
    assert chosen.name == f"oci://{registry.host}/models/gguf@{digest}/tiny-Q8_0.gguf"
    (file,) = open_model(chosen.name, (), endpoint=None).list_files()
    assert chosen.read(file, 0, file.size_bytes) == (folder / file.path).read_bytes()


@pytest.mark.oci
def test_a_locked_registry_wants_what_docker_login_keeps(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with running(tmp_path, locked=True) as registry:
            registry.push("models/tiny", "v1", random_model)
            with pytest.raises(
                AccessError, match=rf"{registry.host} does not let this user read .*docker login"
            ):
                stage(f"oci://{registry.host}/models/tiny:v1", tmp_path / "staged")
            registry.log_in(tmp_path)
            staged = stage(f"oci://{registry.host}/models/tiny:v1", tmp_path / "staged")
            assert read_model(staged) == read_model(random_model)
    except UnavailableError as error:
        give_up("oci", error)


@pytest.mark.oci
def test_what_is_not_there_is_one_line(registry: OciRegistry) -> None:
    with pytest.raises(NotFoundError, match=r"models/none:latest does not exist"):
        resolve(f"oci://{registry.host}/models/none", Settings.load())
    with pytest.raises(NetworkError, match=r"cannot be read: .*check its host and the network"):
        resolve(f"oci://127.0.0.1:{free_port('127.0.0.1')}/models/none", Settings.load())


def layer(**changes: Any) -> dict[str, Any]:
    named = {"org.cncf.model.filepath": "w.safetensors"}
    return {"mediaType": WEIGHT, "digest": DIGEST, "size": 1, "annotations": named, **changes}


@pytest.mark.parametrize(
    ("manifest", "kind", "said"),
    [
        ("no JSON", ModelError, "its manifest lists none"),
        ({}, ModelError, "its manifest lists none"),
        ({"manifests": []}, ModelError, "an index of several artifacts"),
        ({"layers": [layer(annotations={})]}, ModelError, "no files by name: it may be an image"),
        ({"layers": [layer(mediaType=f"{WEIGHT[:-4]}.tar")]}, ModelError, "is packed .*modctl build --raw"),
        ({"layers": [layer(annotations={TITLE: "w", UNPACK: "true"})]}, ModelError, "is packed"),
        ({"layers": [layer(annotations={"org.cncf.model.filepath": "../w"})]}, UnsafeNameError, r"\.\./w"),
        ({"layers": [layer(digest="md5:1")]}, ModelError, "no files by name"),
    ],
)
def test_a_manifest_that_is_of_no_use_is_one_line(manifest: Any, kind: type[ModelError], said: str) -> None:
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    with pytest.raises(kind, match=said):
        list_layers(text.encode(), "oci://h/m:v")


def test_files_of_folders_and_without_a_name_are_left_out() -> None:
    layers = [
        layer(
            annotations={TITLE: "config.json"}, mediaType="application/vnd.oci.image.layer.v1.tar"
        ),  # oras push
        layer(annotations={"org.cncf.model.filepath": "original/w.safetensors"}),
        layer(annotations=dict[str, str]()),
    ]
    (file,) = list_layers(json.dumps({"layers": layers}).encode(), "oci://h/m:v")
    assert (file.path, file.sha256) == ("config.json", "0" * 64)


REFERENCES: list[tuple[str, OciReference | None]] = [
    ("oci://h/m", OciReference("h", "m")),
    ("oci://h:5000/a/b:v1", OciReference("h:5000", "a/b", "v1")),
    (f"oci://h/m@{DIGEST}", OciReference("h", "m", digest=DIGEST)),
    (f"oci://h/m@{DIGEST}/x.gguf", OciReference("h", "m", digest=DIGEST, file="x.gguf")),
    ("oci://h", None),
    ("oci://h/UPPER", None),
    ("oci://h/m@sha256:1", None),
    ("oci://h/a/../b", None),
    ("oci://u:p@h/m", None),
    ("oci://h/m:", None),
    (f"oci://h/{'m' * 256}", None),
]


@pytest.mark.parametrize(("source", "reference"), REFERENCES)
def test_a_reference_is_read_strictly(source: str, reference: OciReference | None) -> None:
    assert parse_oci(source) == reference
    if reference is not None:
        assert parse_oci(str(reference)) == reference
