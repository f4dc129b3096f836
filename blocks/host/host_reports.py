"""What a text that somebody pasted says of a host: nvidia-smi in any form, nvcc, ldd, torch's collect_env. Pure.

The text may hold prompts, quotes, several outputs, and anything else. What it does not say stays unknown.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blocks.host.nvidia_tools import parse_nvcc, parse_nvidia_smi
from blocks.processes.process import Finished
from tasks.compatibility.models import SmiReading, Survey
from tasks.core.facts import Facts, Gpu, version_or_none

_NOISE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r|^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
_BLANKS = re.compile(r"[^\S\n]+")
_LONGEST_LINE = 2000
"""What follows in a line, and blanks in a row, can only make patterns slow."""
_FAILED = re.compile(r"NVIDIA-SMI has failed|Failed to initialize NVML|Unable to determine the device handle")
_NO_DEVICES = re.compile(r"^No devices were found", re.MULTILINE)
_LISTED = re.compile(
    r"^(?:GPU models and configuration: )?GPU ([0-9]{1,3}): (.+?)(?: \(UUID: ([^)\s]+)\))?[ \t]*$",
    re.MULTILINE,
)
_QUERIED = re.compile(r"^GPU [0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9][ \t]*$", re.MULTILINE)
_PRODUCT = re.compile(r"^\s*Product Name\s*:\s*(\S.*?)\s*$", re.MULTILINE)
_QUERIED_UUID = re.compile(r"^\s*GPU UUID\s*:\s*(\S+)", re.MULTILINE)
_FRAME_BUFFER = re.compile(r"^\s*FB Memory Usage\s*\n\s*Total\s*:\s*([0-9]{1,8}) MiB", re.MULTILINE)
_ROW = re.compile(
    r"^\|\s+([0-9]{1,3})\s+(\S.*?)\s+(?:On|Off|N/A|TCC|WDDM|MCDM)\s+\|\s*(?:[0-9A-Fa-f]{4,8}:|N/A).*\n"
    r"(?:^\|[^|\n]*\|\s*[0-9]+MiB\s*/\s*([0-9]{1,8})MiB)?",
    re.MULTILINE,
)
_QUERY_HEAD = re.compile(r"(?:[a-z_.]+, )*name, [a-z]")
_CUT = "..."
_VERSION = r"([0-9]{1,5}(?:\.[0-9]{1,5}){1,3})"
_GLIBC = re.compile(rf"^(?:Libc version:\s*glibc-|ldd \([^)\n]*\) ){_VERSION}", re.MULTILINE)
_DISTRIBUTION = re.compile(
    r'^(?:PRETTY_NAME=|OS:\s*)"?([^"\n]{1,80}?)(?: \([a-z0-9_]+\))?"?\s*$', re.MULTILINE
)
_COLLECTED: Mapping[str, re.Pattern[str]] = {
    "driver": re.compile(rf"^Nvidia driver version:\s*{_VERSION}", re.MULTILINE),
    "nvcc": re.compile(rf"^CUDA runtime version:\s*{_VERSION}", re.MULTILINE),
    "cuda_build": re.compile(rf"^CUDA used to build PyTorch:\s*{_VERSION}", re.MULTILINE),
}
"""What torch's and vLLM's collect_env print."""
_MIB = 2**20


def parse_host_report(text: str) -> Survey:
    """The facts that the text states, and the fault if it shows that the driver does not work."""
    text = _BLANKS.sub(" ", _NOISE.sub("", text))
    text = "\n".join(line[:_LONGEST_LINE] for line in text.splitlines() if line.strip())
    smi = _smi(text)
    gpus = _gpus(text)
    collected = {name: found[1] for name, pattern in _COLLECTED.items() if (found := pattern.search(text))}
    read: dict[str, str | None] = {
        **collected,
        "driver": smi.driver or collected.get("driver") or next(_queried(text), {}).get("driver_version"),
        "cuda_driver": smi.cuda_driver,
        "nvcc": parse_nvcc(text) or collected.get("nvcc"),
        "glibc": (libc := _GLIBC.search(text)) and libc[1],
    }
    known: dict[str, Any] = {name: value for name, value in read.items() if version_or_none(value)}
    if named := _DISTRIBUTION.search(text):
        known["distribution"] = named[1].lower()
    if gpus or _NO_DEVICES.search(text):
        known["gpus"] = gpus
    return Survey(facts=Facts(**known), fault=smi.fault)


def _smi(text: str) -> SmiReading:
    """What nvidia-smi says in the text; a line that it prints where it fails is its fault."""
    failed = next((line.strip() for line in text.splitlines() if _FAILED.search(line)), None)
    done = Finished(("nvidia-smi",), 0, text, "", 0.0)
    reading = parse_nvidia_smi(done, done)
    return reading if failed is None else reading.model_copy(update={"fault": f"nvidia-smi: {failed[:200]}"})


def _gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs by index: named by the first form that names them whole, with the memory that any form gives."""
    forms = [dict(form(text)) for form in (_by_query, _by_list, _by_log, _by_banner)]
    indexes = sorted({index for form in forms for index in form})
    return tuple(_merge([form[index] for form in forms if index in form]) for index in indexes)


