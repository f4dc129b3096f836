"""Series as text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot

from tasks.core.errors import WrongUseError
from tasks.leaks.models import Series
from tasks.leaks.series import parse_series


def test_a_series() -> None:
    text = "\ufefft_s,bytes,requests\n0,100,0\n60,110,5\n\n120,120,9\n"
    assert parse_series(text, "x.csv") == [
        Series(t_s=(0, 60, 120), bytes_=(100, 110, 120), requests=(0, 5, 9)),
    ]


def test_other_columns_and_their_order_do_not_matter() -> None:
    text = "bytes, note, t_s\n100, a, 0\n110, b, 60\n"
    assert parse_series(text, "x.csv") == [Series(t_s=(0, 60), bytes_=(100, 110))]


def test_a_count_that_falls_and_another_segment_are_restarts() -> None:
    text = "t_s,bytes,tokens,segment\n0,100,0,a\n60,110,9,a\n120,50,2,a\n0,60,3,b\n"
    runs = parse_series(text, "x.csv")
    assert [run.t_s for run in runs] == [(0, 60), (120,), (0,)]


def test_missing_samples_are_left_out() -> None:
    text = "t_s,bytes,requests\n0,100,0\n60,,5\n120,nan,6\n180,130,\n240,140,9\n"
    assert parse_series(text, "x.csv") == [
        Series(t_s=(0, 180, 240), bytes_=(100, 130, 140), requests=(0, 0, 9)),
    ]


def test_a_count_that_is_missing_from_the_start_is_not_used() -> None:
    assert parse_series("t_s,bytes,requests\n0,1,\n1,1,4\n", "x.csv")[0].requests is None


def test_a_header_alone_is_no_series() -> None:
    assert parse_series("t_s,bytes\n", "x.csv") == []


def test_one_clear_line_for_each_mistake() -> None:
    mistakes = [
        "",
        "time,bytes\n",
        "t_s,bytes,bytes\n",
        "t_s,bytes\n0\n",
        "t_s,bytes\n0,much\n",
        "t_s,bytes\n0,-1\n",
        "t_s,bytes\n0,inf\n",
        "t_s,bytes\n0,1\n60,1\n30,1\n",
        't_s,bytes\n0,"' + "9" * 200_000 + '"\n',
    ]
    assert [message(text) for text in mistakes] == snapshot(
        [
            "x.csv has no column 't_s' (the first line names the columns: t_s,bytes[,requests])",
            "x.csv has no column 't_s' (the first line names the columns: t_s,bytes[,requests])",
            "x.csv names a column twice: t_s,bytes,bytes",
            "x.csv, line 2: 1 values for 2 columns",
            "x.csv, line 2: bytes is 'much', not a number",
            "x.csv, line 2: bytes is -1, out of range",
            "x.csv, line 2: bytes is inf, out of range",
            "x.csv, line 4: t_s goes back from 60 to 30 "
            "(sort the rows, and name each run of the process in a column `segment`)",
            "x.csv, line 2: field larger than field limit (131072)",
        ]
    )


def message(text: str) -> str:
    with pytest.raises(WrongUseError) as caught:
        parse_series(text, "x.csv")
    return str(caught.value)


@given(st.text(max_size=300) | st.text("t_s,bytesrequest\n0123.-\"'\r", max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for header in ("", "t_s,bytes\n", "t_s,bytes,requests\n"):
        try:
            parse_series(header + text, "x.csv")
        except WrongUseError as error:
            assert str(error).startswith("x.csv")


rows = st.lists(
    st.tuples(st.floats(0, 1e9), st.floats(0, 1e13), st.integers(0, 10**9)),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(rows)
def test_what_was_written_is_read(found: list[tuple[float, float, int]]) -> None:
    ordered = [
        (t, value, count)
        for (t, value, _), count in zip(sorted(found), sorted(count for *_, count in found), strict=True)
    ]
    text = io.StringIO()
    csv.writer(text).writerows([("t_s", "bytes", "requests"), *ordered])
    (run,) = parse_series(text.getvalue(), "x.csv")
    assert list(zip(run.t_s, run.bytes_, run.requests or (), strict=True)) == ordered
