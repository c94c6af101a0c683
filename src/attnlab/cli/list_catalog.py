"""`attnlab list`: list studies, mechanisms and settings, or the runs in a folder of results."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from attnlab.cli.app import JsonOption, app, reports_user_errors
from attnlab.cli.console import console, write

if TYPE_CHECKING:
    from attnlab.study.catalog import Catalog, Kind


@app.command("list")
@reports_user_errors
def list_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A study, a kind (mla), a family (mechanisms), a section of settings (train), or "
            "a folder of results.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List studies, mechanisms and settings; with NAME, the details of one.

    For a folder of results: its runs, packed or not.
    """
    import attnlab

    catalog = attnlab.catalog()
    found = _all(catalog) if name is None else _named(catalog, name)
    if as_json:
        write(json.dumps(found, indent=2) + "\n")
        return
    for section, entries in found.items():
        _print(section, entries, detailed=name is not None)
    if name is None:
        console.print("\nattnlab list NAME shows the settings and variants of one.")


def _all(catalog: "Catalog") -> dict[str, dict[str, Any]]:
    return {
        "studies": {study: {"question": text} for study, text in catalog.studies.items()},
        **{family: _kinds(kinds) for family, kinds in catalog.families.items()},
        "settings": {section: dict(values) for section, values in catalog.settings.items()},
    }


def _named(catalog: "Catalog", name: str) -> dict[str, dict[str, Any]]:
    """Return everything with this name; one name may be a study and a family."""
    from attnlab.record import runs_in

    found = dict[str, dict[str, Any]]()
    if name in catalog.studies or name.endswith(".py"):
        found["studies"] = {name: _study(name)}
    if name in catalog.families:
        found[name] = _kinds(catalog.families[name])
    if name in catalog.settings:
        found["settings"] = {name: dict(catalog.settings[name])}
    if not found and (Path(name).is_dir() or runs_in(Path(name))):
        recipes = _recipes(Path(name))
        return {**({"recipes": recipes} if recipes else {}), "runs": _runs(name)}
    return found or {family: _kinds([kind]) for family, kind in catalog.kinds(name).items()}


def _recipes(folder: Path) -> dict[str, Any]:
    """Return the recipe that was chosen for each variant of a study; empty if none was."""
    from attnlab.record import StudyRecord, read_tuning_choice

    if (study := StudyRecord.find(folder)) is None:
        return {}
    choices = {name: read_tuning_choice(folder, name) for name in study.variants}
    return {
        name: {
            "learning_rate": choice["learning_rate"],
            "warmup_steps": choice["warmup_steps"],
            **choice["settings"],
            "runs": len(choice["losses"]),
            "bracketed": choice["bracketed"],
            "challenged": choice["challenge"] is not None,
            "allowance": choice["allowance"],
        }
        for name, choice in choices.items()
        if choice.get("recipe") is not None
    }


def _runs(folder: str) -> dict[str, Any]:
    """Return status and loss of every run by its name within the study."""
    import attnlab

    return {
        _run_name(row): {
            "status": row["status"],
            "learning_rate": row["learning_rate"],
            "validation_loss": row.get("final_loss"),
            "test_loss": row.get("test_loss"),
            "device": row["device"],
        }
        for row in attnlab.load_results(folder)
    }


def _run_name(row: Mapping[str, Any]) -> str:
    if row["recipe"] is not None:
        return f"{row['variant']}/tuning/{row['recipe']}/seed-{row['seed']}"
    return f"{row['variant']}/seed-{row['seed']}"


def _kinds(kinds: Iterable["Kind"]) -> dict[str, Any]:
    return {kind.name: {"summary": kind.summary, "settings": dict(kind.settings)} for kind in kinds}


def _study(name: str) -> dict[str, Any]:
    """Return question and variants; building the variants imports torch."""
    from attnlab.study.targets import load_study
    from attnlab.study.variants import describe_variants

    study = load_study(name)
    return {
        "question": study.question.strip(),
        "seeds": study.seeds,
        "baseline": study.baseline,
        "lengths": {length: list(changes) for length, changes in study.lengths.items()},
        "variants": describe_variants(study),
    }


