r"""table.tex: the ranking for a paper: `\usepackage{booktabs}`, then `\input{table}`."""

import re

from attnlab.analysis.analysis import Analysis
from attnlab.reporting.sentences import unfair
from attnlab.reporting.tables import columns
from attnlab.reporting.tables.columns import Column
from attnlab.reporting.tables.rows import Row, rows, split_name

QUALITY = {"letters", "variant", "perplexity", "accuracy"}
COST = {"parameters", "active parameters", "time/step", "peak memory", "decode state"}
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "–": "--", "µ": r"$\mu$"},
}


def latex(analysis: Analysis) -> str:
    """Return a tabular environment; comments define the numbers."""
    shown = rows(analysis)
    chosen = [
        *(
            c
            for c in columns.ranking(analysis)
            if c.title in QUALITY or _of_the_verdict(c, analysis)
        ),
        *(c for c in columns.costs(shown) if c.title in COST),
    ]
    chosen = columns.known(chosen, shown)
    lines = [
        f"% {split_name(analysis)} loss: mean and sample standard deviation over seeds; "
        "differences: with half of the simultaneous 95 % interval",
        *(f"% {' '.join(line.split())}" for line in unfair(analysis.table)),
        f"\\begin{{tabular}}{{{''.join('r' if c.value else 'l' for c in chosen)}}}",
        r"\toprule",
        _line([c.heading for c in chosen]),
        r"\midrule",
        *_body(chosen, shown),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Return text with LaTeX's special characters escaped.

    >>> escaped("gqa_1 5 % ± 0.1")
    'gqa\\_1 5 \\% $\\pm$ 0.1'
    """
    text = "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"(^| )-(?=\d)", r"\1$-$", text)


def _of_the_verdict(it: Column, analysis: Analysis) -> bool:
    return it.title in (f"{split_name(analysis)} loss", f"Δ {analysis.table.study.baseline}")


def _body(chosen: list[Column], shown: tuple[Row, ...]) -> list[str]:
    return [_line([c.text(row) for c in chosen]) for row in shown]


def _line(cells: list[str]) -> str:
    line = " & ".join(map(escaped, cells)) + r" \\"
    # after a line break these would be read as its arguments
    return "{}" + line if line.startswith(("[", "*")) else line
