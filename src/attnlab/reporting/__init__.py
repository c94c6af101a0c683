"""Reports of a study, from its files alone: HTML page, Markdown, figures, tables, terminal."""

from attnlab.reporting.files import write_report, write_results
from attnlab.reporting.terminal import TerminalReport

__all__ = ["TerminalReport", "write_report", "write_results"]
