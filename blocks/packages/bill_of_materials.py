"""A lock as a bill of materials: CycloneDX 1.6 in JSON, made with the CycloneDX library."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from tasks.core.digests import digest_of, short
from tasks.core.spec_kinds import EnvironmentManager
from tasks.environment.locks import LockFile, Pin

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHA256 = "sha256:"


def bill_of_materials(lock: LockFile) -> str:
    """Each package with its version, package URL, the hashes that its file may have, and what requires it.

    The same lock gives the same document: its serial number is made from its content, its time is the epoch.
    """
    digest = digest_of([pin.model_dump(mode="json") for pin in sorted(lock.pins, key=lambda pin: pin.name)])
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"slipway-lock:{digest}"))
    bom.metadata.timestamp = _EPOCH
    bom.metadata.tools.components.add(
        Component(name="slipway", version=version("slipway"), type=ComponentType.APPLICATION)
    )
    conda = lock.request is not None and lock.request.manager is EnvironmentManager.CONDA
    components = {pin.name: _component(pin, "conda" if conda else "pypi") for pin in lock.pins}
    for component in components.values():
        bom.components.add(component)
    bom.metadata.component = root = _root(lock, digest)
    askers = {pin.name: set(pin.required_by) & components.keys() for pin in lock.pins}
    bom.register_dependency(root, [components[name] for name, by in askers.items() if not by])
    for name, component in components.items():
        bom.register_dependency(component, [components[other] for other, by in askers.items() if name in by])
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _root(lock: LockFile, digest: str) -> Component:
    asked = lock.request.model_dump(include={"python", "platform", "torch_backend"}) if lock.request else {}
    properties = [Property(name=f"slipway:{key}", value=value) for key, value in asked.items() if value]
    return Component(
        name="slipway-environment",
        version=short(digest),
        type=ComponentType.APPLICATION,
        bom_ref="environment",
        properties=properties,
    )


def _component(pin: Pin, kind: str) -> Component:
    url = PackageURL(kind, name=pin.name, version=pin.version)
    sums = [digest.removeprefix(_SHA256) for digest in pin.hashes if digest.startswith(_SHA256)]
    return Component(
        name=pin.name,
        version=pin.version,
        type=ComponentType.LIBRARY,
        purl=url,
        bom_ref=str(url),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content) for content in sums],
    )
