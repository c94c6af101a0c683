"""Hypotheses that read another study: on namesakes there, such as those of longer contexts.

Of a pair of variants with differences d here and d' there, the difference of both has the interval

    d - d' - sqrt((d - low)^2 + (high' - d')^2)  to  d - d' + sqrt((high - d)^2 + (d' - low')^2)

(Zou and Donner 2008), with the errors of seeds and of tuning. It holds for all pairs of variants at
once, as the intervals of both studies do: d - d' is what the change of one variant from there to
here is larger than that of the other, a difference of two independent means again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from attnlab.analysis import numbers
from attnlab.analysis.hypotheses.evidence import Evidence, Fact, Finding, NotJudgedError
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.sentences import against, compared, listed
from attnlab.analysis.statistics.comparisons import Comparison, compare
from attnlab.analysis.table import Table
from attnlab.analysis.verdict import Verdict
from attnlab.config import Problem

HERE, THERE = "here", "there"
UNMIXED = "identity"  # the mechanism that mixes no tokens


@dataclass(frozen=True, kw_only=True)
class BetterThanInStudy(Hypothesis):
    """Each of `variants` is better here than its namesake in the study `study`.

    The two may differ in the settings `apart` alone; see `Evidence.of_study`. The intervals hold
    for all of `variants` at once (Bonferroni).
    """

    variants: tuple[str, ...]
    study: str
    apart: tuple[str, ...] = ()  # settings in which the studies differ, such as train.seq_len
    command: str = ""  # what makes the other study; empty: `attnlab run STUDY`

    @property
    def statement(self) -> str:
        who = listed(self.variants)
        who = who if len(self.variants) == 1 else f"Each of {who}"
        return f"{who} is better here than in study {self.study}{_but_for(self.apart)}."

    def judge(self, evidence: Evidence) -> Finding:
        there = evidence.of_study(
            self.study,
            comparable={name: name for name in self.variants},
            apart=self.apart,
            command=self.command,
        )
        known, missing = evidence.on_text_of(self.variants[0]).available(self.variants)
        pairs = {name: between(name, evidence, there, among=len(self.variants)) for name in known}
        found = [against(f"{name} here", f"{name} there", pair) for name, pair in pairs.items()]
        return evidence.finding([better(pair) for pair in pairs.values()], found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=1)


@dataclass(frozen=True, kw_only=True)
class AdvantageGrows(Hypothesis):
    """The advantage of each of `variants` over each of `than` is larger here than in `study`.

    Advantage is by how much its loss is lower. The variants and their namesakes there may differ in
    the settings `apart` alone; see `Evidence.of_study`.
    """

    variants: tuple[str, ...]
    than: tuple[str, ...]
    study: str
    apart: tuple[str, ...] = ()  # settings in which the studies differ, such as train.seq_len
    command: str = ""  # what makes the other study; empty: `attnlab run STUDY`

    @property
    def statement(self) -> str:
        return (
            f"The advantage of {listed(self.variants)} over {listed(self.than)} is larger here "
            f"than in study {self.study}{_but_for(self.apart)}."
        )

    def judge(self, evidence: Evidence) -> Finding:
        names = (*self.variants, *self.than)
        there = evidence.of_study(
            self.study,
            comparable={name: name for name in names},
            apart=self.apart,
            command=self.command,
        )
        here, there = (of.on_text_of(names[0]) for of in (evidence, there))
        missing = (*here.available(names)[1], *there.available(names)[1])
        pairs = [
            pair
            for pair in product(self.variants, self.than)
            if pair in here.verdict.pairs and pair in there.verdict.pairs
        ]
        facts, found = list[Fact](), list[str]()
        for first, second in pairs:
            both = here.verdict.pairs[first, second], there.verdict.pairs[first, second]
            growth = minus(*both)
            facts.append(better(growth))
            ends = [
                f"{numbers.comparison(pair, 3)} {where}"
                for pair, where in zip(both, (HERE, THERE), strict=True)
            ]
            found.append(
                f"{first} minus {second}, nats/token: {listed(ends)}; the first minus the second: "
                f"{numbers.comparison(growth, 3)}."
            )
        return evidence.finding(facts, found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems((*self.variants, *self.than), at_least=2)
        for name in ("variants", "than"):
            if not getattr(self, name):
                yield Problem(name, "name at least 1")


def better(pair: Comparison) -> Fact:
    """True if a difference is shown to be below 0; None if the data do not decide it."""
    if pair.separable:
        return pair.mean < 0
    return False if pair.equivalent else None


def minus(here: Comparison, there: Comparison) -> Comparison:
    """Return the difference of two differences of independent studies, with its interval.

    >>> here, there = (Comparison(mean=m, half_width=h, alone=None) for m, h in ((-0.5, 3), (0, 4)))
    >>> found = minus(here, there)
    >>> found.mean, found.low, found.high
    (-0.5, -5.5, 4.5)
    """
    if here.half_width is None or there.half_width is None:
        return Comparison(mean=here.mean - there.mean, half_width=None, alone=None)
    return Comparison(
        mean=here.mean - there.mean,
        half_width=math.hypot(here.half_width, there.half_width),
        alone=None,
        first_allowance=math.hypot(here.first_allowance, there.second_allowance),
        second_allowance=math.hypot(here.second_allowance, there.first_allowance),
        margin=here.margin,
    )


def between(name: str, here: Evidence, there: Evidence, *, among: int) -> Comparison:
    """Return the loss of a variant here minus that of its namesake there.

    The interval is one of `among` that hold at once. Raises NotJudgedError if the losses are of
    different splits, or one of them is not compared in its own study.
    """
    verdicts = [of.on_text_of(name).verdict for of in (here, there)]
    if len({of.metric for of in verdicts}) > 1:
        raise NotJudgedError("The two studies are measured on different splits.")
    columns = {place: _losses(name, of) for place, of in zip((HERE, THERE), verdicts, strict=True)}
    allowance = {
        place: of.tuning.allowance.get(name, 0.0)
        for place, of in zip((HERE, THERE), verdicts, strict=True)
    }
    found = compare(
        columns,
        allowance=allowance,
        margin=verdicts[0].margin,
        level=verdicts[0].level / among,
    )
    return found.pairs[HERE, THERE]


def _losses(name: str, verdict: Verdict) -> dict[int, float]:
    if name not in verdict.means:
        why = verdict.left_out.get(name, "the study has no such variant")
        raise NotJudgedError(f"{name} is not compared in {verdict.table.study.name}: {why}.")
    variant = next(v for v in verdict.table.variants if v.name == name)
    return variant.by_seed(verdict.metric)


def _but_for(apart: tuple[str, ...]) -> str:
    return f", which differs in {listed(apart)}" if apart else ""


@dataclass(frozen=True, kw_only=True)
class NeededInEveryLayer(Hypothesis):
    """The model is worse without attention in any one layer.

    Read from the folder of `study` beside the study's own: its baseline is that of this study and
    has attention in every layer, and some of its variants differ from it in one layer, which mixes
    no tokens.
    """

    study: str = "attention_needed"

    needs_verdict: ClassVar[bool] = False  # the other study has one of its own

    @property
    def statement(self) -> str:
        return f"Without attention in any one layer, the model is worse (study {self.study})."

    def judge(self, evidence: Evidence) -> Finding:
        other = evidence.of_study(self.study)
        verdict, baseline = other.verdict, other.verdict.baseline
        if baseline is None:
            return other.ruled("not judged", (f"The baseline of {self.study} is not compared.",))
        layers = _layers(verdict.table, baseline)
        pairs = [(baseline, name) for name in layers if (baseline, name) in verdict.pairs]
        if not pairs:
            why = "No variant leaves out attention in one layer alone."
            return other.ruled("not judged", (why,))
        facts = [other.better(*pair) for pair in pairs]
        needed = [layers[name] for (_, name), fact in zip(pairs, facts, strict=True) if fact]
        found = f"Worse without attention in layer {', '.join(map(str, sorted(needed)))}"
        if len(needed) < len(pairs):
            found += f"; not shown for {len(pairs) - len(needed)} of {len(pairs)} layers"
        if not needed:
            found = f"Not shown for any of {len(pairs)} layers"
        by_layer = {
            (baseline, f"{name} (layer {layers[name]})"): verdict.pairs[baseline, name]
            for _, name in sorted(pairs, key=lambda pair: layers[pair[1]])
        }
        return other.finding(facts, (f"{found}.", *compared(by_layer)))


def _layers(table: Table, baseline: str) -> dict[str, int]:
    """Return `{variant: layer}` of the variants without attention in exactly one layer."""
    kinds = {
        variant.name: variant.finished[0].summary.get("attention_type")
        for variant in table.variants
        if variant.finished
    }
    full, found = kinds.get(baseline), dict[str, int]()
    for name, own in kinds.items():
        if isinstance(own, list) and isinstance(full, list) and len(own) == len(full):
            other = [i for i, (a, b) in enumerate(zip(own, full, strict=True)) if a != b]
            if len(other) == 1 and own[other[0]] == UNMIXED:
                found[name] = other[0]
    return found
