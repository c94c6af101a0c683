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
MOST_SECONDS = 1000.0  # of a tick, beyond which minutes are shorter
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LAW = "Law: loss = E + A x^-a, fitted to means over seeds; E is 0 with fewer than five points. "
ERRORS = (
    "Error: the largest at points of a size (of tokens: a length) that the fit did not see. "
    "Effective speedup: how much more the baseline takes to the lowest loss that both reach, with "
    "power laws between neighbouring points"
)
INTERVALS = (
    "Intervals: 95 %, of draws of the means (seeds); those of effective speedups, of {}, are "
    "simultaneous over the families. At ten times the largest run: with the interval of "
    "the seeds, widened at both ends by that error."
)
NO_INTERVALS = "No intervals, and nothing at ten times the largest run: some have one seed."


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
    return (_by_cell(found), *laws, _crossovers(found), *_rates(found))


def _by_cell(found: Scaling) -> TextTable:
    rungs = next(iter(found.cells.values())).table.study.rungs
    others = [family for family in found.families if family != found.baseline]
    lines = list[tuple[str, ...]]()
    places = list(dict.fromkeys(rung[1:] for rung in rungs.values()))
    alone = False
    for cell, verdict in sorted(found.cells.items(), key=lambda of: places.index(of[0][:2])):
        names = {rungs[name].family: name for name in cell.variants if name in rungs}
        alone |= verdict.baseline is None and bool(verdict.means)
        loss = numbers.number(verdict.means.get(names.get(found.baseline, "")))
        differences = (_to_baseline(verdict, names.get(family, "")) for family in others)
        lines.append((cell.size, cell.budget, loss, *differences))
    missing = "".join(
        f" {family} has no loss that is compared of {listed(list(names))}."
        for family, names in found.missing.items()
    )
    alone_note = f" (loss): there is no {found.baseline} to compare with." if alone else ""
    intervals = (
        f"the intervals of one row hold at once, of {found.errors}. n.s.: "
        f"not distinguishable from {found.baseline}."
        if any(verdict.judged for verdict in found.cells.values())
        else "one seed per variant gives no intervals, so that no difference is shown to be one."
    )
    return TextTable(
        caption=f"Loss of {found.baseline}, and differences to it, by size and training length",
        heading=("size", "length", found.baseline, *(f"Δ {family}" for family in others)),
        lines=lines,
        n_text_columns=2,
        note="Nats/token. Variants are compared within one size and length; "
        f"{intervals}{alone_note}{missing}",
    )


def _to_baseline(verdict: Verdict, name: str) -> str:
    """Return the difference of a variant to its baseline; its loss, where there is none."""
    if verdict.baseline is None:
        loss = verdict.means.get(name)
        return numbers.UNKNOWN if loss is None else f"{loss:.4f} (loss)"
    pair = verdict.to_baseline.get(name)
    tie = pair is not None and pair.half_width is not None and not pair.separable
    return f"{numbers.comparison(pair, 3)}{' n.s.' if tie else ''}"


