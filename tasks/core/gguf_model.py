"""What the headers of a GGUF model say: its architecture, sizes, types, tokenizer and chat template. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.core.errors import ModelError
from tasks.core.gguf import GgufHeader
from tasks.core.kept_layers import VALUE_BYTES, KeptLayers
from tasks.core.model_shape import MOST_LAYERS, ModelShape
from tasks.core.model_task import Purpose, Task, purpose_of_gguf
from tasks.core.paths import shown

UNQUANTIZED = {"f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"}
"""Types of tensors that are not quantized."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_LARGEST = 2**40
_NO_MODEL = {"adapter": "a LoRA adapter", "imatrix": "an importance matrix", "mmproj": "a vision projector"}
_FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s",
    12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k",
    19: "iq2_xxs", 20: "iq2_xs", 21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl",
    26: "iq3_s", 27: "iq3_m", 28: "iq2_s", 29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0",
    37: "tq2_0", 38: "mxfp4_moe", 39: "nvfp4", 40: "q1_0",
}  # fmt: skip
"""`general.file_type` (gguf 0.19.0, `LlamaFileType`)."""

_FULL_EVERY = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2}
"""Of architectures with a sliding window: every how many layers one looks at the whole context (llama.cpp,
src/llama-model.cpp, `set_swa_pattern`), where the header does not say."""


