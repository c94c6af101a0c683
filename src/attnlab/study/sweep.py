"""A sweep: a study made of another by giving settings several values, in every combination.

    attnlab run mechanisms --only sliding_256 --sweep model.mechanisms.0.window=128,256,512

trains `window_128`, `window_256` and `window_512`. With several variants, their names come first,
and each is a family of the sweep.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from attnlab.config import ConfigError, Problem
from attnlab.config.problem import shortened
from attnlab.study.shorter_runs import FOLLOWING, SIZES, notes_of, override_run, paths_of
from attnlab.study.study import Study
from attnlab.training.run import RunConfig

Values = Sequence[str]  # as they are typed


def sweep(
    study: Study, settings: Mapping[str, Iterable[object]], given: Iterable[str] = ()
) -> Study:
    """Return the study whose variants are those of `study`, with each combination of values.

    The baseline is the combination that the study's baseline, or the only variant, has already,
    else the first one.
    Hypotheses and labels are about variants that are gone, so they are left out.

    Args:
        study: the study whose variants are swept; `only` chooses among them.
        settings: values by dotted path, such as `{"model.mechanisms.0.window": [128, 256]}`. Text
            is read as it is typed in a command line: "16k" is 16,384.
        given: assignments that `study` has already; the warm-up and the learning rate among them do
            not follow from swept settings.

    Raises:
        ConfigError: a path has no value or one value twice, two combinations are one run, a
            variant does not have such a setting, or the study's search changes it.
    """
    typed = {path: [_typed(value, path) for value in values] for path, values in settings.items()}
    problems = [
        Problem(f"sweep.{path}", f"give two values or more, each once; got {', '.join(values)}")
        for path, values in typed.items()
        if len(values) < 2 or len(set(values)) < len(values)
    ]
    problems += [
        Problem(f"sweep.{path}", "is searched for each variant, from its value on; use --no-tune")
        for path in typed
        if study.tuning and path in ("train.learning_rate", *study.tuning.settings)
    ]
    if problems:
        raise ConfigError(problems)
    held = [one for one in given if set(paths_of([one])) & FOLLOWING - typed.keys()]
    names, of_variants = _short_names(typed), dict[Problem, dict[str, None]]()
    variants, families = dict[str, RunConfig](), dict[str, tuple[str, ...]]()
    notes = list(study.notes)
    for name, config in study.variants.items():
        of_name = dict[str, RunConfig]()
        for values in product(*typed.values()):
            changes = [f"{path}={value}" for path, value in zip(typed, values, strict=True)]
            changes += held
            said = [
                f"{names[path]}_{_as_name(value)}"
                for path, value in zip(typed, values, strict=True)
            ]
            whose = [name] if len(study.variants) > 1 else []
            try:
                of_name["_".join([*whose, *said])] = override_run(config, changes)
            except ConfigError as error:
                for problem in error.problems:
                    of_variants.setdefault(problem, {})[name] = None
        problems += _same_runs(of_name)  # those of two names may be: a control is swept, too
        variants |= of_name
        families[name] = tuple(of_name)
        notes += [
            note
            for one in of_name.values()
            for note in notes_of({name: config}, {name: one}, [*typed, *held])
        ]
    for problem, whose in of_variants.items():  # what all variants share is said once
        every = 1 < len(whose) == len(study.variants)
        places = ["sweep"] if every else [f"sweep.{name}" for name in whose]
        problems += [problem.under(place) for place in places]
    if problems:
        raise ConfigError(problems)
    baseline = _whose(study) or [study.baseline or ""]
    own = study.variants.get(baseline[0])
    return dataclasses.replace(
        study.only(study.variants),  # with the reference of `match`
        variants=variants,
        baseline=next((name for name, config in variants.items() if config == own), None),
        hypotheses=(),
        labels={},
        lengths={},
        families=families if len(families) > 1 else {},
        name="_".join([study.name, *_whose(study), *names.values()]) if study.name else "",
        ladder={},
        tuning=study.tuning and dataclasses.replace(study.tuning, only=()),
        swept=tuple(dict.fromkeys(_recorded(path, variants.values()) for path in typed)),
        notes=tuple(dict.fromkeys(notes)),
        whole=None,
    )


def typed_sweep(assignments: Iterable[str]) -> dict[str, Values]:
    """Return values by path from `PATH=VALUE,VALUE,...`. Raises ConfigError for another form."""
    found, problems = dict[str, Values](), list[Problem]()
    for assignment in assignments:
        path, equals, values = (part.strip() for part in assignment.partition("="))
        if not (path and equals and values):
            problems.append(Problem("sweep", f"write PATH=VALUE,VALUE,...; got {assignment!r}"))
        elif path in found:
            problems.append(Problem("sweep", f"{path} is given twice"))
        found[path] = [value.strip() for value in values.split(",")]
    if problems:
        raise ConfigError(problems)
    return found


def _as_name(value: str) -> str:
    """Return a value as a part of a variant's name, which holds no slashes."""
    return re.sub(r"[/\\]+", "_", value).strip("_")


def _typed(value: Any, path: str) -> str:
    """Return a value as it is typed in a command line. Raises ConfigError for what cannot be."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value.item() if hasattr(value, "item") else value)  # of an array
    except (TypeError, ValueError, RuntimeError):
        message = f"expected text, a number or JSON, got {shortened(value)}; a kind is text: 'mla'"
        raise ConfigError([Problem(f"sweep.{path}", message)]) from None


def _recorded(path: str, configs: Iterable[RunConfig]) -> str:
    """Return the path that the runs record: a size is a width, or layers where widths are equal."""
    if path not in SIZES:
        return path
    widths = {config.model.d_model for config in configs}
    return "model.d_model" if len(widths) > 1 else "model.n_layers"


def _short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return the last part of each path; more of it where two end alike, or it is a number."""
    parts: dict[str, list[str]] = {path: path.split(".") for path in paths}

    def name(path: str, length: int) -> str:
        return "_".join(parts[path][-length:])

    lengths = {path: 2 if of[-1].isdigit() else 1 for path, of in parts.items()}
    for path in parts:
        while lengths[path] < len(parts[path]) and any(
            name(path, lengths[path]) == name(other, lengths[path])
            for other in parts
            if other != path
        ):
            lengths[path] += 1
    return {path: name(path, length) for path, length in lengths.items()}


def _whose(study: Study) -> list[str]:
    """Return the variant that is swept, if it was chosen from several."""
    chosen = study.whole is not None and len(study.variants) == 1
    return list(study.variants) if chosen else []


def _same_runs(variants: Mapping[str, RunConfig]) -> list[Problem]:
    first = dict[str, str]()
    problems = list[Problem]()
    for name, config in variants.items():
        other = first.setdefault(json.dumps(config.to_dict(), sort_keys=True), name)
        if other != name:
            problems.append(Problem("sweep", f"{other} and {name} are the same run"))
    return problems
