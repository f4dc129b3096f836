"""Which files of a source make up the model, and what came of a copy. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.core.digests import digest_of
from tasks.core.errors import ModelError
from tasks.core.files import PART
from tasks.core.gguf_model import is_projector
from tasks.core.manifest import MANIFEST_FILE, Manifest
from tasks.core.paths import checked, checked_file_name, is_file_name, shown, some_of
from tasks.core.safetensors import Header
from tasks.core.sources import GGUF
from tasks.core.verdicts import StagingVerdict
from tasks.staging.disk.models import DiskResult
from tasks.staging.layout import INDEX_FILE
from tasks.staging.models import SourceFile, StagingResult
from tasks.staging.side_folders import is_side_path
from tasks.staging.weight_files import MISTRAL_PARAMS, aside_finding, choose_weights, is_adapter, is_mistral

CONFIG_FILE = "config.json"

SUMS_FILE = "SHA256SUMS"
"""Where a source may state its files' SHA-256, in the format of `sha256sum`."""

LONGEST_NAME_BYTES = 255 - len(PART)
"""File systems allow 255, and a file is first written as `.part`."""

RESERVED = {MANIFEST_FILE}
"""Names that staging itself uses: a source's own file of that name is not copied."""

RULES = 2
"""Version of what a source is judged by: a record of earlier rules may call a model verified that is not whole."""

_LAYOUT = 2
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_SIDE = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
_SIDE_NAMES = ("license", "notice")
_VERSIONED = re.compile(r"tokenizer\.model\.v[0-9]\w*")
"""Mistral's tokenizers, which its own tokenizer library finds by this name."""

_SUM = re.compile(r"(?P<sum>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<path>.+)")


@dataclass(frozen=True)
class Selection:
    """The parts of a source: an index or the weights themselves, files carried along, and remarks."""

    index: str | None
    weights: tuple[str, ...]
    gguf: tuple[str, ...]
    side: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Where a model's files are, its version if it has one, and the digest of the state that they are in."""

    source: str
    version: str | None
    digest: str


@dataclass(frozen=True)
class Staged:
    """What one run did to a folder. `manifest` is absent if `damaged` files could not be made good."""

    manifest: Manifest | None
    copied_bytes: int
    seconds: float
    restaged: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def source_digest(name: str, files: Sequence[SourceFile]) -> str:
    """Names a source, the state of its files, and the layout made from them."""
    listing = [[file.path, file.size_bytes, file.identity] for file in files]
    return digest_of({"layout": _LAYOUT, "source": name, "files": listing})


def select_files(files: Sequence[SourceFile], source: str, code: Collection[str] = ()) -> Selection:
    """Sort a source's files; those of `code` are carried along.

    Raises `ModelError` if it has no weights or no `config.json`, or a name is too long.
    Pickles are always refused, and so are names that are not plain file names (`UnsafeNameError`).
    """
    names = sorted(file.path for file in files if not is_side_path(file.path))
    below = tuple(sorted(file.path for file in files if is_side_path(file.path)))
    tensors = [name for name in names if name.endswith(".safetensors")]
    files_in_gguf = [name for name in names if name.endswith(GGUF) and name.isprintable()]
    projectors = tuple(filter(is_projector, files_in_gguf))
    gguf = tuple(name for name in files_in_gguf if name not in projectors)
    pickled = [name for name in names if PurePosixPath(name).suffix in _PICKLED]
    has_tensors = bool(tensors) or INDEX_FILE in names
    _check_own(tensors, names, source)
    if not has_tensors and not gguf:
        if pickled:
            raise ModelError(
                f"{source}/{pickled[0]} has pickled weights, which can run code when they are loaded",
                fix="convert the model to safetensors, or use a version that has them",
            )
        if projectors:
            raise ModelError(
                f"{source} contains only a vision projector, {projectors[0]}",
                fix="give the folder that contains the model's own GGUF file",
            )
        raise ModelError(
            f"{source} contains neither safetensors nor GGUF files",
            fix="give a folder in the Hugging Face layout",
        )
    if has_tensors and CONFIG_FILE not in names:
        raise ModelError(
            f"{source} contains no {CONFIG_FILE}", fix="give a folder in the Hugging Face layout"
        )
    index = INDEX_FILE if INDEX_FILE in names else None
    chosen = None if index else choose_weights(tensors, source)
    weights = chosen.weights if chosen else ()
    side = tuple(name for name in names if _is_side(name) or name in code)
    for name in (*gguf, *side):
        if (length := len(name.encode())) > LONGEST_NAME_BYTES:
            raise ModelError(
                f"{source}/{name[:40]}… has a name of {length} bytes; at most {LONGEST_NAME_BYTES} can "
                "be staged",
                fix="give it a shorter name",
            )
    for name in (*gguf, *side, *weights):
        checked_file_name(name, source)
    for name in below:
        checked(name, source)
    findings = [f"{name} has pickled weights and was not copied" for name in pickled]
    findings += aside_finding(chosen.aside if chosen else ())
    findings += [
        f"{name} is a vision projector and was not copied: the model is served as text" for name in projectors
    ]
    parts = {*tensors, *files_in_gguf, *pickled, *side, INDEX_FILE, SUMS_FILE}
    others = [name for name in names if name not in parts and not name.startswith(".")]
    if others:
        findings.append(f"not part of the model, not copied: {some_of(others)}")
    return Selection(index, weights, gguf, (*side, *below), tuple(findings))


