"""Study folders to report on: complete, partial, planned, and with names that hurt."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from attnlab.analysis.analysis import (
    Analysis,
    Control,
    Front,
    Judgement,
    Pick,
    RateCurve,
    analyse,
)
from attnlab.analysis.statistics.paired import paired_difference
from attnlab.analysis.verdict import Comparison
from attnlab.record import RunFolder, StudyRecord

LOSSES = {  # of seed 0; three far apart, two equal, one far from all
    "mha": 5.10,
    "gqa_1": 5.13,
    "mqa": 5.13,
    "hybrid 3:1": 5.05,
    "cost|$^$": 5.11,
    "identity": 6.21,
}
NASTY = '<img src=x onerror="alert(1)">&\'</title></script>'
NOISE = (0.0, 0.004, -0.003, 0.002, -0.001)
COMMAND = "attnlab run mechanisms --seeds 3"


def plan(study_dir: Path, seeds=(0, 1, 2), baseline="mha", variants=tuple(LOSSES)):
    StudyRecord(
        name="mechanisms",
        question="Which attention mechanism?",
        baseline=baseline,
        variants=variants,
        seeds=seeds,
        command=COMMAND,
        attnlab_version="0.1.0",
    ).write(study_dir)


def begin(study_dir: Path, variant: str, seed: int) -> RunFolder:
    run = RunFolder(study_dir, variant, seed)
    model = {"d_model": 128, "mechanisms": [{"kind": "toy", "loss": LOSSES.get(variant, 5.2)}]}
    run.open(
        {"identity": variant, "model": model, "train": {"steps": 1000}},
        {"device": "NVIDIA H200", "packages": {"torch": "2.13.0"}, "started": f"12:0{seed}"},
    )
    return run


def finish(study_dir: Path, variant: str, seed: int, **more):
    run = begin(study_dir, variant, seed)
    # controls have the same losses to the last bit, as the same function must
    loss = LOSSES.get(variant, 5.2) + NOISE[seed] * (1 + len(variant.replace("mqa", "gqa_1")) % 3)
    for step in range(100, 1001, 100):
        at_step = loss + 4 * math.exp(-step / 200)
        run.append({"step": step, "train_loss": at_step - 0.1, "train_seconds": step / 500})
        run.append({"step": step, "eval_loss": at_step, "eval_accuracy": 0.2})
    first = [0, 1, 2, 4, 8, 16]
    run.finish(
        {
            "status": "finished",
            "final_loss": loss,
            "final_perplexity": math.exp(loss),
            "final_accuracy": 0.25,
            "final_bits_per_byte": None,
            "final_loss_by_position": {"first": first, "loss": [loss + 1 / (1 + i) for i in first]},
            "final_recall_loss": 0.6 * loss,
            "final_other_loss": 1.1 * loss,
            "steps": 1000,
            "tokens": 4_096_000,
            "total_time": 20.0 + seed,
            "train_time": 2.0,
            "step_time": 0.00175,
            "tokens_per_second": 2.3e6,
            "peak_memory_bytes": 3 * 2**30,
            "attention_type": "toy",
            "parameters": {"attention": 262_144, "total": 4_883_584},
            "flops_per_token": 12_000_000,
            "state_bytes": 2**20,
            **more,
        }
    )


def complete(study_dir: Path, seeds=(0, 1, 2)):
    plan(study_dir, seeds)
    for variant in LOSSES:
        for seed in seeds:
            finish(study_dir, variant, seed)


def partial(study_dir: Path):
    """Some variants finished, one with a diverged seed, one failed, one under way."""
    plan(study_dir)
    finish(study_dir, "mha", 0)
    finish(study_dir, "mha", 1)
    finish(study_dir, "identity", 0)
    finish(study_dir, "identity", 1)
    begin(study_dir, "identity", 2).finish({"status": "diverged", "reason": "loss is nan"})
    begin(study_dir, "gqa_1", 0).fail("CUDA out of memory")
    begin(study_dir, "mqa", 0).append({"step": 100, "eval_loss": math.nan})


def nasty(study_dir: Path):
    """Names and reasons that would be markup."""
    names = ("mha", NASTY, "x" * 80)
    plan(study_dir, baseline="mha", variants=names)
    for variant in names:
        for seed in (0, 1):
            finish(study_dir, variant, seed, alarms=[NASTY])
        begin(study_dir, variant, 2).fail(NASTY)


def in_full(study_dir: Path, metric: str = "final_loss") -> Analysis:
    """An analysis that holds everything a report can show, by hand: the words are the test's."""
    found = analyse(study_dir)
    by_seed = {v.name: v.by_seed(metric) for v in found.table.variants if v.finished}
    means = {name: sum(losses.values()) / len(losses) for name, losses in by_seed.items()}
    order = tuple(sorted(means, key=lambda name: means[name]))
    half, pairs = 0.015, {}
    for one, other in permutations(order, 2):
        d = paired_difference(by_seed[one], by_seed[other])
        assert d is not None
        pairs[one, other] = Comparison(
            mean=d.mean,
            half_width=half if d.mean else 0.0,
            alone=half / 2 if d.mean else 0.0,
            p=0.001 if abs(d.mean) > half else 0.8,
            margin=0.01,
        )
    letters = {
        name: (chr(97 + sum(1 for n in order[:i] if means[n] + half < means[name])),)
        for i, name in enumerate(order)
    }
    tuned = (1e-4, 3e-4, 1e-3)
    cost = {name: (float(i), means[name]) for i, name in enumerate(order)}
    return replace(
        found,
        metric=metric,
        order=order,
        means=means,
        left_out={},
        seeds=(0, 1, 2),
        runs=dict.fromkeys(order, 3),
        method="unpaired",
        why="The spreads are alike.",
        letters=letters,
        pairs=pairs,
        to_baseline={one: pair for (one, other), pair in pairs.items() if other == found.baseline},
        residual_sd=0.004,
        detectable=0.021,
        controls=(
            Control(
                names=("gqa_1", "mqa"),
                same_recipe=True,
                largest_difference=0.0,
                ties=True,
                note="gqa_1 and mqa are one function and tie.",
            ),
        ),
        rates={
            name: RateCurve(
                rates=tuned,
                losses=(means[name] + 0.1, means[name], None),
                chosen=3e-4,
                interior=True,
                curvature=0.02,
                within_factor_2=0.03,
            )
            for name in order
        },
        fronts=tuple(
            Front(key=key, label=label, unit=unit, points=cost, front=order[:1])
            for key, label, unit in (
                ("parameters", "parameters", ""),
                ("step_time", "time per step", "seconds"),
                ("state_bytes", "decode state", "bytes"),
            )
        ),
        picks=(
            Pick(
                use_cases=("memory first",),
                variant=None,
                reason="They tie.",
                margin="0.001",
                would_change="More seeds.",
            ),
        ),
        judgements=(
            Judgement(
                statement="mha is better than identity.",
                wording="`mha` beats `identity`.",
                source="Nobody 2020",
                measure="loss, nats/token",
                published={"mha": 4.5, "identity": 5.5, "gone": 6.5},
                ruling="supported",
                found=("by 1.1 nats, too",),
            ),
        ),
        headline=("The hybrid is best.", "The floor is far."),
    )


