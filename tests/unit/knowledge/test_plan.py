"""The matrix and explanations, from records as the stages write them."""

from __future__ import annotations

from typing import Any

from inline_snapshot import snapshot

from tasks.core.records import Number, Record, new_record
from tasks.core.verdicts import StageName
from tasks.knowledge import plan, report

MODEL = "sha256:" + "a" * 64
HOST = "sha256:" + "b" * 64


def make(
    stage: StageName, outcome: str, result: Any, *, inputs: Any = None, host: str = HOST, **more: Any
) -> Record:
    return new_record(
        stage=stage,
        subject="chat",
        host_fingerprint=host,
        inputs_digest="d",
        outcome=outcome,
        seconds=1.5,
        evidence={"inputs": inputs or {}, "result": result},
        **more,
    )


def batching(throughput: float, format_: str = "q8_0", host: str = HOST, outcome: str = "chosen") -> Record:
    chosen = {
        "batch": 8,
        "throughput": throughput,
        "peak_bytes": 90_000_000,
        "latency_ms": {"ttft_p95": 21.5, "tpot_p95": 3.25},
    }
    inputs = {"engine": "llama.cpp", "model_digest": MODEL, "format": format_, "context": 512, "threads": 2}
    return make(StageName.BATCHING, outcome, {"chosen": chosen}, inputs=inputs, host=host)


def surroundings() -> list[Record]:
    facts = {
        "cpu": "EPYC",
        "cpu_count": 2,
        "memory_bytes": 16 << 30,
        "gpus": [{"name": "H200"}, {"name": "H200"}],
    }
    loss = {"value": 0.0012, "low": 0.0, "high": 0.0024}
    measured = [
        {"format": "q8_0", "quality": {"loss": loss}},
        {"format": "q4_0", "quality": {"loss": 0.03}},  # as records held it before there were intervals
        {"format": "f16", "quality": None},
    ]
    return [
        make(StageName.STAGING, "verified", {"manifest_digest": MODEL, "source": "file:/models/tiny"}),
        make(StageName.COMPATIBILITY, "pass", {"facts": facts}),
        make(
            StageName.QUANTIZATION,
            "chosen",
            {"measured": measured},
            inputs={"engine": "llama.cpp", "model_digest": MODEL},
        ),
        # Another engine's candidates in a format of that name are others.
        make(
            StageName.QUANTIZATION,
            "chosen",
            {"measured": [{"format": "q8_0", "quality": {"loss": {"value": 0.09}}}]},
            inputs={"engine": "transformers", "model_digest": MODEL},
        ),
    ]


def test_the_matrix_holds_the_best_measured_of_each_cell() -> None:
    records = [
        *surroundings(),
        batching(900),
        batching(1200),
        batching(700, "f16"),
        batching(50, host="sha256:cc"),
    ]
    cells = plan.matrix(records)
    assert [(cell.hardware, cell.throughput, cell.format, cell.measured) for cell in cells] == [
        ("2 x H200, EPYC, 2 cores, 16 GiB", 1200, "q8_0", 3),
        ("cc", 50, "q8_0", 1),
    ]
    assert cells[0].record == records[5].id
    assert (cells[0].model, cells[0].quality_loss, cells[0].ttft_ms) == ("file:/models/tiny", 0.0012, 21.5)
    assert plan.matrix([*surroundings(), batching(900, "q4_0")])[0].quality_loss == 0.03
    assert report.cell_row(cells[0])[:12] == snapshot(
        (
            "llama.cpp",
            "file:/models/tiny",
            "2 x H200, EPYC, 2 cores, 16 GiB",
            "-",
            "8",
            "q8_0",
            "1200",
            "90 MB",
            "-",
            "21.5 ms",
            "3.2 ms",
            "+0.12%",
        )
    )


