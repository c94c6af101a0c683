"""The command line: a file per command or two, which parses arguments, calls attnlab and prints.

Exit codes: 0 success; 1 a run failed or diverged, a mechanism violates a property, a measurement
failed, the default study cannot run here, or a reproduction is outside of its band; 2 the command
or its settings are invalid and nothing was run, or a file could not be read or written; 3 a
reproduction is undecided; 128 + n ended by signal n (130: Ctrl-C, 143: SIGTERM), and what was
finished is kept.
"""

import gc
import os

from attnlab.cli import (
    bench,
    check,
    generate,
    list_catalog,
    probe,
    report,
    reproduce,
    run,
    train,
)
from attnlab.cli.app import app
from attnlab.cli.console import print_any_character
from attnlab.cli.early_end import end_on_signals, raise_on_signals

__all__ = [
    "app",
    "bench",
    "check",
    "generate",
    "list_catalog",
    "main",
    "probe",
    "report",
    "reproduce",
    "run",
    "train",
]


def main() -> None:
    """Run the `attnlab` command."""
    raise_on_signals()
    print_any_character()
    # before torch is imported: threads that spin while they wait slow a busy machine down
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # else to ask whether there are GPUs starts the driver, and copies of this process have none
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    try:
        app()
    finally:
        end_on_signals()
        gc.freeze()  # else the interpreter searches all that was imported for garbage: 0.3 seconds
