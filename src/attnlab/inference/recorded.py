"""Settings of a recorded run, read as data: its code is executed only if the user agreed to it.

A run's folder, and one that `export` wrote, carry the source of the user's own classes in
`sources/`. It is executed if the caller trusts the folder, or if `attnlab.run` executed the same
bytes on this machine before, where the user named them. The settings must have the identity that
the folder states.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from attnlab.config import (
    ConfigError,
    carried_sources,
    differences,
    digest,
    original_files,
    own_classes,
    read_from_record,
)
from attnlab.data import Places
from attnlab.record import replace_file, runs_in
from attnlab.record.atomic_files import DamagedError, open_regular, replace_folder, sha256
from attnlab.record.json_text import read_foreign_object
from attnlab.record.verified_folder import STATE, read_verified
from attnlab.training.run import RunConfig

DESCRIBED = ("config.json", "tokenizer.json")
SOURCES = "sources"  # folder of the user's own code, in a run's folder and in an exported one
MOST_BYTES = 2**26  # of a file of settings or of source
Json = dict[str, Any]


class Recorded(NamedTuple):
    """A run's settings, and what identifies it."""

    config: RunConfig
    identity: str
    fingerprint: str  # of its data
    own_code: Json  # the user's own code as `own_code_record` describes it; empty without any
    state: Json | None  # that of an exported folder; None for a run's own


def read_recorded(folder: Path, *, trust: bool = False) -> Recorded:
    """Return the settings of the run in a folder, or in one that `export` wrote.

    Raises:
        ValueError: there is no run; a file is not as it was written; the folder has code that is
            not trusted, or whose original was edited since.
    """
    _require_run(folder)
    state = _exported_state(folder) if (folder / STATE).exists() else None
    record = read_foreign_object(folder / "config.json", MOST_BYTES)
    environment = (
        {} if state is not None else read_foreign_object(folder / "environment.json", MOST_BYTES)
    )
    own_code = (environment if state is None else state).get("own_code") or {}
    sources = carried_in(folder)
    lost = sorted(set(sources) ^ set(own_code.get("originals") or sources))
    if lost:
        raise ValueError(f"{folder / SOURCES / lost[0]} was added, or is missing; restore it")
    if sources and not trust:
        _require_executed_before(folder, sources)
        _require_unedited(folder, own_code)
    try:
        with read_from_record(folder / SOURCES if sources else None, f" that {folder} lacks"):
            config = RunConfig.from_dict(_settings(record))
    except ConfigError as error:
        problems = "; ".join(map(str, error.problems))
        raise ValueError(f"{folder / 'config.json'} is not that of a run: {problems}") from None
    data = environment.get("data") if state is None else {"fingerprint": state.get("data")}
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    identity = record.get("identity")
    if not isinstance(fingerprint, str) or not isinstance(identity, str):
        raise ValueError(f"{folder} does not state the identity of its run: it cannot be verified")
    if (found := config.identity(fingerprint)) != identity:
        changed = differences(own_code.get("sources") or {}, config.sources())
        named = ", ".join(f"{SOURCES}/{name}" for name in changed) or "config.json"
        raise ValueError(
            f"{folder}: {named} is not that of the run {identity} (it gives {found}); restore it, "
            "or train the run again"
        )
    return Recorded(config, identity, fingerprint, own_code, state)


def _settings(record: Mapping[str, Any]) -> Json:
    return {name: value for name, value in record.items() if name not in ("identity", "variant")}


def own_code_record(config: RunConfig) -> Json | None:
    """Return what a record says of the user's own code: originals and SHA-256; None without any."""
    originals = original_files(own_classes(config))
    return {"originals": originals, "sources": config.sources()} if originals else None


def write_sources(folder: Path, config: RunConfig) -> None:
    """Write the user's own code that a run executes into its folder."""
    if carried := carried_sources(own_classes(config)):
        replace_folder(folder / SOURCES, lambda path: _write_files(path, carried))


