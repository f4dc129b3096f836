"""Which environment variables a child process gets: an allow-list for each purpose of a child.

The user's environment may contain keys to a cloud, a database or a hub. A deny-list of such names always misses one,
so a child gets only what is listed here. `SLIPWAY_PASS_ENV` names more, for the worker and for a user's own probe.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from enum import Enum

from tasks.core.redaction import names_path, names_secret

PASS_ENV = "SLIPWAY_PASS_ENV"
"""Names of further variables, separated by commas: `AWS_PROFILE,AWS_REGION`."""


class Needs(Enum):
    """What a child needs its environment for. Patterns are those of `fnmatch`, ignoring case.

    A pattern covers a name that looks like a secret's only if the pattern itself does: `VLLM_*` does not pass on
    `VLLM_API_KEY`. The path of a file or folder is not a secret: `UV_*` passes on `UV_CREDENTIALS_DIR`.
    Python's own variables (`PYTHONPATH`, `PYTHONHOME`, …) are not listed anywhere: they would replace the child's
    modules with the user's.
    """

    SYSTEM = (
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP",
        "XDG_*", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONUTF8", "COVERAGE_*",
    )  # fmt: skip
    COMPUTE = (
        "CUDA_*", "CUDNN_*", "CUBLAS_*", "NVIDIA_*", "NCCL_*", "GLOO_*", "UCX_*", "OMP_*", "OPENBLAS_*", "MKL_*",
        "GOMP_*", "KMP_*", "NUMEXPR_*", "RAYON_*", "MALLOC_*", "LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_*", "TORCH_*",
        "TORCHINDUCTOR_*", "TRITON_*", "VLLM_*", "SGLANG_*", "FLASHINFER_*", "TLLM_*", "TRTLLM_*", "GGML_*",
        "LLAMA_*", "OLLAMA_*", "RUNAI_STREAMER_*", "TOKENIZERS_*", "TRANSFORMERS_*", "HF_HOME", "HF_HUB_OFFLINE",
        "CC", "CXX",
    )  # fmt: skip
    """`CC` and `CXX` are for engines that compile kernels while they run, for example with Triton."""
    PACKAGES = (
        "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_*", "UV_*",
        "UV_INDEX_*_PASSWORD", "NETRC", "CONDA_*", "MAMBA_*",
    )  # fmt: skip
    DOCKER = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT", "DOCKER_CONFIG")
    STORAGE = (
        "AWS_CA_BUNDLE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_MAX_ATTEMPTS",
        "AWS_RETRY_MODE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_S3_*", "AWS_REQUEST_CHECKSUM_CALCULATION",
        "AWS_RESPONSE_CHECKSUM_VALIDATION", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH",
    )  # fmt: skip
    """How to reach S3, MLflow and a Hugging Face hub, without credentials."""
    SLIPWAY = ("SLIPWAY_*", "CONTAINER", "KUBERNETES_SERVICE_HOST")
    PREFECT_CLIENT = ("PREFECT_*", "PREFECT_API_AUTH_STRING")
    PREFECT_SERVER = (
        "PREFECT_*", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_PASSWORD",
        "PREFECT_API_DATABASE_PASSWORD", "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_API_DATABASE_CONNECTION_URL",
    )  # fmt: skip


WORKER_NEEDS = (
    Needs.COMPUTE,
    Needs.PACKAGES,
    Needs.DOCKER,
    Needs.STORAGE,
    Needs.SLIPWAY,
    Needs.PREFECT_CLIENT,
)
"""A worker's runs do everything that the command does."""


def child_environment(environ: Mapping[str, str], *needs: Needs | str) -> dict[str, str]:
    """The part of `environ` for a child with those needs; a text among them is the name of one variable.

    `SYSTEM` is always included.
    """
    kinds = (Needs.SYSTEM, *(need for need in needs if isinstance(need, Needs)))
    named = {need for need in needs if isinstance(need, str)}
    patterns = [pattern for kind in kinds for pattern in kind.value]
    open_ = [pattern for pattern in patterns if not _hides(pattern)]
    secret = [pattern for pattern in patterns if _hides(pattern)]
    return {
        name: value
        for name, value in environ.items()
        if name in named or _matches(name.upper(), secret if _hides(name) else open_)
    }


def passed_on(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names that the user lists in `SLIPWAY_PASS_ENV`."""
    return tuple(name.strip() for name in environ.get(PASS_ENV, "").split(",") if name.strip())


def _hides(name: str) -> bool:
    return names_secret(name) and not names_path(name)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
