"""`attnlab.compare`: studies, variants and single runs of any folders in one report."""

from pathlib import Path

from attnlab.analysis.analysis import Analysis, analysis_of
from attnlab.analysis.compare_folders import read_folders
from attnlab.analysis.fairness import TOKENIZER
from attnlab.record import require_results_folder
from attnlab.reporting.files import write_comparison


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
