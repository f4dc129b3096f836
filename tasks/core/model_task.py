"""What a model is for: text, embeddings or an order of documents. Told by its files, or by the spec. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.core.errors import ModelError, SpecError
from tasks.core.given_files import read_given


class Task(StrEnum):
    """What the users of a service ask it for."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one: their mean, or that of the first or the last token."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


ANSWERS = {Task.GENERATE: "tokens", Task.EMBED: "texts", Task.RERANK: "documents"}
"""What is counted while a model of that task is measured."""

MODULES_FILE, CONFIG_FILE = "modules.json", "config.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
_LIMIT_BYTES = 10_000_000
_ENCODERS = (
    "bert", "dream-encoder", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert",
    "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder",
)  # fmt: skip
"""Architectures of GGUF files that do not generate text (llama.cpp, src/llama-arch.cpp)."""
_ENCODER = re.compile(r".*(?:Bert|BERT|berta|Electra|MPNet)[A-Za-z]*Model|.*For(?:MaskedLM|TextEncoding)")
_GGUF_POOLING = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST}
_GGUF_RANK = 4
_POOLING_KEYS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_lasttoken": Pooling.LAST,
}
_BY_NAME = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}


@dataclass(frozen=True)
class Purpose:
    """A task, and why the files say so. `pooling` is None if they do not say how an embedding is made."""

    task: Task
    why: str
    pooling: Pooling | None = None


GENERATES = Purpose(Task.GENERATE, "it generates text")


def purpose_of_folder(
    folder: Path, where: Path | None = None, config: Mapping[str, Any] | None = None
) -> Purpose:
    """What the model in `folder` is for, by `config.json`, `modules.json` and the pooling that it names.

    `where` is the folder that it was copied from: staging leaves folders behind; `config` its `config.json`, if that
    was read already. Raises `ModelError` for a classifier or for damaged files.
    """
    config = _read(folder / CONFIG_FILE) if config is None else config
    modules = _read_list(folder / MODULES_FILE)
    architecture = _architecture(config)
    if architecture.endswith("ForSequenceClassification"):
        labels = _labels(config)
        if labels != 1:
            raise ModelError(
                f"{folder} is a classifier with {labels} labels ({architecture}), which Slipway does not serve",
                fix="use a model that generates text, an embedding model, or a cross-encoder with one label",
            )
        return Purpose(Task.RERANK, f"its architecture is {architecture}, with one label")
    if modules:
        _check_modules(modules, folder)
        pooling = _pooling_of(modules, folder, where)
        return Purpose(Task.EMBED, f"{MODULES_FILE} makes it an embedding model", pooling)
    if _is_encoder(architecture):
        return Purpose(Task.EMBED, f"its architecture {architecture} does not generate text")
    return Purpose(Task.GENERATE, f"its architecture is {architecture}")


def purpose_of_gguf(architecture: str, pooling_type: int | None) -> Purpose:
    """What a GGUF model is for, by `general.architecture` and `…pooling_type`."""
    if pooling_type == _GGUF_RANK:
        return Purpose(Task.RERANK, f"{architecture}.pooling_type is rank", None)
    if (pooling := _GGUF_POOLING.get(pooling_type or 0)) is not None:
        return Purpose(Task.EMBED, f"{architecture}.pooling_type is {pooling}", pooling)
    if architecture in _ENCODERS:
        return Purpose(Task.EMBED, f"its architecture {architecture} does not generate text")
    return Purpose(Task.GENERATE, f"its architecture is {architecture}")


def settle(asked: Task | None, pooling: Pooling | None, found: Purpose, where: str) -> Purpose:
    """The task to serve the model at `where` for: what the spec asks, if the files allow it, else what they say.

    Raises `SpecError` for a task that the model does not do, and if it is not known how to make an embedding.
    """
    task = asked or found.task
    chosen = pooling or found.pooling
    if task is not found.task and not (task is Task.EMBED and found.task is Task.GENERATE and pooling):
        raise SpecError(
            f"task is {task}, but {where} is for {found.task}: {found.why}",
            fix=f"set task: {found.task}, or leave it out"
            + (
                "; a model trained for embeddings also needs serving.pooling"
                if task is Task.EMBED and found.task is Task.GENERATE
                else ""
            ),
        )
    if pooling and task is not Task.EMBED:
        raise SpecError(
            f"serving.pooling is for embedding models, and {where} is for {task}: {found.why}",
            fix="leave serving.pooling out",
        )
    if task is Task.EMBED and chosen is None:
        raise SpecError(
            f"{where} is an embedding model, but does not say how it makes one vector of a text's tokens",
            fix="set serving.pooling to mean, cls or last, as its model card says",
        )
    why = found.why if task is found.task else "the spec says so"
    return Purpose(task, why, chosen if task is Task.EMBED else None)


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first[:80] if isinstance(first, str) else "(none)"


def _is_encoder(architecture: str) -> bool:
    """`BertModel` and the like have no head; `BertForMaskedLM` has one that fills gaps."""
    return _ENCODER.fullmatch(architecture) is not None


def _labels(config: Mapping[str, Any]) -> int:
    named, number = config.get("id2label"), config.get("num_labels", 2)
    if isinstance(named, dict):
        return len(named)
    return number if isinstance(number, int) else 2


def _check_modules(modules: list[Any], folder: Path) -> None:
    """Raise `ModelError` for a module that computes something after the pooling: its weights stay behind, and engines
    would leave it out without a word."""
    kinds = [str(one.get("type")).rpartition(".")[2] if isinstance(one, dict) else "?" for one in modules]
    if unknown := next((kind for kind in kinds if kind not in _MODULES), None):
        raise ModelError(
            f"{folder}/{MODULES_FILE} has a module {unknown[:40]}, which Slipway cannot have an engine compute",
            fix=f"use a model whose modules are {', '.join(_MODULES)}",
        )


def _pooling_of(modules: list[Any], folder: Path, source: Path | None) -> Pooling | None:
    """What the module of pooling says; None if its folder is not there.

    Raises `ModelError` for a kind that no engine computes, or for several at once.
    """
    named = [
        one.get("path") for one in modules if isinstance(one, dict) and "Pooling" in str(one.get("type"))
    ]
    if not named or not isinstance(named[0], str) or "/" in named[0] or named[0] in ("", ".", ".."):
        return None
    places = [place / named[0] / CONFIG_FILE for place in (folder, source) if place]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    config = _read(path)
    if isinstance(mode := config.get("pooling_mode"), str):  # sentence-transformers from 5 on
        given = [mode]
    else:
        given = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    known = {**_POOLING_KEYS, **_BY_NAME}
    if len(given) != 1 or given[0] not in known:
        raise ModelError(
            f"{path} asks for {', '.join(given)[:120] or 'no pooling'}, which Slipway cannot have an engine do",
            fix="use a model with mean, cls or last-token pooling",
        )
    return known[given[0]]


def _read(path: Path) -> dict[str, Any]:
    value = _parse(path)
    if value is not None and not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", fix="copy the model again")
    return value or {}


def _read_list(path: Path) -> list[Any]:
    value = _parse(path)
    if value is not None and not isinstance(value, list):
        raise ModelError(f"{path} is not a JSON list", fix="copy the model again")
    return value or []


def _parse(path: Path) -> Any:
    if not path.exists():
        return None
    text = read_given(
        path,
        "file",
        limit_bytes=_LIMIT_BYTES,
        fix="copy the model again",
        missing=ModelError,
        wrong=ModelError,
    )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", fix="copy the model again") from None
