"""All engines, by kind."""

from __future__ import annotations

from tasks.core.spec import EngineKind
from tasks.engines.base import Engine
from tasks.engines.llama_cpp import LlamaCpp
from tasks.engines.ollama import Ollama
from tasks.engines.sglang import Sglang
from tasks.engines.tensorrt_llm import TensorrtLlm
from tasks.engines.transformers import Transformers
from tasks.engines.triton import TritonTensorrtLlm, TritonVllm
from tasks.engines.vllm import Vllm

_ENGINES: dict[EngineKind, Engine] = {
    engine.kind: engine
    for engine in (
        LlamaCpp(),
        Vllm(),
        Sglang(),
        TensorrtLlm(),
        TritonVllm(),
        TritonTensorrtLlm(),
        Ollama(),
        Transformers(),
    )
}


def get_engine(kind: EngineKind) -> Engine:
    """The engine of that kind."""
    return _ENGINES[kind]
