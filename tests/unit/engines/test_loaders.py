"""What engines are told for each loader."""

from __future__ import annotations

from inline_snapshot import snapshot

from tasks.core.serving import Loader
from tasks.engines.loaders import engines_with, load_arguments


def test_each_engine_is_told_in_its_own_words() -> None:
    told = {loader.value: engines_with(loader, "safetensors") for loader in Loader}
    assert told == snapshot(
        {
            "mmap": {"sglang": (), "vllm": ()},
            "prefetch": {
                "sglang": ("--weight-loader-prefetch-checkpoints",),
                "vllm": ("--safetensors-load-strategy", "prefetch"),
            },
            "safetensors": {
                "sglang": ("--load-format", "safetensors"),
                "vllm": ("--load-format", "safetensors"),
            },
            "fastsafetensors": {
                "sglang": ("--load-format", "fastsafetensors"),
                "vllm": ("--load-format", "fastsafetensors"),
            },
            "runai_streamer": {
                "sglang": ("--load-format", "runai_streamer"),
                "vllm": ("--load-format", "runai_streamer"),
            },
        }
    )
    assert engines_with(Loader.PREFETCH, "gguf") == {"llama.cpp": ()}


def test_an_engine_that_cannot_load_so_is_told_apart_from_one_that_needs_no_telling() -> None:
    assert load_arguments("llama.cpp", Loader.PREFETCH) == ()
    assert load_arguments("llama.cpp", Loader.RUNAI_STREAMER) is None