@dataclass(frozen=True)
class GgufModel:
    """One model in one or several files. `stored_as` is its quantization by its usual name, `kinds` how many tensors
    have which type; `tokenizer` is llama.cpp's name for its kind, `header` that of the first file."""

    shape: ModelShape
    stored_as: str
    kinds: Mapping[str, int]
    tokenizer: str
    chat_template: str | None
    purpose: Purpose
    header: GgufHeader = field(repr=False, compare=False)

    def describe(self) -> str:
        """Everything that matters, in a line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        template = "a chat template" if self.chat_template else "no chat template"
        if self.purpose.task is not Task.GENERATE:
            template = f"for {self.purpose.task}"
        shape = self.shape
        return (
            f"{shape.architecture}, {shape.layers} layers, hidden {shape.hidden}, context {shape.max_context}, "
            f"{self.stored_as} ({kinds} tensors), tokenizer {self.tokenizer}, {template}"
        )


def part_of_split(name: str) -> tuple[str, int, int] | None:
    """Stem, number from 1 and count of a part such as `m-00001-of-00003.gguf`; None for a whole file."""
    found = _PART.fullmatch(name)
    return (found["stem"], int(found["number"]), int(found["count"])) if found else None


def is_projector(name: str) -> bool:
    """Whether a file holds the part of a multimodal model that reads pictures."""
    return name.lower().startswith("mmproj")


def model_of(headers: Mapping[str, GgufHeader], where: str) -> GgufModel:
    """The model whose files, in order, have these headers. `where` names it. Raises `ModelError`."""
    _check_parts(headers, where)
    first = next(iter(headers.values()))
    architecture = first.text("general.architecture")
    if not architecture:
        raise ModelError(f"{where} does not name its architecture", fix="convert the model again")
    kind = first.text("general.type") or ("mmproj" if architecture == "clip" else "model")
    if kind in _NO_MODEL:
        raise ModelError(f"{where} is {_NO_MODEL[kind]}, not a model", fix="give the model's own file")
    tensors = [tensor for header in headers.values() for tensor in header.tensors]
    if not tensors:
        raise ModelError(f"{where} contains no tensors", fix="copy or download it again")
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.kind] += tensor.size_bytes
    main = sizes.most_common(1)[0][0] if sizes else tensors[0].kind
    named = _FILE_TYPES.get(number) if (number := first.number("general.file_type")) is not None else None
    believed = named not in UNQUANTIZED and any(tensor.kind not in UNQUANTIZED for tensor in tensors)
    return GgufModel(
        shape=_shape(first, architecture[:80], where),
        stored_as=named if named and believed else main,
        kinds=dict(Counter(tensor.kind for tensor in tensors).most_common()),
        tokenizer=(first.text("tokenizer.ggml.model") or "none")[:40],
        chat_template=first.text("tokenizer.chat_template"),
        purpose=purpose_of_gguf(architecture[:80], first.number(f"{architecture}.pooling_type")),
        header=first,
    )


def _check_parts(headers: Mapping[str, GgufHeader], where: str) -> None:
    """Parts must be those of one model, in their order, with all its tensors."""
    names: set[str] = set()
    for number, (path, header) in enumerate(headers.items()):
        count, own = header.number("split.count") or 1, header.number("split.no") or 0
        if (count, own) != (len(headers), number):
            raise ModelError(
                f"{path} says that it is part {own + 1} of {count}, not {number + 1} of {len(headers)}",
                fix="copy or download all parts of the model again, under their own names",
            )
        if twice := names.intersection(tensor.name for tensor in header.tensors):
            raise ModelError(f"{path} repeats the tensor {shown(min(twice))} of another part")
        names |= {tensor.name for tensor in header.tensors}
    total = next(iter(headers.values())).number("split.tensors.count")
    if total is not None and total != len(names):
        raise ModelError(
            f"{where} has {len(names)} tensors, but says that it has {total}", fix="copy or download it again"
        )


def _shape(header: GgufHeader, architecture: str, where: str) -> ModelShape:
    """Sizes, under the keys that llama.cpp reads."""
    layers = _size(header, f"{architecture}.block_count", where)
    hidden = _size(header, f"{architecture}.embedding_length", where)
    heads = max(_per_layer(header, f"{architecture}.attention.head_count", layers) or [1]) or 1
    keys = _per_layer(header, f"{architecture}.attention.head_count_kv", layers) or [heads]
    lora = header.number(f"{architecture}.attention.kv_lora_rank")
    turned = header.number(f"{architecture}.rope.dimension_count") or 0
    vocabulary = header.lengths.get("tokenizer.ggml.tokens") or header.number(f"{architecture}.vocab_size")
    width = header.number(f"{architecture}.attention.key_length") or hidden // heads
    latent = lora + turned if lora else None
    sizes = (("heads", heads), ("head_dim", width), ("latent", latent or 1))
    wrong = next((f"{name} of {size}" for name, size in sizes if not 0 < size <= _LARGEST), None)
    if layers > MOST_LAYERS:
        wrong = f"{layers} layers"
    if wrong:
        raise ModelError(f"{where} is not a valid model: {wrong}", fix="convert the model again")
    return ModelShape(
        architecture=architecture,
        family=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=max(1, min(max(keys), _LARGEST)),
        vocabulary=vocabulary if vocabulary and 0 < vocabulary <= _LARGEST else 1,
        max_context=_size(header, f"{architecture}.context_length", where),
        kept=_kept(header, architecture, [_bytes(count, width, latent) for count in _each(keys, layers)]),
    )


def _each(values: Sequence[int], layers: int) -> Sequence[int]:
    """A value of each layer, from one of each or one for all; none is below 0."""
    return [max(0, min(one, _LARGEST)) for one in (list(values) * layers if len(values) == 1 else values)]


def _bytes(kv_heads: int, width: int, latent: int | None) -> int:
    """Bytes of a token in one layer; a layer without such heads keeps none."""
    return (latent or 2 * width * kv_heads) * VALUE_BYTES if kv_heads else 0


def _kept(header: GgufHeader, architecture: str, sizes: Sequence[int]) -> tuple[KeptLayers, ...]:
    """The layers that keep keys and values, of the whole context and of a window."""
    window = header.number(f"{architecture}.attention.sliding_window") or 0
    slides = _sliding(header, architecture, len(sizes)) if 0 < window <= _LARGEST else [False] * len(sizes)
    groups = []
    for bound in (None, window):
        own = [
            size
            for size, narrow in zip(sizes, slides, strict=False)
            if size and narrow is (bound is not None)
        ]
        if own:
            groups.append(KeptLayers(layers=len(own), token_bytes=sum(own), window=bound))
    return tuple(groups)


def _sliding(header: GgufHeader, architecture: str, layers: int) -> Sequence[bool]:
    """Of each layer, whether it looks only at the window."""
    key = f"{architecture}.attention.sliding_window_pattern"
    if (listed := header.numbers.get(key)) is not None:
        return [bool(slides) for slides in listed]
    every = header.number(key) or _FULL_EVERY.get(architecture) or 1
    return [every > 0 and bool((number + 1) % every) for number in range(layers)]


def _per_layer(header: GgufHeader, key: str, layers: int) -> Sequence[int]:
    """A number of each layer: one for all, or a list."""
    if (one := header.number(key)) is not None:
        return [one]
    return header.numbers.get(key, ())[:layers]


def _size(header: GgufHeader, key: str, where: str) -> int:
    value = header.number(key)
    if value is None or not 0 < value <= _LARGEST:
        raise ModelError(
            f"{where} is not a valid model: {shown(key)} is {'missing' if value is None else value}",
            fix="copy the model's own file, or convert it again",
        )
    return value
