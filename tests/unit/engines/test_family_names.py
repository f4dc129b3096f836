"""What people call a family, and what is asked back."""

from __future__ import annotations

import pytest

from tasks.core.errors import WrongUseError
from tasks.engines.families import families
from tasks.engines.family_names import check_name, named_family


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama", "llama"),
        ("llama-3.1", "llama"),
        ("Llama3.2", "llama"),
        ("llama_2", "llama"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
        ("llama-4-scout", "llama4"),
        ("qwen2.5", "qwen2"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2"),
        ("qwen3", "qwen3"),
        ("qwen3-next", "qwen3-next"),
        ("Qwen/Qwen3-30B-A3B", "qwen3"),
        ("qwen3.5", "qwen3.5"),
        ("qwen2.5-vl", "qwen2-vl"),
        ("gemma-3", "gemma"),
        ("google/gemma-3-27b-it", "gemma"),
        ("gemma3n", "gemma-3n"),
        ("gemma-4", "gemma-4"),
        ("gpt-oss", "gpt-oss"),
        ("openai/gpt-oss-120b", "gpt-oss"),
        ("glm-4.5", "glm-4.5"),
        ("GLM-4.6", "glm-4.5"),
        ("glm4", "glm-4"),
        ("glm-5", "glm-5"),
        ("phi-4", "phi"),
        ("phi-3.5-mini", "phi"),
        ("kimi-k2", "kimi-k2"),
        ("deepseek-r1", "deepseek-v3"),
        ("deepseek-v3", "deepseek-v3"),
        ("deepseek-v3.1", "deepseek-v3"),
        ("deepseek-v3.2", "deepseek-v3.2"),
        ("mixtral", "mixtral"),
        ("mixtral-8x22b", "mixtral"),
        ("mistral-small-3.2", "mistral"),
        ("devstral", "mistral"),
        ("command-r", "command"),
        ("CohereLabs/c4ai-command-a-03-2025", "command"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("qwen3forcausallm", "qwen3"),
        ("deepseek-r1-distill-llama-8b", None),
        ("lama", None),
        ("of-ours", None),
        ("", None),
    ],
)
def test_a_family_is_found_in_any_spelling(name: str, family: str | None) -> None:
    found = named_family(name)
    assert (found and found.name) == family


def test_every_family_is_found_by_its_own_names() -> None:
    for family in families():
        for name in (family.name, *family.architectures, *family.spellings):
            check_name(name)
            assert named_family(name) == family


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lama", "llama"),
        ("gptos", "gpt-oss"),
        ("mixtrel", "mixtral"),
        ("qwen-3-nxt", "qwen3-next"),
        ("LAMA", "llama"),
    ],
)
def test_a_slip_is_asked_back(name: str, meant: str) -> None:
    with pytest.raises(WrongUseError, match=f"did you mean {meant}\\?") as refused:
        check_name(name)
    assert f"--family {meant}" in str(refused.value.fix)


@pytest.mark.parametrize("name", ["own", "of-ours", "zebra-net"])
def test_an_architecture_of_ones_own_is_not_asked_about(name: str) -> None:
    check_name(name)
