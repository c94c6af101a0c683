"""Study folders written by hand: any losses, without training."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from attnlab.record import RunFolder, StudyRecord


def write_study(
    folder: Path,
    losses: Mapping[str, Sequence[float | str | None]],
    *,
    baseline: str = "mha",
    hypotheses: Sequence[Mapping[str, object]] = (),
    families: Mapping[str, tuple[str, ...]] | None = None,
    **more: Mapping[str, object],
) -> Path:
    """One run for each loss, by seed. `more` is of the summary, by variant.

    A text is why the run diverged or, from "failed: " on, failed; None is still to run.
    """
    StudyRecord(
        name=folder.name,
        question="Which?",
        baseline=baseline,
        variants=tuple(losses),
        seeds=tuple(range(max(len(found) for found in losses.values()))),
        command=f"attnlab run {folder.name}",
        attnlab_version="0.1.0",
        hypotheses=tuple(dict(recorded) for recorded in hypotheses),
        families=families or {},
    ).write(folder)
    for variant, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            if loss is not None:
                write_run(RunFolder(folder, variant, seed), loss, **more.get(variant, {}))
    return folder


def write_run(run: RunFolder, loss: float | str, rate: float = 3e-4, **summary: object) -> None:
    """`summary` may name the "function", where two variants are to be the same, and a "kernel"."""
    mechanism = {"kind": summary.pop("function", run.variant)}
    if "kernel" in summary:
        mechanism["kernel"] = summary.pop("kernel")
    model = {"mechanisms": [mechanism]}
    config = {"identity": "x", "model": model, "train": {"learning_rate": rate, "seq_len": 1024}}
    run.open(config, {"device": "cpu"})
    if isinstance(loss, str):
        if loss.startswith("failed: "):
            run.fail(loss.removeprefix("failed: "))
        else:
            run.finish({"status": "diverged", "reason": loss})
        return
    whole = {"final_loss": loss, "final_perplexity": math.exp(loss), "alarms": []}
    run.finish({"status": "finished", **whole, **summary})


def edit(path: Path, **values: object) -> None:
    """Change fields of a file by hand; remove the checksums, which would show it."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    for holder in (path, path.with_name("summary.json")):
        if holder.exists():
            fields = json.loads(holder.read_text())
            fields.pop("sha256", None)
            holder.write_text(json.dumps(fields))


NOISE = (0.0, 0.004, -0.003, 0.001, -0.002)  # of the seeds, the same for all variants


def steady(loss: float, place: int = 0, seeds: int = 5) -> list[float]:
    """Losses of one variant around `loss`: noise of about 0.001 that differs by `place`."""
    own = [0.001 * math.sin(7 * place + 3 * seed) for seed in range(seeds)]
    mean = sum(own) / seeds
    return [loss + NOISE[seed] + own[seed] - mean for seed in range(seeds)]
