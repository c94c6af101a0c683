"""Figures for papers and pages. Files are drawn, so that no backend of the user's is needed.

matplotlib reads MPLBACKEND when it is first imported, and fails at a backend that is not installed,
as that of a notebook is not in a worker.
"""

import os

_given = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
finally:
    if _given is not None:
        os.environ["MPLBACKEND"] = _given
