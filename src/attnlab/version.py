"""Versions of installed packages, including attnlab, and of source trees."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@cache
def package_version(name: str) -> str | None:
    """Return the version of an installed package without importing it; None if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit of the source tree that holds `file`, and if tracked files have changes.

    None if git does not track the file.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(file.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", file.name)
    commit = git("rev-parse", "HEAD")
    if not tracked or commit is None:
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


__version__ = package_version("attnlab") or "0+source"  # the latter if it runs from source
