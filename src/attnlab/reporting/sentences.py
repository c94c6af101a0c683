"""Sentences of a report beside the analysis' own: method, precision, and what is missing."""

import math
import re
from textwrap import dedent
from typing import Any, NamedTuple

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.profile import read_by
from attnlab.analysis.rates import how_rates_were_chosen
from attnlab.analysis.sentences import several
from attnlab.analysis.settings import of_training
from attnlab.analysis.statistics.letters import MOST_SHOWN, shown
from attnlab.analysis.table import Table
from attnlab.reporting.tables.rows import split_name

LEGEND = (
    "Variants that share a letter are not distinguishable. n.s.: not distinguishable from the "
    "baseline; not worse: not by the margin; equivalent: the same within the margin. Intervals are "
    "simultaneous: {} for all pairs (letters), or for all differences to the baseline. These, and "
    "the comparisons with the best, are fewer than all pairs: they decide some that letters do not."
)

RECALL = "Recall tokens repeat a bigram of their context and can be looked up there."


def how_sure(analysis: Analysis) -> str:
    """Return seeds, method, minimum detectable difference, margin and scale in one line."""
    if not analysis.judged:
        return f"{_unjudged(analysis.table)}. {_scale(analysis)}.{_design(analysis.table)}"
    counts = sorted(set(analysis.runs.values()))
    seeds = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    parts = [f"{seeds} seeds per variant", _tuned(analysis)]
    if analysis.detectable is not None:
        smallest = numbers.nats(analysis.detectable)
        parts.append(f"minimum detectable difference (80 % power): {smallest}")
    parts.append(f"margin of equivalence: ± {analysis.margin:g} nats/token")
    return f"{'; '.join(parts)}. {_scale(analysis)}.{_design(analysis.table)}"


def _unjudged(table: Table) -> str:
    """Return in words why nothing is compared, and whether it will be."""
    study = table.study
    if len(study.variants) == 1:
        seeds = len(study.seeds)
        return f"One variant, {seeds} seed{'s' * (seeds > 1)}: nothing to compare"
    if len(study.seeds) < 2:
        return "One seed per variant: no intervals"
    return "No verdict yet" if table.remaining else "No verdict"


def at_recipe(analysis: Analysis) -> str:
    """Return " at this recipe" where nothing was tuned, on which every comparison then depends."""
    return " at this recipe" if analysis.judged and analysis.tuning.at_recipe else ""


def scoped(text: str, analysis: Analysis) -> str:
    """Return a text on comparisons, which says so where they hold at one recipe only."""
    only = "Every comparison holds at this recipe: nothing was tuned."
    return f"{text} {only}" if at_recipe(analysis) else text


def legend(analysis: Analysis) -> str:
    """Return the legend of the ranking; empty without a verdict."""
    return (
        scoped(LEGEND.format(numbers.confidence(analysis.level)), analysis)
        if analysis.judged
        else ""
    )


def intervals(analysis: Analysis) -> str:
    """Return which errors the intervals of differences to the baseline hold."""
    tuned = any(analysis.tuning.allowance.values())
    kind = f"simultaneous {numbers.confidence(analysis.level)} intervals"
    return f"{kind} of seeds{' and tuning' if tuned else ''}"


def forest_caption(analysis: Analysis, reference: str) -> str:
    """Return the description of a figure of differences."""
    better = f"Left of 0 is better than {reference}"
    band = f"Band: the margin of equivalence, ± {analysis.margin:g}."
    if not analysis.judged:
        one = "One seed: no intervals. " if len(analysis.seeds) < 2 else ""
        return f"{better}. {one}{band}"
    bars = f"Bars: simultaneous {numbers.confidence(analysis.level)} intervals"
    tuned = any(analysis.tuning.allowance.values())
    bars += ", thick of the seeds, thin of seeds and tuning" if tuned else " of the seeds"
    cut = any(len(shown(letters)) > MOST_SHOWN for letters in analysis.letters.values())
    return (
        f"{better}. {bars}. Filled: distinguishable from {reference}; hollow: not. "
        f"{band} Variants that share a letter are not distinguishable"
        f"{'; …: more letters, in the table.' if cut else '.'}"
    )


