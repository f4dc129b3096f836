"""What a deploy lacks is said in one line, before anything is built."""

from __future__ import annotations

import pytest

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, EngineKind, parse_spec
from tasks.engines.catalogue import get_engine
from tasks.engines.deployable import check_tunable, refusal, what_is_missing
from tasks.environment.models import EnvironmentRequest
from tasks.environment.plan import lock_request

IMAGE = "vllm/vllm-openai@sha256:" + "a" * 64


class Linux:
    platform = "linux-x86_64"

    def lacks(self, soname: str) -> bool:
        return False


def spec(**values: object) -> DeploySpec:
    return parse_spec({"name": "chat", "model": "file:/m", **values})


DEPLOYED = (EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.TRANSFORMERS)


@pytest.mark.parametrize("kind", DEPLOYED)
def test_these_engines_lack_nothing(kind: EngineKind) -> None:
    assert what_is_missing(spec(engine=kind.value)) is None
    check_tunable(kind)


def test_an_image_is_built_from_the_lock_of_an_engine_with_a_worker() -> None:
    assert what_is_missing(spec(engine="transformers", target="docker")) is None
    assert (what_is_missing(spec(engine="vllm", target="docker")) or "").startswith("running a stock image")


@pytest.mark.parametrize("kind", [kind for kind in EngineKind if kind not in DEPLOYED])
def test_each_other_engine_says_what_it_lacks(kind: EngineKind) -> None:
    wanted = spec(engine=kind.value)
    missing = what_is_missing(wanted)
    assert missing is not None
    assert (
        str(refusal(wanted, missing)) == f"{kind} cannot be deployed yet: {missing} (use engine: llama.cpp)"
    )
    with pytest.raises(SpecError, match=f"{kind} cannot be tuned yet"):
        check_tunable(kind)


def test_a_container_wants_its_image_by_digest() -> None:
    wanted = spec(engine="vllm", target="docker")
    assert "look up the digest of vllm/vllm-openai:v0.32.0" in str(refusal(wanted, "x"))
    assert "digest" not in str(refusal(spec(engine="vllm", target="docker", rollout={"image": IMAGE}), "x"))
    stock = what_is_missing(spec(target="docker", rollout={"image": IMAGE}))
    assert (
        stock
        == "running a stock image: the image of llama.cpp is built from its lock, so leave rollout.image out"
    )


@pytest.mark.parametrize("kind", [EngineKind.OLLAMA, EngineKind.TRITON_VLLM])
def test_what_is_no_distribution_has_no_environment(kind: EngineKind) -> None:
    with pytest.raises(SpecError, match="has no Python environment"):
        lock_request(get_engine(kind), EnvironmentRequest(engine=kind), Linux())
