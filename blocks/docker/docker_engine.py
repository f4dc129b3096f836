"""A Docker engine, through Docker's SDK: images and containers, with errors that say what to do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import docker
import requests
from docker.credentials.errors import StoreError
from docker.errors import APIError, BuildError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container as SdkContainer
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit
from docker.utils import tar

from blocks.docker.config import DockerConfig
from blocks.docker.container_toolkit import names_gpus
from blocks.processes.process import last_lines
from tasks.core.errors import MissingToolError, NetworkError, PortTakenError, RolloutError
from tasks.rollout.container.models import Container, ContainerPlan, ImagePlan

_API_TIMEOUT_S = 600
"""Timeout of one call: a build copies the context, which is large for some engines."""

_PING_TIMEOUT_S = 10
"""Timeout of the first call: an engine that hangs may still accept connections."""

_KEEP_ALIVE: Any = {"Name": "unless-stopped"}
"""The SDK's types ask for a count of retries, which Docker refuses for this policy."""

_LOG_FILES = {"max-size": "10m", "max-file": "3"}
_NO_GPU = (
    "could not select device driver",
    "Unknown runtime specified nvidia",
    "error gathering device information",
    "unresolvable CDI devices",
    "nvidia-container-cli",
)
"""What Docker says, in its versions, when a GPU is asked for that it cannot give."""

_PORT_TAKEN = ("port is already allocated", "address already in use", "is already in use by container")


