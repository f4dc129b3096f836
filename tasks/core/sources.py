"""How the source of a model is written: a scheme, and what follows it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILE, S3, HUB, OCI, ARTIFACTS, REGISTRY = "file:", "s3://", "hf:", "oci://", "mlflow-artifacts:/", "models:/"

GGUF = ".gguf"
"""How the name of a source ends that is one file of a folder."""

_VARIANT = re.compile(
    r"(?P<place>.*)#(?P<variant>(?:ud-)?(?:i?q[0-9][a-z0-9_]*|tq[0-9]_[0-9]|bf16|fp?16|fp?32|mxfp4[a-z0-9_]*|nvfp4))",
    re.IGNORECASE | re.DOTALL,
)
"""Only names of quantizations count: the name of a folder may contain `#`."""

SCHEMES = {
    FILE: "file:PATH",
    S3: "s3://BUCKET/PREFIX",
    HUB: "hf:ORG/NAME@REVISION",
    OCI: "oci://HOST/NAME:TAG",
    ARTIFACTS: "mlflow-artifacts:/PATH",
    REGISTRY: "models:/NAME@ALIAS",
}
"""All schemes, each with the form of such a source. `blocks/storage/sources.py` says what they mean."""

*_first, _last = (
    form for scheme, form in SCHEMES.items() if scheme != ARTIFACTS
)  # MLflow's own way to write it
FORMS = f"{', '.join(_first)} or {_last}"


_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
_HUB = re.compile(
    rf"{HUB}(?P<repository>{_REPOSITORY}/{_REPOSITORY}?)"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9_./-]{0,199}?))?(?:/(?P<file>[^/@#]+\.gguf))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubReference:
    """A repository on a Hugging Face hub at a branch, tag or commit; one of its GGUF files if that is meant."""

    repository: str
    revision: str = "main"
    file: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return f"{HUB}{self.repository}@{self.revision}" + (f"/{self.file}" if self.file else "")


_LONGEST_NAME = 255
_OCI = re.compile(
    rf"{OCI}(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{{0,252}}(?::[0-9]{{1,5}})?)"
    r"/(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64})(?:/(?P<file>[^/@#]+\.gguf))?)?"
)


@dataclass(frozen=True)
class OciReference:
    """An artifact in a registry of images: `digest` once it is pinned, before that a tag."""

    host: str
    name: str
    tag: str = "latest"
    digest: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        if self.digest is None:
            return f"{OCI}{self.host}/{self.name}:{self.tag}"
        return f"{OCI}{self.host}/{self.name}@{self.digest}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are, such as `file:/ABSOLUTE/PATH` or `hf:ORG/NAME@COMMIT`; its version if it has one.

    A path or prefix that ends in `.gguf` is one file; `#q4_k_m` behind a folder chooses one of its GGUF models.
    """

    source: str
    version: str | None = None


def scheme_of(source: str) -> str | None:
    """The scheme of a source; None if it has none of these."""
    return next((scheme for scheme in SCHEMES if source.startswith(scheme)), None)


def split_variant(source: str) -> tuple[str, str | None]:
    """A source without the quantization that it asks for, and that in small letters: `file:/m#q4_k_m`."""
    found = _VARIANT.fullmatch(source)
    return (found["place"], found["variant"].lower()) if found else (source, None)


def with_variant(source: str, variant: str | None) -> str:
    """The reverse of `split_variant`."""
    return f"{source}#{variant}" if variant else source


def local_folder(source: str) -> Path | None:
    """The folder, or the GGUF file, that `file:PATH` names; None for any other source."""
    place, _ = split_variant(source)
    return Path(place.removeprefix(FILE)) if place.startswith(FILE) else None


def parse_hub(source: str) -> HubReference | None:
    """What `hf:ORG/NAME@REVISION` or `hf:ORG/NAME@REVISION/FILE.gguf` names; without a revision `main`. None for any
    other text."""
    found = _HUB.fullmatch(source)
    if found is None or ".." in source or "//" in source:
        return None
    return HubReference(found["repository"], found["revision"] or "main", found["file"])


def parse_oci(source: str) -> OciReference | None:
    """What `oci://HOST/NAME:TAG`, `oci://HOST/NAME@sha256:DIGEST` or the latter with `/FILE.gguf` names; without tag
    and digest `latest`. None for any other text."""
    found = _OCI.fullmatch(source)
    if found is None or len(found["name"]) > _LONGEST_NAME:
        return None
    return OciReference(
        found["host"], found["name"], found["tag"] or "latest", found["digest"], found["file"]
    )
