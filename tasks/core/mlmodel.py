"""The `MLmodel` file that MLflow writes with a model: the one value in it that Slipway needs.

https://mlflow.org/docs/latest/model/#mlmodel-file
"""

from __future__ import annotations

from typing import Any

import yaml

from tasks.core.errors import ModelError, UnsafeNameError
from tasks.core.paths import is_file_name, shown

LIMIT_BYTES = 100_000
_DEEPEST = 32
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT = "tag:yaml.org,2002:str"


def weights_folder(content: bytes) -> str:
    """The folder of the weights of a model that was logged with the flavor `transformers`. Pure.

    Nothing else in the file is turned into values, because the file is untrusted. Raises `ModelError`.
    """
    flavor = _held(_held(_root(content), "flavors"), "transformers")
    if not isinstance(flavor, yaml.MappingNode):
        raise ModelError(
            "the model was logged with an MLflow flavor other than transformers",
            fix="log the folder in the Hugging Face layout itself",
        )
    named = _held(flavor, "model_binary")
    if named is None:
        return "model"
    if not isinstance(named, yaml.ScalarNode):
        raise _refused("a list or a mapping")
    if named.tag != _TEXT:
        raise _refused(f"{named.value[:80]}", ", which is not text")
    if not is_file_name(named.value):
        raise _refused(shown(named.value))
    return str(named.value)


def _root(content: bytes) -> yaml.Node | None:
    if len(content) > LIMIT_BYTES:
        raise _unreadable(f"it has more than {LIMIT_BYTES} bytes")
    depth = 0
    try:
        for event in yaml.parse(content, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:  # libyaml's composer is recursive, and would crash the process
                raise _unreadable(f"its values are nested more than {_DEEPEST} deep")
        return yaml.compose(content, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, OverflowError):  # the last two: invalid escapes
        raise _unreadable("it is not YAML") from None


def _held(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    held: list[yaml.Node] = [value for name, value in node.value if name.value == key]
    return held[-1] if held else None


def _unreadable(why: str) -> ModelError:
    return ModelError(f"the model's MLmodel cannot be read: {why}", fix="log the model again")


def _refused(named: str, why: str = "") -> UnsafeNameError:
    return UnsafeNameError(
        f"its MLmodel names {named} as the folder of its weights{why}", fix="log the model again"
    )
