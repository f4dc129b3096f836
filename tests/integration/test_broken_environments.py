"""Environments of real packages that are broken in ways that people meet, and sound ones beside them.

Most of the broken ones pass `pip check`. What torch other than one build for the processor would weigh is there by
its metadata only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from by_metadata import install_metadata

from blocks.engine.trial import EnvironmentTrial
from blocks.packages.inspect_environment import inspect_environment
from blocks.packages.uv import Uv
from tasks.core.verdicts import EnvironmentVerdict
from tasks.engines.llama_cpp import LlamaCpp
from tasks.environment.plan import judge

UV = Path(sys.executable).with_name("uv")


class Place:
    """An empty environment to install into."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        self.site_packages = folder / "lib" / "python3.11" / "site-packages"
        subprocess.run([UV, "venv", "--quiet", "--python", "3.11", folder], check=True)

    def install(self, *packages: str, options: tuple[str, ...] = ()) -> None:
        """Exactly these packages where they do not go together, else with what they require."""
        command = [
            UV,
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--python",
            self.python,
            *options,
        ]
        subprocess.run([*command, *packages], check=True)

    def pip_check(self) -> bool:
        """Whether pip itself finds nothing to complain of."""
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.python, "check"], capture_output=True, check=False
        )
        return done.returncode == 0

    def rewrite(self, pattern: str, change: Callable[[bytes], bytes]) -> None:
        """Change the one file of that name; it is a link into uv's cache, whose copy stays as it was."""
        (found,) = self.site_packages.rglob(pattern)
        content = found.read_bytes()
        found.unlink()
        found.write_bytes(change(content))


ALONE = ("--no-deps",)


def torch_for_the_processor() -> tuple[str, ...]:
    """Options that make uv take torch's CPU build: from a folder of wheels where pip has one, else from its index."""
    links = os.environ.get("PIP_FIND_LINKS")
    return ("--find-links", links) if links else ("--torch-backend", "cpu")


def old_pandas(place: Place) -> None:
    place.install("pandas==2.0.3", "numpy==2.2.6")


def old_h5py(place: Place) -> None:
    place.install("h5py==3.8.0", "numpy==2.2.6")


def old_jinja(place: Place) -> None:
    place.install("jinja2==2.11.3", "markupsafe==2.1.5")


def old_flask(place: Place) -> None:
    place.install("flask==2.2.2", "werkzeug==3.0.6")


def old_tensorboard(place: Place) -> None:
    place.install("tensorboardX==2.1", "protobuf==5.29.5", "numpy==1.26.4")


def old_toolbelt(place: Place) -> None:
    place.install("requests-toolbelt==0.9.1", "urllib3==2.2.3")


def old_pydantic_user(place: Place) -> None:
    place.install("openapi-schema-pydantic==1.2.4", "pydantic==2.11.7")


def prefect_with_new_fastapi(place: Place) -> None:
    place.install("prefect==3.8.8", "fastapi==0.154.0", "sqlalchemy<2.1")


def prefect_with_new_sqlalchemy(place: Place) -> None:
    place.install("prefect==3.8.8", "fastapi<0.151", "sqlalchemy>=2.1,<2.2")


def torchvision_of_another_build(place: Place) -> None:
    place.install("torch==2.13.0", "numpy", options=torch_for_the_processor())
    place.install("torchvision==0.28.0", "pillow", options=ALONE)


def old_torch_with_numpy_2(place: Place) -> None:
    install_metadata(place.site_packages, "torch-2.2.2-numpy-2.2.6")


def two_managers_of_gpus(place: Place) -> None:
    place.install("pynvml==11.5.3", "nvidia-ml-py==13.580.82")


def two_cudas(place: Place) -> None:
    place.install("nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12")


def newer_glibc(place: Place) -> None:
    """The module falls back to Python where its library does not load: imports alone would pass it."""
    place.install("markupsafe==2.1.5")
    place.rewrite("_speedups*.so", lambda content: content.replace(b"GLIBC_2.14", b"GLIBC_2.99"))


def truncated_library(place: Place) -> None:
    place.install("safetensors", "numpy")
    place.rewrite("_safetensors_rust*.so", lambda content: content[:200_000])


def wheel_of_another_processor(place: Place) -> None:
    place.install("numpy==2.2.6", options=("--python-platform", "aarch64-unknown-linux-gnu"))


