"""Every file that is derived from the runs of a study, or of several folders that are compared.

    report.html                  the verdict, its evidence and its limits, with charts
    report.md                    the same as text
    comparison.png, .svg         the figure
    comparison_*.pdf             its panels, one column of a paper wide
    table.csv, table.tex         for spreadsheets and papers
    runs.csv                     one row per run
    profile.png, .csv            of tasks: the accuracy of their answers
    comprehensive_results.json   finished variants, the best first
    failures.json                unfinished runs with their reasons
    <variant>/config.json        every setting of the variant
    <variant>/metrics.json       its curves and times, means over seeds and by seed

In a study's folder they lie beside the runs. A comparison of several folders has a folder of its
own, without runs.csv and the files of variants. Packed variants have no files of their own, nor
have those whose folder is a link to elsewhere: nothing outside the study's folder is written.

Each file is replaced atomically, so that several processes may write and read at the same time.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from attnlab.analysis.analysis import Analysis, analyse, analysis_of
from attnlab.analysis.compare_folders import read_folders
from attnlab.analysis.fairness import TOKENIZER
from attnlab.analysis.hypotheses.hypothesis import to_record
from attnlab.analysis.runs_table import load_results
from attnlab.analysis.settings import of_variant
from attnlab.analysis.table import Table
from attnlab.config.problem import with_types
from attnlab.record import (
    StudyRecord,
    WriteError,
    leads_outside,
    reading_once,
    remove_temporary,
    replace_file,
    require_results_folder,
    to_json,
)
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.profile import profile, profile_csv, profile_png
from attnlab.reporting.tables.data_files import csv_table, failures, metrics, results, runs_csv
from attnlab.reporting.tables.latex import latex

PICTURE, PAGE = "comparison.png", "report.html"


class UnwrittenReportError(WriteError):
    """A file of a report could not be written. `analysis` has what the report would say."""

    analysis: Analysis


@with_types
def report(study_dir: Path | str, target_loss: float | None = None) -> Analysis:
    """Rebuild the page, tables and figures of a study from its runs.

    Args:
        study_dir: a study's folder, such as results/quickstart.
        target_loss: nats/token; the report says when each variant reached it, this one and all
            later ones of the folder. None: that of the study, by default the baseline's last loss.

    Returns:
        The analysis that the files are made from.

    Raises:
        ValueError: the folder has no study, or the target is no loss.
    """
    if target_loss is not None:
        if not 0 <= target_loss < math.inf:
            raise ValueError(f"target loss: must not be negative or infinite, got {target_loss}")
        record = StudyRecord.read(Path(study_dir))
        replace(record, target_loss=target_loss).write(Path(study_dir))
    return write_report(Path(study_dir))


@with_types
def compare(
    *folders: Path | str,
    out: Path | str = "results/compare",
    baseline: str | None = None,
    anyway: bool = False,
    command: str = "attnlab.compare",
) -> Analysis:
    """Compare studies, variants and single runs, and write one report. The folders are only read.

    Args:
        folders: of studies, of variants or of runs (results/STUDY/VARIANT/seed-0).
        out: folder of the report.
        baseline: a variant; by default that of the first study, or the first variant.
        anyway: compare even if the runs are not comparable; the report then carries a warning.
        command: recorded in the report as the command that wrote it.

    Raises:
        ValueError: a folder has no run, two have the same run, no variant is called like the
            baseline, `out` lies in published/, or the runs are not comparable: they read other
            tokens, took other numbers of steps or were evaluated on other splits; or, with `anyway`
            too, they have different tokenizers.
    """
    require_results_folder(Path(out))
    given = [Path(folder) for folder in folders]
    table = read_folders(given, out=Path(out), command=command, baseline=baseline)
    if any(line.startswith(TOKENIZER) for line in table.unfair):
        raise ValueError(
            "the runs have different tokenizers, so that their losses per token are not "
            "comparable; compare final_bits_per_byte of attnlab.load_results:\n"
            + "\n".join(f"  {line}" for line in table.unfair)
        )
    if table.unfair and not anyway:
        reasons = "\n".join(f"  {line}" for line in table.unfair)
        raise ValueError(
            f"the runs are not comparable:\n{reasons}\n"
            "use --anyway to compare regardless; the report then carries this warning"
        )
    analysis = analysis_of(table)
    write_comparison(analysis)
    return analysis


def write_report(study_dir: Path) -> Analysis:
    """Write every derived file.

    Raises:
        ValueError: there is no study.
        UnwrittenReportError: the disk is full, or the folder cannot be written.
    """
    with reading_once():
        _finalize(study_dir)
        analysis = analyse(study_dir)
        with _writing(analysis):
            _record_judgements(analysis)
            _write_variants(analysis.whole)
            _update(study_dir / "runs.csv", runs_csv(load_results(study_dir)).encode())
    write_comparison(analysis)
    return analysis


@contextmanager
def _writing(analysis: Analysis) -> Generator[None]:
    """Raise UnwrittenReportError for a file that cannot be written inside."""
    try:
        yield
    except OSError as error:
        refused = WriteError.of(Path(error.filename or analysis.table.path), error)
        unwritten = UnwrittenReportError(str(refused))
        unwritten.errno, unwritten.analysis = error.errno, analysis
        raise unwritten from error


def write_comparison(analysis: Analysis) -> None:
    """Write the files about all variants, into the table's folder.

    Raises UnwrittenReportError if the disk is full, or the folder cannot be written.
    """
    with _writing(analysis):
        _write_comparison(analysis)


def _write_comparison(analysis: Analysis) -> None:
    # matplotlib takes a second to import
    from attnlab.reporting.figures.comparison import comparison, panel_pdfs

    path = analysis.table.path
    path.mkdir(parents=True, exist_ok=True)
    remove_temporary(path)
    png, svg = comparison(analysis)
    _update(path / PICTURE, png)
    _update(path / "comparison.svg", svg)
    for name, data in panel_pdfs(analysis).items():
        _update(path / f"comparison_{name}.pdf", data)
    if profile(analysis):
        _update(path / "profile.png", profile_png(analysis))
    _update(path / PAGE, page(analysis).encode())
    _write_results(analysis)


def write_results(study_dir: Path) -> Analysis:
    """Write all files but the page and the figure, which takes little time, after a run."""
    with reading_once():
        _finalize(study_dir)
        analysis = analyse(study_dir)
    _write_variants(analysis.whole)
    _write_results(analysis)
    return analysis


def _record_judgements(analysis: Analysis) -> None:
    """Record what the user's own code has judged, for reports in which it is not executed."""
    path = analysis.table.path
    study = StudyRecord.read(path)
    judged = to_record(study, analysis.judgements)
    if judged != list(study.judgements):
        replace(study, judgements=tuple(judged)).write(path)


def _finalize(study_dir: Path) -> None:
    for folders in StudyRecord.read(study_dir).runs(study_dir).values():
        for folder in folders:
            folder.finalize()


def _write_variants(table: Table) -> None:
    for variant in table.variants:
        if variant.folder.is_dir() and not leads_outside(variant.folder, table.path):
            _update(variant.folder / "config.json", to_json(of_variant(variant.config)))
            _update(variant.folder / "metrics.json", to_json(metrics(variant)))


def _write_results(analysis: Analysis) -> None:
    path = analysis.table.path
    _update(path / "comprehensive_results.json", to_json(results(analysis)))
    _update(path / "failures.json", to_json(failures(analysis.whole)))
    picture = PICTURE if (path / PICTURE).is_file() else None
    _update(path / "report.md", markdown(analysis, picture).encode())
    _update(path / "table.csv", csv_table(analysis).encode())
    _update(path / "table.tex", latex(analysis).encode())
    if profile(analysis):
        _update(path / "profile.csv", profile_csv(analysis).encode())


def _update(path: Path, data: bytes) -> None:
    # when one run ends, most files of most variants do not change
    if not path.is_file() or path.read_bytes() != data:
        replace_file(path, data)
