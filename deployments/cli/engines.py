"""`slipway engines`: the serving engines that can be deployed today."""

from __future__ import annotations

from typing import Any

import click

from deployments.cli.main import print_json
from tasks.core.spec import EngineKind
from tasks.engines.catalogue import get_engine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def engines(as_json: bool) -> None:
    """List the serving engines: what each needs, and which model formats it serves."""
    found = [describe(kind) for kind in EngineKind]
    if as_json:
        print_json({"engines": found})
        return
    from deployments.cli.show import print_table

    rows = [
        (
            str(row["engine"]),
            str(row["requires"]),
            ", ".join(row["formats"]),
            str(row["max_batch"]),
            "needed" if row["needs_gpu"] else "not needed",
            ", ".join(row["system_libraries"]),
        )
        for row in found
    ]
    columns = ("engine", "Python package", "formats", "largest batch", "GPU", "system libraries")
    print_table(columns, rows, right=("largest batch",), whole=("engine", "Python package", "GPU"))


def describe(kind: EngineKind) -> dict[str, Any]:
    """One engine, as programs read it."""
    engine = get_engine(kind)
    return {
        "engine": kind.value,
        "package": engine.package,
        "requires": next(text for text in engine.requirements if text.startswith(engine.package)),
        "requirements": list(engine.requirements),
        "formats": [form.value for form in engine.formats],
        "max_batch": engine.max_batch,
        "needs_gpu": engine.needs_gpu,
        "system_libraries": [library.package for library in engine.system_libraries],
    }
