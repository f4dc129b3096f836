"""Series of memory as text: read them, and split them where the process was restarted. Pure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from tasks.core.errors import WrongUseError
from tasks.leaks.models import Series

_LARGEST = 1e18
_COUNTERS = ("requests", "tokens")
"""Columns that count work since the process started; the first existing one is used."""

_Row = tuple[float, float, float, str]


def parse_series(text: str, source: str) -> list[Series]:
    """The series in CSV text, one for each run of the process, oldest first.

    Columns `t_s,bytes` and optionally `requests` or `tokens` (count since start) and `segment` (another value:
    another process). A falling count also means a restart. An empty or `nan` value is a missing sample. Raises
    `WrongUseError` that names the line.
    """
    lines = _lines(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=None)), source)
    _, names = next(lines, (0, []))
    header = [name.strip() for name in names]
    for name in ("t_s", "bytes"):
        if name not in header:
            raise WrongUseError(
                f"{source} has no column {name!r}",
                fix="the first line names the columns: t_s,bytes[,requests]",
            )
    if len(set(header)) < len(header):
        raise WrongUseError(f"{source} names a column twice: {','.join(header)}")
    counter = next((name for name in _COUNTERS if name in header), None)
    return list(_split(_rows(lines, header, counter, source), counter is not None))


def _rows(
    lines: Iterator[tuple[int, list[str]]], header: list[str], counter: str | None, source: str
) -> Iterator[_Row]:
    before, segment_before = -math.inf, ""
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise WrongUseError(f"{source}, line {number}: {len(cells)} values for {len(header)} columns")
        row = dict(zip(header, cells, strict=True))
        t = _number(row["t_s"], "t_s", source, number)
        value = _number(row["bytes"], "bytes", source, number)
        count = _number(row[counter], counter, source, number) if counter else math.nan
        segment = row.get("segment", "")
        if math.isnan(t) or math.isnan(value):
            continue
        if t < before and segment == segment_before:
            raise WrongUseError(
                f"{source}, line {number}: t_s goes back from {before:g} to {t:g}",
                fix="sort the rows, and name each run of the process in a column `segment`",
            )
        before, segment_before = t, segment
        yield t, value, count, segment


def _lines(reader: Iterator[list[str]], source: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise WrongUseError(f"{source}, line {number}: {error}") from None
        yield number, cells


def _number(text: str, column: str, source: str, line: int) -> float:
    """The value; NaN without one."""
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise WrongUseError(f"{source}, line {line}: {column} is {text.strip()!r}, not a number") from None
    if math.isinf(value) or abs(value) > _LARGEST or (column != "t_s" and value < 0):
        raise WrongUseError(f"{source}, line {line}: {column} is {text.strip()}, out of range")
    return value


def _split(rows: Iterator[_Row], counted: bool) -> Iterator[Series]:
    run: list[_Row] = []
    for row in rows:
        if run and _restarted(run[-1], row):
            yield _series(run, counted)
            run = []
        elif run and math.isnan(row[2]):
            row = (row[0], row[1], run[-1][2], row[3])  # the engine did not answer: keep its last count
        run.append(row)
    if run:
        yield _series(run, counted)


def _restarted(before: _Row, row: _Row) -> bool:
    return row[3] != before[3] or row[2] < before[2]


def _series(run: list[_Row], counted: bool) -> Series:
    t, values, counts, _ = zip(*run, strict=True)
    known = counted and not any(math.isnan(count) for count in counts)
    return Series(t_s=t, bytes_=values, requests=counts if known else None)
