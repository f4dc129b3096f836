"""A second, naive reader and writer of safetensors, so that tests do not judge the code by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Plain = tuple[str, tuple[int, ...], bytes]
"""Element type, shape and bytes of one tensor."""


def write_plain(path: Path, tensors: Mapping[str, Plain], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape, content) in tensors.items():
        end = offset + len(content)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    content = b"".join(content for _, _, content in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def read_plain(path: Path) -> dict[str, Plain]:
    """All tensors of one file."""
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), content[data + start : data + end])
        for name, entry in header.items()
        for start, end in [entry["data_offsets"]]
    }


def read_model(folder: Path) -> dict[str, Plain]:
    """All tensors of all safetensors in a folder; none may occur twice."""
    tensors: dict[str, Plain] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = read_plain(path)
        assert not tensors.keys() & found.keys()
        tensors |= found
    return tensors
