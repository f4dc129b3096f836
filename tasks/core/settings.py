"""Where Slipway keeps things, read once from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tasks.core.errors import WrongUseError

BUSY_SHARE = 0.1
"""Share of the CPUs that others may use during a measurement."""


@dataclass(frozen=True)
class Settings:
    """Locations and limits. `records` and `registry` are a folder's path or `s3://bucket/prefix`.

    `haproxy` is the program that proxies are started with; None for the one that is installed with Slipway.
    Figures measured while others used more than `busy_share` of the CPUs are marked.
    """

    home: Path
    records: str
    registry: str
    s3_endpoint: str | None
    models_limit_bytes: int | None = None
    busy_share: float = BUSY_SHARE
    haproxy: str | None = None

    @classmethod
    def load(cls) -> Settings:
        """Settings from `SLIPWAY_HOME`, `SLIPWAY_RECORDS`, `SLIPWAY_REGISTRY`, `SLIPWAY_S3_ENDPOINT`,
        `SLIPWAY_MODELS_LIMIT`, `SLIPWAY_BUSY_SHARE` and `SLIPWAY_HAPROXY`. Raises `WrongUseError` for an
        invalid value, and if there is no home."""
        home = home_folder()
        return cls(
            home=home,
            records=os.environ.get("SLIPWAY_RECORDS") or str(home / "records"),
            registry=os.environ.get("SLIPWAY_REGISTRY") or str(home / "registry"),
            s3_endpoint=os.environ.get("SLIPWAY_S3_ENDPOINT") or None,
            models_limit_bytes=_size("SLIPWAY_MODELS_LIMIT"),
            busy_share=_share("SLIPWAY_BUSY_SHARE", BUSY_SHARE),
            haproxy=os.environ.get("SLIPWAY_HAPROXY") or None,
        )

    @property
    def locks(self) -> Path:
        """Hash locks of environments, named by the digest of the request."""
        return self.home / "locks"

    @property
    def environments(self) -> Path:
        """Built virtual environments, named by the digest of their lock."""
        return self.home / "environments"

    @property
    def models(self) -> Path:
        """Staged models, named by the digest of their source."""
        return self.home / "models"

    @property
    def candidates(self) -> Path:
        """Quantized models, named by the digest of model and format."""
        return self.home / "candidates"

    @property
    def tables(self) -> Path:
        """Checks of the fact tables and their pages, named by the digest of the tables."""
        return self.home / "tables"

    @property
    def services(self) -> Path:
        """One folder per service: its releases, supervisor state, logs and samples."""
        return self.home / "services"

    @property
    def leases(self) -> Path:
        """File locks: on services, on shared folders while they are written, on measuring."""
        return self.home / "leases"

    def service_lease(self, name: str) -> Path:
        """The lock of one service: deploys, rollbacks and stops of it take turns."""
        return self.leases / f"service-{name}"

    @property
    def prefect_home(self) -> Path:
        """Database, profile and logs of the local Prefect server."""
        return self.home / "prefect"


def home_folder() -> Path:
    """The folder that `SLIPWAY_HOME` names, by default `~/.slipway`, with all links resolved.

    Processes and documents are found again by paths in it, so every spelling must give the same path. Raises
    `WrongUseError` if it does not exist for this user.
    """
    given = os.environ.get("SLIPWAY_HOME")
    try:
        return Path(os.path.realpath(Path(given or "~/.slipway").expanduser()))
    except RuntimeError:
        named = f"SLIPWAY_HOME is {given!r}, and that user" if given else f"user {os.getuid()}"
        raise WrongUseError(
            f"{named} has no home folder here", fix="set SLIPWAY_HOME to a folder that you can write to"
        ) from None


def _size(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    from tasks.core.spec_values import parse_size  # imported only when needed: it takes time to load

    try:
        return parse_size(text)
    except ValueError as error:
        raise WrongUseError(f"{name} is {text!r}, not {error}") from None


def _share(name: str, otherwise: float) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else otherwise
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise WrongUseError(f"{name} is {text!r}, not a share from 0 to 1", fix="write it as 0.1")
    return value
