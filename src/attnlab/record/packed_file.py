"""Read and write `runs.jsonl.gz`, which holds a whole study: its record, and a line per run.

    {"format": 2, "study": {...}}
    {"tokenizer": "<sha256>", "text": "..."}
    {"variant": "mha", "seed": 0, "recipe": null, "status": "finished", "ended": true,
     "config": {...}, "environment": {...}, "metrics": [{...}, ...], "summary": {...},
     "tokenizer": "<sha256>"}
    {"variant": "mha", "tuning_choice": {...}}

The first line holds `study.json`; files of format 1 have no such line, and `study.json` lies beside
them. A line of a run holds the files of its folder as JSON values. A file that is not exactly the
text that this package writes for its values, such as one that a kill cut short, is stored as text
under "raw", so that every file is restored byte for byte. A tokenizer that runs share is stored
once, before the first of them. Equal studies give equal bytes.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from attnlab.record.atomic_files import (
    DamagedError,
    advising,
    open_regular,
    read_file,
    replace_file,
)
from attnlab.record.file_types import ChoiceForm, RecordForm, RunForm, TokenizerForm
from attnlab.record.json_text import Json, mismatch

PACKED, STUDY = "runs.jsonl.gz", "study.json"
FORMAT = 2  # of the packed file
RUN_FILES = ("config.json", "environment.json", "metrics.jsonl", "summary.json")
TOKENIZER = "tokenizer.json"
CHOICE = "choice.json"
AS_TEXT = ("utf-8", "surrogateescape")  # any bytes, which the same option restores
MOST_LINE_BYTES = 2**28
MOST_RATIO, FREE_BYTES = 100, 2**26  # largest size of the lines: both, by the size of the file


class RunKey(NamedTuple):
    """The names of a run within its study."""

    variant: str
    seed: int
    recipe: str | None = None  # name of a recipe that is tried, lr-0.001; None: the verdict's run


class PackedRun(NamedTuple):
    """The files of one run."""

    files: Mapping[str, bytes]  # by name: `RUN_FILES` and the tokenizer, as far as it has them
    ended: bool  # True if its folder had the name of a run that has ended

    def write_into(self, folder: Path) -> None:
        """Write the files into a folder that exists."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


class PackedStudy(NamedTuple):
    """The runs of a study, its record, and `choice.json` of each variant that was tuned."""

    runs: dict[RunKey, PackedRun]
    choices: dict[str, bytes]  # by variant
    record: bytes | None = None  # study.json; None in files of format 1


class NewerFormatError(ValueError):
    """A packed file was written by a later version of attnlab."""


def rate_of(recipe: str) -> float:
    """Return the peak learning rate in a recipe's name. Raises ValueError for other names.

    >>> rate_of("lr-0.0006,warmup_steps-300")
    0.0006
    """
    return float(recipe.removeprefix("lr-").partition(",")[0])


def read_packed(study_dir: Path) -> PackedStudy:
    """Return the packed runs and the packed record of a study; none if it is not packed.

    Raises:
        ValueError: the file is damaged, or of a later version. The message names the line.
    """
    path = study_dir / PACKED
    if not os.path.lexists(path):
        return PackedStudy({}, {})
    with advising("restore it from a copy, or move it away"), open_regular(path) as file:
        stat = os.fstat(file.fileno())
    return _read(path.absolute(), (stat.st_mtime_ns, stat.st_size, stat.st_ino))


def read_record(study_dir: Path) -> tuple[bytes, Path] | None:
    """Return the content of `study.json`, packed or not, and its place; None if there is none.

    A file beside the packed one counts: it was written later. Raises ValueError as `read_packed`.
    """
    path = study_dir / STUDY
    for _ in range(2):  # it may be packed or unpacked meanwhile
        with advising("restore it from a copy, or delete it and run the study again"):
            if os.path.lexists(path) and (content := read_file(path)) is not None:
                return content, path
        if (content := read_packed(study_dir).record) is not None:
            return content, Path(f"{study_dir / PACKED}, line 1") / STUDY
    return None


def write_packed(study_dir: Path, study: PackedStudy) -> None:
    """Write the packed file atomically, flush it to disk, and compare what is read back.

    Raises:
        OSError: the file could not be written. An older one is then unchanged.
    """

    def write(file: IO[bytes]) -> None:
        # no time and no name in the header: equal runs give equal bytes
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            packed.writelines(_lines(study))

    path = study_dir / PACKED
    replace_file(path, write)
    if _parse(path) != study:
        raise OSError(f"{path} is not as it was written: check the disk; no run was removed")


def _lines(study: PackedStudy) -> Iterator[bytes]:
    def order(key: RunKey) -> tuple[str, float, str, int]:
        rate = 0.0 if key.recipe is None else rate_of(key.recipe)
        return key.variant, rate, key.recipe or "", key.seed

    if study.record is not None:
        yield _line({"format": FORMAT, **_to_fields({STUDY: study.record})})
    tokenizers = set[str]()
    for key in sorted(study.runs, key=order):
        run = study.runs[key]
        fields = _to_fields({name: of for name, of in run.files.items() if name != TOKENIZER})
        if (tokenizer := run.files.get(TOKENIZER)) is not None:
            fields["tokenizer"] = digest = hashlib.sha256(tokenizer).hexdigest()
            if digest not in tokenizers:
                tokenizers.add(digest)
                yield _line({"tokenizer": digest, "text": tokenizer.decode(*AS_TEXT)})
        summary = fields.get("summary")
        status = summary.get("status") if isinstance(summary, dict) else None
        yield _line({**key._asdict(), "status": status or "partial", "ended": run.ended, **fields})
    for variant in sorted(study.choices):
        content = study.choices[variant]
        value = _value(CHOICE, content)
        raw = {} if value is not None else {"raw": {CHOICE: content.decode(*AS_TEXT)}}
        yield _line({"variant": variant, "tuning_choice": value, **raw})


