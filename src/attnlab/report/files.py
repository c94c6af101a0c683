"""Everything in a study folder that is derived from its runs, made again from them.

    comprehensive_results.json   finished variants, in order of rank
    failures.json                what did not finish, and why
    <variant>/config.json        every setting of the variant
    <variant>/metrics.json       its curves and times, means over seeds and by seed
    report.md  table.csv  comparison.png

Each file is replaced as a whole, so that a reader never meets half of one, and several processes
may do this at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnlab.analysis.curves import Curve, perplexity
from attnlab.analysis.paired import Difference
from attnlab.analysis.settings import of_variant
from attnlab.analysis.table import Run, Table, Variant, read_table
from attnlab.record import StudyRecord, replace_file, to_json
from attnlab.report.csv_table import csv_table
from attnlab.report.markdown import markdown

PICTURE = "comparison.png"
TIMES = ("train_time", "eval_time", "compile_time", "total_time")


def write_report(study_dir: Path) -> Table:
    """Write every derived file. Raises ValueError where there is no study."""
    from attnlab.report.figure import comparison_png  # matplotlib takes a second to import

    _settle(study_dir)
    table = read_table(study_dir)
    _update(study_dir / PICTURE, comparison_png(table))
    _write_results(table)
    return table


def write_results(study_dir: Path) -> Table:
    """Write all but the picture, quickly: for use after every run."""
    _settle(study_dir)
    table = read_table(study_dir)
    _write_results(table)
    return table


def results(table: Table) -> dict[str, dict[str, Any]]:
    """comprehensive_results.json: each variant with a finished run, means over its seeds."""
    return {variant.name: _result(variant) for variant in table.ranked}


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


def _result(variant: Variant) -> dict[str, Any]:
    last = variant.finished[-1].summary
    return {
        **{key: estimate.mean for key, estimate in variant.numbers.items()},
        "attention_type": variant.mechanism,
        "parameters": variant.parameters,
        "kernels": last.get("kernels"),
        "rank": variant.rank,
        "spread": {key: estimate.spread for key, estimate in variant.numbers.items()},
        "seeds": [run.seed for run in variant.finished],
        "seeds_planned": [run.seed for run in variant.runs],
        "difference_to_baseline": _difference(variant.to_baseline),
        "difference_to_best": _difference(variant.to_best),
        "folder": variant.folder.name,
    }


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    low, high = difference.interval or (None, None)
    return {"mean": difference.mean, "low_95": low, "high_95": high, "seeds": difference.n}


def _settle(study_dir: Path) -> None:
    for folders in StudyRecord.read(study_dir).runs(study_dir).values():
        for folder in folders:
            folder.settle()


def _write_results(table: Table) -> None:
    path = table.path
    _update(path / "comprehensive_results.json", to_json(results(table)))
    _update(path / "failures.json", to_json(failures(table)))
    for variant in table.variants:
        if variant.folder.is_dir():
            _update(variant.folder / "config.json", to_json(of_variant(variant.config)))
            _update(variant.folder / "metrics.json", to_json(metrics(variant)))
    picture = PICTURE if (path / PICTURE).is_file() else None
    _update(path / "report.md", markdown(table, picture).encode())
    _update(path / "table.csv", csv_table(table).encode())


def _update(path: Path, data: bytes) -> None:
    # most files of most variants stay as they are when one run ends, and a look is cheap
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)
