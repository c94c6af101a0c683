"""Tables of a ladder: losses by size and training length, power laws, speedups, crossovers."""

import math
from collections.abc import Mapping

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis
from attnlab.analysis.scaling import Quantity, Scaling
from attnlab.analysis.sentences import listed
from attnlab.analysis.statistics.power_law import Speedup
from attnlab.analysis.verdict import Verdict
from attnlab.reporting.tables.text_tables import TextTable

QUANTITIES: Mapping[Quantity, tuple[str, str]] = {  # title, and where the points are
    "flops": ("training FLOPs", "on the frontier of each family"),
    "seconds": ("seconds of training", "on the frontier of each family"),
    "parameters": ("parameters outside the embedding", "at the longest training"),
    "tokens": ("training tokens", "at the largest size"),
}
SCALING_NOTE = (
    "Law: loss = E + A x^-a, fitted to means over seeds; E is 0 with fewer than five points. "
    "Intervals: 95 %, of draws of the means (seeds). Error: the largest at points of a size (of "
    "tokens: a length) that the fit did not see. Effective speedup: how much more the baseline "
    "takes to the lowest loss that both reach, with power laws between neighbouring points; its "
    "intervals are simultaneous over the families and hold tuning, too. At ten times the largest "
    "run: with the interval of the seeds, widened at both ends by that error."
)


def scaling_tables(analysis: Analysis) -> tuple[TextTable, ...]:
    """Return the tables of a ladder; empty for a study that is none."""
    found = analysis.scaling
    if found is None:
        return ()
    laws = [
        _laws(found, quantity, *texts)
        for quantity, texts in QUANTITIES.items()
        if quantity in found.along
    ]
    return (_by_cell(found), *laws, _crossovers(found))


def _by_cell(found: Scaling) -> TextTable:
    rungs = next(iter(found.cells.values())).table.study.rungs
    families = dict.fromkeys(rung.family for rung in rungs.values())
    others = [family for family in families if family != found.baseline]
    lines = list[tuple[str, ...]]()
    places = list(dict.fromkeys(rung[1:] for rung in rungs.values()))
    for cell, verdict in sorted(found.cells.items(), key=lambda of: places.index(of[0][:2])):
        names = {rungs[name].family: name for name in cell.variants if name in rungs}
        base = names.get(found.baseline, "")
        differences = (
            numbers.comparison(verdict.to_baseline.get(names.get(family, "")), 3)
            + ("" if _separable(verdict, names.get(family, "")) else " n.s.")
            for family in others
        )
        loss = verdict.means.get(base)
        lines.append((cell.size, cell.budget, numbers.number(loss), *differences))
    missing = "".join(
        f" {family} has no loss that is compared of {listed(list(names))}."
        for family, names in found.missing.items()
    )
    return TextTable(
        caption=f"Loss of {found.baseline}, and differences to it, by size and training length",
        heading=("size", "length", found.baseline, *(f"Δ {family}" for family in others)),
        lines=lines,
        n_text_columns=2,
        note="Nats/token. Variants are compared within one size and length; the intervals of one "
        f"row hold at once, of seeds and tuning. n.s.: not distinguishable from the "
        f"baseline.{missing}",
    )


def _separable(verdict: Verdict, name: str) -> bool:
    pair = verdict.to_baseline.get(name)
    return pair is None or pair.separable


def _laws(found: Scaling, quantity: Quantity, title: str, where: str) -> TextTable:
    along = found.along[quantity]
    lines = list[tuple[str, ...]]()
    for family, fit in along.fits.items():
        laws, gained, beyond = fit.laws, along.speedups.get(family), fit.extrapolated
        far = numbers.UNKNOWN
        if beyond is not None:
            far = f"{beyond[1]:.2f} {_ends(beyond[2], 2)} at {amount(beyond[0], quantity)}"
        lines.append(
            (
                family,
                str(len(fit.points)),
                f"{laws.exponent_R[0]:.3f} {_ends(fit.exponent, 3)}".strip(),
                f"{laws.offset_R[0]:.2f} {_ends(fit.offset, 2)}".strip(),
                numbers.number(fit.error),
                *_gain(gained, quantity),
                far,
            )
        )
    heading = (
        *("family", "points", "exponent a", "E (nats)", "error (nats)", "to loss", "takes"),
        *(f"{found.baseline} takes", "effective speedup", "at ten times the largest run"),
    )
    return TextTable(
        caption=f"Loss against {title}, {where}",
        heading=heading,
        lines=lines,
        note=SCALING_NOTE if quantity == next(iter(found.along)) else "",
    )


def _gain(gained: Speedup | None, quantity: Quantity) -> tuple[str, ...]:
    """Return the loss, what both take to it, and their ratio, as texts."""
    if gained is None:
        return ("baseline", *[numbers.UNKNOWN] * 3)
    if gained.x is None or gained.baseline_x is None or gained.ratio is None:
        return (numbers.UNKNOWN, *["beyond the measured range"] * 3)
    ratio = f"{gained.ratio:.2f}x {_ends(gained.interval, 2)}".strip()
    amounts = (amount(x, quantity) for x in (gained.x, gained.baseline_x))
    return (f"{gained.loss:.3f}", *amounts, ratio)


def _crossovers(found: Scaling) -> TextTable:
    lines, open_, none = list[tuple[str, ...]](), list[str](), 0
    for quantity, along in found.along.items():
        title = QUANTITIES[quantity][0]
        for it in along.crossovers:
            names = listed(it.families)
            if it.shown and it.x is not None and it.interval is not None:
                ends = " to ".join(amount(end, quantity) for end in it.interval)
                lines.append((names, title, amount(it.x, quantity), ends))
            elif it.excluded:
                none += 1
            else:
                open_.append(f"{names} ({title}: in {it.share:.0%} of the draws)")
    said = f"No crossover within the measured range: {none} other pairs of families and quantities."
    if open_:
        said += f" Neither shown nor excluded: {'; '.join(open_)}."
    return TextTable(
        caption="Crossovers within the measured range",
        heading=("families", "along", "at", "95 % interval"),
        lines=lines or [("none is shown", "", "", "")],
        n_text_columns=2,
        note=f"{said} Intervals hold the error of the seeds, and none of tuning.",
    )


def amount(x: float, quantity: Quantity) -> str:
    """Return a value of a quantity with its unit."""
    return (
        f"{x:.3g}"
        if quantity == "flops"
        else (numbers.duration(x) if quantity == "seconds" else numbers.count(x))
    )


def _ends(interval: tuple[float, float] | None, digits: int) -> str:
    if interval is None:
        return ""
    low, high = (f"{end:.{digits}f}" if math.isfinite(end) else "-" for end in interval)
    return f"[{low}, {high}]"
