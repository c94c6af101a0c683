"""The command line: one file, one command.

Exit codes: 0 all is well; 1 a run failed or diverged, a mechanism breaks a promise, or the default
study cannot run here; 2 the command or its settings are wrong, and nothing was spent; 130
interrupted, and what was done is kept.
"""

from attnlab.cli import bench, check, compare, doctor, export, extend, generate, pack, report, run
from attnlab.cli import list_kinds as kinds
from attnlab.cli.app import app

__all__ = [
    "app",
    "bench",
    "check",
    "compare",
    "doctor",
    "export",
    "extend",
    "generate",
    "kinds",
    "main",
    "pack",
    "report",
    "run",
]


def main() -> None:
    """What the `attnlab` command calls."""
    app()