def _line(value: Json) -> bytes:
    return f"{json.dumps(value, allow_nan=False, separators=(',', ':'))}\n".encode()


def _to_fields(files: Mapping[str, bytes]) -> Json:
    fields, raw = Json(), dict[str, str]()
    for name, content in files.items():
        value = _value(name, content)
        if value is None:
            raw[name] = content.decode(*AS_TEXT)
        else:
            fields[name.partition(".")[0]] = value
    return {**fields, "raw": raw} if raw else fields


def _value(name: str, content: bytes) -> Any:
    """Return the values of a file if they give exactly its bytes again, else None."""
    try:
        if name.endswith(".jsonl"):
            value: Any = [json.loads(line) for line in content.decode().split("\n")[:-1]]
        else:
            value = json.loads(content.decode())
        return value if _content(name, value) == content else None
    except (ValueError, RecursionError):
        return None


def _content(name: str, value: Any) -> bytes:
    if name.endswith(".jsonl"):  # as `to_line` and `to_json` write what JSON gave
        return "".join(f"{json.dumps(of, allow_nan=False)}\n" for of in value).encode()
    return f"{json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def _from_fields(fields: Json, names: Iterable[str]) -> dict[str, bytes]:
    raw, files = fields.get("raw", {}), dict[str, bytes]()
    for name in names:
        value = fields.get(name.partition(".")[0])
        if name in raw:
            files[name] = raw[name].encode(*AS_TEXT)
        elif value is not None:
            files[name] = _content(name, value)
    return files


@lru_cache(maxsize=8)
def _read(path: Path, stat: tuple[int, ...]) -> PackedStudy:
    del stat  # a changed file is read again
    return _parse(path)


def _parse(path: Path) -> PackedStudy:
    study, tokenizers, n = PackedStudy({}, {}), dict[str, bytes](), 0
    try:
        for line in _lines_of(path):
            n += 1
            _require(Json, fields := cast("Json", json.loads(line)))
            if n == 1 and "format" in fields:
                study = study._replace(record=_record(fields))
            else:
                _add(fields, study, tokenizers)
    except NewerFormatError as error:
        raise NewerFormatError(f"{path} {error}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, n + 1, error) from None
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
        raise _damaged(path, n, error) from None
    if not study.runs:
        raise _damaged(path, 1, EOFError("it holds no run"))
    return study


def _record(fields: Json) -> bytes:
    """Return study.json from the first line. Raises ValueError."""
    _require(RecordForm, fields)
    if fields["format"] > FORMAT:
        raise NewerFormatError(
            f"has format {fields['format']}, and this version of attnlab reads {FORMAT} at most: "
            "install a later one"
        )
    if fields["format"] != FORMAT:
        raise ValueError(f"format: expected {FORMAT}, got {fields['format']}")
    if (content := _from_fields(fields, [STUDY]).get(STUDY)) is None:
        raise ValueError("study is missing")
    return content


def _add(fields: Json, study: PackedStudy, tokenizers: dict[str, bytes]) -> None:
    """Add a line to what was read before it. Raises ValueError or LookupError."""
    if "text" in fields:
        _require(TokenizerForm, fields)
        content = fields["text"].encode(*AS_TEXT)
        if hashlib.sha256(content).hexdigest() != fields["tokenizer"]:
            raise ValueError("the tokenizer was altered")
        tokenizers[fields["tokenizer"]] = content
    elif "tuning_choice" in fields:
        _require(ChoiceForm, fields)
        choice = {**fields, "choice": fields["tuning_choice"]}
        study.choices[fields["variant"]] = _from_fields(choice, [CHOICE])[CHOICE]
    else:
        _require(RunForm, fields)
        key = RunKey(fields["variant"], fields["seed"], _recipe(fields))
        if key in study.runs:
            raise ValueError("this run is in the file twice")
        files = _from_fields(fields, RUN_FILES)
        if "tokenizer" in fields:
            files[TOKENIZER] = tokenizers[fields["tokenizer"]]
        study.runs[key] = PackedRun(files, fields["ended"])


def _lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines. Raises BadGzipFile for a file that would fill the memory."""
    with open_regular(path) as file, gzip.GzipFile(fileobj=file) as packed:
        room = FREE_BYTES + MOST_RATIO * os.fstat(file.fileno()).st_size
        while line := packed.readline(MOST_LINE_BYTES):
            room -= len(line)
            if len(line) == MOST_LINE_BYTES or room < 0:
                raise gzip.BadGzipFile("it unpacks to far more than runs need")
            yield line


def _require(form: Any, fields: Json) -> None:
    if problem := mismatch(form, fields):
        raise ValueError(problem)


def _recipe(fields: Json) -> str | None:
    """Return the recipe of a line; earlier files name the learning rate alone."""
    if "tuning_rate" in fields:
        rate = fields["tuning_rate"]
        return None if rate is None else f"lr-{float(rate):g}"
    recipe = fields["recipe"]
    if recipe is not None:
        rate_of(recipe)
    return recipe


def _damaged(path: Path, line: int, error: Exception) -> DamagedError:
    too_deep = isinstance(error, RecursionError)
    reason = "it is nested too deep" if too_deep else str(error) or type(error).__name__
    return DamagedError(f"{path} is damaged at line {line} ({reason}); restore it from a copy")
