"""BERT as GGUF: what is written, and what is refused because llama.cpp would compute something else."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bert_models import WORDS, write_bert

from blocks.candidates.candidate_worker import compare_gguf, make_gguf
from tasks.core.errors import ModelError
from tasks.core.gguf import read_gguf
from tasks.core.gguf_model import GgufModel, model_of
from tasks.core.model_shape import read_model_config
from tasks.core.model_task import Pooling, Purpose, Task
from tasks.core.spec_kinds import CandidateFormat
from tasks.quantization.recipe import RECIPES
from tasks.quantization.sizes import file_bytes
from tasks.quantization.source import read_source

pytestmark = pytest.mark.engine

WORKER = RECIPES["gguf-file"].worker.with_name("make_bert_gguf.py")
F16 = CandidateFormat.F16


def header_of(path: Path) -> GgufModel:
    content = path.read_bytes()
    read = partial(lambda data, offset, length: data[offset : offset + length], content)
    return model_of({path.name: read_gguf(read, len(content), path.name)}, path.name)


@pytest.mark.parametrize("form", [CandidateFormat.F32, F16, CandidateFormat.Q8_0, CandidateFormat.Q4_K_M])
def test_a_file_says_what_it_is_for_and_has_the_predicted_size(
    form: CandidateFormat, engine_python: Path, tmp_path: Path
) -> None:
    model, out = write_bert(tmp_path / "model", pooling="cls"), tmp_path / "model.gguf"
    make_gguf(engine_python, WORKER, model, form, out, ("--pooling", "cls"))
    found = header_of(out)
    assert (found.purpose.task, found.purpose.pooling) == (Task.EMBED, Pooling.CLS)
    assert (found.shape.layers, found.shape.hidden, found.shape.vocabulary) == (2, 32, len(WORDS))
    predicted = file_bytes(read_source(model, read_model_config(model)), form)
    assert out.stat().st_size == pytest.approx(
        predicted, rel=0.07
    )  # the file's head is much of so small a one


def test_candidates_of_one_model_can_be_compared(engine_python: Path, tmp_path: Path) -> None:
    model = write_bert(tmp_path / "model", ranks=True)
    files = []
    for form in (CandidateFormat.F32, CandidateFormat.Q8_0):
        files.append(tmp_path / f"{form}.gguf")
        make_gguf(engine_python, WORKER, model, form, files[-1], ("--pooling", "rank"))
    assert header_of(files[0]).purpose.task is Task.RERANK
    errors = compare_gguf(engine_python, RECIPES["gguf-file"].comparer, *files)
    assert {"cls.weight", "cls.output.weight", "token_embd.weight"} <= set(errors)
    assert max(error for error in errors.values() if error is not None) < 0.02


def change(name: str, edit: Callable[[dict[str, Any]], object], folder: Path) -> None:
    path = folder / name
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


REFUSED: dict[str, tuple[dict[str, Any], str, Callable[[dict[str, Any]], object], str]] = {
    "another activation": ({}, "config.json", lambda c: c.update(hidden_act="relu"), "hidden_act"),
    "relative positions": (
        {},
        "config.json",
        lambda c: c.update(position_embedding_type="relative_key"),
        "position_embedding_type",
    ),
    "another architecture": (
        {},
        "config.json",
        lambda c: c.update(architectures=["XLMRobertaModel"]),
        "the architecture XLMRobertaModel cannot be converted",
    ),
    "texts of a pair that are told apart": (
        {"ranks": True, "types": 2},
        "config.json",
        lambda _: None,
        "llama.cpp does not tell the texts of a pair apart",
    ),
    "several labels": (
        {"ranks": True},
        "config.json",
        lambda c: c.update(id2label={"0": "a", "1": "b"}),
        "the model has 2 labels",
    ),
    "fewer layers than tensors": (
        {},
        "config.json",
        lambda c: c.update(num_hidden_layers=1),
        "encoder.layer.1",
    ),
    "more layers than tensors": ({}, "config.json", lambda c: c.update(num_hidden_layers=3), "is missing"),
    "another width": ({}, "config.json", lambda c: c.update(intermediate_size=128), "has the shape"),
    "another tokenizer": (
        {},
        "tokenizer.json",
        lambda t: t["model"].update(type="Unigram"),
        "Unigram is not BERT's WordPiece",
    ),
    "capital letters": ({}, "tokenizer.json", lambda t: t["normalizer"].update(lowercase=False), "capital"),
    "accents": ({}, "tokenizer.json", lambda t: t["normalizer"].update(strip_accents=False), "accents"),
    "a larger vocabulary": (
        {},
        "tokenizer.json",
        lambda t: t["model"]["vocab"].update(more=len(WORDS)),
        "the tokenizer has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    case: str, engine_python: Path, tmp_path: Path
) -> None:
    more, name, edit, told = REFUSED[case]
    model, out = write_bert(tmp_path / "model", **more), tmp_path / "model.gguf"
    change(name, edit, model)
    pooling = "rank" if more.get("ranks") else "mean"
    with pytest.raises(ModelError, match="cannot be converted to f16") as error:
        make_gguf(engine_python, WORKER, model, F16, out, ("--pooling", pooling))
    assert told in error.value.what
    assert error.value.fix
    assert not out.exists()


def test_a_vocabulary_is_spelled_as_llama_cpp_has_it(engine_python: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    make_gguf(engine_python, WORKER, write_bert(tmp_path / "model"), F16, out, ("--pooling", "mean"))
    script = (
        "import gguf, json, sys; fields = gguf.GGUFReader(sys.argv[1]).fields; "
        "print(json.dumps([fields['tokenizer.ggml.tokens'].contents(), fields['tokenizer.ggml.model'].contents()]))"
    )
    told = subprocess.run([engine_python, "-c", script, out], check=True, capture_output=True, text=True)
    words, kind = json.loads(told.stdout)
    assert kind == "bert"
    spelled = dict(zip(WORDS, words, strict=True))
    assert {word: spelled[word] for word in ("[CLS]", "ship", "##a")} == {
        "[CLS]": "[CLS]",
        "ship": "\u2581ship",
        "##a": "a",
    }
    assert Purpose(Task.EMBED, "", Pooling.MEAN).pooling is header_of(out).purpose.pooling
