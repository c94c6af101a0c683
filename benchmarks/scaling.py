"""One run on 1, 2 and 4 GPUs: the same losses, more tokens/s, and a model too large for comfort.

    NCCL_NVLS_ENABLE=0 python benchmarks/scaling.py --gpus 1,2,4 --out scaling.json

First table: the Transformer and the Gated DeltaNet of `hybrids`, 12 layers of 768, on its books
(`--text bytes`: the standard library's text in bytes). `loss` is that of training over the last 10
of 100 steps with one global batch. Two kinds of rows say what rounding alone becomes in 100 steps:
"1 by 24" is one GPU in micro-batches of 24, which changes the order of additions, as more GPUs do;
"1 nudged" is one GPU from initial weights that are larger by a factor of 1 + 2^-23. `from 1e-3` is
the first of ten windows of ten steps whose mean loss differs from one GPU's by more than 0.001.
`tokens/s` is with a global batch that grows with the GPUs, compiled, as a long run is. Second
table: a model of over a billion parameters, with its memory per GPU, and its MFU: 3 forward passes
of matrix products over the peak rate of an H100's datasheet.

`--small` is a rehearsal on two CPU processes. The results so far are in the file of `--out`.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from attnlab.data import Places
from attnlab.data.batches import window_starts
from attnlab.data.stdlib import Stdlib
from attnlab.data.tokenizer import Bytes
from attnlab.device.measuring import PeakMemory, time_each, wait_for_device
from attnlab.device.ranks import Ranks
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.feedforward import SwiGLU
from attnlab.model.language_model import ModelConfig
from attnlab.record import write_json
from attnlab.study.targets import load_study
from attnlab.training.config import TrainConfig
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep

PEAK_FLOPS = 989e12  # of an H100 SXM, bfloat16, dense
VOCAB, SMALL_VOCAB = 50_257, 256
BYTES = Stdlib(tokenizer=Bytes(), max_bytes=4_000_000)
LOSS_STEPS, LAST, WARM, TIMED = 100, 10, 12, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", default="1,2,4")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--variants", default="transformer,deltanet")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--eager", action="store_true", help="time steps without torch.compile")
    parser.add_argument("--parts", default="loss,speed,large")
    parser.add_argument("--precision", default="auto", help="auto, or float32 for the losses")
    parser.add_argument("--text", default="study", choices=("study", "bytes"))
    parser.add_argument("--no-controls", action="store_true", help="no micro-batches, no nudge")
    options = parser.parse_args()
    if Ranks.of_torchrun() is not None:
        measure(options)
        return
    options.out.unlink(missing_ok=True)
    counts = [int(count) for count in options.gpus.split(",")]
    for count in counts:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        started = time.perf_counter()
        subprocess.run([sys.executable, *torchrun, *sys.argv], check=False)
        print(f"{count} processes: {time.perf_counter() - started:.0f} s", flush=True)
    show(json.loads(options.out.read_text()))


def measure(options: argparse.Namespace) -> None:
    """Measure as one of the processes of torchrun; the first one writes the results."""
    rank, count = Ranks.of_torchrun() or (0, 1)
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    ranks = Ranks.join(device)
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    ranks.wait()
    cuda_compiled = cuda and not options.eager
    parts, study = options.parts.split(","), load_study("hybrids")

    def note(**row: object) -> None:
        rows.append(row | {"gpus": count})
        if ranks.writes:
            print(json.dumps(rows[-1]), flush=True)
            write_json(options.out, rows)

    for name in options.variants.split(","):
        config = sized(study.variants[name], options)
        if "loss" in parts:
            note(part="loss", variant=name, **losses(config, ranks))
        if "loss" in parts and count == 1 and not options.no_controls:
            note(part="nudged", variant=name, **losses(config, ranks, factor=1 + 2**-23))
            for parts_of_batch in (2, 4) if options.small else (2, 3, 4):
                size = config.train.batch_size // parts_of_batch
                train = replace(config.train, micro_batch_size=size)
                found = losses(replace(config, train=train), ranks)
                note(part="micro", variant=name, micro_batch_size=size, **found)
        if "speed" in parts:
            grown = replace(config.train, batch_size=config.train.batch_size * count)
            found = speed(config, grown, ranks, compiled=cuda_compiled)
            note(part="speed", variant=name, **found)
    if "large" in parts and count == max(map(int, options.gpus.split(","))):
        for changes in ({}, {"activation_checkpointing": True, "micro_batch_size": 8}):
            config = large(count, small=options.small)
            train = replace(config.train, **changes)
            found = speed(config, train, ranks, compiled=cuda_compiled)
            note(part="large", variant="large", settings=changes, **found)
    ranks.leave()


def sized(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """Return the settings of the first table, or those of a rehearsal."""
    rate = {"learning_rate": options.learning_rate, "warmup_steps": LOSS_STEPS // 2}
    rate["precision"] = options.precision
    train, model = replace(config.train, steps=LOSS_STEPS, **rate), config.model
    if options.small or options.text == "bytes":
        config = replace(config, data=BYTES)
    if options.small:
        train = replace(train, batch_size=4, seq_len=16)
        model = replace(model, d_model=48, n_layers=2, feedforward=SwiGLU(d_ff=64))
    return replace(config, train=train, model=model)


def losses(config: RunConfig, ranks: Ranks, factor: float = 1.0) -> dict:
    """Return the mean training loss of every 10 steps, from initial weights times `factor`."""
    step = built(config, ranks, compiled=False, factor=factor)
    for _ in range(LOSS_STEPS):
        step.advance()
    windows = [step.means(first, first + LAST) for first in range(0, LOSS_STEPS, LAST)]
    by_window = [window["train_loss"] for window in windows]
    return {"losses": by_window, "loss": by_window[-1]}


def large(count: int, *, small: bool) -> RunConfig:
    """Return a Transformer of 1.1 billion parameters, with 16 sequences per GPU and step."""
    width, layers = (2048, 20) if not small else (64, 2)
    heads = width // 128 if not small else 2
    model = ModelConfig(
        mechanisms=(GroupedQuery(n_heads=heads, n_kv_heads=heads),),
        n_layers=layers,
        d_model=width,
        feedforward=SwiGLU(d_ff=11 * width // 4),
    )
    train = TrainConfig(batch_size=16 * count, seq_len=1024 if not small else 32)
    return RunConfig(data=BYTES, model=model, train=train)


def speed(config: RunConfig, train: TrainConfig, ranks: Ranks, *, compiled: bool) -> dict:
    """Return tokens/s of whole steps, memory per GPU and MFU."""
    steps = WARM + TIMED
    config = replace(config, train=replace(train, steps=steps, warmup_steps=1))
    memory = PeakMemory(ranks.device)
    with memory.measuring():
        started = time.perf_counter()
        step = built(config, ranks, compiled=compiled)
        while step.step < WARM:
            step.advance()
        wait_for_device(ranks.device)
        start_seconds = time.perf_counter() - started
        seconds = sorted(time_each(step.advance, ranks.device, TIMED))[TIMED // 2]
    tokens = train.batch_size * train.seq_len
    flops = 3 * config.model.forward_flops(vocabulary(config), train.seq_len // 2) * tokens
    return {
        "parameters": config.model.parts(vocabulary(config)).total,
        "batch_size": train.batch_size,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / ranks.count / PEAK_FLOPS,
        "peak_memory_bytes": ranks.highest(memory.peak_bytes),
        "start_seconds": start_seconds,
        "kernels": step.model.kernels_on(ranks.device, torch.bfloat16),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


def vocabulary(config: RunConfig) -> int:
    """Return the size of the vocabulary: GPT-2's, but in a rehearsal."""
    return VOCAB if config.model.d_model >= 768 else SMALL_VOCAB


