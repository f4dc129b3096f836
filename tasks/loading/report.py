"""Report of a comparison of loaders. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.core.figures import bars
from tasks.core.markdown import bullets, page, section, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.loading.models import LoaderFigures, LoadingResult


def headline(result: LoadingResult) -> str:
    """The winner, how fast it is, and by how much."""
    winner = result.winner
    if winner is None or winner.seconds is None:
        return "no loader gave the right bytes"
    text = f"{winner.loader}: {result.size_bytes / 1e9:.2f} GB in {winner.seconds:.2f} s"
    ratio = result.ratio_to_disk(winner)
    return f"{text}, {ratio:.2f} of what fio reads" if ratio else text


def numbers(result: LoadingResult) -> Mapping[str, Number]:
    """Figures for the record: the winner's, and each loader's seconds."""
    figures = {"size": Number(value=result.size_bytes, unit="B")}
    for one in result.loaders:
        if one.seconds is not None:
            figures[f"{one.loader}_s"] = Number(value=one.seconds, unit="s")
    winner = result.winner
    if winner and winner.mb_s and winner.cpu_s_per_gb is not None:
        figures["load"] = Number(value=winner.mb_s, unit="MB/s")
        figures["load_cpu"] = Number(value=winner.cpu_s_per_gb, unit="s/GB")
        if ratio := result.ratio_to_disk(winner):
            figures["ratio_to_disk"] = Number(value=ratio, unit="1")
    return figures


def markdown(result: LoadingResult) -> str:
    """The artifact."""
    columns = ("loader", "s", "MB/s", "of the disk", "CPU s/GB", "memory without the cache, MB", "golden")
    measured = [one for one in result.loaders if one.seconds is not None]
    options = [
        (engine, f"`{' '.join(arguments)}`" if arguments else "nothing")
        for engine, arguments in sorted(result.engine_arguments.items())
    ]
    runs = len(measured[0].runs_s) if measured else 0
    return page(
        StageName.LOADING,
        result.verdict,
        headline(result),
        table(columns, [row(result, one) for one in measured], right=columns[1:6]),
        bars(
            f"Cold load of {result.size_bytes / 1e9:.2f} GB",
            "s",
            [(one.loader, one.seconds or 0.0) for one in measured],
            marked=result.chosen,
        )
        if measured
        else "",
        section("Options for engines", table(("engine", "arguments"), options) if options else ""),
        section("Remarks", bullets(result.findings)),
        f"{result.files} {result.format} files; medians of {runs} loads in turns, each in a fresh process, with the "
        "files evicted from the page cache. Golden: every tensor has the same bytes as in the files.",
    )


def row(result: LoadingResult, one: LoaderFigures) -> tuple[str, ...]:
    """A measured loader's line in a table."""
    ratio = result.ratio_to_disk(one)
    return (
        str(one.loader),
        f"{one.seconds or 0:.2f}",
        f"{one.mb_s or 0:,.0f}",
        f"{ratio:.2f}" if ratio else "",
        f"{one.cpu_s_per_gb or 0:.2f}",
        f"{(one.anonymous_bytes or 0) / 1e6:,.0f}",
        "yes" if one.golden else "no",
    )
