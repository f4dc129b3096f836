"""Which GGUF files of a source are one model, and which model of several is meant. Pure, but for the source read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from tasks.core.direct_io import Buffer, Took
from tasks.core.errors import ModelError, NotFoundError, SpecError
from tasks.core.gguf import read_gguf
from tasks.core.gguf_model import GgufModel, is_projector, model_of, part_of_split
from tasks.core.paths import some_of
from tasks.core.sources import GGUF
from tasks.staging.models import SourceFile
from tasks.staging.plan import SUMS_FILE
from tasks.staging.source import ModelSource, Pinned, pin

_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:ud-)?(?:i?q[0-9][a-z0-9_]*|tq[0-9]_[0-9]|bf16|fp?16|fp?32|mxfp4[a-z0-9_]*|nvfp4))$"
)
_TAKEN_ALONG = ("license", "notice")


@dataclass(frozen=True)
class GgufFiles:
    """The files of one model, in order: one, or all parts of a split one."""

    stem: str
    paths: tuple[str, ...]

    @property
    def quantization(self) -> str:
        """What the name ends in, such as `q4_k_m`; the whole name if that says nothing."""
        found = _QUANTIZATION.search(self.stem.lower())
        return found[1] if found else self.stem.lower()


def gguf_files(names: Sequence[str]) -> tuple[GgufFiles, ...]:
    """The models among these files, by name; vision projectors are none. Raises `ModelError` for a missing part."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    found = []
    for name in sorted(names):
        if not name.endswith(GGUF) or is_projector(name) or not name.isprintable():
            continue
        if (part := part_of_split(name)) is None:
            found.append(GgufFiles(name.removesuffix(GGUF), (name,)))
        else:
            parts.setdefault((part[0], part[2]), {})[part[1]] = name
    for (stem, count), there in parts.items():
        missing = [number for number in range(1, min(count, 10_000) + 1) if number not in there]
        if missing or len(there) != count:
            lacking = (
                f"{stem}-{missing[0]:05d}-of-{count:05d}{GGUF}"
                if missing
                else f"{stem}-…-of-{count:05d}{GGUF}"
            )
            raise ModelError(
                f"{lacking} is missing: {len(there)} of {count} parts of the model are there",
                fix="copy or download all parts",
            )
        found.append(GgufFiles(stem, tuple(there[number] for number in sorted(there))))
    return tuple(sorted(found, key=lambda one: one.stem))


def has_only_gguf(names: Sequence[str]) -> bool:
    """Whether GGUF files are the only weights."""
    return any(name.endswith(GGUF) for name in names) and not any(".safetensors" in name for name in names)


def choose_gguf(names: Sequence[str], variant: str | None, formats: Sequence[str], where: str) -> GgufFiles:
    """The model that is meant: by `variant`, else the only one, else the only one that `formats` names.

    Raises `SpecError` that lists them if that does not decide, `ModelError` if there is none.
    """
    found = gguf_files(names)
    if not found:
        raise ModelError(f"{where} contains no GGUF model", fix="give the folder that contains the GGUF file")
    listed = some_of([one.quantization for one in found], most=20)
    if variant is not None:
        # `q4_k_m` also means `UD-Q4_K_M`, if no other does.
        same = [one for one in found if one.quantization == variant]
        same = same or [one for one in found if one.quantization == f"ud-{variant}"]
        if len(same) == 1:
            return same[0]
        why = f"several files for {variant}" if same else f"no GGUF model {variant}, but {listed}"
        raise SpecError(f"{where} contains {why}", fix="give the path of the .gguf file")
    if len(found) == 1:
        return found[0]
    named = [one for one in found if one.quantization in formats]
    if len(named) == 1:
        return named[0]
    raise SpecError(
        f"{where} contains several GGUF models: {listed}",
        fix=f"choose one: model: {where}#{found[0].quantization}, or its name in tuning.candidates",
    )


class GgufSource:
    """One GGUF model among the files of a source. Its name is that of its first file.

    Implements `tasks.staging.source.ModelSource`.
    """

    def __init__(self, source: ModelSource, files: GgufFiles) -> None:
        self.files = files
        self._source = source

    @property
    def name(self) -> str:
        """Its address."""
        return f"{self._source.name}/{self.files.paths[0]}"

    @property
    def parallel(self) -> int:
        """As the source says."""
        return self._source.parallel

    def list_files(self) -> Sequence[SourceFile]:
        """Its files, licence and digests. Raises `NotFoundError` if none of its files is there."""
        found = [file for file in self._source.list_files() if keeps(self.files)(file.path)]
        if not any(file.path in self.files.paths for file in found):
            raise NotFoundError(f"{self.name} does not exist", fix="check the spec's `model`")
        return found

    def read(self, file: SourceFile, offset: int, length: int) -> bytes:
        """As `ModelSource` says."""
        return self._source.read(file, offset, length)

    def read_into(
        self, file: SourceFile, offset: int, length: int, buffer: Buffer, at: int, took: Took
    ) -> None:
        """As `ModelSource` says."""
        self._source.read_into(file, offset, length, buffer, at, took)


def keeps(files: GgufFiles) -> Callable[[str], bool]:
    """Which names of a folder belong to the model. Projectors are listed, so that staging can say that they stay."""
    return lambda name: (
        name in files.paths
        or name == SUMS_FILE
        or name.lower().startswith(_TAKEN_ALONG)
        or (name.endswith(GGUF) and is_projector(name))
    )


def files_named(name: str) -> GgufFiles:
    """The model of which `name` is the file, or a part: all its parts, whether they are there or not."""
    part = part_of_split(PurePosixPath(name).name)
    if part is None:
        return GgufFiles(name.removesuffix(GGUF), (name,))
    stem, _, count = part
    if count > 10_000:
        raise ModelError(f"{name}: a model in {count} parts is not read", fix="give the model in fewer parts")
    return GgufFiles(
        stem, tuple(f"{stem}-{number:05d}-of-{count:05d}{GGUF}" for number in range(1, count + 1))
    )


def one_model(source: ModelSource, variant: str | None, formats: Sequence[str]) -> ModelSource:
    """The source, or of one that has only GGUF files the model that is meant. Raises as `choose_gguf` does."""
    if isinstance(source, GgufSource):
        return source
    names = [file.path for file in source.list_files()]
    if variant is None and (not has_only_gguf(names) or all(map(is_projector, _ggufs(names)))):
        return source
    return GgufSource(source, choose_gguf(names, variant, formats, source.name))


def _ggufs(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(GGUF)]


def read_gguf_model(pinned: Pinned, paths: Sequence[str]) -> GgufModel:
    """The model in these files, all of them whole. Raises `ModelError`."""
    name = pinned.source.name
    headers = {}
    for path in paths:
        file = next((one for one in pinned.files if one.path == path), None)
        if file is None:
            gguf_files([one.path for one in pinned.files])  # names the part that is missing
            raise ModelError(f"{path} is missing", fix="copy or download all parts of the model")
        place = name.rpartition("/")[0] if name.endswith(GGUF) else name
        headers[path] = read_gguf(partial(pinned.source.read, file), file.size_bytes, f"{place}/{path}")
    return model_of(headers, name)


def gguf_model_at(source: ModelSource) -> GgufModel | None:
    """The model of a source with GGUF files only that was narrowed to one; None for any other source."""
    return read_gguf_model(pin(source), source.files.paths) if isinstance(source, GgufSource) else None
