"""How engines serve weights, release by release and GPU by GPU."""

from __future__ import annotations

import pytest

from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Tables, WeightsRow, load_tables
from tasks.compatibility.weights import UNKNOWN, ServedModel, find_type, floor_of, serving, types_served
from tasks.core.facts import Facts

CAPABILITIES = ("5.2", "6.0", "7.0", "7.5", "8.0", "8.9", "9.0", "10.0", "11.0", "12.0", "12.1")
LETTERS = {"native": "=", "emulated": "e", "weight-only": "w", "unpacked": "u", "refused": "x", UNKNOWN: "?"}

# Engine, the first release of which it is true, type, family; then a letter for each of CAPABILITIES.
SERVED = """
vllm         0.2.7         bfloat16  -            xxxx=======
vllm         0.2.7         float16   -            ===========
vllm         0.2.7         fp8       -            xxxxx??????
vllm         0.4.3         fp8       -            xxxxx======
vllm         0.5.1         fp8       -            xxxxw======
vllm         0.14.0        fp8       -            xxx?w======
vllm         0.16.0        fp8       -            xxxww======
vllm         0.2.7         fp8       deepseek-v3  xxxxx??????
vllm         0.4.3         fp8       deepseek-v3  xxxxx======
vllm         0.8.5         fp8       deepseek-v3  xxxxx======
vllm         0.9.0         fp8       deepseek-v3  xxxxw======
vllm         0.14.0        fp8       deepseek-v3  xxx?w======
vllm         0.16.0        fp8       deepseek-v3  xxxww======
vllm         0.2.7         fp8       deepseek-v4  xxxxx??????
vllm         0.4.3         fp8       deepseek-v4  xxxxx======
vllm         0.33.0        fp8       deepseek-v4  xxxxx======
vllm         0.2.7         fp8-block -            xxxxx??????
vllm         0.4.3         fp8-block -            xxxxx======
vllm         0.9.0         fp8-block -            xxxxw======
vllm         0.14.0        fp8-block -            xxxww======
vllm         0.16.0        fp8-block -            xxxww======
vllm         0.2.7         fp8-block deepseek     xxxxx??????
vllm         0.4.3         fp8-block deepseek     xxxxx======
vllm         0.33.0        fp8-block deepseek     xxxxx======
vllm         0.2.7         nvfp4     -            xxxxxxxxxxx
vllm         0.8.5         nvfp4     -            xxxxxxx=?xx
vllm         0.9.0         nvfp4     -            xxxxwww=?ww
vllm         0.10.1        nvfp4     -            xxxxwww=?=w
vllm         0.10.2        nvfp4     qwen3-moe    xxxxwww=?xw
vllm         0.12.0        nvfp4     qwen3-moe    xxxxwww====
vllm         0.11.2        nvfp4     -            xxxxwww====
vllm         0.15.1        nvfp4     -            xxxxwww====
vllm         0.15.0        nvfp4     qwen3-moe    xxxxwww==xx
vllm         0.16.0        nvfp4     -            xxxwwww====
vllm         0.2.7         mxfp4     -            xxxxxxxxxxx
vllm         0.10.1        mxfp4     -            xxxxwww=?ww
vllm         0.1.7         awq       -            xxxxxxxxxxx
vllm         0.2.0         awq       -            xxxx=======
vllm         0.2.1         awq       -            xxx========
vllm         0.1.7         gptq      -            xxxxxxxxxxx
vllm         0.2.5         gptq      -            xxxxxxxxxxx
vllm         0.2.6         gptq      -            x==========
vllm         0.2.7         w4a16     -            xxxx=======
vllm         0.12.0        w4a16     -            xxx========
vllm         0.2.7         int8      -            xxx====xxxx
vllm         0.2.7         int8      mixtral      xxxxxxxxxxx
vllm         0.9.0         int8      mixtral      xxx====xxxx
vllm         0.2.7         bnb-int8  -            xx?????????
vllm         0.5.1         bnb-int8  -            xx=========
vllm         0.28.0        bnb-int8  -            xxxxxxxxxxx
vllm         0.2.7         bnb-nf4   -            xx?????????
vllm         0.5.1         bnb-nf4   -            xx=========
vllm         0.28.0        bnb-nf4   -            xxxxxxxxxxx
vllm         0.2.7         bnb-nf4   qwen3-moe    xxxxxxxxxxx
vllm         0.10.0        bnb-nf4   qwen3-moe    xx=========
vllm         0.28.0        bnb-nf4   qwen3-moe    xxxxxxxxxxx
vllm         0.5.5         q4_k_m    -            ?==========
vllm         0.24.0        q4_k_m    -            xxxxxxxxxxx
sglang       0.4.9         bfloat16  -            wwww=======
sglang       0.4.9         bfloat16  gemma        xxxx=======
sglang       0.4.9         float16   -            ===========
sglang       0.4.0         fp8       -            xxxx?======
sglang       0.4.10        fp8       -            xxxxx======
sglang       0.5.1         fp8       -            xxxxx======
sglang       0.5.6         fp8       -            xxxxw======
sglang       0.4.9         fp8       qwen3-moe    xxxxx======
sglang       0.4.10        fp8-block -            xxxxx======
sglang       0.5.6         fp8-block -            xxxxw======
sglang       0.4.9         fp8-block deepseek-v3  xxxxx======
sglang       0.5.6         fp8-block deepseek-v3  xxxxx======
sglang       0.4.9         nvfp4     -            xxxxxxx====
sglang       0.5.16        nvfp4     -            xxxxwww====
sglang       0.4.9         mxfp4     -            xxxxxxxxxxx
sglang       0.5.3         mxfp4     -            xxxxwww=?ww
sglang       0.4.9         awq       -            xxx========
sglang       0.5.5         awq       -            xxxx=======
sglang       0.4.9         gptq      -            ?==========
sglang       0.5.5         w4a16     -            xxxx=======
sglang       0.4.9         int8      -            xxx========
transformers 4.42.0        bfloat16  -            eeee=======
transformers 4.42.0        float16   -            ===========
transformers 4.42.0        fp8       -            xxxxxxxxxxx
transformers 4.43.1        fp8       -            xxxxxx=====
transformers 4.51.0        fp8       -            xxxxx======
transformers 5.0.0         fp8       -            uuuuu======
transformers 4.42.0        fp8-block -            xxxxxxxxxxx
transformers 4.49.0        fp8-block -            xxxxxx=====
transformers 4.51.0        fp8-block -            xxxxx======
transformers 5.0.0         fp8-block -            uuuuu======
transformers 4.42.0        mxfp4     -            xxxxxxxxxxx
transformers 4.55.0        mxfp4     -            xxxxxxwwwww
transformers 4.56.1        mxfp4     -            uuuwwwwwwww
transformers 4.42.0        awq       -            xxx====????
transformers 4.42.0        bnb-int8  -            xxx========
transformers 4.42.0        bnb-nf4   -            x==========
tensorrt-llm 1.2.1         bfloat16  -            xxxx=======
tensorrt-llm 1.2.1         float16   -            ??=========
tensorrt-llm 1.2.1         fp8       -            xxxxx======
tensorrt-llm 0.21.0        fp8-block -            xxxxxx===xx
tensorrt-llm 0.21.0        fp8-block qwen3-moe    xxxxxx=x=xx
tensorrt-llm 1.1.0         fp8-block -            xxxxx====xx
tensorrt-llm 1.2.1         fp8-block -            xxxxx======
tensorrt-llm 0.16.0        nvfp4     -            xxxxxxxxxxx
tensorrt-llm 0.19.0        nvfp4     -            xxxxxxx==xx
tensorrt-llm 1.2.1         nvfp4     -            xxxxxxx====
tensorrt-llm 1.2.1         mxfp4     -            xxxxxx?====
tensorrt-llm 1.2.1         awq       -            xxx========
tensorrt-llm 1.2.1         gptq      -            xxx========
tensorrt-llm 1.2.1         int8      -            xxxx=======
llama.cpp    2026.10.11549 bfloat16  -            ===========
llama.cpp    2026.10.11549 float16   -            ===========
llama.cpp    2026.10.11549 mxfp4     -            ===========
llama.cpp    2026.10.11549 q4_k_m    -            ===========
ollama       0.10.1        bfloat16  -            ===========
ollama       0.10.1        float16   -            ===========
ollama       0.10.1        mxfp4     -            xxxxxxxxxxx
ollama       0.11.0        mxfp4     -            ===========
ollama       0.10.1        q4_k_m    -            ===========
triton-vllm  26.7          bfloat16  -            xxxx=======
triton-vllm  26.7          float16   -            ===========
""".strip().splitlines()

