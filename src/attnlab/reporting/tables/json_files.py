"""What scripts read: comprehensive_results.json, failures.json and metrics.json of each variant."""

from collections.abc import Sequence
from typing import Any

from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.curves import Curve, perplexity
from attnlab.analysis.table import Run, Table, Variant
from attnlab.reporting.tables.rows import Row, rows

TIMES = ("train_time", "eval_time", "compile_time", "total_time")


def results(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """comprehensive_results.json: each variant with a finished run, the best first."""
    return {row.name: _result(row) for row in rows(analysis)}


def failures(table: Table) -> dict[str, dict[str, Any]]:
    """failures.json: each variant with a seed that has not finished, and why not."""
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
    """metrics.json of one variant. Its means are over the finished seeds, or all if none has."""
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
    """Curves as lists, means over the runs at the steps that all of them have."""
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
        "tier": row.tier,
        "left_out": row.left_out,
        "verdict_from": analysis.metric,
        "spread": {key: estimate.spread for key, estimate in row.numbers.items()},
        "seeds": [run.seed for run in variant.finished],
        "seeds_planned": [run.seed for run in variant.runs],
        "difference_to_baseline": _difference(row.to_baseline),
        "difference_to_best": _difference(analysis.to_best.get(row.name)),
        "folder": str(variant.folder) if analysis.table.sources else variant.folder.name,
    }


def _difference(pair: Comparison | None) -> dict[str, Any] | None:
    """Of the verdict's metric, with the simultaneous and the plain paired interval."""
    if pair is None:
        return None
    return {
        "mean": pair.mean,
        "low_95": pair.low,
        "high_95": pair.high,
        "p_adjusted": pair.p,
        "paired_low_95": pair.paired_low,
        "paired_high_95": pair.paired_high,
        "separable": pair.separable,
        "equivalent": pair.equivalent,
        "seeds": pair.n,
    }