def _laws(found: Scaling, quantity: Quantity, title: str, where: str) -> TextTable:
    along = found.along[quantity]
    lines = list[tuple[str, ...]]()
    for family, fit in along.fits.items():
        laws, gained, beyond = fit.laws, along.speedups.get(family), fit.extrapolated
        far = numbers.UNKNOWN
        if beyond is not None:
            far = f"{beyond[1]:.2f} {numbers.ends(beyond[2], 2)} at {amount(beyond[0], quantity)}"
        lines.append(
            (
                family,
                str(len(fit.points)),
                f"{laws.exponent_R[0]:.3f} {numbers.ends(fit.exponent, 3)}".strip(),
                f"{laws.offset_R[0]:.2f} {numbers.ends(fit.offset, 2)}".strip(),
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
        note=_note(found, quantity),
    )


def _note(found: Scaling, quantity: Quantity) -> str:
    """Return what the columns are, beside the first table, and which errors are unknown."""
    fits = found.along[quantity].fits
    sure = any(fit.exponent for along in found.along.values() for fit in along.fits.values())
    said = f"{LAW}{ERRORS}. {INTERVALS.format(found.errors) if sure else NO_INTERVALS}"
    if not found.timed:
        said += " Seconds are not compared: the runs used different devices."
    said = said if quantity == next(iter(found.along)) else ""
    if few := [family for family, fit in fits.items() if fit.error is None]:
        left_out = "length" if quantity == "tokens" else "size"
        said += (
            f" No error for {listed(few)}, and nothing at ten times the largest run: without one "
            f"{left_out}, fewer than two points are left to fit."
        )
    if absent := [family for family in found.families if family not in fits]:
        said += f" No law for {listed(absent)}: it needs two points."
    return said.strip()


def _gain(gained: Speedup | None, quantity: Quantity) -> tuple[str, ...]:
    """Return the loss, what both take to it, and their ratio, as texts."""
    if gained is None:
        return ("baseline", *[numbers.UNKNOWN] * 3)
    if gained.x is None or gained.baseline_x is None or gained.ratio is None:
        return (numbers.UNKNOWN, *["beyond the measured range"] * 3)
    ratio = f"{gained.ratio:.2f}x {numbers.ends(gained.interval, 2)}".strip()
    amounts = (amount(x, quantity) for x in (gained.x, gained.baseline_x))
    return (f"{gained.loss:.3f}", *amounts, ratio)


def _crossovers(found: Scaling) -> TextTable:
    lines, none = list[tuple[str, ...]](), 0
    open_, unsure, apart = list[str](), list[str](), list[str]()
    for quantity, along in found.along.items():
        title = QUANTITIES[quantity][0]
        for it in along.crossovers:
            names = listed(it.families)
            if it.shown and it.x is not None and it.interval is not None:
                ends = " to ".join(amount(end, quantity) for end in it.interval)
                lines.append((names, title, amount(it.x, quantity), ends))
            elif it.excluded:
                none += 1
            elif not it.measured:
                apart.append(f"{names} ({title})")
            elif it.share is not None:
                open_.append(f"{names} ({title}: in {it.share * 100:.0f} % of the draws)")
            elif it.x is not None:
                unsure.append(f"{names} ({title}: {amount(it.x, quantity)})")
    sure = none or open_ or lines
    said = [
        f"No crossover within the measured range: {none} pairs of families and quantities."
        if sure
        else "Without intervals, no crossover is shown or excluded.",
        f"Neither shown nor excluded: {'; '.join(open_)}." if open_ else "",
        f"The means of these cross: {'; '.join(unsure)}." if unsure else "",
        f"Measured at no common value: {'; '.join(apart)}." if apart else "",
        "Intervals hold the error of the seeds, and none of tuning." if lines else "",
    ]
    return TextTable(
        caption="Crossovers within the measured range",
        heading=("families", "along", "at", "95 % interval"),
        lines=lines or [("none is shown", "", "", "")],
        n_text_columns=2,
        note=" ".join(filter(None, said)),
    )


def _rates(found: Scaling) -> tuple[TextTable, ...]:
    """Return the table of learning rates; empty where none was searched."""
    if not found.rates:
        return ()
    lines = [
        (
            *(it.family, it.size, ", ".join(it.budgets)),
            f"searched at {listed(it.searched)}" if it.searched else "carried",
            f"{it.rate:.3g}",
            f"{it.factor:.3g}",
            numbers.UNKNOWN if it.exponent is None else f"{it.exponent:+.3f}",
            numbers.UNKNOWN if it.plain is None else f"{it.plain:.3g}",
            numbers.UNKNOWN if it.correction is None else f"{it.correction:.2f}x",
        )
        for it in found.rates
    ]
    return (
        TextTable(
            caption="Peak learning rates along the ladder",
            heading=(
                *("family", "size", "length", "origin", "rate", "m", "q"),
                *("rate with q = 0", "rate relative to that"),
            ),
            lines=lines,
            n_text_columns=4,
            note=f"{_corrections(found)} m: rate relative to the one in the settings, which falls "
            "as 1/width where `model.size` sets the size; carried rates have log m = a + q log(L "
            "D^2) for L layers of width D, through the searched optima, |q| at most 1/2. With q = "
            "0: the rate in the settings times the geometric mean of the searched m.",
        ),
    )


def _corrections(found: Scaling) -> str:
    """Return a sentence on the difference between the carried rates and those with q = 0."""
    carried = [it for it in found.rates if not it.searched]
    ratios = {it: it.correction for it in carried if it.correction is not None}
    if not ratios:
        return "No rate was carried." if not carried else "The searches are not in this folder."
    low, high = min(ratios.values()), max(ratios.values())
    farthest = max(ratios, key=lambda it: abs(math.log(ratios[it])))
    at_optima = {(it.family, it.size) for it in found.rates if it.searched}
    beside = dict.fromkeys(it.family for it in carried if (it.family, it.size) in at_optima)
    missed = (
        f" Those of {listed(list(beside))} do not pass through the optima (least squares, |q| at "
        "most 1/2)."
        if beside
        else ""
    )
    return (
        f"Carried rates are {low:.2f} to {high:.2f} times those with q = 0, by which rates would "
        f"change as 1/width alone; the farthest is that of {farthest.family} at {farthest.size} "
        f"({ratios[farthest]:.2f}x).{missed}"
    )


def amount(x: float, quantity: Quantity) -> str:
    """Return a value of a quantity with its unit."""
    return (
        f"{x:.3g}".replace("e+", "e")
        if quantity == "flops"
        else (numbers.duration(x) if quantity == "seconds" else numbers.count(x))
    )


def tick(x: float, quantity: Quantity) -> str:
    """Return a value of a quantity as short as an axis needs it.

    >>> tick(3e15, "flops"), tick(1e16, "flops"), tick(1e7, "tokens"), tick(0.3, "seconds")
    ('3·10¹⁵', '10¹⁶', '10 M', '0.3 s')
    """
    if quantity == "flops" and x > 0:
        power = math.floor(math.log10(x) + 1e-9)
        digits = f"{x / 10**power:.2g}"
        raised = f"10{str(power).translate(RAISED)}"
        return raised if digits == "1" else f"{digits}·{raised}"
    if quantity == "seconds" and x < MOST_SECONDS:
        return f"{x:g} s"
    number, _, unit = amount(x, quantity).partition(" ")
    return f"{float(number):g} {unit}".strip()