def test_what_the_spec_gave_the_engine_is_in_the_matrix() -> None:
    record = batching(1200)
    own = {"engine_args": {"cache-type-k": "q8_0", "list": [1, 2], "mlock": True}, "engine_env": {"A": "1"}}
    given = make(
        StageName.BATCHING,
        "chosen",
        record.evidence["result"],
        inputs={**record.evidence["inputs"], **own},
    )
    (cell,) = plan.matrix([given])
    assert cell.engine_args == {"cache-type-k": "q8_0", "list": (1, 2), "mlock": True}
    assert cell.engine_env == own["engine_env"]
    batch = report.cell_row(cell)[report.MATRIX_COLUMNS.index("batch")]
    assert batch == "8, --cache-type-k=q8_0, --list=1,2, --mlock, A=1"
    (without,) = plan.matrix([record])
    assert without.engine_args == without.engine_env == {}
    assert report.cell_row(without)[report.MATRIX_COLUMNS.index("batch")] == "8"


def test_a_model_for_embeddings_is_measured_in_texts() -> None:
    record = batching(1200)
    inputs = {**record.evidence["inputs"], "task": "embed", "pooling": "mean"}
    (cell,) = plan.matrix([make(StageName.BATCHING, "chosen", record.evidence["result"], inputs=inputs)])
    assert cell.memory_at_kv is None, "it keeps no keys and values"
    assert report.cell_row(cell)[report.MATRIX_COLUMNS.index("tokens/s")] == "1200 texts/s"


def placed(throughput: float, engine: str, given: int, **config: Any) -> Record:
    """A search on a host with GPUs, of which the engine had `given`."""
    inputs = {"engine": engine, "model_digest": MODEL, "format": "f16", "context": 512}
    inputs["space"] = {"devices": {"gpu_bytes": [80 << 30] * given}}
    result = {"chosen": {"batch": 8, "throughput": throughput}, "config": {"memory_fraction": 0.9, **config}}
    return make(StageName.BATCHING, "chosen", result, inputs=inputs)


def test_the_processor_and_each_number_of_gpus_are_hardware_of_their_own() -> None:
    records = [
        placed(40, "llama.cpp", 0, gpu_layers=0),
        placed(400, "llama.cpp", 1, gpu_layers=21),
        placed(300, "llama.cpp", 1, gpu_layers=12),
        placed(900, "vllm", 2, gpus=2, memory_fraction=0.89, batched_tokens=8192),
        placed(950, "vllm", 4, gpus=1),  # four were offered, one was as good
    ]
    cells = plan.matrix(records)
    assert [(cell.engine, cell.throughput, cell.measured) for cell in cells] == [
        ("llama.cpp", 40, 1),
        ("llama.cpp", 400, 2),
        ("vllm", 950, 1),
        ("vllm", 900, 1),
    ]
    assert [report.cell_row(cell)[3] for cell in cells] == [
        "-",
        "1, 21 layers",
        "1, 0.9 of memory",
        "2, 0.89 of memory",
    ]
    assert [report.cell_row(cell)[4] for cell in cells][-1] == "8, 8192 tokens a step"


def test_what_was_not_measured_is_not_in_the_matrix() -> None:
    odd = [
        batching(900, outcome="none"),
        batching(900, outcome="fault"),
        make(StageName.BATCHING, "chosen", {"chosen": None}),
        make(StageName.BATCHING, "chosen", None, inputs={"model_digest": MODEL}),
        make(StageName.HEALTH, "healthy", {}),
    ]
    assert plan.matrix(odd) == ()


def searched(engine: str, batch: int, context: int, weights: int, each: int) -> Record:
    """A search up to `batch`, of an engine that holds `weights` bytes and `each` more for a token."""
    sizes = [
        {"batch": size, "peak_bytes": weights + each * size * context}
        for size in (1, 2, 4, 8)
        if size <= batch
    ]
    return make(
        StageName.BATCHING,
        "chosen",
        {"chosen": {"throughput": 1.0, **sizes[-1]}, "sizes": [*sizes, {"batch": 16, "peak_bytes": None}]},
        inputs={"engine": engine, "model_digest": MODEL, "format": "q8_0", "context": context},
    )


