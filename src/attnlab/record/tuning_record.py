"""The runs that tune a variant's recipe, and the choice that follows from them."""

import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnlab.record.atomic_files import DamagedError, replace_file, require_within
from attnlab.record.json_text import Json, to_json
from attnlab.record.packed_file import CHOICE, rate_of, read_packed
from attnlab.record.recorded_run import command_of, folder_name
from attnlab.record.run_folder import RunFolder
from attnlab.record.verified_folder import add_checksums, parse_object, read_object

TUNING_SEED = 1000  # the seeds of the verdict's runs are 0, 1, 2, ..., all lower
SEARCH_NOISE = 0.42  # standard deviations of a run by which noise misleads a search, by simulation


def tuning_runs(study_dir: Path, variant: str) -> list[RunFolder]:
    """Return a variant's runs below `tuning/`, ended or not, by learning rate and seed."""
    packed = (key for key in read_packed(study_dir).runs if key.variant == variant)
    found = {(key.recipe, key.seed) for key in packed if key.recipe is not None}
    for folder in (study_dir / folder_name(variant) / "tuning").glob("lr-*/seed-*"):
        match = re.fullmatch(r"seed-(\d+)(\.partial)?", folder.name)
        with contextlib.suppress(ValueError):  # a folder of another kind
            rate_of(folder.parent.name)
            if match is not None:
                found.add((folder.parent.name, int(match[1])))
    in_order = sorted(found, key=lambda run: (rate_of(run[0]), run))
    return [RunFolder(study_dir, variant, seed, recipe=recipe) for recipe, seed in in_order]


def tuning_seed(variant: str) -> int:
    """Return the seed of the runs that tune a variant, from its name.

    Two names of one function are tuned with different seeds, as two functions are, so that the
    comparison of the two shows the error of tuning, too. No seed of a verdict is as large.
    """
    digest = hashlib.sha256(variant.encode()).digest()
    return TUNING_SEED + 1 + int.from_bytes(digest[:4]) % 1_000_000


def write_tuning_choice(study_dir: Path, variant: str, choice: Mapping[str, Any]) -> None:
    """Write `tuning/choice.json` of a variant, unless it is packed with the same content."""
    path = study_dir / folder_name(variant) / "tuning" / CHOICE
    content = to_json(add_checksums(choice, CHOICE, {}))
    if path.is_file() or read_packed(study_dir).choices.get(variant) != content:
        require_within(path.parent, study_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def read_tuning_choice(study_dir: Path, variant: str) -> Json:
    """Return the content of `tuning/choice.json`, packed or not; empty if the variant has none."""
    path = study_dir / folder_name(variant) / "tuning" / CHOICE
    try:
        if (found := read_object(path)) is not None:
            return found
    except DamagedError as error:
        again = f"delete it, then {command_of(study_dir)} writes it again"
        raise DamagedError(f"{error}; {again}") from None
    packed = read_packed(study_dir).choices.get(variant)
    return parse_object(packed, path) if packed else {}
