"""What all models are: values that do not change once they are made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that is checked when it is made, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
