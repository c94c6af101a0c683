"""Results for people: tables, Markdown and figures, from files alone."""

from attnlab.reporting.files import write_report, write_results
from attnlab.reporting.terminal import TerminalReport

__all__ = ["TerminalReport", "write_report", "write_results"]
