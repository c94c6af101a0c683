"""The texts of a study: its variants are compared on each, and the orders on two texts compared.

A loss on one text, or with one tokenizer, says nothing about a loss on another. A study whose
variants read several texts has a comparison per text, of the variants that share it, and none
between texts. The comparisons of all texts hold at once: each has the error rate of the study
divided by the number of texts.

Two texts agree as far as they put the same mechanisms in the same order (Kendall 1938):

    tau = (pairs in the same order on both - pairs in opposite orders) / all pairs

Its estimate is that of the mean losses. Its interval holds the error of seeds and of tuning: a pair
has an order on a text if its published interval excludes 0, and tau ranges over all orders that the
two texts then allow (a set of orders from simultaneous intervals, as in Mogstad, Romano, Shaikh and
Wilhelm 2024). The published intervals hold at once with 95 %, and so do all intervals of tau. Ties
of true means lie between the orders that they allow.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from attnlab.analysis.fairness import comparable_groups
from attnlab.analysis.numbers import confidence
from attnlab.analysis.sentences import listed
from attnlab.analysis.settings import as_computed, describe
from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.letters import tau_range
from attnlab.analysis.table import Table
from attnlab.analysis.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two texts on the order of the mechanisms that are compared on both."""

    texts: tuple[str, str]
    mechanisms: tuple[str, ...]  # by name
    tau: float  # of the mean losses
    low: float | None  # simultaneous over all pairs of texts; None without a verdict on both
    high: float | None
    same: tuple[tuple[str, str], ...]  # the first is better than the second on both texts
    opposite: tuple[tuple[str, str], ...]  # the first is better on the first text alone


class Named(NamedTuple):
    """The variants of a text, by the name of the mechanism that they have in common over texts."""

    text: str
    variants: Mapping[str, str]


def by_text(table: Table) -> dict[str, Table]:
    """Return a table per text, by name: the baseline's first, or the whole table if there is one.

    Variants that share their text with no other are in the first table. The baseline of another
    text is the variant with the mechanisms of the study's baseline.
    """
    study = table.study
    names = [variant.name for variant in table.variants]
    groups = comparable_groups(names, study.by_design, study.baseline) if names else ()
    if len(groups) < 2:
        return {_names_of([names], table)[0]: table}
    home = {name for name in names if all(name not in group for group in groups[1:])}
    found = dict[str, Table]()
    for text, group in zip(_names_of(groups, table), groups, strict=True):
        held = home if group is groups[0] else set(group)
        found[text] = replace(
            table,
            variants=tuple(variant for variant in table.variants if variant.name in held),
            study=replace(
                study,
                baseline=study.baseline
                if held is home
                else counterpart(study.baseline, group, _mechanisms(table)),
                hypotheses=study.hypotheses if held is home else (),
                families={
                    family: kept
                    for family, of in study.families.items()
                    if (kept := tuple(name for name in of if name in held))
                },
            ),
        )
    return found


def counterpart(
    name: str | None, among: Sequence[str], mechanisms: Mapping[str, str]
) -> str | None:
    """Return the first variant of a text with the mechanisms of another text's; None without one.

    Args:
        name: the variant of another text.
        among: the variants of this text.
        mechanisms: those of each variant, as text.
    """
    wanted = mechanisms.get(name or "")
    same = [other for other in among if wanted is not None and mechanisms.get(other) == wanted]
    return same[0] if same else None


def named(tables: Mapping[str, Table]) -> list[Named]:
    """Return the variants of each text, by the name that they have on the first one.

    Variants with equal mechanisms correspond, in the study's order. What the names of a text's
    variants have in common is that of the text, and no part of the mechanism's name.
    """
    found, names = list[Named](), dict[tuple[str, int], str]()
    for text, table in tables.items():
        seen, variants = Counter[str](), dict[str, str]()
        mechanisms = _mechanisms(table)
        here = [v.name for v in table.variants if v.name in mechanisms]
        for name, short in zip(here, without_common(here), strict=True):
            key = mechanisms[name], seen[mechanisms[name]]
            seen[mechanisms[name]] += 1
            variants[names.setdefault(key, short)] = name
        found.append(Named(text, variants))
    return found


def agreements(verdicts: Mapping[str, Verdict]) -> tuple[Agreement, ...]:
    """Return the agreement of each two texts that compare the same two mechanisms or more."""
    found = named({text: verdict.table for text, verdict in verdicts.items()})
    both = (_agreement(*two, verdicts) for two in combinations(found, 2))
    return tuple(agreement for agreement in both if agreement is not None)


def decided_order(
    names: Sequence[str], pairs: Mapping[tuple[str, str], Comparison]
) -> frozenset[tuple[int, int]]:
    """Return (i, j) of all names of which the first has the lower loss, distinguishably.

    Args:
        names: variants of one text.
        pairs: every one minus every other, by intervals that hold at once.
    """
    return frozenset(
        (i, j)
        for i, j in permutations(range(len(names)), 2)
        if (pair := pairs[names[i], names[j]]).separable and pair.mean < 0
    )


