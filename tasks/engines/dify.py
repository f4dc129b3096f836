"""Dify as an application on top of an engine: what to enter in its console for a served model. Pure.

As in langgenius/dify api/controllers/console (login.py @02881062, workspace/models.py @0095ef8f) and the provider
schema of langgenius/dify-official-plugins models/openai_api_compatible @1c2615cd.
"""

from __future__ import annotations

import base64
from typing import Any

PROVIDER = "langgenius/openai_api_compatible/openai_api_compatible"
"""Plugin and provider: the plugin must be installed in the workspace."""

MODELS = f"/console/api/workspaces/current/model-providers/{PROVIDER}/models"
CREDENTIALS = f"{MODELS}/credentials"
LOGIN = "/console/api/login"


def login_request(email: str, password: str) -> dict[str, Any]:
    """Dify's console encodes passwords in Base64 (api/libs/encryption.py): that hides, and does not encrypt."""
    return {"email": email, "password": base64.b64encode(password.encode()).decode(), "remember_me": False}


def model_credentials(model: str, endpoint: str, *, context: int, key: str | None = None) -> dict[str, Any]:
    """What registers `model`, served at `endpoint` (without `/v1`) with `context` tokens, as an LLM.

    Dify's requests carry `key`, if there is one.
    """
    credentials = {
        "endpoint_url": f"{endpoint.rstrip('/')}/v1",
        "endpoint_model_name": model,
        "mode": "chat",
        "context_size": str(context),
        "max_tokens_to_sample": str(context),
        "function_calling_type": "no_call",
        "vision_support": "no_support",
    }
    if key is not None:
        credentials["api_key"] = key
    return {"model": model, "model_type": "llm", "credentials": credentials}
