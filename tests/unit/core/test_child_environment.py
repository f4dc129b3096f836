"""What of an environment children get, by what they are for."""

from __future__ import annotations

import pytest

from tasks.core.child_environment import WORKER_NEEDS, Needs, child_environment, passed_on

SECRETS = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_KEY",
    "DATABASE_URL", "GITHUB_TOKEN", "GITHUB_ENV", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN",
    "OPENAI_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY", "SSH_AUTH_SOCK", "WANDB_API_KEY", "KUBECONFIG", "PYTHONPATH",
    "PYTHONHOME", "PYTHONSTARTUP", "DIFY_PASSWORD", "PREFECT_API_KEY", "DOCKER_AUTH_CONFIG", "SLIPWAY_MLFLOW_PASSWORD",
    "PREFECT_SERVER_DATABASE_PASSWORD", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "UV_PUBLISH_TOKEN",
    "PIP_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE",
)  # fmt: skip
"""Of the variables that a stranger's shell may hold."""

ALLOWED = {
    (): ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME"),
    (Needs.COMPUTE,): ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LD_PRELOAD", "VLLM_CPU_KVCACHE_SPACE", "HF_HOME",
                       "TOKENIZERS_PARALLELISM", "RUNAI_STREAMER_CONCURRENCY", "CC", "CXX"),
    (Needs.PACKAGES,): ("https_proxy", "NO_PROXY", "PIP_INDEX_URL", "UV_INDEX_OWN_PASSWORD", "UV_CACHE_DIR",
                       "UV_CREDENTIALS_DIR"),
    (Needs.STORAGE,): ("AWS_CA_BUNDLE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
                      "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT",
                      "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT", "AWS_REQUEST_CHECKSUM_CALCULATION",
                      "AWS_RESPONSE_CHECKSUM_VALIDATION"),
    (Needs.DOCKER,): ("DOCKER_HOST", "DOCKER_CERT_PATH"),
    (Needs.PREFECT_CLIENT,): ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"),
    (Needs.PREFECT_SERVER,): ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_PASSWORD",
                              "PREFECT_SERVER_API_AUTH_STRING"),
    WORKER_NEEDS: ("SLIPWAY_HOME", "SLIPWAY_S3_ENDPOINT", "SLIPWAY_PASS_ENV", "CUDA_HOME", "HTTP_PROXY", "container",
                   "DOCKER_HOST", "PREFECT_API_URL"),
}  # fmt: skip


@pytest.mark.parametrize("needs", ALLOWED)
def test_a_child_gets_what_it_needs_and_no_more(needs: tuple[Needs, ...]) -> None:
    allowed = ALLOWED[needs]
    others = {name for found in ALLOWED.values() for name in found}
    environ = dict.fromkeys([*SECRETS, *others], "value")
    got = child_environment(environ, *needs)
    assert set(allowed) <= set(got)
    assert not set(SECRETS) & set(got) - set(allowed)


def test_without_needs_it_gets_the_system_only() -> None:
    environ = {name: "value" for found in ALLOWED.values() for name in found}
    assert set(child_environment(environ)) == set(ALLOWED[()])


def test_what_the_user_names_is_handed_on_whatever_its_name() -> None:
    environ = {
        "SLIPWAY_PASS_ENV": " AWS_SECRET_ACCESS_KEY,, AWS_REGION ",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_PROFILE": "p",
    }
    assert passed_on(environ) == ("AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    assert child_environment(environ, *passed_on(environ)) == {"AWS_SECRET_ACCESS_KEY": "s"}
