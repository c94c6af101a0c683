"""Files for scripts: comprehensive_results.json, failures.json, metrics.json, table.csv, runs.csv.

table.csv has one row per variant, in order of rank on its text, with units in the column names.
What is not known is empty there and null in JSON.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.curves import Curve, perplexity
from attnlab.analysis.profile import harness_of
from attnlab.analysis.table import PARTS, Run, Table, Variant
from attnlab.config import visible
from attnlab.reporting.tables.rows import Row, rows_of_all_groups

TIMES = ("train_time", "eval_time", "compile_time", "total_time")

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would execute a text that begins so


def results(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Return comprehensive_results.json: each variant with a finished run, the best first.

    Those of one text, size and length follow those of another, with which they are not compared.
    """
    found = {row.name: _result(row) for row in rows_of_all_groups(analysis)}
    for of in harness_of(analysis.whole)[0]:
        if of.variant in found:
            found[of.variant].setdefault("harness", []).append(asdict(of))
    return found


def failures(table: Table) -> dict[str, dict[str, Any]]:
    """Return failures.json: each variant with a seed that has not finished, and the reasons."""
    return {
        variant.name: {
            "seeds_finished": [run.seed for run in variant.finished],
            "seeds": {
                str(run.seed): {"status": run.status, "reason": run.reason}
                for run in variant.runs
                if run.status != "finished"
            },
        }
        for variant in table.variants
        if len(variant.finished) < len(variant.runs)
    }


def metrics(variant: Variant) -> dict[str, Any]:
    """Return metrics.json of one variant. Means are over finished seeds, or all if none has."""
    return {
        "variant": variant.name,
        "seeds_in_means": [run.seed for run in variant.finished or variant.runs if run.metrics],
        **_series(variant.finished or variant.runs),
        **{key: variant.numbers[key].mean for key in TIMES if key in variant.numbers},
        "seeds": {
            str(run.seed): {
                "status": run.status,
                **_series([run]),
                **{key: run.summary[key] for key in TIMES if key in run.summary},
            }
            for run in variant.runs
            if run.metrics
        },
    }


def _series(runs: Sequence[Run]) -> dict[str, Any]:
    """Return curves as lists: means over the runs at the steps that all of them have."""
    lines = {run.seed: run.metrics for run in runs}
    train, evaluated = Curve.of(lines, "train_loss"), Curve.of(lines, "eval_loss")
    return {
        "train_steps": train.steps,
        "train_loss": train.mean,
        "eval_steps": evaluated.steps,
        "eval_loss": evaluated.mean,
        "eval_perplexity": [perplexity(loss) for loss in evaluated.mean],
        "eval_accuracy": Curve.of(lines, "eval_accuracy").mean,
        "eval_bits_per_byte": Curve.of(lines, "eval_bits_per_byte").mean,
    }


def _result(row: Row) -> dict[str, Any]:
    variant, analysis = row.variant, row.analysis
    return {
        **{key: estimate.mean for key, estimate in row.numbers.items()},
        "attention_type": variant.mechanism,
        "parameters": variant.parameters,
        "kernels": variant.finished[-1].summary.get("kernels"),
        "rank": row.place,
        "letters": row.letters,
        "left_out": row.left_out,
        **_group(analysis),
        "verdict_from": analysis.metric,
        "spread": {key: estimate.spread for key, estimate in row.numbers.items()},
        "seeds": [run.seed for run in variant.finished],
        "seeds_set_aside": list(analysis.set_aside(variant.name)),
        "seeds_planned": [run.seed for run in variant.runs],
        "difference_to_baseline": _difference(row.to_baseline),
        "difference_to_best": _difference(analysis.to_best.get(row.name)),
        "to_target": _to_target(analysis, row.name),
        "folder": str(variant.folder) if analysis.table.sources else variant.folder.name,
    }


def _group(analysis: Analysis) -> dict[str, str]:
    """Return the text, and the size and length, within which variants are compared."""
    found = {"text": analysis.text} if analysis.several_texts else {}
    cell = analysis.cell
    return found | ({"size": cell.size, "length": cell.budget} if cell else {})


def _to_target(analysis: Analysis, name: str) -> dict[str, Any] | None:
    """Return when a variant reached the target loss, each with an interval; null: not reached."""
    found = analysis.efficiency
    if found is None or name not in found.variants:
        return None
    reached = found.variants[name]
    spans = {"steps": reached.steps, "tokens": reached.tokens, "seconds": reached.seconds}
    return {"loss": found.target, **{key: span and asdict(span) for key, span in spans.items()}}


