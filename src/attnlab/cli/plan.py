"""`attnlab run STUDY --plan`: print the runs, time, disk, memory and power of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import shorten

from rich.table import Table as Grid

from attnlab.analysis.numbers import UNKNOWN, count, duration, milliseconds, size
from attnlab.cli.console import Output, console, first_line, prose, verbatim, write
from attnlab.record import to_json
from attnlab.reporting.terminal import drop_to_fit
from attnlab.runner.decisions import RunCount
from attnlab.runner.plan import Plan, VariantPlan


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """Print the plan, as text or as JSON."""
    if as_json:
        write(to_json(plan.to_json()).decode())
        return
    prose(first_line(plan.question), style="bold")
    show_variants(plan, console)
    runs = f"{_runs(plan.verdict_runs)} for the verdict"
    if plan.verdict_runs.at_most > plan.verdict_runs.at_least:
        runs += " (more seeds while it is open)"
    if plan.tuning_runs.at_most:
        runs = f"{_runs(plan.tuning_runs)} to search recipes, then {runs}"
    if plan.challenge_runs.at_most:
        runs += f", then {_runs(plan.challenge_runs)} to challenge differences that may be tuning's"
    checkpoints = plan.checkpoint_bytes
    lines = {
        "runs": runs,
        "time": _time(plan),
        "disk": f"{size(checkpoints + plan.record_bytes)}, {size(checkpoints)} of it checkpoints",
        "power": _power(plan),
    }
    more = [*(("note", note) for note in plan.notes), *(("error", it) for it in plan.problems)]
    said = Grid.grid(padding=(0, 2, 0, 0))
    for name, text in [*lines.items(), *more]:
        said.add_row(name, text)
    console.print_table(said)


def show_variants(plan: Plan, output: Output) -> None:
    """Print what each variant takes; columns that do not fit in a terminal are named below."""
    columns, dropped = _columns(plan), list[str]()
    if output.is_terminal:
        dropped = drop_to_fit(columns, partial(_grid, plan), output, output.width)
    output.print_table(_grid(plan, columns))
    if dropped:
        verbatim(f"  not shown at this width: {', '.join(dropped)}", output, style="dim")


@dataclass(frozen=True)
class _Column:
    """A column of the plan's table; a narrow terminal drops the highest priority first, 0 never."""

    title: str
    priority: int
    cells: list[str]  # by variant


def _columns(plan: Plan) -> list[_Column]:
    variants = plan.variants.values()
    found = [
        _Column("parameters", 3, [count(variant.parameters) for variant in variants]),
        _Column("ms/step", 4, [_bound(v, milliseconds(v.step_seconds)) for v in variants]),
        _Column("time/run", 0, [_bound(v, duration(v.run_seconds)) for v in variants]),
        _Column("memory", 2, [size(variant.peak_memory_bytes) for variant in variants]),
        _Column("tuning runs", 1, [_runs(v.tuning_runs, brief=True) for v in variants]),
        _Column("verdict runs", 0, [_runs(v.verdict_runs, brief=True) for v in variants]),
    ]
    return [column for column in found if set(column.cells) != {UNKNOWN}]


def _grid(plan: Plan, columns: Sequence[_Column], most: int | None = None) -> Grid:
    """Return the table; names of variants have at most so many characters per line."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("variant", overflow="fold", max_width=most)
    for column in columns:
        grid.add_column(column.title, justify="right", no_wrap=True)
    for cells in zip(plan.variants, *(column.cells for column in columns), strict=True):
        grid.add_row(*cells)
    return grid


def _bound(variant: VariantPlan, text: str) -> str:
    return text if variant.measured else f"≥ {text}"


def _runs(runs: RunCount, *, brief: bool = False) -> str:
    """Return a number of runs with its bounds; `brief` for a cell of the table, `8 (7 to 21)`."""
    bounds, done = f"{runs.at_least}", f"{runs.done} done"
    if runs.at_most > runs.at_least:
        bounds = _between(runs.expected, runs.at_least, runs.at_most)
        if brief:
            inside = f"{runs.at_least} to {runs.at_most}"
            return (
                f"{runs.expected} ({inside}, {done})"
                if runs.done
                else f"{runs.expected} ({inside})"
            )
    return f"{bounds} ({done})" if runs.done else bounds


def _between(expected: object, least: object, most: object) -> str:
    """Return a range, with what is expected where that is more than the least."""
    bounds = f"{least} to {most}"
    return bounds if expected == least else f"{expected} expected, {bounds}"


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        name, reason = next(iter(plan.not_timed.items()))
        return f"not timed: {name}: {shorten(reason, 300, placeholder=' ...')}"
    least, expected, most = map(duration, plan.seconds)
    bounds = expected if least == most else _between(expected, least, most)
    workers = f"{plan.workers} worker" if plan.workers == 1 else f"{plan.workers} workers"
    where = f"{workers} on {', '.join(plan.devices)}"
    if plan.measured:
        return f"about {bounds}, {where}"
    return f"at least {least}, {where}"


def _power(plan: Plan) -> str:
    power = plan.power
    if power.standard_deviations is None:
        return f"no verdict: it needs at least two variants{power.shared}, and two seeds"
    most = "up to " if power.shared else ""  # it differs between sizes, lengths and texts
    title = f"minimum detectable difference (80 % power): {most}"
    pairs = f"between any two of {power.variants} variants{power.shared}"
    missed = ""
    if power.allowance is not None:
        missed = f", and {power.allowance:.4f} nats/token that tuning may have missed"
    elif power.tuned:
        missed = "; what tuning may miss adds to it"
    if power.nats is None:
        residual = f"{power.standard_deviations:.1f} residual standard deviations per run"
        return f"{title}{residual}, {pairs}{missed}; --residual-sd gives it in nats/token"
    residual = f"residual standard deviation per run {power.residual_sd:.4f} nats/token"
    from_ = f"({residual}, {power.residual_sd_source}{missed})"
    return f"{title}{power.nats:.4f} nats/token, {pairs} {from_}"