def _check_own(tensors: Sequence[str], names: Sequence[str], source: str) -> None:
    """Raise `ModelError` if all safetensors are those of an adapter, or in Mistral's own layout."""
    if not tensors or INDEX_FILE in names or not all(is_adapter(one) or is_mistral(one) for one in tensors):
        return
    if any(map(is_adapter, tensors)):
        raise adapter_error(source, None)
    params = f" ({MISTRAL_PARAMS})" if MISTRAL_PARAMS in names else ""
    raise ModelError(
        f"{source} has its weights in Mistral's own layout only{params}: {some_of(tensors)}",
        fix="use the version of the model in the Hugging Face layout, with model*.safetensors",
    )


def adapter_error(source: str, base: str | None) -> ModelError:
    """The error for a source that only has a LoRA adapter, of that model if it is known."""
    return ModelError(
        f"{source} is a LoRA adapter{f' of {shown(base)}' if base else ''}, not a whole model",
        fix="merge it into its base model (peft: merge_and_unload), and give the folder of the result",
    )


def read_sums(text: bytes) -> Mapping[str, str]:
    """File name to SHA-256, from the output of `sha256sum`. Other lines are ignored."""
    lines = (_SUM.fullmatch(line) for line in text.decode(errors="replace").splitlines())
    return {found["path"]: found["sum"].lower() for found in lines if found}


def read_index(text: bytes, names: Iterable[str], where: str) -> Mapping[str, str]:
    """Tensor name to shard, from an index found at `where`. Raises `ModelError`."""
    try:
        weight_map = json.loads(text)["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ModelError(f"{where} is not an index of safetensors: it has no weight_map") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{where} is not an index of safetensors: its weight_map is empty or not a map")
    there = set(names)
    for shard in weight_map.values():
        if not is_file_name(shard) or not shard.endswith(".safetensors"):
            raise ModelError(
                f"{where} names {shown(shard)}, which is not a shard in the model's folder",
                fix="copy or download the model again",
            )
        if shard not in there:
            raise ModelError(f"{where} names the shard {shard!r}, which is missing", fix="copy it again")
    return weight_map


def is_stale(text: bytes, names: Iterable[str]) -> bool:
    """Whether an index names none of the files that are there: what another version of the model left."""
    try:
        named = list(json.loads(text)["weight_map"].values())
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False
    return bool(named) and all(map(is_file_name, named)) and set(named).isdisjoint(names)


def check_index(weight_map: Mapping[str, str], headers: Mapping[str, Header], where: str) -> None:
    """Every tensor that the index names must be in the shard it names. Raises `ModelError`."""
    held = {file: {tensor.name for tensor in header.tensors} for file, header in headers.items()}
    for name, shard in weight_map.items():
        if name not in held[shard]:
            raise ModelError(
                f"{where} places the tensor {name[:80]!r} in {shard}, which does not contain it",
                fix="copy the model again",
            )


def to_result(
    found: Found, folder: Path, done: Staged, disk: DiskResult | None, remarks: tuple[str, ...]
) -> StagingResult:
    """The stage's answer: `slow` if the files are right but the disk is below the baselines."""
    findings = [*done.findings, *remarks, *(disk.findings if disk else ())]
    verdict = StagingVerdict(disk.verdict) if disk else StagingVerdict.VERIFIED
    if done.damaged:
        verdict = StagingVerdict.CORRUPT
        findings.insert(0, "the source's bytes have changed although its files look untouched: copy it again")
    if done.restaged:
        findings.insert(0, f"missing or damaged, staged again: {', '.join(done.restaged)}")
    manifest = done.manifest
    return StagingResult(
        verdict=verdict,
        model_dir=folder,
        manifest_digest=manifest.digest if manifest else "",
        source=found.source,
        source_digest=found.digest,
        version=found.version,
        size_bytes=manifest.size_bytes if manifest else 0,
        shards=len(manifest.shards) if manifest else 0,
        copied_bytes=done.copied_bytes,
        copy_seconds=done.seconds,
        restaged=done.restaged,
        damaged=done.damaged,
        disk=disk.figures if disk else None,
        findings=tuple(findings),
    )


def blocked(found: Found, folder: Path, disk: DiskResult) -> StagingResult:
    """The stage's answer if the spec refuses a disk below the baselines: nothing is copied."""
    return StagingResult(
        verdict=StagingVerdict.BLOCKED,
        model_dir=folder,
        manifest_digest="",
        source=found.source,
        source_digest=found.digest,
        version=found.version,
        size_bytes=0,
        shards=0,
        copied_bytes=0,
        copy_seconds=0.0,
        disk=disk.figures,
        findings=(
            *disk.findings,
            "to deploy all the same: staging.disk_floor=warn, or SLIPWAY_HOME on a faster disk",
        ),
    )


def _is_side(name: str) -> bool:
    # A name that ends in `.part` would be taken for a file that a killed copy left, here and by the next run.
    if name.endswith((".index.json", PART)) or name in RESERVED or not name.isprintable():
        return False
    if PurePosixPath(name).suffix in _SIDE or name.lower().startswith(_SIDE_NAMES):
        return True
    return _VERSIONED.fullmatch(name) is not None