def test_engines_compare_at_the_same_budget_of_keys_and_values() -> None:
    """One was measured at 8 x 512 tokens, the other at 2 x 256: their peaks alone would turn the order round."""
    lean = searched("llama.cpp", 8, 512, weights=10**9, each=100_000)
    fat = searched("vllm", 2, 256, weights=10**9, each=200_000)
    first, second = plan.matrix([lean, fat], kv_tokens=4096)
    assert (first.memory_bytes or 0) > (second.memory_bytes or 0)
    assert first.memory_at_kv == Number(value=1e9 + 4096 * 1e5, unit="byte")
    assert second.memory_at_kv == Number(value=1e9 + 4096 * 2e5, unit="byte", kind="predicted")
    assert (first.kv_tokens, report.cell_row(first)[8], report.cell_row(second)[8]) == (
        4096,
        "1.41 GB",
        "1.82 GB (predicted)",
    )
    assert plan.matrix([lean])[0].memory_at_kv == first.memory_at_kv  # the budget where nobody says otherwise
    (odd,) = plan.matrix(
        [make(StageName.BATCHING, "chosen", {**ODD, "sizes": "?"}, inputs=lean.evidence["inputs"])]
    )
    assert odd.memory_at_kv is None


def test_an_engine_that_is_not_told_how_many_to_hold_has_no_memory_for_them() -> None:
    """Its peaks differ from size to size by chance."""
    (cell,) = plan.matrix([searched("transformers", 8, 512, weights=10**9, each=1)])
    assert cell.memory_bytes is not None
    assert cell.memory_at_kv is None


ODD = {"chosen": {"batch": 1, "throughput": 5}}


def test_gaps_are_shown_as_gaps() -> None:
    record = make(
        StageName.BATCHING,
        "chosen",
        {"chosen": {"batch": 1, "throughput": 5}},
        inputs={"model_digest": MODEL},
    )
    (cell,) = plan.matrix([record])
    assert report.cell_row(cell)[:12] == snapshot(
        ("?", "chat", "bbbbbbbbbbbb", "-", "1", "-", "5", "-", "-", "-", "-", "-")
    )


def test_an_explanation_follows_what_was_consulted() -> None:
    first = batching(10)
    second = make(StageName.BATCHING, "chosen", {}, consulted=[first.id, "01GONE"])
    third = make(StageName.HEALTH, "healthy", {}, consulted=[first.id])
    reasons = plan.explain([second.id, third.id], [first, second, third])
    assert [(reason.id, reason.depth, reason.missing) for reason in reasons] == [
        (second.id, 0, False),
        (first.id, 1, False),
        ("01GONE", 1, True),
        (third.id, 0, False),
    ]
    assert report.reason_row(reasons[2]) == ("  01GONE", "", "", "not in this store", "")
    assert report.reason_row(reasons[1])[2:4] == ("batching", "chosen")


def test_records_as_rows() -> None:
    numbers = {
        "size": Number(value=12_345_678, unit="B"),
        "tiny": Number(value=12, unit="byte"),
        "later": Number(value=3.5, unit="s", kind="predicted"),
        "count": Number(value=3, unit="1"),
        "hidden": Number(value=3, unit="1"),
    }
    row = report.record_row(make(StageName.HEALTH, "healthy", {}, numbers=numbers))
    assert row[2:] == snapshot(
        (
            StageName.HEALTH,
            "chat",
            "healthy",
            "1.50",
            "size 12.3 MB, tiny 12 byte, later 3.5 s (predicted), count 3",
        )
    )
    fault = make(StageName.HEALTH, "fault", {}).model_copy(
        update={"evidence": {"error": {"what": "it broke"}}}
    )
    assert report.record_row(fault)[-1] == "it broke"
