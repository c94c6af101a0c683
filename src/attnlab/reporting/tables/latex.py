r"""table.tex: the ranking for a paper: `\usepackage{booktabs}`, then `\input{table}`.

Variants have the labels of the study, in which `\cite{key}` cites the source of a mechanism. Names
in scripts other than Latin need LuaLaTeX or XeLaTeX.
"""

import re
from collections.abc import Iterator, Sequence

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.numbers import confidence
from attnlab.config import visible
from attnlab.reporting.sentences import at_recipe, intervals, unfair
from attnlab.reporting.tables import columns
from attnlab.reporting.tables.columns import Column
from attnlab.reporting.tables.rows import CITATION, Row, plain, rows, split_name

QUALITY = {"letters", "variant"}  # beside the loss, which perplexity repeats, and its difference
DIGITS = 3  # after the point, so that the table fits one column of a page
SPLIT = {"active parameters", "peak memory", "decode state"}  # titles of one word per line
SHORT = {"parameters": "params", "active parameters": "active params"}
COST = {"parameters", "active parameters", "time/step", "peak memory", "decode state"}
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "–": r"\textendash{}", "µ": r"$\mu$", "∞": r"$\infty$"},
    **{"≤": r"$\leq$", "≥": r"$\geq$", "`": r"\textasciigrave{}"},
}


def latex(analysis: Analysis) -> str:
    """Return a table environment with caption and label; one per text, size and length."""
    return "\n".join(map(_latex, analysis.groups))


def _latex(analysis: Analysis) -> str:
    shown = rows(analysis)
    chosen = [
        *(
            c
            for c in columns.ranking(analysis, DIGITS)
            if c.title in QUALITY or _of_the_verdict(c, analysis)
        ),
        *(c for c in columns.costs(shown) if c.title in COST),
    ]
    chosen = columns.for_page(columns.known(chosen, shown))
    scope = analysis.scope.replace(" on ", " ").replace(" at ", " ")
    name = f"{analysis.table.study.name}{scope}"
    lines = [
        *(f"% {visible(' '.join(line.split()))}" for line in unfair(analysis.whole)),
        r"\begin{table}",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{2.8pt}",
        f"\\caption{{{escaped(_caption(analysis))}}}",
        r"\vspace{4pt}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}}}",
        f"\\begin{{tabular}}{{@{{}}{''.join('r' if c.value else 'l' for c in chosen)}@{{}}}}",
        r"\toprule",
        *_header(chosen),
        r"\midrule",
        *(_line([_cell(column, row) for column in chosen]) for row in shown),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(analysis: Analysis) -> str:
    study, several = analysis.table.study, len(analysis.seeds) > 1
    spread = ", mean ± standard deviation over seeds" if several else ", one seed"
    said = [
        f"{split_name(analysis).capitalize()} loss{analysis.scope} of {len(rows(analysis))} "
        f"variants{spread}; lower is better{at_recipe(analysis).replace(' at', '; at')}."
    ]
    if analysis.judged:
        if analysis.baseline:
            said.append(
                f"Δ: difference to {_of(analysis, analysis.baseline)}, with {intervals(analysis)}."
            )
        level = f"{confidence(analysis.level)}, all pairs"
        said.append(f"Variants that share a letter are not distinguishable ({level}).")
        said.append("Bold: may be the best (Hsu's comparisons with the best).")
    elif shown := rows(analysis):
        said.append(f"Bold: the lowest ({plain(shown[0].label)}); no verdict.")
    said.append(f"Source: attnlab {study.attnlab_version}, {study.command}.")
    return " ".join(said)


def _of(analysis: Analysis, name: str) -> str:
    return next((plain(row.label) for row in rows(analysis) if row.name == name), name)


def _header(chosen: Sequence[Column]) -> Iterator[str]:
    """Yield lines of titles, a word of the longer ones in each, and a line of units."""
    words = [
        SHORT.get(c.title, c.title).split() if c.title in SPLIT else [SHORT.get(c.title, c.title)]
        for c in chosen
    ]
    for line in range(max(map(len, words))):
        yield _line([escaped(of[line]) if line < len(of) else "" for of in words])
    yield _line([f"({escaped(column.unit)})" if column.unit else "" for column in chosen])


def _cell(column: Column, row: Row) -> str:
    if column.title == "variant":
        return _labelled(row.label)
    text = escaped(column.text(row))
    if not column.title.endswith(" loss") or row.left_out:
        return text
    bound = row.analysis.hsu.get(row.name)
    best = bound.low < 0 if bound else row.place == 1
    return f"\\textbf{{{text}}}" if best else text


def _labelled(label: str) -> str:
    """Return a label with its text escaped and its citations as they are."""
    said, cited = CITATION.split(label), [*CITATION.findall(label), ""]
    return "".join(escaped(text) + key for text, key in zip(said, cited, strict=True))


def escaped(text: str) -> str:
    r"""Return text with LaTeX's special characters escaped.

    >>> escaped("gqa_1 5 % ± 0.1 --out")
    'gqa\\_1 5 \\% $\\pm$ 0.1 -{}-out'
    """
    shown = (one for one in visible(" ".join(text.split())) if one.isprintable())
    text = "".join(SPECIAL.get(character, character) for character in shown)
    text = text.replace("--", "-{}-")  # of an option, which would be read as one dash
    return re.sub(r"(^|[ \[])-(?=\d)", r"\1$-$", text)


def _of_the_verdict(it: Column, analysis: Analysis) -> bool:
    return it.title in (f"{split_name(analysis)} loss", f"Δ {analysis.table.study.baseline}")


def _line(cells: list[str]) -> str:
    line = " & ".join(cells) + r" \\"
    # after a line break these would be read as its arguments
    return "{}" + line if line.startswith(("[", "*")) else line
