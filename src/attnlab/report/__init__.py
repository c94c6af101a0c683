"""Results for people: tables, Markdown and figures, from files alone."""

from attnlab.report.files import write_report, write_results
from attnlab.report.terminal import TerminalReport

__all__ = ["TerminalReport", "write_report", "write_results"]
