"""How Ollama stores a model: blobs named by their SHA-256, and a manifest that names them. Pure.

Layout: https://github.com/ollama/ollama/blob/main/docs/faq.mdx and `types/model/name.go` there; media types as its
registry sends them. GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.core.errors import WrongUseError

GGUF_HEAD_BYTES = 1 << 20
"""How much of a GGUF file is read to describe it: the general keys come first."""

MODEL_MEDIA_TYPE = "application/vnd.ollama.image.model"
LICENSE_MEDIA_TYPE = "application/vnd.ollama.image.license"
_CONFIG_MEDIA_TYPE = "application/vnd.docker.container.image.v1+json"
_MANIFEST_MEDIA_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,79})(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,79}))?"
)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
}
_FILE_TYPES |= {
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
}
_FILE_TYPES |= {32: "BF16"}


@dataclass(frozen=True)
class Layer:
    """One blob: media type, SHA-256 in hexadecimal, size."""

    media_type: str
    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, str | int]:
        """The digest as manifests spell it."""
        return {"mediaType": self.media_type, "digest": f"sha256:{self.sha256}", "size": self.size_bytes}


def blob_path(sha256: str) -> str:
    """Path of a blob in Ollama's folder of models."""
    return f"blobs/sha256-{sha256}"


def manifest_path(name: str) -> str:
    """Path of the manifest of NAME[:TAG] there. Raises `WrongUseError`."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise WrongUseError(f"{name!r} is not a valid name for Ollama", fix="write NAME or NAME:TAG")
    return f"manifests/registry.ollama.ai/library/{match['name']}/{match['tag'] or 'latest'}"


def render_config(gguf_head: bytes, layers: Sequence[Layer]) -> bytes:
    """The blob that describes the model, from the first bytes of its GGUF file."""
    keys = read_general_keys(gguf_head)
    family = str(keys.get("general.architecture", "unknown"))
    file_type = keys.get("general.file_type")
    config = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": str(keys.get("general.size_label", "unknown")),
        "file_type": _FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.sha256}" for layer in layers]},
    }
    return json.dumps(config, separators=(",", ":")).encode()


def render_manifest(config: Layer, layers: Sequence[Layer]) -> bytes:
    """The document that names the blobs."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_MEDIA_TYPE,
        "config": config.as_json(),
        "layers": [layer.as_json() for layer in layers],
    }
    return json.dumps(manifest, separators=(",", ":")).encode()


def config_layer(sha256: str, size_bytes: int) -> Layer:
    """The layer of `render_config`'s blob."""
    return Layer(_CONFIG_MEDIA_TYPE, sha256, size_bytes)


def read_general_keys(head: bytes) -> Mapping[str, str | int | float]:
    """Texts and numbers among a GGUF file's keys, up to the end of `head` or the first array."""
    keys: dict[str, str | int | float] = {}
    try:
        magic, version, _, count = struct.unpack_from("<4sIQQ", head)
        if magic != b"GGUF" or version not in (2, 3):
            return {}
        position = 24
        for _ in range(count):
            key, position = _text(head, position)
            (kind,) = struct.unpack_from("<I", head, position)
            position += 4
            if kind == _STRING:
                keys[key], position = _text(head, position)
            elif kind in _SCALARS:
                (keys[key],) = struct.unpack_from(f"<{_SCALARS[kind]}", head, position)
                position += struct.calcsize(f"<{_SCALARS[kind]}")
            else:
                break
    except (struct.error, ValueError):
        pass  # the end of the head, or not GGUF after all
    return keys


def _text(head: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, position)
    end = position + 8 + length
    if end > len(head):
        raise ValueError
    return head[position + 8 : end].decode(errors="replace"), end