def _difference(pair: Comparison | None) -> dict[str, Any] | None:
    """Return the difference of the verdict's metric, with both intervals and their parts."""
    if pair is None:
        return None
    return {
        "mean": pair.mean,
        "low_95": _finite(pair.low),
        "high_95": _finite(pair.high),
        "p_adjusted": pair.p,
        "alone_low_95": _finite(pair.alone_low),
        "alone_high_95": _finite(pair.alone_high),
        "half_width_of_seeds": pair.half_width,
        "allowance_for_tuning": _finite(pair.first_allowance),
        "allowance_for_tuning_of_other": _finite(pair.second_allowance),
        "separable": pair.separable,
        "equivalent": pair.equivalent,
    }


def _finite(value: float | None) -> float | None:
    """Return None for an end that has no bound, since JSON has no infinity."""
    return None if value is None or not math.isfinite(value) else value


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


def csv_table(analysis: Analysis) -> str:
    """Return a header and one row per variant; those without a finished run come last."""
    shown = rows_of_all_groups(analysis)
    ranked = {row.name for row in shown}
    unfinished = [
        Row(variant, of)
        for of in analysis.groups
        for variant in of.table.variants
        if variant.name not in ranked
    ]
    lines = [_row(row) for row in (*shown, *unfinished)]
    text = io.StringIO()
    if lines:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(csv_cell, lines[0]))
        writer.writerows(map(csv_cell, line.values()) for line in lines)
    return text.getvalue()


def _row(row: Row) -> dict[str, Any]:
    variant, analysis = row.variant, row.analysis
    cells: dict[str, Any] = {
        "place": row.place,
        "letters": row.letters,
        "variant": variant.name,
        **_group(analysis),
        "mechanism": variant.mechanism,
        "seeds_finished": len(variant.finished),
        "seeds_planned": len(variant.runs),
        "seeds_failed": len(variant.failures),
        "left_out": row.left_out,
        "learning_rate": _rate(variant),
    }
    for key, column in COLUMNS.items():
        number = row.numbers.get(key)
        cells[column] = None if number is None else number.mean
        if key in WITH_SPREAD:
            cells[f"{column}_sd"] = None if number is None else number.spread
    cells |= _difference_columns("baseline", row.to_baseline)
    cells |= _difference_columns("best", analysis.to_best.get(row.name))
    cells |= _lengths(row, analysis)
    return cells | {
        f"parameters_{part}": variant.parameters.get(part) for part in (*PARTS, "active")
    }


def _lengths(row: Row, analysis: Analysis) -> dict[str, Any]:
    """Return cells for every window length that any variant was measured at."""
    found = analysis.lengths.get(row.name)
    cells: dict[str, Any] = {}
    for length in sorted({at for each in analysis.lengths.values() for at in each.loss}):
        loss = found and found.loss.get(length)
        change = found and found.change.get(length)
        low, high = (change and change.interval) or (None, None)
        column = f"validation_loss_at_{length}_tokens"
        cells[f"{column}_nats_per_token"] = loss and loss.mean
        cells[f"{column}_sd"] = loss and loss.spread
        cells[f"{column}_minus_as_trained"] = change and change.mean
        cells[f"{column}_minus_as_trained_low_95"] = low
        cells[f"{column}_minus_as_trained_high_95"] = high
    return cells


def _rate(variant: Variant) -> float | None:
    return variant.config.get("train", {}).get("learning_rate")


def _difference_columns(other: str, pair: Comparison | None) -> dict[str, Any]:
    """Return cells of the difference in the verdict's metric, with both intervals."""
    start = f"minus_{other}"
    return {
        f"{start}_nats_per_token": pair and pair.mean,
        f"{start}_low_95": pair and _finite(pair.low),
        f"{start}_high_95": pair and _finite(pair.high),
        f"{start}_alone_low_95": pair and _finite(pair.alone_low),
        f"{start}_alone_high_95": pair and _finite(pair.alone_high),
        f"{start}_p_adjusted": pair and pair.p,
    }


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
    if not isinstance(value, str):
        return value
    return visible(f"'{value}" if value.startswith(FORMULA) else value)
