"""A rollout's result in words and figures. Pure."""

from __future__ import annotations

from tasks.core.digests import short
from tasks.core.markdown import fenced, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.rollout.models import RolloutAction, RolloutResult


def headline(result: RolloutResult) -> str:
    """Where it serves, or why it does not."""
    if result.verdict is RolloutVerdict.ROLLED_BACK:
        return f"{what_serves(result)}: {result.reason}"
    if result.first_completion_s is None:
        return f"{result.endpoint}, served already"
    return f"{result.endpoint}, first completion after {result.first_completion_s:.2f} s"


def what_serves(result: RolloutResult) -> str:
    """The release that takes traffic, as it was measured, and how to restart it if it does not answer."""
    if result.answers is False:
        what = f"{short(result.serving)} does not answer" if result.serving else "nothing serves any more"
        return f"{what} (bring the previous release back: slipway start {result.name})"
    if result.serving is None:
        return "nothing serves"
    return f"{short(result.serving)} serves"


def numbers(result: RolloutResult) -> dict[str, Number]:
    """Figures for the record."""
    figures = {
        "first_completion_s": (result.first_completion_s, "s"),
        "prefetched": (result.prefetched_bytes, "B"),
        "prefetch_s": (result.prefetch_s, "s"),
    }
    return {
        name: Number(value=value, unit=unit) for name, (value, unit) in figures.items() if value is not None
    }


def markdown(result: RolloutResult) -> str:
    """The artifact."""
    rows = [
        ("wanted release", f"`{short(result.release)}`"),
        ("serving", _serving(result)),
        ("rollback goes to", f"`{short(result.previous)}`" if result.previous else "nothing"),
        ("endpoint", result.endpoint or "none"),
        ("target", result.target),
        ("what was done", _DONE[result.action] if result.verdict is RolloutVerdict.SERVING else _TAKEN_BACK),
    ]
    if result.first_completion_s is not None:
        rows.append(("engine start to first completion", f"{result.first_completion_s:.2f} s"))
    if result.prefetched_bytes is not None and result.prefetch_s:
        rate = result.prefetched_bytes / 1e6 / result.prefetch_s
        rows.append(
            ("prefetched during the start", f"{result.prefetched_bytes / 1e6:,.1f} MB at {rate:,.0f} MB/s")
        )
    rolled_back = result.verdict is RolloutVerdict.ROLLED_BACK
    return page(
        StageName.ROLLOUT,
        result.verdict,
        f"{result.name}: {headline(result)}",
        table(("fact", "value"), rows),
        section("The gate's completion", fenced(result.completion) if result.completion is not None else ""),
        section("The end of the new release's log", fenced(result.log_tail) if result.log_tail else ""),
        f"What to do: fix what the reason names, then deploy again; `slipway logs {result.name}` shows more."
        if rolled_back
        else f"Look next: `slipway status {result.name}`, `slipway logs {result.name}`.",
    )


def _serving(result: RolloutResult) -> str:
    if result.serving is None:
        return "nothing"
    measured = {True: ", which completed a prompt after the rollback", False: ", which does not answer"}
    return f"`{short(result.serving)}`{'' if result.answers is None else measured[result.answers]}"


_DONE = {
    RolloutAction.NOTHING: "nothing: it served already",
    RolloutAction.ADOPT: "recorded: it served already",
    RolloutAction.START: "started; nothing served before",
    RolloutAction.REPLACE: "started next to the previous release, gated, switched",
}
_TAKEN_BACK = "started, and taken back"
