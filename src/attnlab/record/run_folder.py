"""A run on disk: a folder that is readable after a kill at any instant, or a line of a packed file.

    results/<study>/study.json                 the question, its variants and seeds
    results/<study>/runs.jsonl.gz              after `attnlab pack`: study.json and all runs
    results/<study>/<variant>/seed-0.partial/  a run that is in progress, interrupted or failed
    results/<study>/<variant>/seed-0/          a run that has ended: finished or diverged
    results/<study>/<variant>/seed-0.lease/    the process that writes the run now; see `lease`
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
import os
import re
import shutil
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from attnlab.config import differences
from attnlab.record.atomic_files import (
    DamagedError,
    WriteError,
    flush,
    leads_outside,
    remove_folder,
    replace_file,
    replace_folder,
    require_within,
)
from attnlab.record.json_text import Json, to_json, to_line
from attnlab.record.lease import Lease, remove_if_ended, take
from attnlab.record.packed_file import TOKENIZER, PackedRun
from attnlab.record.recorded_run import (
    RecordedRun,
    StoredRun,
    folder_name,
    read_run_files,
    reading_once,
    summary_with_checksums,
)
from attnlab.record.temporary_files import remove_temporary

# settings of training without influence on the identity, nor on results but by rounding
NO_INFLUENCE = ("keep", "micro_batch_size", "activation_checkpointing")


class RunFolder(StoredRun):
    """One seed of one variant of a study, to be written. Making the object writes nothing."""

    _lease: Lease | None = None

    @property
    def lease(self) -> Path:
        """The folder of the run's lease."""
        return self.ended.with_name(f"{self.ended.name}.lease")

    @contextlib.contextmanager
    def hold(self, *, observing: bool = False) -> Generator[None]:
        """Hold the run's lease, so that no other process writes the run.

        Raises HeldError if another process holds it, and WriteError. Writing raises LostLeaseError
        from the time on that another process has taken the lease over.
        """
        self._make_folders(self.ended.parent)
        self._lease = take(self.lease, observing=observing)
        try:
            yield
        finally:
            self._lease.release()
            self._lease = None

    def require_lease(self) -> None:
        """Raise LostLeaseError if this process has lost the lease that it held."""
        if self._lease is not None:
            self._lease.require()

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
        runs = [str(run) for where in ("seed-*", "*/seed-*") for run in sorted(path.glob(where))]
        example = f"name the folder of a run, such as {(*runs, 'results/quickstart/mha/seed-0')[0]}"
        raise ValueError(f"no run in {path}: {example}")

    @reading_once()
    def conflict(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return `{dotted path: (stored, requested)}` where the stored run differs from `config`.

        Empty if no run is stored, if it is damaged, or if the identities are equal.
        `{"identity": ...}` alone means that the settings are equal but the data, or a file of the
        user's code, has changed.
        """
        there = None if self.status() == "damaged" else self.config()
        if there is None or there["identity"] == config["identity"]:
            return {}
        found = differences(there, self._named(config))
        settings = {path: pair for path, pair in found.items() if path != "identity"}
        return settings or found

    def inherit(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Start with metrics of another run, or up to a checkpoint. Call it before `open`."""
        self._make_folders(self.partial)
        (self.partial / "summary.json").unlink(missing_ok=True)  # of a failure, with checksums
        self.write_metrics(metrics)

    def recover(self, identity: str) -> str | None:
        """Put a damaged run aside as `seed-0.damaged`, so that it can be run again.

        If its settings and metrics are intact and of the run `identity`, these and the checkpoints
        stay, so that it continues from there.

        Returns:
            What was damaged; None if nothing was.
        """
        damage = self.damage()
        if damage is None:
            return None
        for folder in (self.ended, self.partial):
            if os.path.lexists(folder):
                aside = self.ended.with_name(f"{self.ended.name}.damaged")
                require_within(folder.parent, self.study_dir)
                if os.path.lexists(aside):
                    remove_folder(aside)
                folder.rename(aside)
                self._continue_from(aside, identity)
                break
        return damage

    def open(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin the run, or continue one that was interrupted or failed.

        `config` is the run's settings as JSON values with its "identity". Its metrics are kept,
        except for an incomplete last line.
        """
        assert not self.ended.is_dir(), f"{self.ended} has ended; it is not run again"
        assert not self.conflict(config), f"{self.partial} holds another run"
        self.restore()
        self._make_folders(self.partial, self.partial / "checkpoints")
        (self.partial / "summary.json").unlink(missing_ok=True)  # of a failure, with checksums
        before = self.environment()
        if before is not None:
            earlier = before.pop("earlier", [])
            environment = {**environment, "earlier": [*earlier, before]}
        remove_temporary(self.partial, held=self._lease is not None)
        self._write("config.json", to_json(self._named(config)))
        self._write("environment.json", to_json(environment))
        self.write_metrics(self.metrics())

    def write_tokenizer(self, content: bytes) -> None:
        """Write the tokenizer of the run's text, which its weights need."""
        self._write(TOKENIZER, content)

    def append(self, metrics: Mapping[str, Any]) -> None:
        """Append one line of metrics, such as `{"step": 100, "eval_loss": 5.1}`."""
        assert "step" in metrics, f"metrics without a step: {metrics}"
        path = self.partial / "metrics.jsonl"
        self.require_lease()
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(to_line(metrics))
        except OSError as error:
            raise WriteError.of(path, error) from error

    def flush_metrics(self) -> None:
        """Flush the measurements to disk, before a checkpoint or a summary relies on them."""
        path = self.partial / "metrics.jsonl"
        if os.path.lexists(path):
            flush(path)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record the end of the run, with "status" finished or diverged, and rename its folder."""
        assert summary["status"] in ("finished", "diverged"), summary["status"]
        if self.ended.is_dir():  # another process was faster
            return
        self._write_summary(summary)
        self.finalize()

    def fail(self, reason: str) -> None:
        """Record that an exception ended this attempt. It may be called before `open`."""
        assert not self.ended.is_dir(), f"{self.ended} has ended"
        before = {} if self.status() == "damaged" else self.summary() or {}
        if (before.get("status"), before.get("reason")) == ("failed", reason):
            return
        self.restore()
        self._make_folders(self.partial)
        self._write_summary({"status": "failed", "reason": reason})

    @reading_once()
    def finalize(self) -> None:
        """Rename the folder of an ended run, and remove its checkpoints if none are kept.

        A kill may have come between the summary and this, so it is called again before reading.
        """
        if self.status() not in ("finished", "diverged") or self.packed() is not None:
            return
        remove_if_ended(self.lease)  # of a process that was killed before it released it
        if leads_outside(self.path, self.study_dir):
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
                flush(self.ended.parent)
            self.read_again()

    def _continue_from(self, aside: Path, identity: str) -> None:
        """Begin again with the intact metrics and the checkpoints of a damaged run."""
        try:
            files = read_run_files(aside)
            files.pop("summary.json", None)
            recorded = RecordedRun(PackedRun(files, ended=False), aside, self.seed)
            config, metrics = recorded.config, recorded.metrics
        except DamagedError:
            return
        if config is not None and config["identity"] == identity and metrics:
            self._make_folders(self.partial)
            self._write("metrics.jsonl", files["metrics.jsonl"])
            self._write("config.json", files["config.json"])
            if (aside / "checkpoints").is_dir():
                (aside / "checkpoints").rename(self.partial / "checkpoints")

    def _make_folders(self, *folders: Path) -> None:
        self.require_lease()
        for folder in folders:
            require_within(folder, self.study_dir)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError.of(folder, error) from error

    def _write(self, name: str, content: bytes) -> None:
        self.require_lease()
        replace_file(self.partial / name, content, within=self.study_dir)
        self.read_again()

    def restore(self) -> None:
        """Write a packed run into its folder, before it is changed there."""
        packed = self.packed()
        if packed is not None and self.status() != "damaged":
            assert not packed.ended, f"{self.ended} has ended and is packed"
            replace_folder(self.partial, packed.write_into)

    def _named(self, config: Mapping[str, Any]) -> Json:
        return {**config, "variant": self.variant, "seed": self.seed}

    @reading_once()
    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        identity = None if self.status() == "damaged" else self.identity()
        run = {"variant": self.variant, "seed": self.seed, "identity": identity}
        self.flush_metrics()
        whole = summary_with_checksums({"reason": None, **summary, **run}, self.partial)
        self._write("summary.json", to_json(whole))

    def write_metrics(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines of metrics, and flush them to disk."""
        self._write("metrics.jsonl", "".join(map(to_line, metrics)).encode())


def digest_of(metrics: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of lines of metrics, in hexadecimal."""
    return hashlib.sha256("".join(map(to_line, metrics)).encode()).hexdigest()
