"""What kind of device a GPU is: a part of one (MIG, vGPU), or one on a board with NVSwitch. Pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from packaging.version import Version

from tasks.compatibility.conditions import Value
from tasks.compatibility.rules import FaultRow, Tables
from tasks.core.facts import Facts, Gpu

_VGPU = re.compile(r"\S+-(?:[0-9]-)?[0-9]{1,3}([ABCQ])(?:ME)?$")
"""vGPU types: `GRID P40-24Q`, `NVIDIA L40S-48C`, and on MIG `NVIDIA A100-3-20C`."""
_INSTANCE = re.compile(r"\bMIG ([0-9]{1,2}g\.[0-9]{1,3}gb\S*)$")
"""As CUDA names the GPU to a process that sees one instance: `NVIDIA H100 80GB HBM3 MIG 2g.20gb`."""
_NO_INSTANCE = "no instance"
_OF_UNKNOWN_TYPE = "unknown type"


def describe_device(gpu: Gpu) -> dict[str, Value]:
    """The fields `gpu.mig`, `gpu.virtual` (a vGPU's series), `gpu.profile`, `gpu.licensed` and `gpu.driver_model`;
    None where nothing says that the GPU is of that kind."""
    match = _VGPU.search(gpu.name)
    instance = _INSTANCE.search(gpu.name)
    mig = (instance[1],) if instance and gpu.mig is None else gpu.mig
    return {
        "gpu.mig": None if mig is None else mig or (_NO_INSTANCE,),
        "gpu.virtual": match[1] if match else _OF_UNKNOWN_TYPE if gpu.virtual == "vgpu" else None,
        "gpu.profile": match[0] if match else gpu.name,
        "gpu.licensed": gpu.licensed,
        "gpu.driver_model": gpu.driver_model,
    }


def fabric(facts: Facts, tables: Tables) -> str | None:
    """State of NVIDIA's fabric manager where NVSwitch connects the GPUs; None on hosts without.

    `running`, `stopped`, `other version` than the driver's, or `not known`; `perhaps` with so few GPUs that the board
    may have no NVSwitch.
    """
    boards = [row.gpus for gpu in facts.gpus for row in tables.nvswitch if fnmatchcase(gpu.name, row.pattern)]
    if facts.fabric_manager is not None:
        version = facts.fabric_manager_version
        if facts.fabric_manager == "running" and version and facts.driver:
            return "running" if Version(version) == Version(facts.driver) else "other version"
        return facts.fabric_manager
    if facts.known("fabric_manager") or len(boards) < 2:
        return None
    return "not known" if len(boards) >= max(boards) else "perhaps"


def fault_row(fault: str, tables: Tables) -> FaultRow:
    """What is known about a fault. The table ends with a row for any."""
    return next(row for row in tables.faults if fnmatchcase(fault.lower(), row.pattern))
