"""Every row of every table is needed: without it, a case, a maker's page or a field that tables add comes out differently.

Most questions are those of other tests, where the answers are written down. What GPUs, their compute capabilities and types
of weights are is written down here. Only pins, builds and wheels are asked about by their own rows: that shows that
no other row says the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from compatibility_cases import gpu
from packaging.requirements import Requirement
from packaging.version import Version

from tasks.compatibility import fact_tables
from tasks.compatibility.devices import fault_row
from tasks.compatibility.drivers import native_cuda, tegra_row
from tasks.compatibility.makers import compare, read_pages
from tasks.compatibility.matrix import matrix_of
from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.reported import of_image
from tasks.compatibility.rules import BuildRow, GlibcRow, PinRow, Row, Tables, load_tables
from tasks.compatibility.subject import describe
from tasks.compatibility.way_out import advise
from tasks.compatibility.weights import ServedModel, floor_of, types_served
from tasks.core.errors import SlipwayError
from tasks.core.facts import Facts
from tests.unit.compatibility import test_driver_tables as of_drivers
from tests.unit.compatibility import test_kernels as of_kernels
from tests.unit.compatibility import test_release_tables as of_releases
from tests.unit.compatibility import test_reported as of_reports
from tests.unit.compatibility import test_reports as reports
from tests.unit.compatibility import test_truth_table as truth_table
from tests.unit.compatibility import test_way_out as of_ways
from tests.unit.compatibility import test_weights as of_weights

FULL = load_tables()
T = TypeVar("T")

GPUS = """
-    no    NVIDIA GeForce GTX 1660
8.6  no    NVIDIA GeForce RTX 3090
8.9  no    NVIDIA GeForce RTX 4090
12.0 no    NVIDIA GeForce RTX 5090
-    no    NVIDIA TITAN V
-    some  Quadro P6000
-    some  NVIDIA RTX 4000 SFF Ada Generation
8.6  some  NVIDIA RTX A6000
12.1 some  NVIDIA GB10
8.7  yes   Orin (nvgpu)
8.7  yes   Jetson (tegra234)
11.0 yes   NVIDIA Thor
11.0 yes   Jetson (tegra264)
7.2  yes   Xavier
7.2  yes   Jetson-AGX (tegra194)
6.2  yes   quill (tegra186)
5.3  yes   Jetson Nano Developer Kit (tegra210)
3.7  yes   Tesla K80
5.2  yes   Tesla M40 24GB
5.2  yes   Tesla M60
6.0  yes   Tesla P100-PCIE-16GB
6.1  yes   Tesla P4
6.1  yes   Tesla P40
7.0  yes   Tesla V100-SXM2-32GB
7.5  yes   Tesla T4
8.0  yes   NVIDIA A100-SXM4-40GB
8.0  yes   NVIDIA A800-SXM4-80GB
8.0  yes   NVIDIA A30
8.6  yes   NVIDIA A10
8.6  yes   NVIDIA A10G
8.6  yes   NVIDIA A16
8.6  yes   NVIDIA A2
8.6  yes   NVIDIA A40
8.9  yes   NVIDIA L4
8.9  yes   NVIDIA L20
8.9  yes   NVIDIA L40
8.9  yes   NVIDIA L40S
9.0  yes   NVIDIA H100 80GB HBM3
9.0  yes   NVIDIA H20
9.0  yes   NVIDIA H200
9.0  yes   NVIDIA H800
9.0  yes   NVIDIA GH200 480GB
10.0 yes   NVIDIA B200
10.0 yes   NVIDIA GB200
10.3 yes   NVIDIA B300 SXM6 AC
10.3 yes   NVIDIA GB300
""".strip().splitlines()
"""Compute capability, whether NVIDIA lists the GPU for cuda-compat, and its NVML name, or what a survey calls a Jetson."""

CAPABILITIES = """
2.0  3.0  8.0  390
2.1  3.2  8.0  390
3.0  5.0  10.2 470
3.5  5.0  11.8 470
3.7  6.5  11.8 470
5.0  6.5  12.9 580
5.2  6.5  12.9 580
5.3  6.5  12.9 -
6.0  8.0  12.9 580
6.1  8.0  12.9 580
6.2  8.0  12.9 -
7.0  9.0  12.9 580
7.2  9.0  12.9 -
7.5  10.0 -    -
8.0  11.0 -    -
8.6  11.1 -    -
8.7  11.4 -    -
8.9  11.8 -    -
9.0  11.8 -    -
10.0 12.8 -    -
10.3 12.9 -    -
11.0 13.0 -    -
12.0 12.8 -    -
12.1 12.9 -    -
""".strip().splitlines()
"""The first nvcc that compiles for it, the last one, and the last driver branch other than Tegra's that drives it."""

WAYS = ("a P100, for which vLLM has never held code", "FlashAttention 2.8")
"""Ways out that lead to the newest Transformers, Ollama and llama.cpp, or no further than the newest version."""