# Engine, release, CUDA of its build, capability of the GPU, lowest capability that is served.
FLOORS = [
    ("vllm", "0.2.7", "11.8", "6.1", "7.0"),
    ("vllm", "0.8.5", "12.4", "7.0", "7.0"),
    ("vllm", "0.19.1", "12.8", "7.0", "7.0"),
    ("vllm", "0.19.1", "13.0", "7.0", "7.5"),
    ("vllm", "0.20.0", "12.9", "7.0", "7.5"),
    ("vllm", "0.33.0", "13.0", "7.5", "7.5"),
    ("vllm", UNKNOWN, "12.8", "7.0", UNKNOWN),
    ("vllm", UNKNOWN, "12.8", "6.0", "7.0"),
    ("vllm", UNKNOWN, "12.8", "8.0", "7.5"),
    ("vllm", "0.15.1", UNKNOWN, "7.0", UNKNOWN),
    ("vllm", "0.3.3", "12.1", "7.0", "7.0"),
    ("vllm", "0.4.0", "12.1", "7.5", "8.0"),
    ("vllm", "0.4.0.post1", "12.1", "7.5", "7.0"),
    ("sglang", "0.5.1.post2", "12.8", "7.5", "7.5"),
    ("sglang", "0.5.1.post3", "12.8", "7.5", "8.0"),
    ("sglang", "0.2.13", "12.1", "7.5", "8.0"),
    ("sglang", "0.2.14", "12.1", "7.5", "7.5"),
    ("tensorrt-llm", "0.7.1", "12.2", "7.5", "8.0"),
    ("tensorrt-llm", "0.9.0", "12.3", "7.0", "7.0"),
    ("tensorrt-llm", "0.15.0", "12.6", "7.0", "7.5"),
    ("tensorrt-llm", "0.18.2", "12.8", "7.5", "8.0"),
    ("triton-tensorrt-llm", "26.7", "13.1", "7.5", "8.0"),
    ("triton-vllm", "26.7", "13.1", "7.0", "7.5"),
    ("ollama", "0.1.17", None, "5.0", "5.2"),
    ("ollama", "0.1.22", None, "5.2", "6.0"),
    ("ollama", "0.1.23", None, "5.2", "5.0"),
    ("ollama", "0.5.11", None, "3.7", "5.0"),
    ("ollama", "0.30.11", None, "5.0", "5.0"),
    ("llama.cpp", None, "13.0", "6.1", "7.5"),
    ("llama.cpp", None, None, "3.7", None),
    ("transformers", "5.24.0", "12.6", "3.7", None),
    ("of-ours", "1.0", "12.6", "3.7", None),
]


