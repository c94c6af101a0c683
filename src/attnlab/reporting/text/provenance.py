"""Where the numbers come from: settings shared and own, machines, versions."""

from collections.abc import Iterable, Mapping
from typing import Any

from attnlab.analysis.settings import describe, flat, shared_and_own
from attnlab.analysis.table import Table

OF_ONE_START = ("started", "earlier", "begins")  # in environment.json: when, and from where


def settings(table: Table) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """`{path: value}` that all variants share, and by variant what it has of its own."""
    configs = {variant.name: variant.config for variant in table.variants if variant.config}
    shared, own = shared_and_own(configs)
    return _described(shared), {name: _described(of_one) for name, of_one in own.items()}


def environment(table: Table) -> dict[str, str]:
    """Where the runs ran, by dotted path; where they differ, every value.

    Of several folders side by side with who has which.
    """
    seen: dict[str, dict[str, dict[str, None]]] = {}
    for variant in table.variants:
        for run in variant.runs:
            there = {key: of for key, of in run.environment.items() if key not in OF_ONE_START}
            for path, value in flat(there).items():
                seen.setdefault(path, {}).setdefault(describe(value), {})[variant.name] = None
    starts = sorted(
        run.environment["started"] for run in table.runs if "started" in run.environment
    )
    when = {"runs started": f"{starts[0]} to {starts[-1]}"} if starts else {}
    return {path: _every(values, table) for path, values in seen.items()} | when


def _every(values: Mapping[str, Iterable[str]], table: Table) -> str:
    if len(values) == 1 or not table.sources:
        return " | ".join(values)
    return " | ".join(f"{value} ({table.where(names)})" for value, names in values.items())


def _described(values: Mapping[str, Any]) -> dict[str, str]:
    return {path: describe(value) for path, value in values.items()}
