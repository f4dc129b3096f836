"""Conda packages by py-rattler: solved, locked and installed without conda, mamba or a shell.

py-rattler is an extra of Slipway: it takes 80 MB, and most environments are made by uv.
"""

from __future__ import annotations

import asyncio
import platform
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from blocks.packages.uv import Uv
from tasks.core.digests import digest_of_file
from tasks.core.disk_faults import says_disk_full
from tasks.core.errors import (
    CommandError,
    DiskFullError,
    MissingToolError,
    NetworkError,
    NotFoundError,
    SlipwayError,
    SpecError,
    WrongUseError,
    one_line,
)
from tasks.environment.models import Conflict, Locked, LockRequest, Refusal

if TYPE_CHECKING:
    from rattler import LockPlatform

_SUBDIRS = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "ppc64le": "linux-ppc64le"}
_ENVIRONMENT = "default"
_UNREACHABLE = (
    "error sending request",
    "Connection refused",
    "dns error",
    "could not find subdir",
    "timed out",
)


class Conda:
    """A manager of environments whose Python and native libraries are conda packages as well."""

    def __init__(self) -> None:
        self._rattler = _load()
        self._uv = Uv()

    @property
    def platform(self) -> str:
        """The platform of this machine's locks."""
        return self._uv.platform

    @property
    def glibc(self) -> str | None:
        """Version of this machine's C library."""
        return self._uv.glibc

    def lacks(self, soname: str) -> bool:
        """Nothing: native libraries are packages of the channel."""
        return False

    def resolve(self, request: LockRequest, scratch: Path) -> str | Refusal:
        """A lock in rattler's format, or the solver's refusal.

        Raises `SpecError` for an invalid match spec or channel, and `NetworkError`.
        """
        rattler = self._rattler
        try:
            specs = [rattler.MatchSpec(line) for line in request.requirements]
        except (
            rattler.exceptions.InvalidMatchSpecError,
            rattler.exceptions.InvalidVersionSpecError,
        ) as error:
            raise SpecError(
                f"environment.requirements: {one_line(error)}", fix="write match specs, such as numpy >=2,<3"
            ) from None
        try:
            records = asyncio.run(
                rattler.solve(
                    sources=list(request.channels),
                    specs=specs,
                    virtual_packages=rattler.VirtualPackage.detect(),
                    exclude_newer=_date(request.exclude_newer),
                )
            )
        except rattler.exceptions.SolverError as error:
            return Refusal(
                reason=one_line(error, longest=None).removeprefix("Cannot solve the request because of: ")
            )
        except rattler.exceptions.InvalidChannelError as error:
            raise SpecError(
                f"environment.channels: {one_line(error)}", fix="give the address of a channel"
            ) from None
        except (rattler.exceptions.GatewayError, rattler.exceptions.FetchRepoDataError) as error:
            raise _fault("locking the environment", error) from error
        return self._render(request, records, scratch / "conda.lock")

    def install(self, locked: Locked, folder: Path, final: Path) -> Path:
        """Install the lock's packages, each verified by its hash; paths in them are below `final`."""
        rattler = self._rattler
        lock_file = rattler.LockFile.from_path(str(locked.path))
        environment = lock_file.environment(_ENVIRONMENT)
        if environment is None:
            raise WrongUseError(f"{locked.path} does not contain an environment", fix="make the lock again")
        # rattler only accepts the lock's own platform object.
        here = next((one for one in environment.platforms() if one.name == self._subdir()), None)
        if here is None:
            raise WrongUseError(f"{locked.path} is not for {self._subdir()}", fix="make the lock again")
        records = environment.conda_repodata_records_for_platform(here)
        for record in records:
            _check_local(record.url, record.sha256)
        try:
            asyncio.run(
                rattler.install(
                    records, target_prefix=folder, alternative_target_prefix=final, show_progress=False
                )
            )
        except (
            rattler.exceptions.InstallerError,
            rattler.exceptions.LinkError,
            rattler.exceptions.TransactionError,
            rattler.exceptions.ExtractError,
            rattler.exceptions.CacheDirError,
            rattler.exceptions.IoError,
        ) as error:
            raise _fault("installing the environment", error) from error
        return folder / "bin" / "python"

    def complaints(self, python: Path) -> tuple[Conflict, ...]:
        """Installed Python packages whose requirements are not met."""
        return self._uv.complaints(python)

    def _render(self, request: LockRequest, records: list[Any], path: Path) -> str:
        rattler = self._rattler
        here: LockPlatform = rattler.LockPlatform(self._subdir())
        lock_file = rattler.LockFile([here])
        lock_file.set_channels(_ENVIRONMENT, [rattler.LockChannel(channel) for channel in request.channels])
        for record in records:
            lock_file.add_conda_package(_ENVIRONMENT, here, record)
        lock_file.to_path(path)
        return path.read_text()

    def _subdir(self) -> str:
        machine = platform.machine()
        return _SUBDIRS.get(machine, f"linux-{machine}")


def _check_local(url: str, sha256: bytes | None) -> None:
    """rattler verifies downloads by their hash, but not files in a channel that is a folder."""
    if not url.startswith("file:"):
        return
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        raise NotFoundError(f"the package {path} of the lock is gone", fix="lock again")
    if sha256 is None or digest_of_file(path) != f"sha256:{sha256.hex()}":
        raise CommandError(
            f"the package {path} is not the one that was locked", fix="find out who changed it, or lock again"
        )


def _load() -> ModuleType:
    try:
        import rattler
        import rattler.exceptions
    except ImportError:
        raise MissingToolError(
            "py-rattler, which makes conda environments, is not installed", fix="pip install 'slipway[conda]'"
        ) from None
    return rattler


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _fault(doing: str, error: Exception) -> SlipwayError:
    text = str(error)
    if says_disk_full(text):
        return DiskFullError(f"no space left on the disk while {doing}", fix="free space on it", detail=text)
    if any(sign in text for sign in _UNREACHABLE):
        return NetworkError(
            f"cannot reach a channel while {doing}: {one_line(error)}",
            fix="check the network and environment.channels",
        )
    return CommandError(f"rattler failed while {doing}: {one_line(error)}")
