"""What a deploy lacks is said in one line, before anything is built."""

from __future__ import annotations

import pytest

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import deployable_engines, get_engine
from tasks.engines.weights import check_tunable
from tasks.environment.models import EnvironmentRequest
from tasks.environment.plan import lock_request
from tasks.lifecycle.plan import plan_of, refusal, wants_absent_gpu


class Linux:
    platform = "linux-x86_64"

    def lacks(self, soname: str) -> bool:
        return False


def spec(**values: object) -> DeploySpec:
    return parse_spec({"name": "chat", "model": "file:/m", **values})


DEPLOYED = tuple(engine.kind for engine in deployable_engines())


@pytest.mark.parametrize("kind", DEPLOYED)
def test_these_engines_lack_nothing(kind: EngineKind) -> None:
    assert refusal(spec(engine=kind.value, hardware={"gpus": 1})) is None
    check_tunable(kind)


def test_an_image_is_built_from_the_lock_of_an_engine_with_a_worker() -> None:
    assert refusal(spec(engine="transformers", target="docker")) is None
    assert str(refusal(spec(engine="vllm", target="docker", engine_version="0.33.0"))) == (
        "vllm cannot be deployed with target: docker like this: Slipway builds no image of it (set rollout.image, such "
        "as vllm/vllm-openai:v0.33.0, or target: process)"
    )


@pytest.mark.parametrize("engine", ["sglang", "tensorrt-llm", "vllm"])
def test_an_image_of_the_makers_is_served_from(engine: str) -> None:
    wanted = spec(engine=engine, target="docker", hardware={"gpus": 1}, rollout={"image": "mirror/it:1"})
    assert refusal(wanted) is None
    assert "in a container of mirror/it:1," in plan_of(wanted, "a model")[5].does


def test_an_image_of_makers_whose_start_is_not_known_is_refused() -> None:
    assert str(refusal(spec(target="docker", rollout={"image": "ghcr.io/ggml-org/llama.cpp:server"}))) == (
        "rollout.image: how an image of llama.cpp's makers is started is not known (remove it: Slipway builds the image)"
    )


def test_an_image_is_for_containers() -> None:
    with pytest.raises(SpecError, match=r"rollout: image is for target docker, not for process"):
        spec(engine="vllm", rollout={"image": "vllm/vllm-openai:v0.32.0"})


def test_an_engine_for_gpus_is_given_some() -> None:
    """Else it would take one all the same, and be measured as if it had none."""
    assert str(refusal(spec(engine="vllm"))) == (
        "vllm needs a GPU, but hardware.gpus is 0 (set hardware.gpus, or use engine: llama.cpp)"
    )
    installed = {"manager": "system", "path": "/opt/vllm-cpu"}
    assert refusal(spec(engine="vllm", environment=installed)) is None
    assert wants_absent_gpu(spec(engine="vllm", hardware={"gpus": 1}), 0)
    assert not wants_absent_gpu(spec(engine="vllm", hardware={"gpus": 1}), 1)


@pytest.mark.parametrize("kind", [kind for kind in EngineKind if kind not in DEPLOYED])
def test_each_other_engine_says_what_it_lacks(kind: EngineKind) -> None:
    wanted = spec(engine=kind.value)
    missing = get_engine(kind).card.missing
    assert missing is not None
    assert str(refusal(wanted)) == f"{kind} cannot be deployed yet: {missing} (use engine: llama.cpp)"
    with pytest.raises(SpecError, match=f"{kind} cannot be tuned yet"):
        check_tunable(kind)


@pytest.mark.parametrize("kind", [EngineKind.OLLAMA, EngineKind.TRITON_VLLM])
def test_what_is_no_distribution_has_no_environment(kind: EngineKind) -> None:
    with pytest.raises(SpecError, match="has no Python environment"):
        lock_request(get_engine(kind), EnvironmentRequest(engine=kind), Linux())
