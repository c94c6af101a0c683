"""table.csv: one row a variant, in order of rank, with units in the column names.

What is not known is empty.
"""

import csv
import io
from typing import Any

from attnlab.analysis.paired import Difference
from attnlab.analysis.table import PARTS, Table, Variant

COLUMNS = {  # key of summary.json: column
    "final_loss": "validation_loss_nats_per_token",
    "final_perplexity": "validation_perplexity",
    "final_accuracy": "validation_accuracy_fraction",
    "final_bits_per_byte": "validation_bits_per_byte",
    "test_loss": "test_loss_nats_per_token",
    "test_perplexity": "test_perplexity",
    "test_accuracy": "test_accuracy_fraction",
    "test_bits_per_byte": "test_bits_per_byte",
    "step_time": "step_time_seconds",
    "tokens_per_second": "tokens_per_second",
    "total_time": "total_time_seconds",
    "train_time": "train_time_seconds",
    "eval_time": "eval_time_seconds",
    "compile_time": "compile_time_seconds",
    "peak_memory_bytes": "peak_memory_bytes",
    "steps": "steps",
    "tokens": "tokens",
    "flops_per_token": "forward_flops_per_token",
    "state_bytes": "decode_state_bytes",
}
WITH_SPREAD = ("final_loss", "final_perplexity", "test_loss", "step_time")


def csv_table(table: Table) -> str:
    """The table as text, a header and one row a variant; variants without a rank come last."""
    rows = [_row(variant) for variant in (*table.ranked, *table.unranked)]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _row(variant: Variant) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rank": variant.rank,
        "variant": variant.name,
        "mechanism": variant.mechanism,
        "seeds_finished": len(variant.finished),
        "seeds_planned": len(variant.runs),
        "seeds_failed": len(variant.failures),
    }
    for key, column in COLUMNS.items():
        number = variant.numbers.get(key)
        row[column] = None if number is None else number.mean
        if key in WITH_SPREAD:
            row[f"{column}_sd"] = None if number is None else number.spread
    row |= _difference("baseline", variant.to_baseline) | _difference("best", variant.to_best)
    return row | {f"parameters_{part}": variant.parameters.get(part) for part in PARTS}


def _difference(other: str, difference: Difference | None) -> dict[str, Any]:
    low, high = (difference and difference.interval) or (None, None)
    column = f"loss_minus_{other}_nats_per_token"
    return {
        column: difference and difference.mean,
        f"{column}_low_95": low,
        f"{column}_high_95": high,
    }
