"""What was measured as a person reads it in the terminal: a table an activity, a column a context.

Times are medians. All else that was measured is in bench.json.
"""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Point, What, tokens
from attnlab.record import Json

_WORDS = {"out_of_memory": "no memory", "too_long": "too long", "failed": "failed"}


class BenchTable:
    """A rich renderable of the contents of bench.json."""

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
        yield Text(ceilings_words(self.contents), style="dim")
        if accounts := [point for point in points if "account" in point]:
            yield Text()
            yield _accounts(accounts)


def line(point: Json) -> str:
    """One point, in a line."""
    if point["status"] != "ok":
        return f"{Point.of(point)}: {point['status'].replace('_', ' ')}: {point['reason']}"
    spread = point["spread_seconds"]
    words = f"{Point.of(point)}: {numbers.milliseconds(point['seconds'])} ms"
    if spread is not None:
        words += f" ± {numbers.milliseconds(spread / 2)}"
    words += f", {numbers.count(point['tokens_per_second'])} tokens/s"
    if point["what"] == "decode":
        how = "".join(f", by {way}" for way in point["decodes_by"] if way != "state")
        return f"{words}{how}, {point['times_bound']:.1f} times its bound"
    return f"{words}, {point['matrix_fraction']:.0%} of the matrix rate"


def ceilings_words(contents: Json) -> str:
    """What the device can do."""
    ceilings, device = contents["ceilings"], contents["device"]
    return (
        f"{device['name']}: {numbers.count(ceilings['matrix_flops_per_second'])}FLOP/s in "
        f"{ceilings['matrix_dtype']} products, "
        f"{numbers.count(ceilings['copy_bytes_per_second'])}B/s copied (read and written)"
    )


def _accounts(points: Iterable[Json]) -> Grid:
    """Where the time of decoded tokens goes that are far from their bounds."""
    grid = _empty("Farthest from its bound: where the time of a decoded token goes, ms")
    columns = ("times", "ms", "bound", "kernels", "µs an empty one", "so empty", "their work")
    for column in columns:
        grid.add_column(column, justify="right")
    ms = numbers.milliseconds
    for point in points:
        account = point["account"]
        grid.add_row(
            f"{point['variant']} {tokens(point['context'])} x {point['batch']}",
            f"{point['times_bound']:.1f}",
            ms(point["seconds"]),
            ms(point["bound_seconds"]),
            str(account["kernels"]),
            numbers.significant(1e6 * account["empty_kernel_seconds"]),
            ms(account["kernels"] * account["empty_kernel_seconds"]),
            ms(account["unexplained_seconds"]),
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
        grid.add_column(tokens(context), justify="right", no_wrap=True)
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


_TABLES: tuple[tuple[str, What, Callable[[Json], str]], ...] = (
    ("Decoded token, ms", "decode", _time),
    ("Decode state of a sequence", "decode", _state),
    ("Prefill, the time to the first token, ms", "prefill", _time),
    ("Training step, ms", "train", _time),
    ("Peak memory of training", "train", _peak_memory),
)
