"""The results of a bench in the terminal: one table per workload, one column per context.

Times are medians. bench.json has all measurements.
"""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Point, Workload
from attnlab.record import Json

_WORDS = {"out_of_memory": "out of memory", "too_long": "too long", "failed": "failed"}


class BenchTable:
    """The contents of bench.json as a rich renderable."""

    def __init__(self, contents: Json) -> None:
        self.contents = contents

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        points: list[Json] = self.contents["points"]
        for title, what, cell in _TABLES:
            if of_what := [point for point in points if point["what"] == what]:
                yield _grid(title, of_what, cell)
                yield Text()
        for point in points:
            if point["status"] == "failed":
                yield Text(f"{Point.of(point)}: {point['reason']}", style="red")
        yield Text(device_sentence(self.contents), style="dim")
        if breakdowns := [point for point in points if "time_breakdown" in point]:
            yield Text()
            yield _breakdowns(breakdowns)
            yield Text(
                "bound: reading weights and state once; µs/empty: time of an empty kernel; "
                "launches: kernels x that time",
                style="dim",
            )


def line(point: Json) -> str:
    """Return one point as a line of text."""
    if point["status"] != "ok":
        return f"{Point.of(point)}: {point['status'].replace('_', ' ')}: {point['reason']}"
    spread = point["spread_seconds"]
    words = f"{Point.of(point)}: {numbers.milliseconds(point['seconds'])} ms"
    if spread is not None:
        words += f" ± {numbers.milliseconds(spread / 2)}"
    words += f", {numbers.count(point['tokens_per_second'])} tokens/s"
    if point["what"] == "decode":
        how = "".join(f", by {way}" for way in point["decodes_by"] if way != "state")
        return f"{words}{how}, {point['times_bound']:.1f} times the memory-bandwidth bound"
    if point["matrix_fraction"] is None:  # a mechanism states no cost
        return words
    return f"{words}, {point['matrix_fraction']:.0%} of peak matrix FLOP/s"


def device_sentence(contents: Json) -> str:
    """Return the device and its measured peak rates."""
    ceilings, device = contents["ceilings"], contents["device"]
    matrix, copy = ceilings["matrix_flops_per_second"], ceilings["copy_bytes_per_second"]
    return (
        f"{device['name']}: measured peak {numbers.count(matrix)}FLOP/s in "
        f"{ceilings['matrix_dtype']} matrix products, {numbers.count(copy)}B/s read and written "
        "by a copy"
    )


def _breakdowns(points: Iterable[Json]) -> Grid:
    """Return the time by cause of the decoded tokens that are farthest from their bounds."""
    grid = _empty("Time of a decoded token by cause, for the points farthest from their bounds, ms")
    columns = ("x bound", "time", "bound", "kernels", "µs/empty", "launches", "rest")
    for column in columns:
        grid.add_column(column, justify="right")
    ms = numbers.milliseconds
    for point in points:
        breakdown = point["time_breakdown"]
        grid.add_row(
            f"{point['variant']} {numbers.tokens(point['context'])} x {point['batch']}",
            f"{point['times_bound']:.1f}",
            ms(point["seconds"]),
            ms(point["bound_seconds"]),
            str(breakdown["kernels"]),
            numbers.significant(1e6 * breakdown["empty_kernel_seconds"]),
            ms(breakdown["kernels"] * breakdown["empty_kernel_seconds"]),
            ms(breakdown["unexplained_seconds"]),
        )
    return grid


def _empty(title: str) -> Grid:
    grid = Grid(
        box=None, padding=(0, 2, 0, 0), title=Text(title, "bold"), title_justify="left",
        header_style="dim",
    )  # fmt: skip
    grid.add_column("variant")
    return grid


def _grid(title: str, points: Sequence[Json], cell: Callable[[Json], str]) -> Grid:
    contexts = sorted({point["context"] for point in points})
    cells = {
        (p["variant"], p["batch"], p["context"]): cell(p)
        if p["status"] == "ok"
        else _WORDS[p["status"]]
        for p in points
    }
    grid = _empty(title)
    grid.add_column("batch", justify="right")
    for context in contexts:
        grid.add_column(numbers.tokens(context), justify="right", no_wrap=True)
    for variant, batch in sorted({(p["variant"], p["batch"]): None for p in points}, key=_batch):
        row = [cells.get((variant, batch, context), "") for context in contexts]
        grid.add_row(Text(variant), str(batch), *row)
    return grid


def _batch(row: tuple[str, int]) -> int:
    return row[1]


def _time(point: Json) -> str:
    return numbers.milliseconds(point["seconds"])


def _peak_memory(point: Json) -> str:
    return numbers.size(point["peak_memory_bytes"])


def _state(point: Json) -> str:
    return numbers.size(point["state_bytes"] / point["batch"])


_TABLES: tuple[tuple[str, Workload, Callable[[Json], str]], ...] = (
    ("Decode: time per token, ms", "decode", _time),
    ("Decode: state per sequence", "decode", _state),
    ("Prefill: time to the first token, ms", "prefill", _time),
    ("Training: time per step, ms", "train", _time),
    ("Training: peak memory", "train", _peak_memory),
)