def _agreement(first: Named, second: Named, verdicts: Mapping[str, Verdict]) -> Agreement | None:
    texts = [(of.variants, verdicts[of.text]) for of in (first, second)]
    shared = [
        name
        for name in first.variants
        if all(name in of and of[name] in verdict.means for of, verdict in texts)
    ]
    shared = [
        name
        for place, name in enumerate(shared)  # a function under several names counts once
        if not any(
            all(verdict.same_function(of[name], of[earlier]) for of, verdict in texts)
            for earlier in shared[:place]
        )
    ]
    if len(shared) < 2:
        return None
    pairs = list(combinations(range(len(shared)), 2))
    signs = [
        [np.sign(v.means[of[shared[i]]] - v.means[of[shared[j]]]) for i, j in pairs]
        for of, v in texts
    ]
    decided = [decided_order([of[name] for name in shared], verdict.pairs) for of, verdict in texts]
    judged = all(verdict.judged for _, verdict in texts)
    low, high = tau_range(len(shared), *decided) if judged else (None, None)

    def both(pairs: frozenset[tuple[int, int]]) -> tuple[tuple[str, str], ...]:
        return tuple((shared[i], shared[j]) for i, j in sorted(pairs))

    return Agreement(
        texts=(first.text, second.text),
        mechanisms=tuple(shared),
        tau=float(np.mean(np.prod(signs, axis=0))),
        low=low,
        high=high,
        same=both(decided[0] & decided[1]),
        opposite=both(decided[0] & {(j, i) for i, j in decided[1]}),
    )


def agreed(it: Agreement) -> str:
    """Return a sentence on how far two texts agree.

    >>> agreed(Agreement(texts=("books", "code"), mechanisms=("mha", "mla"), tau=1.0, low=-1.0,
    ...                  high=1.0, same=(), opposite=()))
    "books and code: Kendall's tau 1.00 [-1.00, 1.00] of 2 mechanisms."
    """
    interval = "" if it.low is None or it.high is None else f" [{it.low:.2f}, {it.high:.2f}]"
    said = f"{listed(it.texts)}: Kendall's tau {it.tau:.2f}{interval} of {len(it.mechanisms)} "
    opposite = [
        f"{first} is better than {second} on {it.texts[0]}, and worse on {it.texts[1]}"
        for first, second in it.opposite
    ]
    return f"{said}mechanisms{': ' if opposite else ''}{'; '.join(opposite)}."


def within_each(text: str, count: int, level: float, noun: str) -> str:
    """Return how a report with `text` first compares the variants on `count` texts, or tasks.

    `level` is the error rate of the comparisons on each text.
    """
    return (
        f"Losses on different {noun}s, or with different tokenizers, are not comparable: variants "
        f"are compared within each {noun}, and nothing here ranks them across {noun}s. Figures and "
        f"tables are about {text}, unless they name another {noun}. The comparisons on all {count} "
        f"{noun}s hold at once: those of each {noun} at {confidence(level)}."
    )


def _mechanisms(table: Table) -> dict[str, str]:
    """Return the mechanisms of each variant that was started, as text."""
    return {
        variant.name: json.dumps(as_computed(variant.config)["model"]["mechanisms"], sort_keys=True)
        for variant in table.variants
        if "mechanisms" in variant.config.get("model", {})
    }


def _names_of(groups: Sequence[Sequence[str]], table: Table) -> list[str]:
    """Return a name per text: the common part of its variants' names, else its files or source."""
    given = [_common(group) for group in groups]
    if all(given) and len(set(given)) == len(given):
        return given
    data = {v.name: v.config.get("data", {}) for v in table.variants if v.config}
    each = [next((data[name] for name in group if name in data), {}) for group in groups]
    names = list(map(_text, each))
    if len(set(names)) < len(names) and len({str(of.get("tokenizer")) for of in each}) == 1:
        names = [f"{name}{_apart(of, each)}" for name, of in zip(names, each, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({_tokenizer(of)})" for name, of in zip(names, each, strict=True)]
    twice = Counter(names)
    return [
        f"{name}, {place}" if twice[name] > 1 else name for place, name in enumerate(names, start=1)
    ]


def _text(data: Mapping[str, Any]) -> str:
    paths = [*(data.get("paths") or ()), *([data["path"]] if data.get("path") else ())]
    files = ", ".join(PurePath(path).name for path in paths)
    return files or data.get("group") or data.get("kind") or "text"


def _apart(data: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings in which a source differs from others of its kind, in parentheses."""
    alike = [of for of in others if _text(of) == _text(data)]
    apart = {
        name: value
        for name, value in data.items()
        if name not in ("path", "paths") and any(of.get(name) != value for of in alike)
    }
    return (
        f" ({', '.join(f'{name} {describe(of)}' for name, of in apart.items())})" if apart else ""
    )


def _tokenizer(data: Mapping[str, Any]) -> str:
    of = data.get("tokenizer") or {}
    return " ".join(str(of[name]) for name in ("kind", "vocab_size") if name in of)


def without_common(names: Sequence[str]) -> list[str]:
    """Return names without the parts, between underscores, with which all of them end, or begin.

    >>> without_common(["mha_code", "sliding_256_code"]), without_common(["mha", "mla"])
    (['mha', 'sliding_256'], ['mha', 'mla'])
    >>> _common(["mha_code", "sliding_256_code"]), _common(["mha", "mla"])
    ('code', '')
    """
    begins, ends = _common_parts(names)
    parts = [name.split("_") for name in names]
    return ["_".join(of[begins : len(of) - ends]) for of in parts]


def _common(names: Sequence[str]) -> str:
    """Return the parts with which all names end, or begin; empty if there are none."""
    begins, ends = _common_parts(names)
    return "_".join(names[0].split("_")[-ends:] if ends else names[0].split("_")[:begins])


def _common_parts(names: Sequence[str]) -> tuple[int, int]:
    """Return with how many parts all names begin, and end; one of the two is 0."""
    parts = [name.split("_") for name in names]
    fewest = min(map(len, parts)) - 1 if len(parts) > 1 else 0
    ends = _alike([of[::-1] for of in parts], fewest)
    return 0 if ends else _alike(parts, fewest), ends


def _alike(parts: Sequence[Sequence[str]], at_most: int) -> int:
    """Return with how many equal parts all begin."""
    alike = (len(set(of)) == 1 for of in zip(*parts, strict=False))
    return next((n for n, same in enumerate(alike) if not same or n == at_most), at_most)