def row_of(line: str, tables: Tables) -> str:
    engine, release, dtype, family, _ = line.split()
    model = ServedModel(engine, release, None, None if family == "-" else family, dtype)
    return "".join(LETTERS[serving(model, capability, tables)] for capability in CAPABILITIES)


@pytest.mark.parametrize("line", SERVED, ids=lambda line: "-".join(line.split()[:4]))
def test_weights_are_served_as_the_sources_say(line: str) -> None:
    assert row_of(line, load_tables()) == line.split()[-1]


@pytest.mark.parametrize(("engine", "release", "cuda", "capability", "floor"), FLOORS)
def test_floors_are_those_of_the_release_and_build(
    engine: str, release: str | None, cuda: str | None, capability: str, floor: str | None
) -> None:
    assert floor_of(ServedModel(engine, release, cuda), capability, load_tables()) == floor


def test_floors_of_one_engine_exclude_each_other() -> None:
    """At most one row counts where release and build are known."""
    for engine, release, cuda, _, floor in FLOORS:
        if UNKNOWN not in (release, cuda):
            lowest = floor_of(ServedModel(engine, release, cuda), "0.1", load_tables())
            assert lowest == floor_of(ServedModel(engine, release, cuda), "99.0", load_tables()) == floor


def test_types_are_known_by_every_name_that_only_one_has() -> None:
    tables = load_tables()
    names = [name for row in tables.weight_types for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    assert all(find_type(name.upper(), tables) for name in names)
    assert find_type("fp4", tables) is None is find_type(None, tables)


def test_rows_name_types_and_engines_that_are_listed() -> None:
    tables = load_tables()
    engines, types = {row.name for row in tables.engines}, {row.name for row in tables.weight_types}
    assert {engine for row in tables.weights for engine in row.engines} <= engines
    assert {row.engine for row in tables.floors} <= engines
    assert {one for row in tables.weights for one in row.types} == types


def test_a_family_matters_only_where_a_row_says_so() -> None:
    """Where the family is not known, both answers stay possible; on a GPU for which they agree, it is known."""
    tables = load_tables()
    model = ServedModel("vllm", "0.8.5", "12.4", UNKNOWN, "fp8")
    assert serving(model, "8.0", tables) is UNKNOWN
    assert serving(model, "7.0", tables) == "refused"
    assert serving(model, "9.0", tables) == "native"


def test_other_types_come_in_the_same_form_first() -> None:
    tables = load_tables()
    ampere = ServedModel("vllm", "0.8.5", "12.4", "qwen3-moe", "fp8")
    assert types_served(ampere, "8.6", tables) == ("awq", "gptq", "w4a16", "bfloat16")
    assert types_served(ServedModel("llama.cpp", None, "12.8", None, "fp8"), "6.1", tables) == (
        "mxfp4",
        "bfloat16",
        "float16",
        "q8_0",
    )


def test_rows_are_compared_as_they_stand() -> None:
    """A row without families or releases holds for any, also for one that is not known."""
    row = WeightsRow.model_validate(
        {
            "engines": ("x",),
            "types": ("fp8",),
            "cc": ">=9.0",
            "serves": "native",
            "status": "verified",
            "checked_on": "2026-11-30",
            "sources": ("read",),
        }
    )
    tables = load_tables().model_copy(update={"weights": (row,)})
    assert serving(ServedModel("x", dtype="fp8"), "9.0", tables) == "native"
    assert serving(ServedModel("x", dtype="fp8"), "8.9", tables) is UNKNOWN


def test_a_finding_cites_the_rows_that_it_comes_from() -> None:
    facts = {
        "driver": "580.95.05",
        "gpus": [{"name": "Tesla P100-PCIE-16GB", "compute_capability": "6.0"}],
        "engine": "vllm",
        "engine_version": "0.7.3",
        "packages": {},
        "cuda_build": "12.4",
        "dtype": "awq",
    }
    findings = {one.rule: one for one in judge(Survey(facts=Facts.model_validate(facts))).findings}
    assert "vllm-project/vllm#963" in findings["ENG-FLOOR"].sources
    assert any("awq.py" in source for source in findings["WEIGHTS-NONE"].sources)
