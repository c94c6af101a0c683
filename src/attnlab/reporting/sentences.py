"""What a report says beside the analysis' own sentences: how sure it is, and what is missing."""

import re
from textwrap import dedent
from typing import Any, NamedTuple

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.table import Table
from attnlab.reporting.tables.rows import split_name

METHODS = {
    "tukey": "Tukey's HSD over seed blocks",
    "holm": "paired t tests, Holm-adjusted",
    "none": "no verdict",
}
LEGEND = (
    "A tier holds what cannot be told apart from the first of it. Intervals are 95 % and hold for "
    "all pairs at once."
)
ONE_SEED = "One seed: no verdict; run with --seeds 3 for error bars."


def facts(analysis: Analysis) -> dict[str, str]:
    """How sure the verdict is, and on what it rests: a name and a sentence each."""
    study, count = analysis.table.study, len(analysis.seeds)
    found = {"Seeds": _seeds(analysis)}
    found["Read from"] = f"loss on the {split_name(analysis)} split, nats a token; lower is better"
    found["Method"] = analysis.why
    if analysis.detectable is not None:
        found["Smallest difference found"] = (
            f"{analysis.detectable:.4f} nats, 4 times in 5, with {count} seeds"
        )
    if analysis.noise is not None:
        found["Noise of one run"] = f"{analysis.noise:.4f} nats, what variants share taken out"
    if analysis.tiers:
        found["Margin"] = f"differences within ± {analysis.margin:g} nats are practically nothing"
    if analysis.order:
        found["Measured at"] = f"{_scale(analysis)}; other sizes and texts may rank otherwise"
    found["Learning rates"] = _rates(analysis)
    found["Checked before training"] = (
        "yes: every mechanism kept its promises (causality, decoding, stated cost)"
        if study.checked
        else "not recorded for all of them; `attnlab check` does it"
    )
    if analysis.controls:
        found["Controls"] = " ".join(control.note for control in analysis.controls)
    kernels = [control.bought for control in analysis.controls if control.bought]
    if kernels:
        found["What the kernel buys"] = " ".join(kernels)
    ended_badly = {name: runs for name, runs in analysis.diverged.items() if runs[0]}
    if ended_badly:
        found["Diverged or failed"] = ", ".join(
            f"{name} {bad} of {planned} runs" for name, (bad, planned) in ended_badly.items()
        )
    if analysis.left_out:
        found["Left out"] = f"{', '.join(analysis.left_out)}: see below why"
    return found


def how_sure(analysis: Analysis) -> str:
    """The same in one line."""
    count = len(analysis.seeds)
    if count < 2:
        return ONE_SEED if len(analysis.table.study.seeds) < 2 else "No verdict yet."
    said = [f"{count} seeds", METHODS[analysis.method]]
    if analysis.detectable is not None:
        said.append(f"finds differences from {analysis.detectable:.3f} nats")
    said.append(f"margin ± {analysis.margin:g} nats")
    return f"{'; '.join(said)}. Measured at {_scale(analysis)}."


def legend(analysis: Analysis) -> str:
    """What a tier and an interval are."""
    tiers = [analysis.tiers[name] for name in analysis.order if name in analysis.tiers]
    if tiers == sorted(tiers):
        return LEGEND
    return (
        f"{LEGEND} A variant whose seeds scatter widely is hard to tell apart: it may share a "
        "better tier than one with a lower mean."
    )


def _scale(analysis: Analysis) -> str:
    """How large the models are, and how much of what they have read."""
    variants = [v for v in analysis.table.variants if v.name in analysis.order]
    sizes = sorted({variant.parameters["total"] for variant in variants if variant.parameters})
    tokens = sorted({v.numbers["tokens"].mean for v in variants if "tokens" in v.numbers})
    kinds = [v.config.get("data", {}).get("kind") for v in variants]
    data = dict.fromkeys(kind for kind in kinds if kind)
    said = [f"{_span(sizes)} parameters"] if sizes else []
    if tokens:
        said.append(f"{_span(tokens)} tokens" + (f" of {', '.join(data)}" if data else ""))
    return ", ".join(said) or "an unknown size"


def _span(values: list[Any]) -> str:
    ends = dict.fromkeys(numbers.count(value) for value in (values[0], values[-1]))
    return " to ".join(ends)


def unfair(table: Table) -> tuple[str, ...]:
    """What stands above the verdict where unlike runs were compared on request; else nothing."""
    if not table.unfair:
        return ()
    return ("Not a fair comparison, made on request (--anyway). Not alike:", *table.unfair)


def devices(table: Table) -> str:
    """What stands beside times that were taken on several devices; else empty."""
    if len(table.devices) < 2:
        return ""
    said = "; ".join(f"{table.where(names)} on {device}" for device, names in table.devices.items())
    return f"Times and peak memory are of different devices, and no comparison: {said}."


def unfinished(table: Table) -> list[str]:
    """A line for each diverged or failed run, and one for what is still to run."""
    lines = [
        f"{variant.name}, seed {run.seed}: {run.status}: {run.reason or 'no reason recorded'} "
        f"({len(variant.finished)} of {len(variant.runs)} seeds finished)"
        for variant, run in table.failures
    ]
    if table.remaining:
        names = [
            variant.name
            for variant in table.variants
            if any(run.status in ("absent", "partial") for run in variant.runs)
        ]
        lines.append(
            f"still to run: {table.remaining} of {len(table.runs)} runs ({', '.join(names)})"
        )
    return lines


def alarms(table: Table) -> list[str]:
    """What runs said of themselves, such as a loss below what the text allows."""
    return [
        f"{variant.name}, seed {run.seed}: {alarm}"
        for variant in table.variants
        for run in variant.runs
        for alarm in run.summary.get("alarms") or ()
    ]


def lead(question: str) -> str:
    """The first line of a study's question."""
    return question.strip().splitlines()[0] if question.strip() else ""


class Paragraph(NamedTuple):
    text: str
    preformatted: bool  # indented in the study's file: a formula or a table, as it stands


def rest(question: str) -> list[Paragraph]:
    r"""What follows it, by paragraph.

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


def _seeds(analysis: Analysis) -> str:
    seeds = analysis.seeds
    if not seeds:
        return "none that all variants finished"
    listed = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"one ({listed}): no error bars, and no verdict"
    if analysis.table.unfair:
        return f"{len(seeds)} ({listed})"
    return f"{len(seeds)} ({listed}), the same batches and first weights for all variants in each"


def _rates(analysis: Analysis) -> str:
    rates = analysis.rates
    if not rates:
        return "not tuned: each variant as its settings say"
    edge = [name for name, curve in rates.items() if not curve.interior]
    said = f"tuned for {len(rates)} variants on the validation split"
    untuned = [v.name for v in analysis.table.variants if v.config and v.name not in rates]
    if untuned:
        said += f", not for {', '.join(untuned)}"
    if edge:
        return f"{said}; the best lies at the edge of what was tried for {', '.join(edge)}"
    return f"{said}, each with worse rates on both sides of the best"
