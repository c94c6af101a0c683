"""Hypothesis: some variants are better than others at another window length than in training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from attnlab.analysis.hypotheses.better import Better
from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.lengths import pairs_at
from attnlab.analysis.numbers import tokens
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class BetterAtLength(Better):
    """Each of `variants` is better than each of `than` in windows of `length` tokens.

    The loss is that on the validation split, which `eval.lengths` has measured at that length.
    """

    length: int

    @property
    def statement(self) -> str:
        return f"In windows of {tokens(self.length)} tokens: {super().statement}"

    def judge(self, evidence: Evidence) -> Finding:
        there = pairs_at(evidence.verdict, self.length)
        at = replace(evidence, verdict=replace(evidence.verdict, pairs=there))
        known, missing = at.available((*self.variants, *self.than))
        pairs = [pair for pair in product(self.variants, self.than) if set(pair) <= set(known)]
        measured = [pair for pair in pairs if pair in there]
        if len(measured) < len(pairs):
            missing += (f"Not all were measured in windows of {tokens(self.length)} tokens.",)
        return at.finding([at.better(*pair) for pair in measured], at.compared(measured), missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.length < 1:
            yield Problem("length", f"must be at least 1 token, got {self.length}")