INSTEAD = """
llama.cpp 2026.10.11549 8.0  bfloat16 float16 mxfp4 q8_0 q6_k
llama.cpp 2026.10.11549 8.0  q2_k q3_k_s q3_k_l iq4_xs q4_0
llama.cpp 2026.10.11549 8.0  q3_k_s q2_k q3_k_l iq4_xs q4_0
llama.cpp 2026.10.11549 8.0  q4_0 iq4_xs q4_k_s iq4_nl q3_k_l
llama.cpp 2026.10.11549 8.0  q4_1 q4_k_m iq4_nl q4_k_s q4_0
llama.cpp 2026.10.11549 8.0  q5_0 q5_k_s q5_k_m q4_1 q5_1
llama.cpp 2026.10.11549 8.0  q5_1 q5_k_m q5_k_s q5_0 q6_k
llama.cpp 2026.10.11549 8.0  q8_0 q6_k q5_1 q5_k_m q5_k_s
vllm      0.9.2         9.0  bfloat16 float16 fp8 fp8-block int8
vllm      0.9.2         9.0  float16 bfloat16 fp8 fp8-block int8
vllm      0.9.2         9.0  fp8 fp8-block int8 awq gptq
vllm      0.9.2         9.0  bnb-int8 bnb-nf4 fp8 fp8-block int8
vllm      0.9.2         9.0  bnb-nf4 bnb-int8 q4_0 iq4_xs q4_k_s
vllm      0.33.0        10.0 awq gptq mxfp4 w4a16 nvfp4
""".strip().splitlines()
"""Engine, release, capability of the GPU, a type of weights, and the four that are told instead of it."""


@dataclass(frozen=True)
class Question:
    """What can be asked of tables; `text` contains the keys of rows that may matter."""

    text: str
    ask: Callable[[Tables], object]


@functools.cache
def of_all(question: Question) -> object:
    """The answer with all rows."""
    return question.ask(FULL)


def answer(question: Question, tables: Tables) -> object:
    """That there is none any more is another answer."""
    try:
        return question.ask(tables)
    except (LookupError, SlipwayError, StopIteration) as error:
        return error


def fields(facts: dict[str, Any], tables: Tables) -> dict[str, Any]:
    subject = describe(Survey(facts=Facts.model_validate(facts)), tables)
    return {**subject.values, **(subject.gpus or [{}])[0]}


def about_gpu(line: str, tables: Tables) -> str:
    name = line.split(maxsplit=2)[2]
    found = fields({"gpus": [gpu(name)]}, tables)
    return f"{found.get('gpu.compute_capability', '-'):<4} {found['gpu.forward_compat']:<5} {name}"


def about_capability(line: str, tables: Tables) -> str:
    cc = line.split()[0]
    found = fields({"gpus": [gpu("a GPU", cc)]}, tables)
    names = ("gpu.nvcc", "gpu.last_cuda", "gpu.last_branch")
    return " ".join([f"{cc:<4}", *(f"{found[name] or '-':<4}" for name in names)]).strip()


def verdict_on(facts: dict[str, Any], tables: Tables) -> object:
    result = judge(Survey(facts=Facts.model_validate(facts)), tables=tables)
    return result.verdict, {finding.rule: finding.severity for finding in result.findings}


def triton_of(torch: str, tables: Tables) -> object:
    return fields({"packages": {"torch": torch}}, tables)["triton"]


def type_of(dtype: str, tables: Tables) -> object:
    return fields({"dtype": dtype}, tables)["dtype"]


def fits(engine: str, tables: Tables) -> object:
    return matrix_of(engine, tables=tables)


def ways_out(told: tuple[str, dict[str, Any], list[str]], tables: Tables) -> list[str]:
    return [way.text for way in advise(of_ways.survey_of(told[1]), tables=tables).ways_out]


def of_makers(_: str, tables: Tables) -> object:
    rows = {
        name: [row.model_dump() for row in getattr(tables, name)]
        for name in ("branches", "releases", "pythons")
    }
    return compare(rows, read_pages())


def instead(line: str, tables: Tables) -> str:
    engine, release, capability, dtype = line.split()[:4]
    others = types_served(ServedModel(engine, release, None, None, dtype), capability, tables)
    return f"{engine:<9} {release:<13} {capability:<4} {dtype} {' '.join(others)}"


def listed(answers: Iterable[T], ask: Callable[[T, Tables], object]) -> list[Question]:
    return [Question(repr(one), functools.partial(ask, one)) for one in answers]


@functools.cache
def cases() -> list[Question]:
    """Of the truth table, and those that the public reports tell."""
    told = [
        case["facts"]
        for name in ("cases.json", "new.json")
        for param in reports.load(name)
        for case in param.values
    ]
    return [*listed(truth_table.CASES, truth_table.run), *listed(told, verdict_on)]


