"""A run on disk: a folder that is readable after a kill at any instant, or a line of a packed file.

    results/<study>/study.json                 the question, its variants and seeds
    results/<study>/runs.jsonl.gz              packed runs (`attnlab pack`)
    results/<study>/<variant>/seed-0.partial/  a run that is in progress, interrupted or failed
    results/<study>/<variant>/seed-0/          a run that has ended: finished or diverged
    results/<study>/<variant>/tuning/          runs at other recipes (learning rate, warm-up, ...):
        choice.json        the chosen recipe, its allowance, and the loss at each recipe
        lr-0.0006,warmup_steps-100/seed-<k>/  a run like any other, with a tuning seed to choose
                           the recipe, or with a seed of the verdict to challenge the choice
    each run folder holds
        config.json        every setting, with the variant's name and the run's identity
        environment.json   code, packages and device; those before a resume under "earlier"
        metrics.jsonl      one JSON object per line, each with its "step"
        summary.json       "status", "reason" and the final numbers
        tokenizer.json     its tokenizer, for models that are loaded from the folder
        sources/           the user's own code that the run executes, if there is any
        checkpoints/       the trainer's; removed at the end of the run if none are kept

Whole files are replaced atomically. `metrics.jsonl` grows line by line, and a last line that a kill
cut off is ignored. A diverged run would diverge again, so it has ended. A failed run (an exception)
keeps its `.partial` name and its reason and can be tried again.

A run is read from its folder if that has any of the four files, else from the packed file.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import unquote

from attnlab.config import differences
from attnlab.record.atomic_files import replace_file, replace_folder, sweep
from attnlab.record.json_text import Json, parse, to_json, to_line, write_json
from attnlab.record.packed_file import CHOICE, RUN_FILES, PackedRun, RunKey, rate_of, read_packed

Status = Literal["absent", "partial", "finished", "diverged", "failed"]

TUNING_SEED = 1000  # the seeds of the verdict's runs are 0, 1, 2, ..., all lower
NO_INFLUENCE = ("keep",)  # settings of training without influence on results and identity


class RunFolder:
    """One seed of one variant of a study, wherever it is stored. Making the object writes nothing.

    A run that tries another recipe than the verdict's is also named by that recipe.
    """

    def __init__(
        self, study_dir: Path, variant: str, seed: int, *, recipe: str | None = None
    ) -> None:
        self.variant, self.seed, self.recipe = variant, seed, recipe
        self.study_dir, self.key = study_dir, RunKey(variant, seed, recipe)
        folder = study_dir / folder_name(variant)
        if recipe is not None:
            folder = folder / "tuning" / recipe
        self.ended, self.partial = folder / f"seed-{seed}", folder / f"seed-{seed}.partial"

    @classmethod
    def at(cls, path: Path) -> Self:
        """Return the run with this folder, packed or not. Raises ValueError if there is none."""
        folder = path if len(path.parts) > 2 else path.resolve()
        match = re.fullmatch(r"seed-(\d+)(\.partial)?", folder.name)
        if match is not None:
            variant = unquote(folder.parent.name)
            if folder_name(variant) != folder.parent.name:
                name = folder_name(variant)
                raise ValueError(f"{folder.parent}: call this folder {name}, or without dots")
            run = cls(folder.parent.parent, variant, int(match[1]))
            if folder.is_dir() or run.packed() is not None:
                return run
        raise ValueError(
            f"no run in {path}: name the folder of a run, such as results/quickstart/mha/seed-0"
        )

    @property
    def path(self) -> Path:
        """The folder that the run has, or will have."""
        if self.ended.is_dir():
            return self.ended
        packed = None if self.partial.is_dir() else self.packed()
        return self.partial if packed is None or not packed.ended else self.ended

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints. It moves with the run when the run ends."""
        return self.path / "checkpoints"

    def in_folder(self) -> bool:
        """True if a folder holds files of the run, even if it is packed, too."""
        return any(
            (folder / name).exists() for folder in (self.ended, self.partial) for name in RUN_FILES
        )

    def packed(self) -> PackedRun | None:
        """Return the packed run, or None if it is not packed or is in a folder."""
        found = read_packed(self.study_dir).runs.get(self.key)
        return None if found is None or self.in_folder() else found

    def status(self) -> Status:
        """Return the state of the run; "absent" if nothing of it is stored."""
        summary = self.summary()
        if summary is not None:
            return cast("Status", summary["status"])
        is_there = self.path.is_dir() or self.packed() is not None
        return "partial" if is_there else "absent"

    def identity(self) -> str | None:
        """Return the identity of the stored run, or None if there is none."""
        config = self.config()
        return None if config is None else cast("str", config["identity"])

    def conflict(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return `{dotted path: (stored, requested)}` where the stored run differs from `config`.

        Empty if no run is stored or the identities are equal. `{"identity": ...}` alone means that
        the settings are equal but the data, or a file of the user's code, has changed.
        """
        there = self.config()
        if there is None or there["identity"] == config["identity"]:
            return {}
        found = differences(there, self._named(config))
        settings = {path: pair for path, pair in found.items() if path != "identity"}
        return settings or found

    def inherit(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Start with the metrics of another run. Call it before `open`."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self.write_metrics(metrics)

    def open(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin the run, or continue one that was interrupted or failed.

        `config` is the run's settings as JSON values with its "identity". Its metrics are kept,
        except for an incomplete last line; `truncate_after` removes those after a checkpoint.
        """
        assert not self.ended.is_dir(), f"{self.ended} has ended; it is not run again"
        assert not self.conflict(config), f"{self.partial} holds another run"
        self._restore()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        before = self.environment()
        if before is not None:
            earlier = before.pop("earlier", [])
            environment = {**environment, "earlier": [*earlier, before]}
        sweep(self.partial)
        write_json(self.partial / "config.json", self._named(config))
        write_json(self.partial / "environment.json", environment)
        self._keep_metrics(lambda _: True)
        (self.partial / "summary.json").unlink(missing_ok=True)

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Append one line of metrics, such as `{"step": 100, "eval_loss": 5.1}`."""
        assert "step" in metrics, f"metrics without a step: {metrics}"
        with (self.partial / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(to_line(metrics))

    def truncate_after(self, step: int) -> None:
        """Remove the metrics after a checkpoint's step; -1 removes all."""
        self._keep_metrics(lambda metrics: metrics["step"] <= step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the end of the run, with "status" finished or diverged, and rename its folder."""
        assert summary["status"] in ("finished", "diverged"), summary["status"]
        self._write_summary(summary)
        self.finalize()

    def fail(self, reason: str) -> None:
        """Record that an exception ended this attempt. It may be called before `open`."""
        assert not self.ended.is_dir(), f"{self.ended} has ended"
        before = self.summary() or {}
        if (before.get("status"), before.get("reason")) == ("failed", reason):
            return
        self._restore()
        self.partial.mkdir(parents=True, exist_ok=True)
        self._write_summary({"status": "failed", "reason": reason})

    def finalize(self) -> None:
        """Rename the folder of an ended run, and remove its checkpoints if none are kept.

        A kill may have come between the summary and this, so it is called again before reading.
        """
        if self.status() not in ("finished", "diverged") or self.packed() is not None:
            return
        keep = (self.config() or {}).get("train", {}).get("keep")
        if keep == "none":
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        elif keep == "weights":
            for checkpoint in self.checkpoints.glob("step-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)
        if not self.ended.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                self.partial.rename(self.ended)

    def config(self) -> Json | None:
        """Return the settings with the variant's name and the identity, or None."""
        return self._read("config.json")

    def environment(self) -> Json | None:
        """Return the record of code, packages and device, or None."""
        return self._read("environment.json")

    def summary(self) -> Json | None:
        """Return status, reason and final numbers; None while the run is in progress."""
        return self._read("summary.json")

    def metrics(self) -> list[Json]:
        """Return every line in order, except for an incomplete last one.

        Raises ValueError if another line is damaged.
        """
        lines = (self._text("metrics.jsonl") or "").split("\n")[:-1]
        return [parse(line, self.path / "metrics.jsonl", n) for n, line in enumerate(lines, 1)]

    def _restore(self) -> None:
        """Write a packed run into its folder, before it is changed there."""
        packed = self.packed()
        if packed is not None:
            assert not packed.ended, f"{self.ended} has ended and is packed"
            replace_folder(self.partial, packed.write_into)

    def _named(self, config: Mapping[str, Any]) -> Json:
        return {**config, "variant": self.variant, "seed": self.seed}

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        run = {"variant": self.variant, "seed": self.seed, "identity": self.identity()}
        write_json(self.partial / "summary.json", {"reason": None, **summary, **run})

    def _keep_metrics(self, wanted: Callable[[Json], bool]) -> None:
        self.write_metrics(metrics for metrics in self.metrics() if wanted(metrics))

    def write_metrics(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines of metrics, and flush them to disk."""
        replace_file(self.partial / "metrics.jsonl", "".join(map(to_line, metrics)).encode())

    def _read(self, name: str) -> Json | None:
        text = self._text(name)
        return None if text is None else parse(text, self.path / name)

    def _text(self, name: str) -> str | None:
        # twice, because the run may end, and its folder be renamed, between the two attempts
        for folder in (self.ended, self.partial, self.ended):
            with contextlib.suppress(FileNotFoundError):
                return (folder / name).read_text(encoding="utf-8")
        packed = self.packed()
        content = None if packed is None else packed.files.get(name)
        return None if content is None else content.decode()


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
    path, content = study_dir / folder_name(variant) / "tuning" / CHOICE, to_json(choice)
    if path.is_file() or read_packed(study_dir).choices.get(variant) != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def read_tuning_choice(study_dir: Path, variant: str) -> Json:
    """Return the content of `tuning/choice.json`, packed or not; empty if the variant has none."""
    path = study_dir / folder_name(variant) / "tuning" / CHOICE
    packed = read_packed(study_dir).choices.get(variant)
    text = path.read_text(encoding="utf-8") if path.is_file() else packed and packed.decode()
    return parse(text, path) if text else {}


def folder_name(variant: str) -> str:
    """Return the variant's name, with `%XX` for characters that some file systems refuse.

    `urllib.parse.unquote` gives the name back. A dot stays between digits only, so that no variant
    has the name of a file of the study.

    >>> folder_name("top_k 0.5"), folder_name("hybrid 3:1"), folder_name("../mha")
    ('top_k 0.5', 'hybrid 3%3A1', '%2E%2E%2Fmha')
    """
    if not variant.strip():
        raise ValueError("a variant needs a name")
    unsafe = r'[\x00-\x1f\x7f%/\\:*?"<>|]|(?<!\d)\.|\.(?!\d)|^ | $'
    return re.sub(unsafe, lambda match: f"%{ord(match[0]):02X}", variant)