def tokenizers_out_of_range(place: Place) -> None:
    place.install("transformers==4.40.0")
    place.install("tokenizers==0.21.0", options=ALONE)


def no_certificates(place: Place) -> None:
    place.install("requests", "urllib3", "idna", "charset-normalizer", options=ALONE)


@dataclass(frozen=True)
class Broken:
    """How to break it, what the answer must say, and whether `pip check` sees it."""

    make: Callable[[Place], None]
    says: str
    pip_sees: bool = False
    verdict: EnvironmentVerdict = EnvironmentVerdict.CONFLICTING


FLAGGED = EnvironmentVerdict.FLAGGED
BROKEN = [
    Broken(old_pandas, "importing pandas failed: ValueError: numpy.dtype size changed"),
    Broken(old_h5py, "importing h5py failed: ValueError: numpy.dtype size changed"),
    Broken(old_jinja, "cannot import name 'soft_unicode' from 'markupsafe'"),
    Broken(old_flask, "cannot import name 'url_quote' from 'werkzeug.urls'"),
    Broken(
        old_tensorboard, "importing tensorboardX failed: TypeError: Descriptors cannot be created directly"
    ),
    Broken(old_toolbelt, "cannot import name 'appengine'"),
    Broken(old_pydantic_user, "importing openapi_schema_pydantic failed: PydanticUserError"),
    Broken(prefect_with_new_fastapi, "Prefect 3.8.8 does not work with FastAPI 0.154.0"),
    Broken(prefect_with_new_sqlalchemy, "no scheduled run is ever created"),
    Broken(torchvision_of_another_build, "operator torchvision::nms does not exist"),
    Broken(old_torch_with_numpy_2, "torch 2.2.2 was built against numpy 1"),
    Broken(
        two_managers_of_gpus, "nvidia-ml-py and pynvml each installed a different pynvml", verdict=FLAGGED
    ),
    Broken(two_cudas, "CUDA 11 and CUDA 12 in one environment", verdict=FLAGGED),
    Broken(
        newer_glibc, "markupsafe/_speedups.cpython-311-x86_64-linux-gnu.so needs glibc 2.99", verdict=FLAGGED
    ),
    Broken(truncated_library, "importing safetensors failed: "),
    Broken(wheel_of_another_processor, "importing numpy failed: ImportError"),
    Broken(tokenizers_out_of_range, "tokenizers>=0.19,<0.20 is required", pip_sees=True),
    Broken(
        no_certificates,
        "importing requests failed: ModuleNotFoundError: No module named 'certifi'",
        pip_sees=True,
    ),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.make.__name__)
def test_a_broken_environment_is_refused_or_flagged_for_the_right_reason(
    case: Broken, tmp_path: Path
) -> None:
    place = Place(tmp_path / "environment")
    case.make(place)
    checked, proof = inspect_environment(place.python, Uv(), EnvironmentTrial())
    verdict, reason = judge(checked.conflicts, proof)
    said = " | ".join([reason or "", *(conflict.reason or "" for conflict in checked.conflicts)])
    assert (verdict, case.says in said) == (case.verdict, True), said
    assert place.pip_check() is not case.pip_sees


def test_pip_check_alone_would_not_do() -> None:
    assert len(BROKEN) >= 15
    assert sum(not case.pip_sees for case in BROKEN) >= 8


SOUND: dict[str, tuple[str, ...]] = {
    "the embedded engine": LlamaCpp().card.requirements,
    "pandas": ("pandas", "numpy>=2"),
    "jinja2": ("jinja2",),
    "flask": ("flask",),
    "transformers": ("transformers", "numpy"),
    "requests": ("requests",),
    "fastapi": ("fastapi", "uvicorn"),
    "prefect as it has to be": ("prefect==3.8.8", "fastapi<0.151", "sqlalchemy<2.1"),
    "safetensors": ("safetensors", "numpy"),
    "one cuda": ("nvidia-cuda-runtime-cu12", "nvidia-nvtx-cu12"),
    "torch": ("torch==2.13.0", "numpy"),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_environment_passes(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "environment")
    place.install(*SOUND[name], options=torch_for_the_processor() if name == "torch" else ())
    checked, proof = inspect_environment(place.python, Uv(), EnvironmentTrial())
    verdict, reason = judge(checked.conflicts, proof)
    assert verdict is EnvironmentVerdict.SOUND, reason
    if name == "torch":
        computed = [computation.what for computation in proof.computations]
        assert "passing arrays from numpy to torch" in computed
