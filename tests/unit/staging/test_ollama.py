"""A staged GGUF file as Ollama keeps its models."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from small_gguf import KEYS, gguf_bytes

from blocks.storage.model_source import FolderSource
from tasks.core.errors import ModelError, WrongUseError
from tasks.staging.apply import plan_copy, stage_model
from tasks.staging.blobs import export_to_ollama
from tasks.staging.ollama import manifest_path, read_general_keys
from tasks.staging.source import pin


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(*keys: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(keys)) + b"".join(keys)


GGUF = gguf(
    text("general.architecture") + struct.pack("<I", 8) + text("llama"),
    text("general.file_type") + struct.pack("<II", 4, 7),
    text("general.size_label") + struct.pack("<I", 8) + text("1B"),
    text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 0),
)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "q8.gguf").write_bytes(
        gguf_bytes({"general.size_label": "1B", **KEYS, "general.file_type": 7}) + bytes(100_000)
    )
    (source / "LICENSE").write_text("Apache-2.0")
    pinned = pin(FolderSource(source))
    plan = plan_copy(pinned, "auto", convertible=False)
    stage_model(pinned, plan, tmp_path / "staged", leases=tmp_path, own=True)
    return tmp_path / "staged"


def test_the_file_becomes_a_blob_that_a_manifest_names(staged: Path, tmp_path: Path) -> None:
    store = tmp_path / "ollama"
    done = export_to_ollama(staged, store, "tiny:q8")
    assert done.manifest == store / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "q8"
    manifest = json.loads(done.manifest.read_bytes())
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store / "blobs" / layer["digest"].replace(":", "-")
        assert layer["digest"] == f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}"
        assert layer["size"] == blob.stat().st_size
    assert [layer["mediaType"] for layer in manifest["layers"]] == snapshot(
        ["application/vnd.ollama.image.model", "application/vnd.ollama.image.license"]
    )
    config = json.loads((store / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_bytes())
    del config["rootfs"]
    assert config == snapshot(
        {
            "model_format": "gguf",
            "model_family": "llama",
            "model_families": ["llama"],
            "model_type": "1B",
            "file_type": "Q8_0",
            "architecture": "amd64",
            "os": "linux",
        }
    )
    assert done.blob.samefile(staged / "q8.gguf")
    assert done.copied_bytes == 0
    assert export_to_ollama(staged, store, "tiny:q8") == done
    assert not list(store.rglob("*.part"))


def test_on_another_disk_it_is_copied(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    done = export_to_ollama(staged, tmp_path / "ollama", "tiny")
    assert done.manifest.name == "latest"
    assert done.copied_bytes == sum((staged / name).stat().st_size for name in ("q8.gguf", "LICENSE"))
    assert done.blob.read_bytes() == (staged / "q8.gguf").read_bytes()


def test_what_cannot_be_exported_is_said_in_one_line(staged: Path, tmp_path: Path) -> None:
    for name in ("", "../x", "a/b", "a:b:c", "x" * 90):
        with pytest.raises(WrongUseError, match="is not a valid name for Ollama"):
            manifest_path(name)
    (staged / "q8.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"q8\.gguf is damaged"):
        export_to_ollama(staged, tmp_path / "ollama", "tiny")
    with pytest.raises(ModelError, match="does not contain a staged model"):
        export_to_ollama(tmp_path / "source", tmp_path / "ollama", "tiny")
    assert not (tmp_path / "ollama").exists()


def test_models_without_gguf_have_nothing_for_ollama(random_model: Path, tmp_path: Path) -> None:
    pinned = pin(FolderSource(random_model))
    plan = plan_copy(pinned, "auto", convertible=False)
    stage_model(pinned, plan, tmp_path / "staged", leases=tmp_path, own=True)
    with pytest.raises(ModelError, match="contains 0 GGUF files, but Ollama takes exactly one"):
        export_to_ollama(tmp_path / "staged", tmp_path / "ollama", "tiny")


@pytest.mark.parametrize("head", [b"", b"GGUF", b"GGML" + GGUF[4:], gguf(b"\xff" * 9), GGUF[:40]])
def test_a_head_that_says_nothing_is_no_fault(head: bytes) -> None:
    assert read_general_keys(head) == {}
