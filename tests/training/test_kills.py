"""Killed at any instant, training goes on to the same bits and leaves nothing that is torn."""

import os
import subprocess
import sys
from pathlib import Path

from support import SOURCE, TESTS, killed_trainer


def test_twenty_kills_at_random_instants_change_nothing(tmp_path):
    """Half of them at a time, and half while something is being written."""
    script = Path(killed_trainer.__file__)
    path = os.pathsep.join([str(SOURCE), str(TESTS)])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "20", "0"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "20 kills" in done.stdout