@functools.cache
def questions(table: str) -> list[Question]:
    """What is known of a table besides the cases."""
    makers = listed(["pages"], of_makers)
    return {
        "branches": [
            *makers,
            *listed(of_drivers.DRIVERS, lambda driver, tables: native_cuda(Facts(driver=driver), tables)),
        ],
        "capabilities": listed(CAPABILITIES, about_capability),
        "compat": listed(
            of_drivers.COMPAT.items(),
            lambda row, tables: of_drivers.rules(of_drivers.loaded(row[0], row[1][1]), tables),
        ),
        "faults": listed(of_drivers.FAULTS, fault_row),
        "floors": listed(
            of_weights.FLOORS, lambda row, tables: floor_of(ServedModel(*row[:3]), row[3], tables)
        ),
        "gpus": listed(GPUS, about_gpu),
        "images": listed([name for name, _ in of_reports.IMAGES], of_image),
        "jit": listed(of_kernels.STARTS, lambda row, tables: of_kernels.starts(tables, *row[:3])),
        "kernels": listed(of_kernels.RUNS, lambda row, tables: of_kernels.torch_runs(tables, *row[:3])),
        "newest": listed([row for row in of_ways.EXPECTED if row[0].startswith(WAYS)], ways_out),
        "nvcc": listed(of_kernels.NVCC, lambda row, tables: of_kernels.nvcc(tables, *row[:2])),
        "nvswitch": listed(of_drivers.BOARDS, of_drivers.about_board),
        "pythons": makers,
        "releases": [*makers, *listed(of_kernels.PINS, triton_of), *listed(["ollama", "llama.cpp"], fits)],
        "tegra": listed([driver for driver, *_ in of_drivers.TEGRA.values()], tegra_row),
        "triton": listed(of_kernels.ASSEMBLERS, lambda row, tables: of_kernels.assemblers(tables, row)),
        "weight_types": [*listed(INSTEAD, instead), *listed(["fp32"], type_of)],
        "weights": listed(of_weights.SERVED, of_weights.row_of),
    }.get(table, [])


def about(row: Row) -> Iterator[Question]:
    """Packages that a row of a big table must tell apart."""
    if isinstance(row, PinRow):
        release = of_releases.first(row.releases)
        for requirement in map(Requirement, row.requires):
            for version in wrong_versions(requirement):
                yield of_packages({row.package: release, requirement.name: version})
    elif isinstance(row, BuildRow):
        release = of_releases.first(row.releases)
        dtype = next(iter(row.types), "float16")
        for cuda in ("110", "120", "124", "128", "129", "130", "140"):
            yield of_packages({row.package: release, "torch": f"2.9.1+cu{cuda}"}, dtype=dtype)
    elif isinstance(row, GlibcRow):
        local = f"+{row.build}" if row.build else ""
        release = of_releases.first(row.releases) + local
        own = {"engine": row.package, "engine_version": release, "cpu": row.platform}
        yield of_packages(
            {row.package: release}, **({**own, "cuda_build": None, "gpus": []} if row.platform else {})
        )


def wrong_versions(requirement: Requirement) -> Iterator[str]:
    """Versions next to each bound that the requirement excludes, and versions far from it."""
    for spec in requirement.specifier:
        release = Version(spec.version.removesuffix(".*")).release
        yield from (".".join(map(str, (*release[:-1], number))) for number in (release[-1], release[-1] + 1))
    yield from ("0.1", "99.0")


def of_packages(packages: dict[str, str], **host: Any) -> Question:
    return Question(repr(packages), lambda tables: fields({"packages": packages, **host}, tables))


def keys(table: str, row: Row) -> list[str]:
    found = [getattr(row, name) for name in fact_tables._KEYS[table]]
    return [str(one) for key in found for one in (key if isinstance(key, tuple) else (key,)) if one]


def is_needed(table: str, row: Row) -> bool:
    """Whether an answer depends on the row. Questions that name what it is about are asked first."""
    rest = FULL.model_copy(update={table: tuple(one for one in getattr(FULL, table) if one is not row)})
    names = keys(table, row)

    def nearness(question: Question) -> int:
        return -sum(name in question.text for name in names)

    asked = sorted(questions(table), key=nearness), about(row), sorted(cases(), key=nearness)
    return any(answer(question, rest) != of_all(question) for some in asked for question in some)


@pytest.mark.parametrize("table", fact_tables.FILES)
def test_every_row_is_needed(table: str) -> None:
    assert [keys(table, row) for row in getattr(FULL, table) if not is_needed(table, row)] == []


@pytest.mark.parametrize("line", GPUS)
def test_a_gpu_is_known_by_its_name(line: str) -> None:
    assert about_gpu(line, FULL) == line


@pytest.mark.parametrize("line", CAPABILITIES)
def test_each_capability_has_its_compilers_and_drivers(line: str) -> None:
    assert about_capability(line, FULL) == line


@pytest.mark.parametrize("line", INSTEAD)
def test_the_nearest_types_of_weights_are_told(line: str) -> None:
    assert instead(line, FULL) == line