class DockerEngine:
    """One engine, at the address that the Docker client is configured for."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, *, timeout_s: int = _API_TIMEOUT_S) -> DockerEngine:
        """The engine of `DOCKER_HOST`, of the current context, or of this host.

        Raises `MissingToolError` if none answers, and `WrongUseError` for a configuration that cannot be read.
        """
        address = DockerConfig.read().engine()
        try:
            client = docker.from_env(timeout=min(timeout_s, _PING_TIMEOUT_S))
            client.ping()
            client.api.timeout = timeout_s
        except (
            DockerException,
            requests.RequestException,
            ValueError,
        ) as error:  # the last of an odd address
            raise _no_engine(address, str(error)) from None  # a chain of five libraries' errors says no more
        return cls(client)

    def __enter__(self) -> DockerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """The engine's version."""
        with _explained("say its version"):
            return str(self._client.version()["Version"])

    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes that it is configured with. Raises `MissingToolError` if it does not say."""
        try:
            return tuple(sorted(self._client.info().get("Runtimes") or {}))
        except (DockerException, requests.RequestException) as error:
            raise MissingToolError(
                "the Docker engine does not say which runtimes it has",
                fix="see what this prints: docker info",
                detail=str(error),
            ) from None

    @property
    def client(self) -> docker.DockerClient:
        """The SDK's client, for what is done to images alone."""
        return self._client

    def image_id(self, name: str) -> str | None:
        """`sha256:…` of an image that the engine has. Raises `RolloutError` if it does not say."""
        with _explained(f"look for the image {name}"):
            try:
                image_id: str | None = self._client.images.get(name).id
            except ImageNotFound:
                return None
            return image_id

    def check_base_image(self, name: str) -> None:
        """Raise `NetworkError` for a base image that is neither here nor in a registry that hands it out."""
        if self.image_id(name) is None:
            with _pulling(name):
                self._client.images.get_registry_data(name)

    def base_image_id(self, name: str) -> str:
        """`sha256:…` of a base image, pulled if it is not here. Raises `NetworkError` if it cannot be."""
        if found := self.image_id(name):
            return found
        with _pulling(name):
            self._client.images.pull(name)
        return self.image_id(name) or name

    def build(self, plan: ImagePlan, context: Path) -> str:
        """Build the image from `context` without network; its id. Raises `RolloutError` with the log.

        Docker's client asks all credential helpers before a build, also where no registry is asked.
        """
        DockerConfig.read().check_helpers()
        try:
            with TemporaryFile() as archive:  # it has no name: a kill leaves nothing, unlike the SDK's own
                tar(context, fileobj=archive)
                image, _ = self._client.images.build(
                    fileobj=archive,
                    custom_context=True,
                    tag=plan.name,
                    rm=True,
                    forcerm=True,
                    pull=False,
                    network_mode="none",
                    use_config_proxy=False,
                )
        except BuildError as error:
            log = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
            raise _explain_build(plan, log or str(error)) from error
        except (DockerException, StoreError, requests.RequestException) as error:
            raise _explain_build(plan, _words_of(error)) from error
        return str(image.id)

    def start(self, plan: ContainerPlan) -> Container:
        """Create and start a container; nothing stays on failure.

        Raises `MissingToolError` for a GPU that Docker cannot give, `PortTakenError`, `RolloutError`.
        """
        with _explained(f"start the container {plan.name}"):
            return self._start(plan, self._gpus(plan))

    def _start(self, plan: ContainerPlan, devices: list[DeviceRequest]) -> Container:
        try:
            container = self._create(plan, devices)
        except APIError as error:
            raise _explain_start(plan, error) from error
        try:
            container.start()
        except APIError as error:
            # Docker keeps a container whose start failed, even one that it was told to remove.
            self.remove(str(container.id))
            raise _explain_start(plan, error) from error
        except BaseException:
            self.remove(str(container.id))
            raise
        container.reload()
        return _container_of(container.attrs)

    def _create(self, plan: ContainerPlan, devices: list[DeviceRequest]) -> SdkContainer:
        limits: dict[str, Any] = {}
        if plan.memory_bytes is not None:
            limits |= {"mem_limit": plan.memory_bytes, "memswap_limit": plan.memory_bytes}
        if plan.cpus is not None:
            limits["nano_cpus"] = plan.cpus * 10**9
        tmpfs = {"/tmp": f"size={plan.tmp_bytes},mode=1777,noexec,nosuid,nodev"}
        if plan.cache_bytes:
            tmpfs[plan.cache_target] = f"size={plan.cache_bytes},mode=1777,exec,nosuid,nodev"
        if plan.own_entrypoint:
            limits["entrypoint"] = list(plan.argv[:1])
            limits["ulimits"] = [Ulimit(name="memlock", soft=-1, hard=-1)] if plan.gpus else []
        return self._client.containers.create(
            plan.image,
            list(plan.argv[1:] if plan.own_entrypoint else plan.argv),
            name=plan.name,
            environment=plan.env,
            labels=plan.labels,
            user=plan.user,
            mounts=_mounts(plan),
            ports={f"{plan.port}/tcp": ("127.0.0.1", plan.host_port)},
            read_only=True,
            tmpfs=tmpfs,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            pids_limit=plan.pids,
            shm_size=plan.shm_bytes,
            log_config=LogConfig(type=LogConfig.types.JSON, config=_LOG_FILES),
            device_requests=devices,
            use_config_proxy=False,  # it is served from, and asks nothing of the outside
            **limits,
        )

    def _gpus(self, plan: ContainerPlan) -> list[DeviceRequest]:
        if not plan.gpus:
            return []
        ids = [str(index) for index in plan.gpu_indices or range(plan.gpus)]
        info = self._client.info()
        if "nvidia" in info.get("Runtimes", {}):
            return [DeviceRequest(driver="nvidia", device_ids=ids, capabilities=[["gpu"]])]
        if names_gpus([Path(folder) for folder in info.get("CDISpecDirs") or ()]):
            return [DeviceRequest(driver="cdi", device_ids=[f"nvidia.com/gpu={one}" for one in ids])]
        raise _no_gpu(
            plan.gpus, "neither the runtime nvidia nor a CDI specification of nvidia.com/gpu is there"
        )

    def keep_alive(self, container_id: str) -> None:
        """From now on start the container again whenever it ends, also with Docker or the host itself.

        `on-failure` would not do: a container that ends with Docker's daemon exits with 0, and that policy's limit
        makes a death final. Docker waits longer after each death, up to a minute.
        """
        with _explained("give the container a restart policy"):
            self._client.containers.get(container_id).update(restart_policy=_KEEP_ALIVE)

    def restart(self, container_id: str) -> None:
        """Kill the container and start it again. Nothing if it is gone."""
        with contextlib.suppress(NotFound), _explained("restart the container"):
            self._client.containers.get(container_id).restart(timeout=0)

    def find(self, label: str) -> list[Container]:
        """All containers with this label, whatever its value, running or not."""
        with _explained("list the containers"):
            # `ignore_removed`: one may go between the list and the look at it.
            found = self._client.containers.list(all=True, filters={"label": label}, ignore_removed=True)
        return [_container_of(container.attrs) for container in found]

    def log_tail(self, container_id: str, lines: int) -> str:
        """The last lines of both its outputs; empty if it is gone."""
        output = b""
        with contextlib.suppress(NotFound), _explained("read the container's log"):
            output = self._client.containers.get(container_id).logs(tail=lines)
        return output.decode(errors="replace").rstrip("\n")

    def stop(self, container_id: str, *, timeout_s: int) -> None:
        """Ask the container to end and kill it past `timeout_s`. Nothing if it is gone."""
        with contextlib.suppress(NotFound), _explained("stop the container"):
            self._client.containers.get(container_id).stop(timeout=timeout_s)

    def remove(self, container_id: str) -> None:
        """Remove the container in whatever state it is. Nothing if it is gone."""
        with contextlib.suppress(NotFound), _explained("remove the container"):
            self._client.containers.get(container_id).remove(force=True, v=True)


