"""Hypotheses on pairs of variants: better, also at another window length; or equivalent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.lengths import pairs_at
from attnlab.analysis.numbers import tokens
from attnlab.analysis.sentences import apart, listed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class Better(Hypothesis):
    """Each of `variants` is better than each of `than`."""

    variants: tuple[str, ...]
    than: tuple[str, ...]

    @property
    def statement(self) -> str:
        first, second = self.variants, self.than
        who = listed(first) if len(first) == 1 else f"Each of {listed(first)}"
        whom = listed(second) if len(second) == 1 else f"each of {listed(second)}"
        return f"{who} is better than {whom}."

    def judge(self, evidence: Evidence) -> Finding:
        evidence = evidence.on_text_of(self.variants[0])
        known, missing = evidence.available((*self.variants, *self.than))
        pairs = [pair for pair in product(self.variants, self.than) if set(pair) <= set(known)]
        return evidence.finding(
            [evidence.better(*pair) for pair in pairs], evidence.compared(pairs), missing
        )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems((*self.variants, *self.than), at_least=2)
        if not self.variants:
            yield Problem("variants", "name at least 1")
        if not self.than:
            yield Problem("than", "name at least 1")


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
        evidence = evidence.on_text_of(self.variants[0])
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


@dataclass(frozen=True, kw_only=True)
class Equivalent(Hypothesis):
    """No two of `variants` (of all, if none is named) differ by more than `margin` nats/token."""

    variants: tuple[str, ...] = ()
    margin: float | None = None  # None: the study's margin

    @property
    def statement(self) -> str:
        who = f"{listed(self.variants)} are" if self.variants else "All variants are"
        margin = "the study's margin" if self.margin is None else f"{self.margin:g} nats/token"
        return f"{who} equivalent within {margin}."

    def judge(self, evidence: Evidence) -> Finding:
        verdict = evidence.verdict
        every = tuple(variant.name for variant in verdict.table.variants)
        known, missing = evidence.available(self.variants or every)
        margin = verdict.margin if self.margin is None else self.margin
        pairs = list(combinations(known, 2))
        facts = [evidence.within(*pair, margin) for pair in pairs]
        found = list(evidence.compared(pairs))
        if len(pairs) > 1:
            by_mean = sorted(known, key=lambda name: verdict.means[name])
            first, last = by_mean[0], by_mean[-1]
            found = [
                f"The means span {apart(verdict.pairs[last, first])}, from {first} to {last}.",
                f"Of {len(pairs)} pairs, {facts.count(True)} are within {margin:g} nats/token, and "
                f"{facts.count(False)} differ by more.",
            ]
        return evidence.finding(facts, found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=2 if self.variants else 0)
        if self.margin is not None and self.margin <= 0:
            yield Problem("margin", f"must be positive, got {self.margin}")
