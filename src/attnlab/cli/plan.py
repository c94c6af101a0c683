"""`attnlab run STUDY --plan`: print the runs, time, disk, memory and power of a study."""

from textwrap import shorten

from rich.table import Table as Grid

from attnlab.analysis.numbers import UNKNOWN, count, duration, milliseconds, size
from attnlab.cli.console import console, first_line, verbatim, write
from attnlab.record import to_json
from attnlab.runner.decisions import RunCount
from attnlab.runner.plan import Plan, VariantPlan


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """Print the plan, as text or as JSON."""
    if as_json:
        write(to_json(plan.to_json()).decode())
        return
    verbatim(first_line(plan.question), style="bold")
    console.print(_grid(plan))
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
    for name, text in [*lines.items(), *more]:
        verbatim(f"{name:<7}{text}")


def _grid(plan: Plan) -> Grid:
    columns = {
        "parameters": [count(variant.parameters) for variant in plan.variants.values()],
        "ms/step": [_bound(v, milliseconds(v.step_seconds)) for v in plan.variants.values()],
        "time/run": [_bound(v, duration(v.run_seconds)) for v in plan.variants.values()],
        "memory": [size(variant.peak_memory_bytes) for variant in plan.variants.values()],
        "tuning runs": [
            _runs(variant.tuning_runs, brief=True) for variant in plan.variants.values()
        ],
        "verdict runs": [
            _runs(variant.verdict_runs, brief=True) for variant in plan.variants.values()
        ],
    }
    shown = {title: cells for title, cells in columns.items() if set(cells) != {UNKNOWN}}
    grid = Grid(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    grid.add_column("variant", no_wrap=True)
    for title in shown:
        grid.add_column(title, justify="right")
    for cells in zip(plan.variants, *shown.values(), strict=True):
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