def _mounts(plan: ContainerPlan) -> list[Mount]:
    """The model, and what else the engine reads."""
    files = {plan.model_target: plan.model_source, **plan.files}
    return [Mount(inside, str(path), type="bind", read_only=True) for inside, path in files.items()]


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Other failures of the engine than `NotFound`, as `RolloutError`; also when it no longer answers."""
    try:
        yield
    except NotFound:
        raise
    except (APIError, requests.RequestException) as error:
        raise RolloutError(f"the Docker engine could not {doing}", detail=_words_of(error)) from error


@contextlib.contextmanager
def _pulling(name: str) -> Iterator[None]:
    try:
        yield
    except (DockerException, requests.RequestException) as error:
        raise NetworkError(
            f"the base image {name} is not on this host and cannot be pulled",
            fix="infra/images/base.sh makes slipway/base:bookworm without a registry: name it in "
            "rollout.base_image",
            detail=_words_of(error),
        ) from error


def _no_engine(address: str, reason: str) -> MissingToolError:
    if "Permission denied" in reason:
        return MissingToolError(
            f"target docker needs a Docker engine, and this user may not use the one at {address}",
            fix="let it: sudo usermod -aG docker USER, then log in again; or use target: process",
            detail=reason,
        )
    return MissingToolError(
        f"target docker needs a Docker engine, and none answers at {address}",
        fix="install and start Docker, set DOCKER_HOST, or use target: process",
        detail=reason,
    )


def _words_of(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)


def _container_of(attrs: Mapping[str, Any]) -> Container:
    state = attrs["State"]
    bindings = (attrs["HostConfig"].get("PortBindings") or {}).values()
    ports = [int(binding["HostPort"]) for found in bindings for binding in found or () if binding["HostPort"]]
    return Container(
        id=attrs["Id"],
        name=attrs["Name"].lstrip("/"),
        status=state["Status"],
        labels=attrs["Config"]["Labels"] or {},
        host_port=ports[0] if ports else None,
        pid=state["Pid"] or None,
        exit_code=state["ExitCode"],
        oom_killed=bool(state["OOMKilled"]),
        memory_bytes=attrs["HostConfig"].get("Memory") or None,
        restarts=attrs.get("RestartCount", 0),
    )


def _no_gpu(count: int, detail: str) -> MissingToolError:
    return MissingToolError(
        f"the release needs {count} GPU{'s' * (count > 1)}, but this Docker engine cannot provide any",
        fix="install the NVIDIA container toolkit, run `nvidia-ctk runtime configure --runtime=docker` and "
        "restart Docker, or set hardware.gpus: 0",
        detail=detail,
    )


def _explain_start(plan: ContainerPlan, error: APIError) -> Exception:
    text = _words_of(error)
    if plan.gpus and any(sign in text for sign in _NO_GPU):
        return _no_gpu(plan.gpus, text)
    if any(sign in text for sign in _PORT_TAKEN):
        return PortTakenError(f"the container {plan.name} cannot have its port or its name", detail=text)
    if isinstance(error, ImageNotFound):
        return RolloutError(f"the image {plan.image} is gone", fix="deploy again to recreate it")
    return RolloutError(f"the container {plan.name} could not be started", detail=text)


def _explain_build(plan: ImagePlan, log: str) -> RolloutError:
    tail = last_lines(_message_of(log))
    if "cannot open shared object file" in log:
        needed = ", ".join(plan.system_libraries)
        return RolloutError(
            f"the base image {plan.base_image} lacks a system library that the engine needs",
            fix=f"use a base image that contains {needed}: infra/images/base.sh makes one",
            detail=tail,
        )
    return RolloutError(
        f"no image could be built on {plan.base_image}",
        fix=f"it must contain python3 ({plan.python}) with venv, and {', '.join(plan.system_libraries)}",
        detail=tail,
    )


def _message_of(log: str) -> str:
    """What a build said; some engines wrap it into a JSON document."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(log)["message"])
    return log
