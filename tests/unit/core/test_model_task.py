"""What a model is for, by its files; and what becomes of a spec that says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bert_models import write_bert

from tasks.core.errors import ModelError, SpecError
from tasks.core.model_task import Pooling, Purpose, Task, purpose_of_folder, purpose_of_gguf, settle

GENERATE, EMBED, RERANK = Task.GENERATE, Task.EMBED, Task.RERANK
ST = "sentence_transformers.models."
MODULES = [{"path": "", "type": f"{ST}Transformer"}, {"path": "1_Pooling", "type": f"{ST}Pooling"}]
"""As all-MiniLM-L6-v2, bge and Qwen3-Embedding have them."""


def write(
    folder: Path, config: dict[str, Any], modules: Any = None, pooling: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("architecture", "modules", "task"),
    [
        ("Qwen3ForCausalLM", None, GENERATE),
        ("GPT2LMHeadModel", None, GENERATE),
        ("InternVLChatModel", None, GENERATE),
        ("T5ForConditionalGeneration", None, GENERATE),
        ("Qwen3ForCausalLM", MODULES, EMBED),  # Qwen3-Embedding
        ("BertModel", None, EMBED),
        ("XLMRobertaModel", None, EMBED),
        ("NomicBertModel", None, EMBED),
        ("ModernBertForMaskedLM", None, EMBED),
        ("MPNetModel", None, EMBED),
        ("XLMRobertaForSequenceClassification", None, RERANK),  # bge-reranker
        ("BertForSequenceClassification", MODULES, RERANK),
    ],
)
def test_the_files_of_a_folder_say_what_it_is_for(
    architecture: str, modules: Any, task: Task, tmp_path: Path
) -> None:
    config = {"architectures": [architecture], "id2label": {"0": "LABEL_0"}}
    assert purpose_of_folder(write(tmp_path / "m", config, modules)).task is task


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, Pooling.LAST),
        ({"pooling_mode": "mean"}, Pooling.MEAN),
    ],
)
def test_the_pooling_is_read_from_the_folder_that_modules_name(
    config: dict[str, Any], pooling: Pooling, tmp_path: Path
) -> None:
    whole = write(tmp_path / "m", {"architectures": ["BertModel"]}, MODULES, config)
    assert purpose_of_folder(whole).pooling is pooling
    staged = write(tmp_path / "staged", {"architectures": ["BertModel"]}, MODULES)
    assert purpose_of_folder(staged).pooling is None
    assert purpose_of_folder(staged, whole).pooling is pooling


@pytest.mark.parametrize(
    ("modules", "config", "told"),
    [
        (MODULES, {"pooling_mode_max_tokens": True}, "asks for pooling_mode_max_tokens"),
        (MODULES, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "asks for"),
        (MODULES, {"pooling_mode_mean_tokens": False}, "asks for no pooling"),
        (
            [*MODULES, {"path": "2_Dense", "type": f"{ST}Dense"}],
            {"pooling_mode": "cls"},
            "has a module Dense",
        ),
        ({"0": "not a list"}, {}, "is not a JSON list"),
    ],
)
def test_what_no_engine_would_compute_is_refused(
    modules: Any, config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", {"architectures": ["BertModel"]}, modules, config)
    with pytest.raises(ModelError, match=told):
        purpose_of_folder(folder)


def test_a_pooling_outside_the_model_is_not_read(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", {"pooling_mode": "cls"})
    modules = [{"path": f"../{outside.name}", "type": f"{ST}Pooling"}]
    assert purpose_of_folder(write(tmp_path / "m", {"architectures": ["BertModel"]}, modules)).pooling is None


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}
    with pytest.raises(ModelError, match="is a classifier with 2 labels"):
        purpose_of_folder(write(tmp_path / "m", config))


@pytest.mark.parametrize(
    ("architecture", "pooling_type", "task", "pooling"),
    [
        ("llama", None, GENERATE, None),
        ("bert", None, EMBED, None),
        ("bert", 1, EMBED, Pooling.MEAN),
        ("nomic-bert-moe", 2, EMBED, Pooling.CLS),
        ("qwen3", 3, EMBED, Pooling.LAST),
        ("bert", 4, RERANK, None),
        ("qwen3", 4, RERANK, None),
        ("bert", 0, EMBED, None),
        ("gemma-embedding", None, EMBED, None),
    ],
)
def test_the_header_of_a_gguf_file_says_what_it_is_for(
    architecture: str, pooling_type: int | None, task: Task, pooling: Pooling | None
) -> None:
    found = purpose_of_gguf(architecture, pooling_type)
    assert (found.task, found.pooling) == (task, pooling)


def purpose(task: Task, pooling: Pooling | None = None) -> Purpose:
    return Purpose(task, "its files say so", pooling)


@pytest.mark.parametrize(
    ("asked", "wish", "found", "settled"),
    [
        (None, None, purpose(GENERATE), purpose(GENERATE)),
        (None, None, purpose(EMBED, Pooling.MEAN), purpose(EMBED, Pooling.MEAN)),
        (EMBED, Pooling.CLS, purpose(EMBED, Pooling.MEAN), purpose(EMBED, Pooling.CLS)),
        (None, Pooling.CLS, purpose(EMBED), purpose(EMBED, Pooling.CLS)),
        (EMBED, Pooling.LAST, purpose(GENERATE), Purpose(EMBED, "the spec says so", Pooling.LAST)),
        (RERANK, None, purpose(RERANK), purpose(RERANK)),
    ],
)
def test_a_spec_that_says_nothing_gets_the_right_task(
    asked: Task | None, wish: Pooling | None, found: Purpose, settled: Purpose
) -> None:
    assert settle(asked, wish, found, "m") == settled


@pytest.mark.parametrize(
    ("asked", "wish", "found", "told"),
    [
        (
            GENERATE,
            None,
            purpose(EMBED, Pooling.MEAN),
            "task is generate, but m is for embed: its files say so",
        ),
        (EMBED, None, purpose(GENERATE), "task is embed, but m is for generate"),
        (RERANK, None, purpose(GENERATE), "task is rerank, but m is for generate"),
        (RERANK, None, purpose(EMBED, Pooling.CLS), "task is rerank, but m is for embed"),
        (EMBED, Pooling.CLS, purpose(RERANK), "task is embed, but m is for rerank"),
        (None, Pooling.CLS, purpose(GENERATE), "serving.pooling is for embedding models"),
        (None, None, purpose(EMBED), "does not say how it makes one vector"),
    ],
)
def test_a_spec_that_says_otherwise_is_one_line(
    asked: Task | None, wish: Pooling | None, found: Purpose, told: str
) -> None:
    with pytest.raises(SpecError, match=told) as error:
        settle(asked, wish, found, "m")
    assert error.value.fix


def test_the_models_of_other_tests_are_what_they_say(tmp_path: Path) -> None:
    assert purpose_of_folder(write_bert(tmp_path / "embed", pooling="cls")).pooling is Pooling.CLS
    assert purpose_of_folder(write_bert(tmp_path / "rank", ranks=True)).task is RERANK