def parts_caption(analysis: Analysis) -> str:
    """Return the description of the intervals in figures of parts of the loss."""
    if not analysis.judged:
        return parts_intervals(analysis)
    filled = f"Filled: distinguishable from {analysis.baseline}; hollow: not."
    return f"Bars: {parts_intervals(analysis).lower()} {filled}"


def parts_intervals(analysis: Analysis) -> str:
    """Return which errors the intervals of parts of the loss hold."""
    if not analysis.judged:
        return "One seed: no intervals." if len(analysis.seeds) < 2 else "No intervals."
    kind = f"Simultaneous {numbers.confidence(analysis.level)} intervals"
    return f"{kind} of the seeds, without the error of tuning."


def facts(analysis: Analysis) -> dict[str, str]:
    """Return how the verdict was reached, as `{term: sentence}`."""
    study = analysis.table.study
    found = {"Seeds": _seeds(analysis)}
    found["Metric"] = f"loss on the {split_name(analysis)} split, nats/token; lower is better"
    found["Method"] = analysis.why
    if analysis.residual_sd is not None:
        removed = ", seed effects removed" if analysis.method == "paired" else ""
        found["Standard deviation per run"] = (
            f"{analysis.residual_sd:.4f} nats/token{removed}, of the median variant"
        )
        found["Error of tuning"] = _tuning_error(analysis)
    if analysis.order:
        others = f"other model sizes, training lengths and {read_by(analysis.whole)}s"
        found["Scope"] = f"{others} may rank otherwise"
    started = {of.name: of.config for of in analysis.table.variants if of.config}
    rates = how_rates_were_chosen(analysis.rates, analysis.tuning, list(started))
    found["Learning rates"] = f"{rates}; {of_training(started)}" if started else rates
    found["Checks before training"] = (
        "passed: every mechanism is causal, decodes as it trains, and has the cost it states"
        if study.checked
        else "not recorded for all mechanisms; run `attnlab check`"
    )
    if analysis.controls:
        found["Controls"] = " ".join(control.note for control in analysis.controls)
    kernels = [control.savings for control in analysis.controls if control.savings]
    if kernels:
        found["Effect of the kernel"] = " ".join(kernels)
    return found


def unfair(table: Table) -> tuple[str, ...]:
    """Return the warning above a comparison of unlike runs; empty where it is fair."""
    if not table.unfair:
        return ()
    how = " (made with --anyway)" if table.sources else ""
    return (f"Not a fair comparison{how}. The runs differ in:", *table.unfair)


def devices(table: Table) -> str:
    """Return the note beside times that were measured on several devices; else empty."""
    if len(table.devices) < 2:
        return ""
    where = "; ".join(
        f"{table.where(names)} on {device}" for device, names in table.devices.items()
    )
    return f"Times and peak memory were measured on different devices, not comparable: {where}."


def unfinished(analysis: Analysis) -> list[str]:
    """Return a line per diverged or failed run, and one for what is still to run."""
    table = analysis.whole
    left_out = {name for of in analysis.groups for name in of.left_out}
    lines = [
        f"{variant.name}, seed {run.seed}: {run.status}: {run.reason or 'no reason recorded'} "
        f"({len(variant.finished)} of {len(variant.runs)} seeds finished"
        f"{'; not compared' * (variant.name in left_out)})"
        for variant, run in table.failures
    ]
    if table.remaining:
        left = ("absent", "partial")
        names = [of.name for of in table.variants if any(run.status in left for run in of.runs)]
        whole = f"{table.remaining} of {len(table.runs)} runs"
        lines.append(f"still to run: {whole} ({several(names)})")
    return lines


def left_out(analysis: Analysis) -> dict[str, str]:
    """Return why variants are not compared, by the names that share it; not of failed runs."""
    names, failed = dict[str, list[str]](), {of.name for of, _ in analysis.whole.failures}
    for name, reason in analysis.left_out.items():
        if name not in failed:  # `unfinished` names their runs
            names.setdefault(reason, []).append(name)
    return {", ".join(those): reason for reason, those in names.items()}