_TITLES = {
    "studies": "Studies (attnlab run NAME)",
    "mechanisms": "Mechanisms (attnlab check NAME, attnlab bench NAME)",
    "data": "Data sources (data=KIND)",
    "tokenizers": "Tokenizers (data.tokenizer=KIND)",
    "feedforward": "Feed-forward layers (model.feedforward=KIND)",
    "optimizers": "Optimizers (train.optimizer=KIND)",
    "schedules": "Schedules of the learning rate (train.schedule=KIND)",
    "rope_scalings": "RoPE scalings (rope_scaling=KIND of a mechanism)",
    "settings": "Settings of every run (SECTION.KEY=VALUE)",
    "recipes": "Recipes (allowance for tuning in nats/token)",
    "runs": "Runs (losses in nats/token)",
}


def _print(section: str, entries: Mapping[str, Any], *, detailed: bool) -> None:
    console.print(f"\n{_TITLES[section]}", style="bold")
    if section == "studies" and detailed:
        for entry in entries.values():
            _print_study(entry)
        return
    if section == "recipes":
        _print_recipes(entries)
        return
    if section == "runs":
        _print_runs(entries)
        return
    grid = _grid()
    for name, entry in entries.items():
        if section == "studies":
            grid.add_row(name, entry["question"])
        elif section == "settings":
            grid.add_row(name, _settings(entry))
        else:
            grid.add_row(name, entry["summary"])
            if detailed:
                settings = _settings(entry["settings"]) or "no settings"
                grid.add_row("", Text(settings, "dim"))
    console.print_table(Padding(grid, (0, 0, 0, 2)))


def _print_study(study: Mapping[str, Any]) -> None:
    for paragraph in study["question"].split("\n\n"):
        table = any(line.startswith(" ") for line in paragraph.splitlines())
        text = paragraph if table else " ".join(paragraph.split())
        console.print(Padding(text, (0, 0, 1, 2)))
    grid = _grid()
    for variant, text in study["variants"].items():
        mark = " (baseline)" if variant == study["baseline"] else ""
        grid.add_row(variant + mark, text)
    console.print_table(Padding(grid, (0, 0, 1, 2)))
    facts = [f"{study['seeds']} seeds per variant; change with --seeds"]
    facts += [
        f"--length {length}: {', '.join(changes) or 'no changes'}"
        for length, changes in study["lengths"].items()
    ]
    for fact in facts:
        console.print(Padding(fact, (0, 0, 0, 2)))


def _print_recipes(recipes: Mapping[str, Any]) -> None:
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    grid.add_column("variant", overflow="fold", style="cyan")
    titles: list[str] = list(next(iter(recipes.values())))
    for title in titles:
        words = title.removeprefix("learning_").removesuffix("_steps").replace("_", " ")
        grid.add_column(words, justify="right", no_wrap=True)
    for name, recipe in recipes.items():
        grid.add_row(name, *(_cell(recipe.get(title)) for title in titles))
    console.print_table(Padding(grid, (0, 0, 0, 2)))


def _cell(value: Any) -> str:
    if value is None:
        return "no bound"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _print_runs(runs: Mapping[str, Any]) -> None:
    grid = Grid(box=None, padding=(0, 2, 0, 0))
    grid.add_column("run", overflow="fold", style="cyan")
    for title in ("status", "learning rate", "validation", "test"):
        grid.add_column(title, justify="left" if title == "status" else "right", no_wrap=True)
    for name, run in runs.items():
        numbers = {"learning_rate": "g", "validation_loss": ".4f", "test_loss": ".4f"}
        values = ((run[key], form) for key, form in numbers.items())
        texts = ("" if value is None else f"{value:{form}}" for value, form in values)
        grid.add_row(name, run["status"], *texts)
    console.print_table(Padding(grid, (0, 0, 0, 2)))


def _grid() -> Grid:
    grid = Grid(box=None, padding=(0, 2, 0, 0), show_header=False)
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column()
    return grid


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["kind"])
    return json.dumps(value) if isinstance(value, list) else str(value).lower()
