"""llama.cpp by `xllamacpp`: prebuilt, on the processor or a GPU; the embedded default."""

from __future__ import annotations

from pathlib import Path

from tasks.core.spec import CandidateFormat, EngineKind
from tasks.engines.base import HOST, PORT, CommandLine, ServingConfig, SystemLibrary


class LlamaCpp:
    """The engine by its Python distribution; see `worker/llama_cpp_server.py` for what runs."""

    kind = EngineKind.LLAMA_CPP
    package = "xllamacpp"
    requirements = ("xllamacpp==2026.10.11549", "gguf==0.19.0", "numpy>=2,<3")
    server_packages = ("xllamacpp",)
    server_imports = ("xllamacpp",)
    imports = ("xllamacpp", "gguf", "numpy")
    needs_gpu = False
    formats = tuple(CandidateFormat)
    max_batch = 256  # "n_seq_max must be <= 256"
    maps_files = True
    server_worker = Path(__file__).parent / "worker" / "llama_cpp_server.py"
    system_libraries = (
        # pykdtree is the smallest distribution that carries GCC's OpenMP runtime.
        SystemLibrary(
            soname="libgomp.so.1", package="libgomp1", wheel="pykdtree==1.4.3", file="pykdtree.libs/libgomp-*"
        ),
        SystemLibrary(soname="libstdc++.so.6", package="libstdc++6"),
    )

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """`--context` of the server is the total over its slots, so it is multiplied here."""
        return CommandLine(
            argv=(
                python,
                "-I",
                worker,
                "--model",
                model_file,
                "--alias",
                config.served_name,
                "--host",
                HOST,
                "--port",
                PORT,
                "--slots",
                str(config.batch),
                "--context",
                str(config.batch * config.context),
                "--threads",
                str(config.threads),
                "--gpu-layers",
                str(config.gpu_layers),
            ),
            # Threads that spin at a barrier starve each other when the host is busy: 50 times slower (measured).
            env={"OMP_WAIT_POLICY": "passive"},
        )
