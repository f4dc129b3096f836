"""The image of a release: made once for its content, from the lock, without network inside the build."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Protocol

from tasks.core.digests import digest_of_file
from tasks.core.files import PART, file_lock, sweep_parts
from tasks.core.progress import say
from tasks.core.release import Release
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.engines.catalogue import get_engine
from tasks.rollout.container.models import ImagePlan
from tasks.rollout.container.plan import SITE, plan_image, worker_of


class ImageBuilder(Protocol):
    """What `blocks.docker.docker_engine.DockerEngine` is to an image."""

    def image_id(self, name: str) -> str | None: ...

    def base_image_id(self, name: str) -> str: ...

    def build(self, plan: ImagePlan, context: Path) -> str: ...


class InstallPackages(Protocol):
    """Lays the packages of a plan into a folder, verified by hashes."""

    def __call__(self, plan: ImagePlan, target: Path, /) -> None: ...


def make_image(release: Release, settings: Settings, builder: ImageBuilder, install: InstallPackages) -> str:
    """The id of the release's image, which is built unless the Docker engine has it already.

    Raises `RolloutError` that says what the base image lacks; nothing bears the image's name then.
    """
    engine = get_engine(release.engine)
    plan = plan_image(
        release,
        engine,
        release.lock_path.read_text(),
        base_id=builder.base_image_id(release.spec.rollout.base_image),
        worker_digest=digest_of_file(worker_of(engine)),
        machine=platform.machine(),
    )
    folder = settings.home / "images"
    with file_lock(settings.leases / "images", wait=True, holder="an image"):
        sweep_parts(folder)  # also if the image is there: its builder may have been killed just after
        image = builder.image_id(plan.name)
        if image is None:
            say(StageName.ROLLOUT, f"building the image {plan.name} on {plan.base_image}")
            image = _build(plan, folder, builder, install)
        return image


def _build(plan: ImagePlan, folder: Path, builder: ImageBuilder, install: InstallPackages) -> str:
    context = folder / f"{plan.name.rpartition(':')[2]}{PART}"
    (context / SITE).mkdir(parents=True)
    try:
        install(plan, context / SITE)
        for name, source in plan.files.items():
            shutil.copyfile(source, context / name)
        (context / "Dockerfile").write_text(plan.dockerfile)
        return builder.build(plan, context)
    finally:
        shutil.rmtree(context)