def write_study(
    folder: Path,
    losses: Mapping[str, Sequence[float | str | None]],
    *,
    baseline: str = "mha",
    hypotheses: Sequence[Mapping[str, object]] = (),
    families: Mapping[str, tuple[str, ...]] | None = None,
    by_design: Mapping[str, tuple[tuple[str, ...], ...]] | None = None,
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
        by_design=by_design or {},
    ).write(folder)
    for variant, by_seed in losses.items():
        for seed, loss in enumerate(by_seed):
            if loss is not None:
                write_run(RunFolder(folder, variant, seed), loss, **more.get(variant, {}))
    return folder


def write_run(run: RunFolder, loss: float | str, rate: float = 3e-4, **summary: object) -> None:
    """`summary` may name the "function", where two variants are to be the same, and a "kernel".

    It may also hold settings of "train", and the settings of "data".
    """
    mechanism = {"kind": summary.pop("function", run.variant)}
    if "kernel" in summary:
        mechanism["kernel"] = summary.pop("kernel")
    model = {"mechanisms": [mechanism]}
    train = {"learning_rate": rate, "seq_len": 1024, **summary.pop("train", {})}
    config = {"identity": "x", "model": model, "train": train}
    if "data" in summary:
        config["data"] = summary.pop("data")
    run.open(config, {"device": "cpu", "data": {"fingerprint": str(config.get("data"))}})
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


SEED_NOISE = (0.0, 0.004, -0.003, 0.001, -0.002)  # of the seeds, the same for all variants


def steady(loss: float, place: int = 0, seeds: int = 5) -> list[float]:
    """Losses of one variant around `loss`: noise of about 0.001 that differs by `place`."""
    own = [0.001 * math.sin(7 * place + 3 * seed) for seed in range(seeds)]
    mean = sum(own) / seeds
    return [loss + SEED_NOISE[seed] + own[seed] - mean for seed in range(seeds)]
