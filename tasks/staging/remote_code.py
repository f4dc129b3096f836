"""The code that the model of a source brings along, with its digests. Pure, but for the source read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from tasks.core.errors import ModelError
from tasks.core.remote_code import (
    DOCUMENTS,
    MAX_CODE_BYTES,
    RemoteCode,
    code_named,
    describe_code,
    files_imported,
)
from tasks.staging.source import Pinned


def code_in(pinned: Pinned) -> RemoteCode:
    """What its documents name. Raises `ModelError` for a name that is not a file's."""
    there = {file.path for file in pinned.files}
    return code_named(
        document for name in DOCUMENTS if name in there and (document := _document(pinned.read_whole(name)))
    )


def digests_of(pinned: Pinned, code: RemoteCode, *, trusted: bool) -> Mapping[str, str]:
    """The files that are named and there, with all that they import from beside them, each with its digest.

    Code that is `trusted`, so that an engine will run it, must be there: raises `ModelError` for a missing file, or
    for one in another repository.
    """
    name = pinned.source.name
    if trusted and code.elsewhere:
        raise ModelError(
            f"{name} names code in another repository: {code.elsewhere[0][:200]}",
            fix="copy that file into the model's folder, and name it in auto_map without the repository",
        )
    sizes = {file.path: file.size_bytes for file in pinned.files}
    found: dict[str, str] = {}
    open_, asked_by = list(code.files), dict.fromkeys(code.files, "auto_map")
    while open_:
        path = open_.pop()
        if path in found:
            continue
        if path not in sizes:
            if not trusted:
                continue
            raise ModelError(
                f"{name} lacks {path}, the code that {asked_by[path]} names",
                fix="copy or download the whole model, with its .py files",
            )
        if sizes[path] > MAX_CODE_BYTES:
            raise ModelError(
                f"{name}/{path} has {sizes[path]} bytes, too many for code",
                fix="copy or download the model again",
            )
        text = pinned.read_whole(path)
        found[path] = f"sha256:{hashlib.sha256(text).hexdigest()}"
        for sibling in files_imported(text):
            asked_by.setdefault(sibling, path)
            open_.append(sibling)
    return dict(sorted(found.items()))


def code_finding(digests: Mapping[str, str], code: RemoteCode, *, trusted: bool) -> str | None:
    """What people are told of a model's own code; None for a model without."""
    if not code:
        return None
    named = describe_code(digests) or ", ".join((*code.files, *code.elsewhere))
    if trusted:
        return f"comes with code of its own, which the engine runs in its environment: {named}"
    return f"comes with code of its own, which is not run (serving.trust_remote_code): {named}"


def _document(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # whoever needs it says what is wrong with it
    return found if isinstance(found, dict) else {}
