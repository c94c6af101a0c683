"""The run folder: one run on disk, readable whatever instant its writer was killed at.

    results/<study>/study.json                 the question, its variants and seeds
    results/<study>/<variant>/seed-0.partial/  a run under way, interrupted, or failed
    results/<study>/<variant>/seed-0/          a run that ended: finished or diverged
    results/<study>/<variant>/tuning/          what chose its learning rate:
        choice.json        the rate, and the loss at each that was tried
        lr-0.0006/seed-<k>/  a run like any other
    each of which holds
        config.json        every setting, with the variant's name and the run's identity
        environment.json   where it runs; what it ran on before a resume, under "earlier"
        metrics.jsonl      one JSON object a line, each with its "step"
        summary.json       "status", "reason" and the final numbers
        checkpoints/       the trainer's; gone when the run has ended, where it keeps none

Whole files are replaced as a whole; `metrics.jsonl` grows line by line, and a last line that a kill
cut off is no line. A diverged run would diverge again, so it has ended; a failed one (an exception)
keeps its `.partial` name and its reason and can be tried again.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast
from urllib.parse import unquote

from attnlab.config import differences
from attnlab.record.atomic_files import replace_file
from attnlab.record.json_text import Json, parse, to_line, write_json

Status = Literal["absent", "partial", "finished", "diverged", "failed"]

TUNING_SEED = 1000  # the verdict's seeds are 0, 1, 2, ... and stay below
NO_INFLUENCE = ("keep",)  # settings of training that change no result: not part of an identity


class RunFolder:
    """One seed of one variant of a study. Making the object touches nothing on disk.

    A run that tunes the learning rate is named by the rate that it tries, too.
    """

    def __init__(
        self, study_dir: Path, variant: str, seed: int, *, tuning_rate: float | None = None
    ) -> None:
        self.variant, self.seed, self.tuning_rate = variant, seed, tuning_rate
        folder = study_dir / folder_name(variant)
        if tuning_rate is not None:
            folder = folder / "tuning" / f"lr-{tuning_rate:g}"
        self.ended, self.partial = folder / f"seed-{seed}", folder / f"seed-{seed}.partial"

    @classmethod
    def at(cls, path: Path) -> Self:
        """The run whose own folder this is. Raises ValueError where it is none."""
        folder = path if len(path.parts) > 2 else path.resolve()
        match = re.fullmatch(r"seed-(\d+)(\.partial)?", folder.name)
        if match is None or not folder.is_dir():
            raise ValueError(
                f"no run in {path}: name the folder of one, as results/quickstart/mha/seed-0"
            )
        variant = unquote(folder.parent.name)
        if folder_name(variant) != folder.parent.name:
            name = folder_name(variant)
            raise ValueError(f"{folder.parent}: call this folder {name}, or without dots")
        return cls(folder.parent.parent, variant, int(match[1]))

    @property
    def path(self) -> Path:
        """Where the run is now, or will be."""
        return self.ended if self.ended.is_dir() else self.partial

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints. It moves with the run when the run ends."""
        return self.path / "checkpoints"

    def status(self) -> Status:
        summary = self.summary()
        if summary is not None:
            return cast("Status", summary["status"])
        return "partial" if self.path.is_dir() else "absent"

    def identity(self) -> str | None:
        """The identity of the run that is there, or None."""
        config = self.config()
        return None if config is None else cast("str", config["identity"])

    def conflict(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Why the run that is there is not the one asked for: `{dotted path: (there, asked)}`.

        Empty where nothing is there or the identities are equal. `{"identity": ...}` alone means
        that the settings read the same but the data, or a file of the user's own, has changed.
        """
        there = self.config()
        if there is None or there["identity"] == config["identity"]:
            return {}
        found = differences(there, self._whole(config))
        settings = {path: pair for path, pair in found.items() if path != "identity"}
        return settings or found

    def inherit(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Take over what another run has measured, before `open`."""
        self.partial.mkdir(parents=True, exist_ok=True)
        self._write_metrics(metrics)

    def open(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin the run, or go on with one that was interrupted or failed.

        `config` is the run's settings as JSON values with its "identity". Its metrics stay, but
        for a torn last line; call `truncate_after` to go back to a checkpoint's step.
        """
        assert not self.ended.is_dir(), f"{self.ended} has ended; it is not run again"
        assert not self.conflict(config), f"{self.partial} holds another run"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        before = self.environment()
        if before is not None:
            earlier = before.pop("earlier", [])
            environment = {**environment, "earlier": [*earlier, before]}
        for unfinished in self.partial.glob(".*.tmp"):  # what a kill left of a file's replacement
            unfinished.unlink()
        write_json(self.partial / "config.json", self._whole(config))
        write_json(self.partial / "environment.json", environment)
        self._keep_metrics(lambda _: True)
        (self.partial / "summary.json").unlink(missing_ok=True)

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Add one line, such as `{"step": 100, "eval_loss": 5.1}`."""
        assert "step" in metrics, f"metrics without a step: {metrics}"
        with (self.partial / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(to_line(metrics))

    def truncate_after(self, step: int) -> None:
        """Forget what was measured after a checkpoint's step; -1 forgets everything."""
        self._keep_metrics(lambda metrics: metrics["step"] <= step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run ended, with "status" finished or diverged. The folder gets its final name."""
        assert summary["status"] in ("finished", "diverged"), summary["status"]
        self._summarise(summary)
        self.finalize()

    def fail(self, reason: str) -> None:
        """An exception ended this attempt. Works before `open`, too."""
        assert not self.ended.is_dir(), f"{self.ended} has ended"
        self.partial.mkdir(parents=True, exist_ok=True)
        self._summarise({"status": "failed", "reason": reason})

    def finalize(self) -> None:
        """Put away an ended run, also where a kill came between its summary and this: checkpoints
        go where none is kept, and the folder gets its final name.
        """
        if self.status() not in ("finished", "diverged"):
            return
        if (self.config() or {}).get("train", {}).get("keep") == "none":
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        if not self.ended.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                self.partial.rename(self.ended)

    def config(self) -> Json | None:
        return self._read("config.json")

    def environment(self) -> Json | None:
        return self._read("environment.json")

    def summary(self) -> Json | None:
        return self._read("summary.json")

    def metrics(self) -> list[Json]:
        """Every line in order, but for a last one that is still being written or was cut off.

        Raises ValueError where an earlier line is damaged.
        """
        lines = (self._text("metrics.jsonl") or "").split("\n")[:-1]
        return [parse(line, self.path / "metrics.jsonl", n) for n, line in enumerate(lines, 1)]

    def _whole(self, config: Mapping[str, Any]) -> Json:
        return {**config, "variant": self.variant, "seed": self.seed}

    def _summarise(self, summary: Mapping[str, Any]) -> None:
        run = {"variant": self.variant, "seed": self.seed, "identity": self.identity()}
        write_json(self.partial / "summary.json", {"reason": None, **summary, **run})

    def _keep_metrics(self, wanted: Callable[[Json], bool]) -> None:
        self._write_metrics(metrics for metrics in self.metrics() if wanted(metrics))

    def _write_metrics(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        replace_file(self.partial / "metrics.jsonl", "".join(map(to_line, metrics)).encode())

    def _read(self, name: str) -> Json | None:
        text = self._text(name)
        return None if text is None else parse(text, self.path / name)

    def _text(self, name: str) -> str | None:
        # twice, because the run may end, and its folder be renamed, between the two looks
        for folder in (self.ended, self.partial, self.ended):
            with contextlib.suppress(FileNotFoundError):
                return (folder / name).read_text(encoding="utf-8")
        return None


def tuning_runs(study_dir: Path, variant: str) -> dict[float, RunFolder]:
    """By learning rate, ascending: the folders of the runs that tuned it, ended or not."""
    tuning, rates = study_dir / folder_name(variant) / "tuning", set[float]()
    for folder in tuning.glob(f"lr-*/seed-{TUNING_SEED}*"):
        with contextlib.suppress(ValueError):  # no folder of ours
            rates.add(float(folder.parent.name.removeprefix("lr-")))
    return {
        rate: RunFolder(study_dir, variant, TUNING_SEED, tuning_rate=rate) for rate in sorted(rates)
    }


def folder_name(variant: str) -> str:
    """The variant's name, with `%XX` for what not every file system takes in a name.

    `urllib.parse.unquote` gives the name back. A dot stays between digits only, so that no variant
    is called like a file of the study.

    >>> folder_name("top_k 0.5"), folder_name("hybrid 3:1"), folder_name("../mha")
    ('top_k 0.5', 'hybrid 3%3A1', '%2E%2E%2Fmha')
    """
    if not variant.strip():
        raise ValueError("a variant needs a name")
    unsafe = r'[\x00-\x1f\x7f%/\\:*?"<>|]|(?<!\d)\.|\.(?!\d)|^ | $'
    return re.sub(unsafe, lambda match: f"%{ord(match[0]):02X}", variant)