def built(config: RunConfig, ranks: Ranks, *, compiled: bool, factor: float = 1.0) -> TrainingStep:
    """Return a training step at step 0."""
    train = config.train
    corpus = config.data.load(Places.from_environment())
    starts = window_starts(
        len(corpus.train), seq_len=train.seq_len, batch_size=train.batch_size,
        steps=train.steps, seed=0,
    )  # fmt: skip
    model = config.model.build(vocabulary(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= factor
    return TrainingStep(
        train,
        model if ranks.count > 1 else model.to(ranks.device),
        torch.from_numpy(corpus.train.astype("int32")).to(ranks.device),
        starts,
        seed=0,
        compiled=compiled,
        ranks=ranks,
    )


def show(rows: list[dict]) -> None:
    """Print both tables."""
    one = {row["variant"]: row for row in rows if row["part"] == "loss" and row["gpus"] == 1}
    slow = {row["variant"]: row for row in rows if row["part"] == "speed" and row["gpus"] == 1}
    print(f"\n{'variant':14}{'GPUs':>10}{'loss':>10}{'vs 1 GPU':>11}{'from 1e-3':>11}"
          f"{'tokens/s':>12}{'x':>7}{'ms/step':>9}{'GiB/GPU':>9}")  # fmt: skip
    for row in rows:
        if row["part"] not in ("loss", "micro", "nudged"):
            continue
        fast = next((r for r in rows if r["part"] == "speed" and same(r, row)), None)
        base = one.get(row["variant"], row)
        label = {"loss": str(row["gpus"]), "nudged": "1 nudged"}.get(row["part"])
        label = label or f"1 by {row['micro_batch_size']}"
        apart = [abs(a - b) > 1e-3 for a, b in zip(row["losses"], base["losses"], strict=True)]
        since = str(LAST * apart.index(True)) if any(apart) else "-"
        difference = row["loss"] - base["loss"]
        line = f"{row['variant']:14}{label:>10}{row['loss']:10.4f}{difference:+11.4f}{since:>11}"
        if fast is not None and row["part"] == "loss":
            base_rate = slow.get(row["variant"], fast)["tokens_per_second"]
            line += (
                f"{fast['tokens_per_second']:12,.0f}{fast['tokens_per_second'] / base_rate:7.2f}"
                f"{1000 * fast['step_seconds']:9.1f}{(fast['peak_memory_bytes'] or 0) / 2**30:9.1f}"
            )
        print(line)
    print(f"\n{'parameters':14}{'GPUs':>6}{'sequences':>10}{'settings':>52}{'tokens/s':>12}"
          f"{'MFU':>7}{'GiB/GPU':>9}")  # fmt: skip
    for row in rows:
        if row["part"] == "large":
            settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
            print(f"{row['parameters']:<14,}{row['gpus']:>6}{row['batch_size']:>10}{settings:>52}"
                  f"{row['tokens_per_second']:12,.0f}{row['mfu']:7.1%}"
                  f"{(row['peak_memory_bytes'] or 0) / 2**30:9.1f}")  # fmt: skip


def same(row: dict, other: dict) -> bool:
    """True if both rows are of one variant on one number of GPUs."""
    return (row["variant"], row["gpus"]) == (other["variant"], other["gpus"])


if __name__ == "__main__":
    main()
