"""Hypothesis: the accuracy of some variants lies in a range, as that of a task's answers."""

from collections.abc import Iterator
from dataclasses import dataclass

from attnlab.analysis.hypotheses.evidence import Evidence, Fact, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis, distinct_problems
from attnlab.analysis.profile import Accuracy, accuracy_at
from attnlab.analysis.sentences import listed
from attnlab.config import Problem


@dataclass(frozen=True, kw_only=True)
class AccuracyInRange(Hypothesis):
    """Each of `variants` has an accuracy of at least `low` and at most `high`.

    It is the mean over seeds, with 95 % t intervals that hold for all variants at once
    (Bonferroni): supported where all lie in the range, refuted where one lies outside. With
    `length` it is that of validation sequences of so many tokens (`eval.lengths`).
    """

    variants: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0
    length: int | None = None  # None: that of training, on the split of the verdict

    needs_verdict = False

    @property
    def statement(self) -> str:
        who = f"{listed(self.variants)} has" if len(self.variants) == 1 else ""
        who = who or f"Each of {listed(self.variants)} has"
        if self.low > 0 and self.high < 1:
            what = f"an accuracy of {self.low:g} to {self.high:g}"
        elif self.high < 1:
            what = f"an accuracy of at most {self.high:g}"
        else:
            what = f"an accuracy of at least {self.low:g}"
        where = "" if self.length is None else f" in sequences of {self.length:,} tokens"
        return f"{who} {what}{where}."

    def judge(self, evidence: Evidence) -> Finding:
        verdicts = [evidence.on_text_of(name).verdict for name in self.variants]
        facts, found, missing = list[Fact](), list[str](), list[str]()
        for name, verdict in zip(self.variants, verdicts, strict=True):
            variant = next((v for v in verdict.table.variants if v.name == name), None)
            split = verdict.metric.removesuffix("_loss")
            values = accuracy_at(variant, split, self.length) if variant is not None else []
            accuracy = Accuracy.of(values, among=len(self.variants))
            if accuracy is None:
                missing.append(name)
                continue
            facts.append(self._holds(accuracy))
            interval = "no interval with one seed"
            if accuracy.low is not None and accuracy.high is not None:
                interval = f"[{accuracy.low:.3f}, {accuracy.high:.3f}]"
            found.append(f"{name}: {accuracy.mean:.3f} {interval}.")
        if missing:
            found.append(f"Not measured: {listed(missing)}.")
        return evidence.finding(facts, found, missing)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from distinct_problems(self.variants, at_least=1)
        if not 0 <= self.low <= self.high <= 1:
            yield Problem("low", f"must lie from 0 to high <= 1, got {self.low} and {self.high}")
        elif (self.low, self.high) == (0.0, 1.0):
            yield Problem("low", "give low or high: every accuracy is from 0 to 1")
        if self.length is not None and self.length < 1:
            yield Problem("length", f"must be at least 1 token, got {self.length}")

    def _holds(self, accuracy: Accuracy) -> Fact:
        if accuracy.low is None or accuracy.high is None:
            return None
        if self.low <= accuracy.low and accuracy.high <= self.high:
            return True
        return False if accuracy.high < self.low or accuracy.low > self.high else None
