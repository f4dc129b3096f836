"""Which environment variables a child process gets: an allow-list, by what the child is for.

Whoever starts Slipway may hold keys to a cloud, a database or a hub. A deny-list of such names always misses one, so
a child gets only what is listed here, and what the user names in `SLIPWAY_PASS_ENV`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from enum import Enum

PASS_ENV = "SLIPWAY_PASS_ENV"
"""Names of further variables, separated by commas, that the worker and its runs get: `AWS_PROFILE,AWS_REGION`."""

_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_KEY|AUTH_STRING", re.IGNORECASE)
"""A listed pattern never covers such a name: `VLLM_*` is no leave to hand on `VLLM_API_KEY`."""


class Needs(Enum):
    """What a child needs its environment for. Patterns are those of `fnmatch`, in either case."""

    SYSTEM = (
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP",
        "XDG_*", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONUTF8", "COVERAGE_*",
    )  # fmt: skip
    COMPUTE = (
        "CUDA_*", "NVIDIA_*", "NCCL_*", "OMP_*", "OPENBLAS_*", "MKL_*", "GOMP_*", "KMP_*", "MALLOC_*", "LD_PRELOAD",
        "GLIBC_TUNABLES", "PYTORCH_*", "TORCH_*", "TRITON_*", "VLLM_*", "SGLANG_*", "GGML_*", "LLAMA_*", "HF_HOME",
        "HF_HUB_OFFLINE", "TRANSFORMERS_*",
    )  # fmt: skip
    PACKAGES = (
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_*", "UV_*",
        "NETRC", "CONDA_*", "MAMBA_*",
    )  # fmt: skip
    SLIPWAY = ("SLIPWAY_*",)
    PREFECT = ("PREFECT_*",)


def child_environment(environ: Mapping[str, str], *needs: Needs, also: Iterable[str] = ()) -> dict[str, str]:
    """The part of `environ` for a child with those needs; `SYSTEM` is always among them. `also`: further names."""
    patterns = [pattern for need in (Needs.SYSTEM, *needs) for pattern in need.value]
    named = set(also)
    return {
        name: value
        for name, value in environ.items()
        if name in named
        or (
            not _SECRET.search(name)
            and any(fnmatch.fnmatchcase(name.upper(), pattern) for pattern in patterns)
        )
    }


def passed_on(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names that the user lists in `SLIPWAY_PASS_ENV`."""
    return tuple(name.strip() for name in environ.get(PASS_ENV, "").split(",") if name.strip())
