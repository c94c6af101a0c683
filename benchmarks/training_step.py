"""Time of one training step: attnlab's beside a plain eager loop of the same model, in one run.

    python benchmarks/training_step.py [--study mechanisms] [--only mha,mla] [--compile] [--json F]

For every variant of a study, on random tokens, medians as `attnlab bench` takes them:

- `plain`: what a first script does. Autocast (on CUDA), the loss of full float32 logits, AdamW,
  `loss.item()` after every step, eager.
- `attnlab`: the trainer's step as a study runs it; on CUDA one recorded graph.
- `compiled`: the same with the model compiled, as long runs do (with --compile).
- `overhead`: how much longer a step takes in the whole training loop, with its logging and
  bookkeeping, than the bare step: the median over stretches of 50 steps, against the bare step.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from attnlab.data.batches import window_starts
from attnlab.device.measuring import MOST_CALLS, PeakMemory, time_calls
from attnlab.record import write_json
from attnlab.study.load import load_study
from attnlab.training.loop import Clock, train
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep, autocast

LOOP_STEPS = 400  # of the whole training loop
STEPS = LOOP_STEPS + 2 * MOST_CALLS  # all that a step may be asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="mechanisms")
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed steps, about")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    study = load_study(options.study)
    names = options.only.split(",") if options.only else list(study.variants)
    rows = []
    print(f"{'variant':14}{'plain ms':>10}{'attnlab ms':>12}{'compiled ms':>13}{'overhead':>10}"
          f"{'peak MiB':>10}{'warm-up s':>11}")  # fmt: skip
    for name in names:
        row = {"variant": name} | measure(
            study.variants[name], device, options.seconds, options.compile
        )
        rows.append(row)
        compiled = f"{row['compiled_ms']:.2f}" if options.compile else "-"
        print(
            f"{name:14}{row['plain_ms']:10.2f}{row['attnlab_ms']:12.2f}{compiled:>13}"
            f"{row['overhead']:>10.1%}{row['peak_bytes'] / 2**20:10.0f}{row['warm_up_s']:11.1f}",
            flush=True,
        )
    if options.json:
        facts = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
        facts |= {"torch": torch.__version__, "study": options.study, "rows": rows}
        write_json(options.json, facts)


def measure(config: RunConfig, device: torch.device, seconds: float, compiled: bool) -> dict:
    plain_ms = time_plain(config, device, seconds)
    memory, clock = PeakMemory(device), Clock()
    with memory.measuring():
        step, warm_up_s = warm(config, device, compiled=False)
    attnlab_ms = 1000 * time_calls(step.advance, device, seconds).seconds
    loop_config = replace(
        config.train, steps=step.step + LOOP_STEPS, warmup_steps=0, eval_every=10**9,
        checkpoint_every=10**9, log_every=50,
    )  # fmt: skip
    for _ in train(step, loop_config, dict, clock, memory):
        pass
    loop_ms = 1000 * (clock.step_seconds or float("nan"))
    result = {
        "plain_ms": plain_ms,
        "attnlab_ms": attnlab_ms,
        "loop_ms": loop_ms,
        "overhead": loop_ms / attnlab_ms - 1,
        "peak_bytes": memory.peak_bytes or 0,
        "warm_up_s": warm_up_s,
    }
    if compiled:
        del step
        step, result["compile_s"] = warm(config, device, compiled=True)
        result["compiled_ms"] = 1000 * time_calls(step.advance, device, seconds).seconds
    return result


def warm(config: RunConfig, device: torch.device, *, compiled: bool) -> tuple[TrainingStep, float]:
    """A training step that has been recorded, and the seconds that took."""
    train_config = replace(config.train, steps=STEPS, warmup_steps=0)
    vocab_size = config.data.tokenizer.vocab_size
    tokens = random_tokens(vocab_size, device)
    starts = window_starts(
        len(tokens), seq_len=train_config.seq_len, batch_size=train_config.batch_size,
        steps=STEPS, seed=0,
    )  # fmt: skip
    model = config.model.build(vocab_size).to(device).train()
    step = TrainingStep(train_config, model, tokens, starts, seed=0, compiled=compiled)
    started = time.perf_counter()
    while not step.warm:
        step.advance()
    step.means(0, step.step)  # waits
    return step, time.perf_counter() - started


def time_plain(config: RunConfig, device: torch.device, seconds: float) -> float:
    """Milliseconds of the eager loop of a first script, with the same model."""
    vocab_size, t = config.data.tokenizer.vocab_size, config.train
    tokens = random_tokens(vocab_size, device)
    model = config.model.build(vocab_size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)

    def step() -> None:
        start = torch.randint(len(tokens) - t.seq_len - 1, (t.batch_size,))
        batch = torch.stack([tokens[s : s + t.seq_len + 1] for s in start.tolist()]).long()
        optimizer.zero_grad()
        with autocast(t, device):
            loss = cross_entropy(model.logits(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return 1000 * time_calls(step, device, seconds).seconds


def random_tokens(vocab_size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1 << 20,), generator=generator).int().to(device)


if __name__ == "__main__":
    main()
