"""Hypotheses: sentences that the data of a study can judge. One file holds one idea.

Importing this package loads every file, so that a new file is all that a new kind needs.
"""

from importlib import import_module
from pkgutil import iter_modules

from attnlab.analysis.hypotheses.evidence import Evidence, Ruling
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, Judgement, judge_all

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["Evidence", "Hypothesis", "Judgement", "Ruling", "judge_all"]
