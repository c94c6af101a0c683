"""`attnlab.report`: rebuild the page, tables and figures of a study."""

from pathlib import Path

from attnlab.analysis.analysis import Analysis
from attnlab.reporting.files import write_report


def report(study_dir: Path | str) -> Analysis:
    """Rebuild the page, tables and figures of a study from its runs.

    Args:
        study_dir: a study's folder, such as results/quickstart.

    Returns:
        The analysis that the files are made from.

    Raises:
        ValueError: the folder has no study.
    """
    return write_report(Path(study_dir))
