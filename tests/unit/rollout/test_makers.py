"""Which images of an engine's makers serve a release."""

from __future__ import annotations

import pytest
from inline_snapshot import snapshot

from tasks.core.errors import RolloutError
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine
from tasks.rollout.container.makers import check_same, check_version

VLLM = get_engine(EngineKind("vllm"))


@pytest.mark.parametrize("found", ["0.32.0", "0.32", "0.32.0+cu129"])
def test_any_build_of_the_release_that_was_measured_serves(found: str) -> None:
    check_version("mirror/vllm:x", VLLM, "0.32.0", found)


def test_another_release_is_refused_with_both_ways_out() -> None:
    with pytest.raises(RolloutError) as caught:
        check_version("vllm/vllm-openai:latest", VLLM, "0.32.0", "0.33.1+cu129")
    assert str(caught.value) == snapshot(
        "rollout.image: vllm/vllm-openai:latest contains vLLM 0.33.1+cu129, but 0.32.0 is measured "
        '(set engine_version: "0.33.1", or use vllm/vllm-openai:v0.32.0)'
    )


def test_a_version_of_no_known_form_is_compared_as_text() -> None:
    check_version("i", VLLM, "dev-main", "dev-main")
    with pytest.raises(RolloutError, match="contains vLLM dev-main"):
        check_version("i", VLLM, "0.32.0", "dev-main")


def test_an_image_without_the_engine_is_refused() -> None:
    with pytest.raises(RolloutError) as caught:
        check_version("python:3.11-slim", VLLM, "0.32.0", None)
    assert str(caught.value) == snapshot(
        "rollout.image: python:3.11-slim does not contain vLLM (use the makers' image, such as "
        "vllm/vllm-openai:v0.32.0)"
    )


def test_a_tag_that_moved_does_not_bring_a_release_back() -> None:
    check_same("vllm/vllm-openai:v0.32.0", "sha256:a", "sha256:a")
    with pytest.raises(RolloutError, match="is another image now") as caught:
        check_same("vllm/vllm-openai:v0.32.0", "sha256:a", "sha256:b")
    assert "digest" in (caught.value.fix or "")