def _merge(seen: Sequence[Gpu]) -> Gpu:
    whole = [gpu for gpu in seen if not gpu.name.endswith(_CUT)] or seen
    name = whole[0].name.removesuffix(_CUT).strip()
    values = {
        field: next((value for gpu in seen if (value := getattr(gpu, field)) is not None), None)
        for field in ("compute_capability", "memory_bytes", "uuid")
    }
    return Gpu(name=name, **values)


def _by_list(text: str) -> Iterator[tuple[int, Gpu]]:
    """`nvidia-smi -L`, and collect_env."""
    for index, name, uuid in reversed(_LISTED.findall(text)):
        yield int(index), Gpu(name=name, uuid=uuid or None)


def _by_log(text: str) -> Iterator[tuple[int, Gpu]]:
    """`nvidia-smi -q`."""
    for index, block in enumerate(_QUERIED.split(text)[1:]):
        name, uuid, memory = (found.search(block) for found in (_PRODUCT, _QUERIED_UUID, _FRAME_BUFFER))
        if name:
            size = int(memory[1]) * _MIB if memory else None
            yield index, Gpu(name=name[1], uuid=uuid and uuid[1], memory_bytes=size)


def _by_banner(text: str) -> Iterator[tuple[int, Gpu]]:
    """The table, which cuts long names."""
    for index, name, memory in reversed(_ROW.findall(text)):
        yield int(index), Gpu(name=name, memory_bytes=int(memory) * _MIB if memory else None)


def _by_query(text: str) -> Iterator[tuple[int, Gpu]]:
    """`nvidia-smi --query-gpu=name,… --format=csv`."""
    for index, row in enumerate(_queried(text)):
        memory = re.fullmatch(r"([0-9]{1,8}) MiB", row.get("memory.total", ""))
        capability = re.fullmatch(r"[0-9]{1,2}\.[0-9]", row.get("compute_cap", ""))
        yield (
            index,
            Gpu(
                name=row["name"],
                uuid=row.get("uuid"),
                compute_capability=capability and capability[0],
                memory_bytes=int(memory[1]) * _MIB if memory else None,
            ),
        )


def _queried(text: str) -> Iterator[dict[str, str]]:
    """Values by column for each GPU, up to the first line that is not a row."""
    lines = text.splitlines()
    head = next((place for place, line in enumerate(lines) if _QUERY_HEAD.match(line)), None)
    if head is None:
        return
    columns = [column.split()[0] for column in lines[head].split(", ")]
    for cells in csv.reader(lines[head + 1 :], skipinitialspace=True):
        if len(cells) != len(columns):
            return
        yield dict(zip(columns, cells, strict=True))