def remember_code(config: RunConfig) -> None:
    """Remember that the user named the code of this run, so that its folders may execute it."""
    carried = carried_sources(own_classes(config))
    if carried:
        path = _remembered(carried)
        with suppress(OSError):  # without a cache the folders ask for trust
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, b"")


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _remembered(sources: Mapping[str, bytes]) -> Path:
    listed = json.dumps({name: digest(source) for name, source in sorted(sources.items())})
    name = hashlib.sha256(listed.encode()).hexdigest()
    return Places.from_environment().cache / "executed-code" / name


def _require_executed_before(folder: Path, sources: Mapping[str, bytes]) -> None:
    if not _remembered(sources).is_file():
        raise ValueError(
            f"{folder} runs code of its own: {', '.join(sources)}; read it in {folder / SOURCES}, "
            "then repeat with --trust (trust=True in Python)"
        )


def _require_unedited(folder: Path, own_code: Mapping[str, Any]) -> None:
    """Raise ValueError if the file that the run's code was copied from is there and was edited."""
    for name, original in dict(own_code.get("originals") or {}).items():
        path, copy = Path(str(original)), folder / SOURCES / str(name)
        if path.is_file() and copy.is_file() and path.read_bytes() != copy.read_bytes():
            raise ValueError(
                f"{path} was edited after {folder} was trained with it; restore it, train again "
                f"into another --out, or use the run's own copy, {copy}, with --trust (trust=True)"
            )


def _require_run(folder: Path) -> None:
    missing = [folder / name for name in DESCRIBED if not (folder / name).is_file()]
    if not missing:
        return
    if any(run.packed() for run in runs_in(folder)):
        raise ValueError(f"{folder} is packed, and packed runs have no weights")
    below = (run for where in ("seed-*", "*/seed-*") for run in sorted(folder.glob(where)))
    unfinished = folder.parent / f"{folder.name}.partial"
    runs = [str(run) for run in (unfinished, *below) if run.is_dir()][:5]
    if len(missing) < len(DESCRIBED) and not runs:
        raise ValueError(f"{missing[0]} is missing; restore it, or train the run again")
    hint = f"; did you mean {' or '.join(runs)}?" if runs else ""
    raise ValueError(f"no run in {folder}: it has no config.json and tokenizer.json{hint}")


def _exported_state(folder: Path) -> Json:
    """Return the state of an exported folder, all of whose files are as they were written."""
    try:
        state = read_verified(folder)
        with open_regular(folder / STATE) as file:
            sums = json.loads(file.read(MOST_BYTES))["sha256"]
    except DamagedError as error:
        raise ValueError(f"{folder} is damaged: {error}; export the run again") from None
    present = {f"{SOURCES}/{name}" for name in carried_in(folder)}
    stated = {name for name in sums if name.startswith(f"{SOURCES}/")}
    missing = [name for name in (*DESCRIBED, "model.safetensors") if name not in sums]
    if unknown := sorted(present.symmetric_difference(stated)) + missing:
        raise ValueError(f"{folder} is damaged: {unknown[0]} was added, or lost its checksum")
    if not isinstance(state.get("step"), int) or not isinstance(state.get("identity"), str):
        raise ValueError(f"{folder} is damaged: {STATE} lacks step or identity")
    return state


def tokenizer_bytes(folder: Path) -> bytes:
    """Return tokenizer.json of a run's folder. Raises ValueError if it is not as it was written."""
    expected = read_foreign_object(folder / "environment.json", MOST_BYTES).get("tokenizer_sha256")
    path = folder / "tokenizer.json"
    content = _bytes(path)
    if expected is not None and sha256(path) != expected:
        raise ValueError(f"{path} is not as the run wrote it; restore it, or train the run again")
    return content


def carried_in(folder: Path) -> dict[str, bytes]:
    """Return the user's own code that the folder of a run, or an exported one, carries."""
    return dict(_sources(folder / SOURCES))


def _sources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of a folder of sources, by its path in it."""
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, which no run has")
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is no file, as sources are")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), _bytes(path)


def _bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
