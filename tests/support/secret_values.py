"""Secrets as a process may hold them in its environment."""

from __future__ import annotations

from collections.abc import Mapping

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "secret of aws",
    "DATABASE_URL": "postgresql://me:secret@db/own",
    "OPENAI_API_KEY": "secret of openai",
    "AZURE_CLIENT_SECRET": "secret of azure",
    "GITHUB_TOKEN": "secret of github",
    "HF_TOKEN": "secret of a hub",
    "MLFLOW_TRACKING_TOKEN": "secret of mlflow",
    "VLLM_API_KEY": "secret of vllm",
    "PYTHONPATH": "/nowhere",
}


def assert_none_in(environment: Mapping[str, str]) -> None:
    assert environment.get("PATH")
    assert not set(SECRETS) & set(environment)
    assert not [value for value in environment.values() if "secret" in value]
