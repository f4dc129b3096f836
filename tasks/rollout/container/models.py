"""What a container rollout makes and sees."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tasks.core.frozen import Frozen


class ImagePlan(Frozen):
    """How a release's image is made. `name` contains the digest of all that decides its content.

    `pins` are the packages that serving needs, `lock` the hash lock with them and what they require.
    `platform` and `python` are uv's names for where they will run. `files` are the rest of the build context.
    """

    name: str
    dockerfile: str
    pins: tuple[str, ...]
    lock: Path
    python: str
    platform: str
    files: dict[str, Path]
    base_image: str
    system_libraries: tuple[str, ...]


class ContainerPlan(Frozen):
    """One container with its limits. Sizes in bytes; `port` inside is `host_port` of the loopback.

    It gets `gpus` GPUs: those of `gpu_indices`, if they are known. `files` are mounted read-only besides the model,
    by their path inside. With `own_entrypoint` the first word of `argv` replaces the program that the image starts.
    `cache_bytes` is the size of a folder in memory, `cache_target`, from which code may be run.
    """

    name: str
    image: str
    argv: tuple[str, ...]
    env: dict[str, str]
    labels: dict[str, str]
    user: str
    model_source: Path
    model_target: str
    files: dict[str, Path] = Field({})
    port: int
    host_port: int
    memory_bytes: int | None = Field(None, gt=0)
    cpus: int | None = Field(None, ge=1)
    pids: int = Field(ge=1)
    shm_bytes: int = Field(ge=0)
    tmp_bytes: int = Field(ge=0)
    own_entrypoint: bool = False
    cache_target: str = "/cache"
    cache_bytes: int = Field(0, ge=0)
    gpus: int = Field(0, ge=0)
    gpu_indices: tuple[int, ...] = ()


class Container(Frozen):
    """A container as the engine sees it.

    `host_port` is its published port, `pid` its first process, `memory_bytes` its limit.
    """

    id: str
    name: str
    status: str
    labels: dict[str, str]
    host_port: int | None = None
    pid: int | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    memory_bytes: int | None = None
    restarts: int = 0

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.status == "running"
