"""The variants in the order of every table and figure.

First those that the verdict compares, by the mean of its metric; then those that it leaves out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.curves import perplexity
from attnlab.analysis.numbers import UNKNOWN
from attnlab.analysis.statistics.letters import shown
from attnlab.analysis.statistics.paired import Estimate
from attnlab.analysis.table import Variant
from attnlab.config import visible

CITATION = re.compile(r"[~ ]?\\cite[a-z]*\{[\w:,./ -]+\}")


@dataclass(frozen=True)
class Row:
    """A variant and its place in the comparison."""

    variant: Variant
    analysis: Analysis

    @property
    def name(self) -> str:
        return self.variant.name

    @property
    def label(self) -> str:
        """The name in figures and tables for papers; it may hold a citation of LaTeX."""
        return self.analysis.table.study.labels.get(self.name, self.name)

    @property
    def compared(self) -> bool:
        return self.name in self.analysis.order

    @property
    def place(self) -> int | None:
        """The rank by mean loss, from 1; equal means share a rank."""
        means = self.analysis.means
        if self.name not in means:
            return None
        return 1 + sum(mean < means[self.name] for mean in means.values())

    @property
    def letters(self) -> str | None:
        """The letters, shared with variants that are not distinguishable from it."""
        found = self.analysis.letters.get(self.name)
        return None if found is None else shown(found)

    @property
    def left_out(self) -> str | None:
        """The reason why it is not compared; None where it is."""
        return self.analysis.left_out.get(self.name)

    @property
    def baseline(self) -> bool:
        return self.name == self.analysis.table.study.baseline

    @property
    def to_baseline(self) -> Comparison | None:
        return self.analysis.to_baseline.get(self.name)

    @property
    def seeds(self) -> str:
        """Finished and planned seeds, as in `2/3`, and how many of them no number counts."""
        gone = len(self.analysis.set_aside(self.name))
        counts = f"{len(self.variant.finished)}/{len(self.variant.runs)}"
        return f"{counts}, {gone} set aside" if gone else counts

    @property
    def mechanism(self) -> str:
        """The mechanism of the variant's layers."""
        return self.variant.mechanism or UNKNOWN

    def mean(self, key: str) -> float | None:
        estimate = self.numbers.get(key)
        return None if estimate is None else estimate.mean

    @cached_property
    def numbers(self) -> Mapping[str, Estimate]:
        """Estimates by key of summary.json, without runs that are set aside.

        The verdict's metric has the mean that it compares, and the perplexity is that of this mean.
        """
        metric = self.analysis.metric
        counted = {variant.name: variant.numbers for variant in self.analysis.counted.variants}
        found = counted[self.name]
        if not self.compared or metric not in found:
            return found
        mean, exp = self.analysis.means[self.name], f"{split_of(self.analysis)}_perplexity"
        compared = {metric: mean, exp: perplexity(mean)}
        return {k: replace(of, mean=compared.get(k, of.mean)) for k, of in found.items()}


def plain(label: str) -> str:
    r"""Return a label without citations of LaTeX.

    >>> plain(r"Gated DeltaNet~\cite{yang2024}")
    'Gated DeltaNet'
    """
    return visible(CITATION.sub("", label).strip())


def rows(analysis: Analysis) -> tuple[Row, ...]:
    """Return every variant with a finished run."""
    by_name = {variant.name: variant for variant in analysis.table.variants}
    others = [v.name for v in analysis.table.ranked if v.name not in analysis.order]
    return tuple(Row(by_name[name], analysis) for name in (*analysis.order, *others))


def rows_of_all_groups(analysis: Analysis) -> tuple[Row, ...]:
    """Return every variant with a finished run, by text, size and length; places are in each."""
    return tuple(row for of in analysis.groups for row in rows(of))


def split_of(analysis: Analysis) -> str:
    """Return the prefix of the verdict's split in summary.json: "final" or "test"."""
    return analysis.metric.removesuffix("_loss")


def split_name(analysis: Analysis) -> str:
    """Return "validation" or "test"."""
    return "test" if split_of(analysis) == "test" else "validation"
