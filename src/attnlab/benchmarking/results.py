"""The results of a bench: the file bench.json, and its tables in the terminal.

    {"device": {...}, "packages": {...}, "compiled": false, "environment": {...}, "ceilings": {...},
     "command": "...", "variants": {name: setup}, "points": [{"variant", "what", "context", "batch",
     "status", "reason", "seconds", "spread_seconds", "tokens_per_second", ...}]}

The file has all measured points, and is rewritten after each, so that an interruption loses none.
`status` is ok, out_of_memory, too_long, no_step (a mechanism does not decode) or failed. The same
command continues with the points that are missing and repeats the others, but not those that are ok
or ran out of memory. There is a table per workload, with a column of median times per context.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as Grid
from rich.text import Text

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Point, Workload
from attnlab.config import Config, differences, visible
from attnlab.record import (
    BenchForm,
    DamagedError,
    Json,
    read_object,
    remove_temporary,
    write_object,
)

FILE = "bench.json"
_WORDS = {
    "out_of_memory": "out of memory",
    "too_long": "too long",
    "no_step": "",
    "failed": "failed",
}


class ResultsFile:
    """The bench.json of a folder."""

    def __init__(self, folder: Path, contents: Json) -> None:
        self.folder, self.contents = folder, contents

    @classmethod
    def open(
        cls, folder: Path, *, environment: Json, compiled: bool, setups: Mapping[str, Config]
    ) -> "ResultsFile":
        """Return the file in the folder, or a new one. `environment` comes from `describe`.

        Raises ValueError if the folder has points of another device, of other packages, or of other
        settings of a variant with the same name.
        """
        remove_temporary(folder)
        environment = dict(environment)
        fixed = {key: environment.pop(key) for key in ("device", "packages")}
        fixed["compiled"] = compiled
        variants = {name: setup.to_dict() for name, setup in setups.items()}
        points, earlier = list[Json](), list[Json]()
        if os.path.lexists(folder / FILE):
            before = read(folder)
            found = differences({key: before[key] for key in fixed}, fixed)
            for name in variants.keys() & before["variants"].keys():
                found |= differences(before["variants"][name], variants[name], name)
            if found:
                shown = "; ".join(
                    f"{key}: {a!r} in the file, {b!r} now" for key, (a, b) in found.items()
                )
                raise ValueError(
                    f"{folder / FILE} has measurements under other conditions ({shown}); "
                    "choose another --out, or delete it"
                )
            points, variants = before["points"], before["variants"] | variants
            earlier = [*before["environment"].pop("earlier"), before["environment"]]
        environment["earlier"] = earlier
        contents = fixed | {"environment": environment, "variants": variants, "points": points}
        return cls(folder, contents)

    @property
    def points(self) -> list[Json]:
        """The measured points, in the order of measurement."""
        return self.contents["points"]

    def final(self) -> dict[Point, Json]:
        """Return the points that need not be measured again."""
        final = ("ok", "out_of_memory")
        return {Point.of(point): point for point in self.points if point["status"] in final}

    def put(self, result: Json) -> None:
        """Write one point; it replaces an earlier result."""
        others = [point for point in self.points if Point.of(point) != Point.of(result)]
        self.update(points=[*others, result])

    def update(self, **facts: Any) -> None:
        """Write top-level values, such as the peak rates of the device."""
        self.contents |= facts
        self.folder.mkdir(parents=True, exist_ok=True)
        write_object(self.folder / FILE, self.contents)


def read(folder: Path) -> Json:
    """Return the contents of a folder's bench.json. Raises ValueError if it is damaged."""
    path = folder / FILE
    try:
        return read_object(path, BenchForm) or {"points": []}
    except DamagedError as error:
        raise DamagedError(f"{error}; restore it, or delete it to measure again") from None


class BenchTable:
    """The contents of bench.json as a rich renderable."""

    def __init__(self, contents: Json) -> None:
        self.contents = contents

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        points: list[Json] = self.contents["points"]
        for title, what, units, value in _TABLES:
            if of_what := [point for point in points if point["what"] == what]:
                yield from _table(title, of_what, units, value)
                yield Text()
        for point in points:
            if point["status"] == "failed":
                yield Text(f"{Point.of(point)}: {point['reason']}", style="red")
        without = {p["variant"]: p["reason"] for p in points if p["status"] == "no_step"}
        for variant, reason in without.items():
            yield Text(f"{variant}: {reason}", style="yellow")
        yield Text(device_sentence(self.contents), style="dim")
        if breakdowns := [point for point in points if "time_breakdown" in point]:
            yield Text()
            yield from _breakdowns(breakdowns)
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
    if point["matrix_fraction"] is None:  # FLOPs are not known
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


def _breakdowns(points: Iterable[Json]) -> Iterator[RenderableType]:
    """Yield the time by cause of the decoded tokens that are farthest from their bounds."""
    yield _title("Time of a decoded token by cause, for the points farthest from their bounds, ms")
    grid = _empty()
    columns = ("x bound", "time", "bound", "kernels", "µs/empty", "launches", "rest")
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
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
    yield grid


def _title(text: str) -> Text:
    return Text(text, "bold")  # a title of the grid would be wrapped at the width of its columns


def _empty() -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("variant", overflow="fold")
    return grid


def _table(
    title: str, points: Sequence[Json], units: numbers.Units, value: Callable[[Json], float]
) -> Iterator[RenderableType]:
    contexts = sorted({point["context"] for point in points})
    measured = (value(point) for point in points if point["status"] == "ok")
    factor, unit = numbers.common_unit([it for it in measured if it], units)
    cells = {
        (p["variant"], p["batch"], p["context"]): numbers.significant(value(p) / factor)
        if p["status"] == "ok"
        else _WORDS[p["status"]]
        for p in points
    }
    yield _title(f"{title}, {unit}")
    grid = _empty()
    grid.add_column("batch", justify="right")
    for context in contexts:
        grid.add_column(numbers.tokens(context), justify="right", no_wrap=True)
    for variant, batch in sorted({(p["variant"], p["batch"]): None for p in points}, key=_batch):
        row = [cells.get((variant, batch, context), "") for context in contexts]
        grid.add_row(Text(visible(variant)), str(batch), *row)
    yield grid


def _batch(row: tuple[str, int]) -> int:
    return row[1]


def _time(point: Json) -> float:
    return point["seconds"]


def _peak_memory(point: Json) -> float:
    return point["peak_memory_bytes"]


def _state(point: Json) -> float:
    return point["state_bytes"] / point["batch"]


_TABLES: tuple[tuple[str, Workload, numbers.Units, Callable[[Json], float]], ...] = (
    ("Decode: time per token", "decode", numbers.MILLISECONDS, _time),
    ("Decode: state per sequence", "decode", numbers.BYTES, _state),
    ("Prefill: time to the first token", "prefill", numbers.MILLISECONDS, _time),
    ("Training: time per step", "train", numbers.MILLISECONDS, _time),
    ("Training: peak memory", "train", numbers.BYTES, _peak_memory),
)
