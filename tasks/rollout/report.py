"""A rollout's result in words and figures. Pure."""

from __future__ import annotations

from tasks.core.digests import short
from tasks.core.records import Number
from tasks.core.verdicts import RolloutVerdict
from tasks.rollout.models import RolloutAction, RolloutResult


def headline(result: RolloutResult) -> str:
    """Where it serves, or why it does not."""
    if result.verdict is RolloutVerdict.ROLLED_BACK:
        return f"{what_serves(result)}: {result.reason}"
    if result.first_completion_s is None:
        return f"{result.endpoint}, served already"
    return f"{result.endpoint}, first completion after {result.first_completion_s:.2f} s"


def what_serves(result: RolloutResult) -> str:
    """The release that takes traffic."""
    return f"{short(result.serving)} serves" if result.serving else "nothing serves"


def numbers(result: RolloutResult) -> dict[str, Number]:
    """Figures for the record."""
    if result.first_completion_s is None:
        return {}
    return {"first_completion_s": Number(value=result.first_completion_s, unit="s")}


def markdown(result: RolloutResult) -> str:
    """The artifact."""
    rows = [
        ("wanted release", f"`{short(result.release)}`"),
        ("serving", f"`{short(result.serving)}`" if result.serving else "nothing"),
        ("rollback goes to", f"`{short(result.previous)}`" if result.previous else "nothing"),
        ("endpoint", result.endpoint or "none"),
        ("target", result.target),
        ("what was done", _DONE[result.action] if result.verdict is RolloutVerdict.SERVING else _TAKEN_BACK),
    ]
    if result.first_completion_s is not None:
        rows.append(("engine start to first completion", f"{result.first_completion_s:.2f} s"))
    lines = [f"# {result.name}: {result.verdict.replace('_', ' ')}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    if result.completion is not None:
        lines += ["", "The gate's completion:", "", _fenced(result.completion)]
    if result.reason is not None:
        lines += ["", f"Why: {result.reason}"]
    if result.log_tail is not None:
        lines += ["", "The candidate's last words:", "", _fenced(result.log_tail)]
    return "\n".join(lines) + "\n"


_DONE = {
    RolloutAction.NOTHING: "nothing: it served already",
    RolloutAction.ADOPT: "written down: it served already",
    RolloutAction.START: "started where nothing served",
    RolloutAction.REPLACE: "started beside the former release, gated, switched",
}
_TAKEN_BACK = "started, and taken back"


def _fenced(text: str) -> str:
    """A code block that its text cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
