"""Folders as repositories, downloads and tools leave them: each is the right model, or ends in one line that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plain_safetensors import Plain, read_model, write_plain

from blocks.storage.model_source import FolderSource
from tasks.core.errors import ModelError
from tasks.core.manifest import verify
from tasks.staging.apply import CopyPlan, plan_copy, stage_model
from tasks.staging.source import pin

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 5,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LAYER = (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{number}.{module}.weight" for number in range(3) for module in LAYER),
    "model.norm.weight",
    "lm_head.weight",
)
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4976698672\n"
INDEX = "model.safetensors.index.json"
ADAPTER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SHARD = "model-{:05d}-of-00003.safetensors"
Folder = Callable[[Path], object]


def some(*names: str, dtype: str = "U8") -> dict[str, Plain]:
    return dict.fromkeys(names, (dtype, (1,), b"\0"))


def weights(name: str, *names: str) -> Folder:
    return lambda folder: write_plain(folder / name, some(*names), {"format": "pt"})


def text(name: str, content: str | Mapping[str, Any] = "x") -> Folder:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    return write


def config(**changes: Any) -> Folder:
    return text("config.json", {key: one for key, one in {**LLAMA, **changes}.items() if one is not None})


def shards(*kept: int, stem: str = "model", names: tuple[str, ...] = NAMES) -> list[Folder]:
    parts = [names[:10], names[10:20], names[20:]]
    return [
        weights(f"{stem}-{number:05d}-of-00003.safetensors", *part)
        for number, part in enumerate(parts, 1)
        if number in kept
    ]


def index(**placed: str) -> Folder:
    """An index of three shards, with these tensors elsewhere (dots in their names written as `__`)."""
    parts = [NAMES[:10], NAMES[10:20], NAMES[20:]]
    weight_map = {name: SHARD.format(number) for number, part in enumerate(parts, 1) for name in part}
    moved = {name.replace("__", "."): file for name, file in placed.items()}
    return text(INDEX, {"weight_map": {**weight_map, **moved}})


def without(*parts: str) -> tuple[str, ...]:
    return tuple(name for name in NAMES if not any(part in name for part in parts))


ONE = weights("model.safetensors", *NAMES)
CONSOLIDATED = weights("consolidated.safetensors", "layers.0.attention.wq.weight")
LORA = weights("adapter_model.safetensors", ADAPTER)
LORA_OF = text("adapter_config.json", {"base_model_name_or_path": "meta-llama/Llama-3.2-3B"})
LEFT = "other weights next to the model, not copied: "
LACKS = "MODEL: the weights lack "


@dataclass(frozen=True)
class Row:
    """`error` is the line that refuses the folder; else `names` are staged, and `finding` is one of the remarks."""

    files: tuple[Folder, ...]
    error: str = ""
    finding: str = ""
    names: tuple[str, ...] = NAMES
    side: tuple[str, ...] = ()


ROWS = {
    # Whole models.
    "one file": Row((config(), ONE)),
    "shards with an index": Row((config(), *shards(1, 2, 3), index())),
    "shards without an index": Row((config(), *shards(1, 2, 3))),
    "a file for each part, not numbered": Row(
        (config(), weights("model-a.weight.safetensors", *NAMES[:9]), weights("b.safetensors", *NAMES[9:]))
    ),
    "shards of another name": Row((config(), *shards(1, 2, 3, stem="pytorch_model"))),
    "a stale index next to one file": Row(
        (config(), ONE, text(INDEX, {"weight_map": {"lm_head.weight": SHARD.format(2)}})),
        finding=f"{INDEX} names none of the files that are there and was not used",
    ),
    "a tensor in two shards": Row(
        (
            config(),
            *shards(1, 3),
            weights(SHARD.format(2), *NAMES[10:20], NAMES[0]),
            index(),
        )
    ),
    "a tied model without an output layer": Row(
        (config(tie_word_embeddings=True), weights("model.safetensors", *NAMES[:-1])), names=NAMES[:-1]
    ),
    "a tied text model in a wrapper": Row(
        (
            config(
                tie_word_embeddings=None,
                text_config={**LLAMA, "tie_word_embeddings": True},
            ),
            weights("model.safetensors", *NAMES[:-1]),
        ),
        names=NAMES[:-1],
    ),
    # What lies next to the model.
    "Mistral's copy": Row(
        (
            config(),
            *shards(1, 2, 3),
            index(),
            CONSOLIDATED,
            text("params.json", "{}"),
            text("tekken.json", "{}"),
        ),
        finding=f"{LEFT}consolidated.safetensors",
        side=("config.json", "params.json", "tekken.json"),
    ),
    "Mistral's copy, no index": Row(
        (config(), *shards(1, 2, 3), CONSOLIDATED), finding=f"{LEFT}consolidated.safetensors"
    ),
    "an adapter": Row(
        (config(), *shards(1, 2, 3), LORA, LORA_OF), finding=f"{LEFT}adapter_model.safetensors"
    ),
    "an adapter next to one file": Row((config(), ONE, LORA), finding=f"{LEFT}adapter_model.safetensors"),
    "a copy in another precision": Row(
        (config(), ONE, weights("model.fp16.safetensors", *NAMES)), finding=f"{LEFT}model.fp16.safetensors"
    ),
    "one file and some shards of a download": Row(
        (config(), ONE, *shards(1)), finding=f"{LEFT}{SHARD.format(1)}"
    ),
    "pickles": Row(
        (config(), ONE, text("pytorch_model.bin")),
        finding="pytorch_model.bin has pickled weights and was not copied",
    ),
    "a pointer to a copy that is not staged": Row(
        (config(), *shards(1, 2, 3), index(), text("consolidated.safetensors", POINTER)),
        finding=f"{LEFT}consolidated.safetensors",
    ),
    "tokenizers of several kinds": Row(
        (
            config(),
            ONE,
            *map(text, ("tokenizer.model.v3", "tokenizer.model", "tiktoken.model", "merges.txt")),
        ),
        side=("config.json", "merges.txt", "tiktoken.model", "tokenizer.model", "tokenizer.model.v3"),
    ),
    "pooling, and a layer of its own": Row(
        (
            config(),
            ONE,
            text("modules.json", "[]"),
            text("1_Pooling/config.json", "{}"),
            text("2_Dense/config.json", "{}"),
            lambda folder: write_plain(folder / "2_Dense" / "model.safetensors", some("linear.weight")),
            text("2_Dense/pytorch_model.bin"),
            text("onnx/model.onnx"),
        ),
        side=(
            "config.json",
            "modules.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
        ),
        finding="2_Dense/pytorch_model.bin has pickled weights and was not copied",
    ),
    "named chat templates": Row(
        (config(), ONE, text("chat_template.jinja"), text("additional_chat_templates/tool_use.jinja")),
        side=("chat_template.jinja", "config.json", "additional_chat_templates/tool_use.jinja"),
    ),
    "the original's folder": Row(
        (config(), ONE, text("original/params.json"), text("original/consolidated.00.pth")),
        side=("config.json",),
    ),
    "code": Row(
        (config(auto_map={"AutoConfig": "configuration_x.X", "AutoModel": "org/m--modeling_x.X"}), ONE),
        finding="comes with code of its own, which is not run (serving.trust_remote_code): configuration_x.py, "
        "org/m--modeling_x.X",
    ),
    "names of its own": Row(
        (
            config(architectures=["Qwen3MoeForCausalLM"]),
            weights("model.safetensors", "a.embed.weight", "first.weight"),
        ),
        finding="its tensors have names of its own: whether they are all there is not known",
        names=("a.embed.weight", "first.weight"),
    ),
    # What is not whole.
    "one shard of three": Row(
        (config(), *shards(1)),
        error="MODEL/model-00002-of-00003.safetensors is missing: 1 of 3 shards are there",
    ),
    "a gap": Row(
        (config(), *shards(1, 3)),
        error="MODEL/model-00002-of-00003.safetensors is missing: 2 of 3 shards are there",
    ),
    "a shard of an index": Row(
        (config(), *shards(1, 2), index()),
        error=f"MODEL/{INDEX} names the shard '{SHARD.format(3)}', which is missing",
    ),
    "a shard of an index, and another file": Row(
        (config(), *shards(1, 2), index(), ONE),
        error=f"MODEL/{INDEX} names the shard '{SHARD.format(3)}', which is missing",
    ),
    "two sets of shards": Row(
        (
            config(),
            *shards(1, 2, 3),
            weights("model-00001-of-00002.safetensors", "a"),
            weights("model-00002-of-00002.safetensors", "b"),
        ),
        error="MODEL contains two sets of shards: model-00001-of-00002.safetensors … and "
        "model-00001-of-00003.safetensors …",
    ),
    "an index that lacks a layer": Row(
        (config(), weights("model.safetensors", *without("layers.1."))), error=f"{LACKS}model.layers.1"
    ),
    "the last layer": Row(
        (config(), weights("model.safetensors", *without("layers.2."))), error=f"{LACKS}model.layers.2"
    ),
    "half a layer": Row(
        (config(), weights("model.safetensors", *without("1.mlp", "1.self_attn.o"))),
        error=f"{LACKS}model.layers.1.mlp.down_proj, model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj, "
        "model.layers.1.self_attn.o_proj",
    ),
    "the same module in every layer": Row(
        (config(), weights("model.safetensors", *without("v_proj"))),
        error=f"{LACKS}model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj, "
        "model.layers.2.self_attn.v_proj",
    ),
    "the output layer": Row(
        (config(), weights("model.safetensors", *without("lm_head"))), error=f"{LACKS}lm_head.weight"
    ),
    "the output layer, not said to be tied": Row(
        (config(tie_word_embeddings=None), weights("model.safetensors", *without("lm_head"))),
        error=f"{LACKS}lm_head.weight",
    ),
    "the embeddings": Row(
        (config(), weights("model.safetensors", *without("embed_tokens"))), error=f"{LACKS}the embeddings"
    ),
    "the last norm": Row(
        (config(), weights("model.safetensors", *without("model.norm"))), error=f"{LACKS}the last norm"
    ),
    "everything but the ends": Row(
        (config(), weights("model.safetensors", *without("layers"))), error=f"{LACKS}the layers"
    ),
    # What is no model.
    "an adapter alone": Row(
        (LORA, LORA_OF), error="MODEL is a LoRA adapter of 'meta-llama/Llama-3.2-3B', not a whole model"
    ),
    "an adapter with its base's config": Row(
        (config(), LORA, LORA_OF),
        error="MODEL is a LoRA adapter of 'meta-llama/Llama-3.2-3B', not a whole model",
    ),
    "an adapter that says nothing": Row(
        (config(), LORA, text("adapter_config.json", "[")), error="MODEL is a LoRA adapter, not a whole model"
    ),
    "an adapter called as a model": Row(
        (config(), weights("model.safetensors", ADAPTER)), error="MODEL is a LoRA adapter, not a whole model"
    ),
    "Mistral's own layout": Row(
        (CONSOLIDATED, text("params.json", "{}")),
        error="MODEL has its weights in Mistral's own layout only (params.json): consolidated.safetensors",
    ),
    "Mistral's own layout with a config": Row(
        (config(), *shards(1, 2, 3, stem="consolidated"), text("consolidated.safetensors.index.json", "{}")),
        error="MODEL has its weights in Mistral's own layout only: consolidated-00001-of-00003.safetensors, "
        "consolidated-00002-of-00003.safetensors, consolidated-00003-of-00003.safetensors",
    ),
    "pointers to weights": Row(
        (config(), *(text(SHARD.format(number), POINTER) for number in (1, 2, 3)), index()),
        error=f"MODEL/{SHARD.format(1)} is a Git LFS pointer (and 2 more), not the file itself",
    ),
    "a pointer to a tokenizer": Row(
        (config(), ONE, text("tokenizer.json", POINTER)),
        error="MODEL/tokenizer.json is a Git LFS pointer, not the file itself",
    ),
    "a pointer to the config": Row(
        (text("config.json", POINTER), ONE),
        error="MODEL/config.json is a Git LFS pointer, not the file itself",
    ),
    "a pointer to a GGUF file": Row(
        (text("m-Q4_K_M.gguf", POINTER),),
        error="MODEL/m-Q4_K_M.gguf is a Git LFS pointer, not the file itself",
    ),
    "a shard cut off": Row(
        (config(), ONE, lambda folder: cut(folder / "model.safetensors")),
        error="MODEL/model.safetensors is not a valid safetensors file: it is truncated: its header describes 2953 "
        "bytes, the file has 2952",
    ),
    "pickles alone": Row(
        (config(), text("pytorch_model.bin")),
        error="MODEL/pytorch_model.bin has pickled weights, which can run code when they are loaded",
    ),
    "no weights": Row((config(),), error="MODEL contains neither safetensors nor GGUF files"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def folder_of(row: Row, folder: Path) -> Path:
    for write in row.files:
        write(folder)
    return folder


def planned(folder: Path, *, servable: bool = True) -> CopyPlan:
    return plan_copy(pin(FolderSource(folder)), "auto", convertible=False, servable=servable)


def tensors_of(plan: CopyPlan) -> set[str]:
    heads = [json.loads(file.head[8:]) for file in plan.files if file.kind == "weights"]
    return {name for head in heads for name in head} - {"__metadata__"}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_layout_is_the_right_model_or_one_clear_line(row: Row, tmp_path: Path) -> None:
    folder = folder_of(row, tmp_path)
    if row.error:
        with pytest.raises(ModelError) as error:
            planned(folder)
        assert error.value.what.replace(f"file:{folder}", "MODEL") == row.error
        assert error.value.fix
        return
    plan = planned(folder)
    assert tensors_of(plan) == set(row.names)
    assert plan.findings == ((row.finding,) if row.finding else ())
    if row.side:
        assert tuple(file.path for file in plan.files if file.kind == "side") == row.side


def test_a_mere_copy_of_weights_that_are_not_whole_says_so(tmp_path: Path) -> None:
    folder = folder_of(ROWS["an index that lacks a layer"], tmp_path)
    assert planned(folder, servable=False).findings == ("not a whole model: the weights lack model.layers.1",)


def test_the_format_stays_if_one_shard_does_not_say_it(tmp_path: Path) -> None:
    folder = folder_of(ROWS["shards without an index"], tmp_path)
    write_plain(folder / SHARD.format(1), some(*NAMES[:10]))
    (file,) = (file for file in planned(folder).files if file.kind == "weights")
    assert json.loads(file.head[8:])["__metadata__"] == {"format": "pt"}


def test_folders_that_belong_to_a_model_are_copied_verified_and_mended(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model, staged = (
        folder_of(ROWS["pooling, and a layer of its own"], tmp_path / "model"),
        tmp_path / "staged",
    )

    def stage() -> tuple[str, ...]:
        pinned = pin(FolderSource(model))
        return stage_model(pinned, planned(model), staged, leases=tmp_path / "leases", own=True).restaged

    assert stage() == ()
    assert (staged / "1_Pooling" / "config.json").read_text() == "{}"
    assert verify(staged)[1] == ()
    shutil.rmtree(staged / "2_Dense")
    assert verify(staged)[1] == ("2_Dense/config.json", "2_Dense/model.safetensors")
    assert stage() == ("2_Dense/config.json", "2_Dense/model.safetensors")
    assert read_model(staged) == read_model(model)


def test_a_copy_that_is_refused_leaves_no_folders(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model, staged = folder_of(ROWS["named chat templates"], tmp_path / "model"), tmp_path / "staged"
    pinned, plan = pin(FolderSource(model)), planned(model)
    text("additional_chat_templates/tool_use.jinja", "y")(model)
    with pytest.raises(ModelError, match="changed while it was read"):
        stage_model(pinned, plan, staged, leases=tmp_path / "leases", own=True)
    assert not staged.exists()


def test_a_folder_of_pointers_is_refused_however_many_there_are(tmp_path: Path) -> None:
    folder = folder_of(ROWS["pointers to weights"], tmp_path)
    shutil.copy(folder / SHARD.format(1), folder / "tokenizer.json")
    with pytest.raises(ModelError, match=r"Git LFS pointer \(and 3 more\)"):
        planned(folder)
