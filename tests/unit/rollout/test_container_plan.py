"""What image and container a release needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inline_snapshot import snapshot
from makers_golden import ENGINES as MAKERS_ENGINES
from makers_golden import GOLDEN as MAKERS
from makers_golden import makers_page

from tasks.core.errors import RolloutError
from tasks.core.release import Launch, Release
from tasks.core.serving import ChatTemplate
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine
from tasks.rollout.container.models import Container, ContainerPlan, ImagePlan
from tasks.rollout.container.plan import (
    FOLDER_LABEL,
    cause_of_death,
    container_user,
    pins_of,
    plan_container,
    plan_image,
)

ENGINE = get_engine(EngineKind.LLAMA_CPP)
LOCK = """\
# comment
numpy==2.4.6 \\
    --hash=sha256:aa
some-extra[gpu]==1.0 ; python_version >= "3.8" \\
    --hash=sha256:bb
xllamacpp==2026.10.11549 \\
    --hash=sha256:cc \\
    --hash=sha256:dd
"""


def release(**spec: Any) -> Release:
    return Release.model_validate(
        {
            "at": "2026-01-01T00:00:00Z",
            "spec": {"name": "chat", "model": "file:/m", "target": "docker"} | spec,
            "engine": "llama.cpp",
            "engine_version": "1",
            "target": "docker",
            "environment_digest": "sha256:e",
            "environment_path": "/e",
            "lock_path": "/locks/l.txt",
            "model_source": "file:/m",
            "model_digest": "sha256:m",
            "candidate_format": "q8_0",
            "candidate_digest": "sha256:c",
            "config": {"served_name": "chat", "batch": 4, "context": 512, "threads": 3},
            "launch": Launch(argv=("x",), model_file=Path("/c/model.gguf")),
        }
    )


def image(of: Release | None = None, **changes: str) -> ImagePlan:
    frame = {"base_id": "sha256:base", "worker_digest": "sha256:w", "machine": "x86_64"} | changes
    lock = frame.pop("lock", LOCK)
    return plan_image(of or release(), ENGINE, lock, **frame)


def container(of: Release) -> ContainerPlan:
    return plan_container(
        of, ENGINE, image="sha256:i", folder=Path("/home/services/chat"), user="1000:1000", host_port=4000
    )


def test_the_image_holds_what_serving_needs_and_proves_it() -> None:
    plan = image()
    assert plan.dockerfile == snapshot("""\
