"""Hypothesis: attention is needed in every layer."""

from dataclasses import dataclass
from typing import ClassVar

from attnlab.analysis.hypotheses.evidence import Evidence, Finding
from attnlab.analysis.hypotheses.hypothesis import Hypothesis
from attnlab.analysis.sentences import compared
from attnlab.analysis.table import Table

UNMIXED = "identity"  # the mechanism that mixes no tokens


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
