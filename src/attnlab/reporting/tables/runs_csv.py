"""runs.csv: one row per run, for spreadsheets and scripts. Missing values are empty."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would execute a text that begins so


def runs_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `load_results` as CSV, with a header.

    >>> runs_csv([{"variant": "=mha", "loss": 4.5}, {"variant": "-", "loss": None}])
    "variant,loss\\n'=mha,4.5\\n'-,\\n"
    """
    text = io.StringIO()
    if rows:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([csv_cell(name) for name in rows[0]])
        writer.writerows([csv_cell(value) for value in row.values()] for row in rows)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """Return a value that a spreadsheet does not execute: text gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
