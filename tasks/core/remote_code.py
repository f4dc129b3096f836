"""Which code a model brings along: what its documents name, and what that imports from beside it. Pure.

Nothing here runs or imports the code; it is looked at as text. Only an engine runs it, in its own environment, if the
spec says `serving.trust_remote_code`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.core.errors import ModelError
from tasks.core.frozen import Frozen
from tasks.core.paths import is_file_name, shown

DOCUMENTS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files whose `auto_map` Transformers and the engines that use it follow."""

MAX_CODE_BYTES = 10_000_000
_KEY = "auto_map"
_NESTED = ("text_config", "llm_config", "language_config", "vision_config")
_RELATIVE = re.compile(
    rb"^[ \t]*(?:from[ \t]+\.([A-Za-z_]\w*)(?:\.\w+)*[ \t]+import\b|import[ \t]+\.([A-Za-z_]\w*))",
    re.MULTILINE,
)
_SIBLINGS = re.compile(rb"^[ \t]*from[ \t]+\.[ \t]+import[ \t]+\(?([^#\n)]*)", re.MULTILINE)


class RemoteCode(Frozen):
    """Names of the files that a model's documents name, and what they name in another repository."""

    files: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.elsewhere)


def code_named(documents: Iterable[Mapping[str, Any]]) -> RemoteCode:
    """What the `auto_map` of these documents names. Raises `ModelError` for a name that is not a file's."""
    references = sorted({one for document in documents for one in _references(document)})
    elsewhere = tuple(one for one in references if "--" in one)
    return RemoteCode(
        files=tuple(dict.fromkeys(_file_of(one) for one in references if one not in elsewhere)),
        elsewhere=elsewhere,
    )


def files_imported(text: bytes) -> tuple[str, ...]:
    """The files beside it that a module imports, by its text."""
    found = [name or other for name, other in _RELATIVE.findall(text)]
    for names in _SIBLINGS.findall(text):
        found += [name.split()[0] for one in names.split(b",") if (name := one.strip())]
    modules = (name.decode("ascii", "replace") for name in found)
    return tuple(sorted({f"{name}.py" for name in modules if name.isidentifier()}))


def describe_code(digests: Mapping[str, str]) -> str:
    """The files with their digests, for people."""
    return ", ".join(f"{name} ({digest})" for name, digest in digests.items())


def _references(document: Mapping[str, Any]) -> Iterator[str]:
    for place in (document, *(document.get(name) for name in _NESTED)):
        named = place.get(_KEY) if isinstance(place, dict) else None
        for value in named.values() if isinstance(named, dict) else ():
            # A tokenizer has two classes, the fast one last; either may be absent.
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, str):
                    yield one


def _file_of(reference: str) -> str:
    module, dot, name = reference.partition(".")
    file = f"{module}.py"
    if not dot or not name.isidentifier() or not is_file_name(file) or not module.isidentifier():
        raise ModelError(
            f"auto_map names {shown(reference)}, which is not a class in a file of the model",
            fix="copy or download the model again",
        )
    return file
