"""Helpers that several test modules share."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SOURCE = ROOT / "src"
PLANTED_BUGS = TESTS / "support" / "planted_bugs.py"
