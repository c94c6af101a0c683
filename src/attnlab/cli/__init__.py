"""The command line: one file per command, which parses arguments, calls attnlab and prints.

Exit codes: 0 success; 1 a run failed or diverged, a mechanism violates a property, a measurement
failed, or the default study cannot run here; 2 the command or its settings are invalid and nothing
was run; 130 interrupted, and what was finished is kept.
"""

from attnlab.cli import (
    bench,
    check,
    compare,
    doctor,
    export,
    extend,
    generate,
    list_catalog,
    pack,
    report,
    run,
)
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
    "list_catalog",
    "main",
    "pack",
    "report",
    "run",
]


def main() -> None:
    """Run the `attnlab` command."""
    app()
