"""Records as a pandas table: one row each, a column for every figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tasks.core.records import Record

if TYPE_CHECKING:
    import pandas as pd


def to_frame(records: Sequence[Record], numbers: Iterable[str] = ()) -> pd.DataFrame:
    """The records in the given order. Figures are float64 columns with their names, NaN if a record has none;
    those in `numbers` exist even if no record has them. Units are in `frame.attrs["units"]`."""
    import pandas as pd

    names = dict.fromkeys([*numbers, *(name for record in records for name in record.numbers)])
    frame = pd.DataFrame(
        {
            "id": pd.Series([record.id for record in records], dtype="str"),
            "at": pd.to_datetime([record.at for record in records], utc=True),
            **{
                name: pd.Series([str(getattr(record, name)) for record in records], dtype="str")
                for name in ("stage", "subject", "host_fingerprint", "outcome")
            },
            "seconds": pd.Series([record.seconds for record in records], dtype="float64"),
            **{
                name: pd.Series(
                    [record.numbers[name].value if name in record.numbers else None for record in records],
                    dtype="float64",
                )
                for name in names
            },
        }
    )
    frame.attrs["units"] = {
        name: number.unit for record in records for name, number in record.numbers.items()
    }
    return frame
