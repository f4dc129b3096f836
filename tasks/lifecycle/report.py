"""Report of a deploy. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.digests import short
from tasks.core.figures import bars
from tasks.core.markdown import bullets, fenced, page, section, table
from tasks.core.model_task import Task
from tasks.core.records import Number
from tasks.core.verdicts import LifecycleVerdict, StageName
from tasks.lifecycle.models import DeployResult, StageRow


def headline(result: DeployResult) -> str:
    """The address, or the stage that said no."""
    if result.verdict == LifecycleVerdict.SERVING:
        return f"{result.name} serves at {result.endpoint}"
    no = next((row for row in result.stages if row.says_no), None)
    return f"{no.stage} says {no.verdict}: {no.headline}" if no else "nothing serves"


def numbers(result: DeployResult) -> Mapping[str, Number]:
    """Wall time of each stage."""
    return {f"{row.stage}_s": Number(value=round(row.seconds, 3), unit="s") for row in result.stages}


def markdown(result: DeployResult) -> str:
    """The artifact: the table of stages, how to call the service, and the time that each stage took."""
    return page(
        StageName.LIFECYCLE,
        result.verdict,
        headline(result),
        table(
            ("stage", "verdict", "time", "key number"),
            [(row.stage, _verdict(row), _time(row), row.headline) for row in result.stages],
            right=("time",),
        ),
        _call(result),
        section("Where the time went", _times(result)),
        section(
            "Records",
            bullets(f"{row.stage}: `{row.record}`" for row in result.stages if row.record),
            f"The records behind this release: `slipway kb explain {result.name}`." if result.release else "",
        ),
    )


def _verdict(row: StageRow) -> str:
    return f"**{row.verdict}**" if row.says_no else row.verdict


def _time(row: StageRow) -> str:
    return "cached" if row.cached else f"{row.seconds:.1f} s"


def _call(result: DeployResult) -> str:
    if result.endpoint is None or result.release is None:
        return ""
    body = f'{{"model": "{result.name}", {_asks(result)}}}'
    headers = [
        "'Content-Type: application/json'",
        *(['"Authorization: Bearer $KEY"'] if result.locked else []),
    ]
    told = "".join(f" \\\n  -H {header}" for header in headers)
    command = f"curl {result.url}{told} \\\n  -d '{body}'"
    keys = "; `$KEY` is one of its keys (`serving.api_key`)" if result.locked else ""
    answer = (
        ""
        if result.completion is None
        else f"Its answer to the gate's prompt:\n\n{fenced(result.completion)}"
    )
    return section(
        "The service", f"Release `{short(result.release)}`. Call it{keys}:", fenced(command), answer
    )


def _asks(result: DeployResult) -> str:
    """The rest of a request, as JSON."""
    match result.task:
        case Task.EMBED:
            return '"input": ["A ship lies at the quay."]'
        case Task.RERANK:
            return (
                '"query": "Where is the ship?", "documents": ["A ship lies at the quay.", "The wind turns."]'
            )
        case _:
            asks = '"messages": [{"role": "user", "content": "Hello"}]' if result.chat else '"prompt": "The"'
            return f'{asks}, "max_tokens": 16'


def _times(result: DeployResult) -> str:
    rows = [(str(row.stage), round(row.seconds, 1)) for row in result.stages if not row.cached]
    return bars("Time of each stage", "s", rows) if sum(seconds for _, seconds in rows) > 1 else ""
