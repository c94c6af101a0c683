"""bench.json: every point measured, written anew after each, so that a kill loses none.

    {"device": {...}, "packages": {...}, "compiled": false, "environment": {...}, "ceilings": {...},
     "command": "...", "variants": {name: setup}, "points": [{"variant", "what", "context", "batch",
     "status", "reason", "seconds", "spread_seconds", "tokens_per_second", ...}]}

`status` is ok, out_of_memory, too_long or failed. The same command goes on with what is missing,
and tries again what failed or took too long; what does not fit into memory would not fit again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnlab.benchmarking.point import Point
from attnlab.config import Config, differences
from attnlab.record import Json, write_json

FILE = "bench.json"


class Ledger:
    def __init__(self, folder: Path, contents: Json) -> None:
        self.folder, self.contents = folder, contents

    @classmethod
    def open(
        cls, folder: Path, *, environment: Json, compiled: bool, setups: Mapping[str, Config]
    ) -> "Ledger":
        """What is in the folder, or a new one. `environment` is what `describe` says.

        Raises ValueError where its points were measured on another device, with other packages, or
        for other settings of a variant of the same name.
        """
        environment = dict(environment)
        fixed = {key: environment.pop(key) for key in ("device", "packages")}
        fixed["compiled"] = compiled
        variants = {name: setup.to_dict() for name, setup in setups.items()}
        points, earlier = list[Json](), list[Json]()
        if (folder / FILE).is_file():
            before = read(folder)
            found = differences({key: before[key] for key in fixed}, fixed)
            for name in variants.keys() & before["variants"].keys():
                found |= differences(before["variants"][name], variants[name], name)
            if found:
                shown = "; ".join(f"{key}: {a!r} there, {b!r} now" for key, (a, b) in found.items())
                where = f"{folder / FILE} holds other measurements"
                raise ValueError(f"{where} ({shown}); choose another --out, or delete it")
            points, variants = before["points"], before["variants"] | variants
            earlier = [*before["environment"].pop("earlier"), before["environment"]]
        environment["earlier"] = earlier
        contents = fixed | {"environment": environment, "variants": variants, "points": points}
        return cls(folder, contents)

    @property
    def points(self) -> list[Json]:
        return self.contents["points"]

    def settled(self) -> dict[Point, Json]:
        """What need not be measured again."""
        settled = ("ok", "out_of_memory")
        return {Point.of(point): point for point in self.points if point["status"] in settled}

    def put(self, result: Json) -> None:
        """Write one point, in place of what was there of it."""
        others = [point for point in self.points if Point.of(point) != Point.of(result)]
        self.note(points=[*others, result])

    def note(self, **facts: Any) -> None:
        """Write facts, such as ceilings."""
        self.contents |= facts
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / FILE, self.contents)


def read(folder: Path) -> Json:
    """The contents of a folder's bench.json. Raises ValueError where it is damaged."""
    path = folder / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to measure again") from None