def alarms(table: Table) -> list[str]:
    """Return the alarms that runs recorded, such as an implausibly low loss."""
    return [
        f"{variant.name}, seed {run.seed}: {alarm}"
        for variant in table.variants
        for run in variant.runs
        for alarm in run.summary.get("alarms") or ()
    ]


def lead(question: str) -> str:
    """Return the first line of a study's question."""
    return question.strip().splitlines()[0] if question.strip() else ""


class Paragraph(NamedTuple):
    """A paragraph of a study's question."""

    text: str
    preformatted: bool  # indented in the study's file: a formula or a table, shown as it is


def rest(question: str) -> list[Paragraph]:
    r"""Return the paragraphs after the first line.

    >>> for paragraph in rest("Why?\n\nFor a\nreason.\n\n    a = b\n    c = d\n"):
    ...     print(paragraph)
    Paragraph(text='For a reason.', preformatted=False)
    Paragraph(text='a = b\nc = d', preformatted=True)
    """
    found = list[Paragraph]()
    for block in re.split(r"\n\s*\n", question.strip("\n").partition("\n")[2]):
        lines = [line for line in block.splitlines() if line.strip()]
        if lines and all(line.startswith("    ") for line in lines):
            found.append(Paragraph(dedent("\n".join(lines)), True))
        elif lines:
            found.append(Paragraph(" ".join(block.split()), False))
    return found


def _design(table: Table) -> str:
    """Return a sentence per condition of the loss in which the variants differ by design."""
    return "".join(f" By design the variants differ in {line}." for line in table.by_design)


def _scale(analysis: Analysis) -> str:
    """Return model size, training tokens and data."""
    variants = [v for v in analysis.table.variants if v.name in analysis.order]
    sizes = sorted({variant.parameters["total"] for variant in variants if variant.parameters})
    tokens = sorted({v.numbers["tokens"].mean for v in variants if "tokens" in v.numbers})
    kinds = [v.config.get("data", {}).get("kind") for v in variants]
    data = dict.fromkeys(kind for kind in kinds if kind)
    parts = [f"Models of {_span(sizes)} parameters"] if sizes else []
    if tokens:
        parts.append(
            f"{_span(tokens)} training tokens" + (f" of {', '.join(data)}" if data else "")
        )
    return ", ".join(parts) or "Model size and training length are not recorded"


def _span(values: list[Any]) -> str:
    ends = dict.fromkeys(numbers.count(value) for value in (values[0], values[-1]))
    return " to ".join(ends)


def _tuned(analysis: Analysis) -> str:
    """Return which errors the intervals hold."""
    tuning = analysis.tuning
    if tuning.at_recipe:
        return "intervals of seeds, at this recipe"
    if tuning.untuned or tuning.unknown:
        return "intervals of seeds, and of tuning where it was estimated"
    return "intervals of seeds and tuning"


def _tuning_error(analysis: Analysis) -> str:
    tuning = analysis.tuning
    if tuning.at_recipe:
        return "not included: every comparison holds at this recipe"
    parts = list[str]()
    open_ended = [name for name, missed in tuning.allowance.items() if math.isinf(missed)]
    if open_ended:
        parts.append(
            f"the search found no bound for {', '.join(open_ended)}: it may be better by any amount"
        )
    ends = sorted(missed for missed in tuning.allowance.values() if math.isfinite(missed))
    if ends:
        span = " to ".join(dict.fromkeys(f"{end:.4f}" for end in (ends[0], ends[-1])))
        parts.append(f"{span} nats/token by which tuning may have missed the best of a variant")
    if tuning.derived:
        parts.append(
            "derived from the curvature of loss against rate, half a step of the grid from its "
            "minimum, since the search stated none"
        )
    if tuning.unknown:
        parts.append(f"not estimated for {', '.join(tuning.unknown)}")
    if tuning.untuned:
        parts.append(f"at the recipe of the study: {', '.join(tuning.untuned)}")
    return "; ".join(parts)


def _seeds(analysis: Analysis) -> str:
    seeds = analysis.seeds
    if not seeds:
        return "none has finished"
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"{listed}: no error bars"
    if analysis.table.unfair or analysis.table.by_design:
        return listed
    return f"{listed}; all variants of a seed share batches and initial weights"
