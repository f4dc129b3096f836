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
            "needed" if row["needs_gpu"] else "not needed",
            ", ".join(row["system_libraries"]),
        )
        for row in found
    ]
    print_table(["engine", "Python package", "formats", "GPU", "system libraries"], rows)


def describe(kind: EngineKind) -> dict[str, Any]:
    """One engine, as programs read it."""
    engine = get_engine(kind)
    return {
        "engine": kind.value,
        "package": engine.package,
        "requires": next(text for text in engine.requirements if text.startswith(engine.package)),
        "requirements": list(engine.requirements),
        "formats": [form.value for form in engine.formats],
        "needs_gpu": engine.needs_gpu,
        "system_libraries": list(engine.system_libraries),
    }