FROM sha256:base
USER 0:0
WORKDIR /
ENTRYPOINT []
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENV PYTHONPATH= PYTHONHOME=
RUN ["python3", "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 11) and sys.version)"]
RUN ["python3", "-m", "venv", "--without-pip", "/opt/engine"]
COPY site /opt/engine/lib/python3.11/site-packages
COPY server.py /opt/engine/server.py
RUN ["/opt/engine/bin/python", "-I", "-c", "import xllamacpp"]
ENV HOME=/tmp PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 8000
""")
    assert plan.pins == ("xllamacpp==2026.10.11549",)
    assert plan.platform == "x86_64-manylinux_2_28"


def test_requirements_of_the_spec_go_into_the_image_too() -> None:
    plan = image(release(environment={"requirements": ["Some_Extra[gpu]>=0.9"]}))
    assert plan.pins == ("some-extra==1.0", "xllamacpp==2026.10.11549")


@pytest.mark.parametrize(
    "change",
    [
        {"base_id": "sha256:other"},
        {"worker_digest": "sha256:x"},
        {"machine": "aarch64"},
        {"lock": LOCK + "    --hash=sha256:ee\n"},
    ],
)
def test_the_name_changes_with_the_content(change: dict[str, str]) -> None:
    assert image().name == image().name
    assert image(**change).name != image().name


def test_the_name_does_not_depend_on_comments_in_the_lock() -> None:
    assert image(lock=LOCK + "    # via x\n").name == image().name


def test_the_name_does_not_depend_on_the_service() -> None:
    assert image(release(name="other", hardware={"memory": "1Gi"})).name == image().name


def test_a_lock_without_the_engine_is_refused() -> None:
    with pytest.raises(RolloutError) as caught:
        pins_of(LOCK, ["xllamacpp", "absent"], Path("/locks/l.txt"))
    assert str(caught.value) == snapshot(
        "the lock /locks/l.txt lacks absent, which serving needs (build the environment again: "
        "delete the lock, then deploy)"
    )


def test_extras_that_serving_needs_are_pinned_with_their_package() -> None:
    lock = "torch==2.13.0\ntransformers==5.23.0\n"
    wanted = ("transformers[serving]", "torch")
    assert pins_of(lock, wanted, Path("/l")) == ("torch==2.13.0", "transformers[serving]==5.23.0")


def test_a_chat_template_of_the_users_is_mounted() -> None:
    kept = Path("/home/chat_templates/abc/chat_template.jinja")
    made = release()
    chat = ChatTemplate(digest="sha256:" + "a" * 64, file=kept)
    plan = container(made.model_copy(update={"config": made.config.model_copy(update={"chat": chat})}))
    assert plan.files == {"/chat_template.jinja": kept}
    at = plan.argv.index("--chat-template")
    assert plan.argv[at + 1] == "/chat_template.jinja"


def test_the_container_has_the_paths_and_limits_of_its_release() -> None:
    plan = container(release(hardware={"memory": "16Gi", "cpus": 3}, rollout={"pids": 100}))
    assert plan.model_dump(mode="json", exclude={"labels", "name"}) == snapshot(
        {
            "image": "sha256:i",
            "argv": [
                "/opt/engine/bin/python",
                "-I",
                "/opt/engine/server.py",
                "--model",
                "/model/model.gguf",
                "--alias",
                "chat",
                "--host",
                "0.0.0.0",
                "--port",
                "8000",
                "--slots",
                "4",
                "--context",
                "2048",
                "--threads",
                "3",
                "--gpu-layers",
                "0",
            ],
            "env": {"OMP_WAIT_POLICY": "passive"},
            "user": "1000:1000",
            "model_source": "/c/model.gguf",
            "model_target": "/model/model.gguf",
            "files": {},
            "port": 8000,
            "host_port": 4000,
            "memory_bytes": 17179869184,
            "cpus": 3,
            "pids": 100,
            "shm_bytes": 67108864,
            "tmp_bytes": 67108864,
            "own_entrypoint": False,
            "cache_target": "/cache",
            "cache_bytes": 0,
            "gpus": 0,
            "gpu_indices": [],
        }
    )
    assert plan.labels[FOLDER_LABEL] == "/home/services/chat"


@pytest.mark.parametrize("engine", MAKERS_ENGINES)
def test_an_image_of_the_makers_is_started_by_its_own_programs(engine: str) -> None:
    """Compared whole with `tests/golden/makers_images`: a GPU host and a registry would be needed to run it."""
    assert (MAKERS / f"{engine}.json").read_text() == makers_page(engine), (
        "make them anew: python tests/support/makers_golden.py"
    )


def test_inside_the_gpus_that_were_measured_are_all_that_there_are() -> None:
    made = release(hardware={"gpus": 2})
    config = made.config.model_copy(update={"gpu_indices": (3, 1)})
    plan = container(made.model_copy(update={"config": config}))
    assert plan.gpu_indices == (3, 1)
    assert not any(name.startswith("CUDA") for name in plan.env)
    fewer = config.model_copy(update={"gpu_indices": (3,)})
    assert container(made.model_copy(update={"config": fewer})).gpu_indices == ()


def test_several_gpus_share_more_memory() -> None:
    assert container(release(hardware={"gpus": 2})).shm_bytes > container(release()).shm_bytes


def test_a_container_never_runs_as_root() -> None:
    assert container_user(1000, 100) == "1000:100"
    assert container_user(0, 0) == "65532:65532"


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"status": "running"}, None),
        ({"status": "created"}, None),
        ({"status": "exited", "exit_code": 1}, "exit status 1"),
        (
            {"status": "exited", "oom_killed": True},
            "it went over its memory limit and was killed; raise hardware.memory",
        ),
        (
            {"status": "exited", "exit_code": 137, "memory_bytes": 14 << 20},
            "it was killed, as what goes over its memory limit of 14 MiB is; raise hardware.memory",
        ),
        ({"status": "exited", "exit_code": 137}, "exit status 137"),
    ],
)
def test_the_cause_of_death(state: dict[str, Any], cause: str | None) -> None:
    assert cause_of_death(Container(id="i", name="n", labels={}, **state)) == cause
