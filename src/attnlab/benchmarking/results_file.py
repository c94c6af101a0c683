"""bench.json: all measured points, rewritten after each, so that an interruption loses none.

    {"device": {...}, "packages": {...}, "compiled": false, "environment": {...}, "ceilings": {...},
     "command": "...", "variants": {name: setup}, "points": [{"variant", "what", "context", "batch",
     "status", "reason", "seconds", "spread_seconds", "tokens_per_second", ...}]}

`status` is ok, out_of_memory, too_long, no_step (a mechanism does not decode) or failed. The same
command continues with the points that are missing and repeats the others, but not those that are ok
or ran out of memory.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnlab.benchmarking.point import Point
from attnlab.config import Config, differences
from attnlab.record import (
    BenchForm,
    DamagedError,
    Json,
    read_object,
    remove_temporary,
    write_object,
)

FILE = "bench.json"


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
