"""What all models are: values that do not change once they are made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """A value that is checked when it is made, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_wrong(error: ValidationError) -> str:
    """The first wrong key of a document, and what is wrong with it: `gpus.0.name: Field required`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
