"""The speed of attnlab beside its references: one table, measured in one process on one card.

    python benchmarks/speed_table.py [--only step,decoding] [--tiny] [--out results/speed]

Each line has a value, its reference measured beside it in the same process, their ratio, and the
goal. Times on a GPU are medians by CUDA events after a warm-up, on random tokens (`time_calls`);
ratios are never taken between cards or calls. A line that cannot run here, or fails, says why.

- `step`: study 1's training step, beside an eager loop of the same model; sparse beside full
- `transformer`: tokens/s of 12 x 768, batch 48 x 1,024, beside a plain model, compiled as a whole
- `deltanet`: tokens/s of Gated DeltaNet there, beside flash-linear-attention's own model class
- `decoding`, `prefill`: of 12 x 768, beside the memory bound and the device's matrix rate
- `layers`: one layer, forward and backward, at 16K tokens, beside full attention
- `study`: `attnlab run mechanisms --seeds 1 --no-tune`, cold and warm, beside its training alone
- `quickstart`, `report`, `driver`: on CPUs; a report of 500 runs, the memory after 1,000 runs

`--tiny` takes tiny sizes, for a test on a CPU: the same code, and no measurement.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from beside_fla_models import SIDES, measured
from many_runs import memory_of_the_driver, report_of
from torch import Tensor
from training_step import time_plain, warm

import attnlab
from attnlab.benchmarking.conditions import Conditions
from attnlab.benchmarking.point import Point
from attnlab.benchmarking.session import measure
from attnlab.benchmarking.targets import Sizes, setups_of
from attnlab.device.flops import measure_ceilings
from attnlab.device.timer import time_calls
from attnlab.mechanism import MechanismConfig
from attnlab.record import write_json
from attnlab.study.load import load_study
from attnlab.study.targets import named
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"
CARD = torch.cuda.get_device_name() if CUDA else f"CPU, {len(os.sched_getaffinity(0))} cores"
FAST = 1.5 if "H200" in CARD else 1.75  # ms of study 1's step


class Goal(NamedTuple):
    """The limit that a line is to reach."""

    of: Literal["value", "ratio"]
    limit: float
    at_least: bool = False

    def __str__(self) -> str:
        unit = " x the reference" if self.of == "ratio" else ""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:,g}{unit}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table."""

    work: str
    value: float
    unit: str
    goal: Goal | None = None
    beside: str = ""  # the reference in words, or why there is none
    reference: float | None = None  # in the same unit

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference if self.reference else None

    @property
    def reached(self) -> bool | None:
        """True if the goal is reached; None without one, or without the reference it needs."""
        found = None if self.goal is None else getattr(self, self.goal.of)
        if self.goal is None or found is None:
            return None
        return found >= self.goal.limit if self.goal.at_least else found <= self.goal.limit

    def row(self) -> str:
        reference = "" if self.reference is None else f"{self.reference:,.4g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        reached = "" if self.reached is None else "yes" if self.reached else "no"
        value = f"{self.value:,.4g} {self.unit}"
        cells = (self.work, value, self.beside, reference, ratio, str(self.goal or ""), reached)
        return f"| {' | '.join(cells)} |"


class Effort(NamedTuple):
    """How long and how large."""

    seconds: float  # of the timed calls of a line, about
    tiny: bool

    def config(self, study: str, variant: str) -> RunConfig:
        """Return the settings of a variant; with `tiny`, those of a small model."""
        config = load_study(study).variants[variant]
        if not self.tiny:
            return config
        small = load_study("quickstart").variants["linear" if variant == "deltanet" else "mha"]
        model = replace(small.model, feedforward=replace(config.model.feedforward, d_ff=64))
        return replace(small, model=model, train=replace(small.train, batch_size=2, seq_len=32))

    def ms(self, call: Callable[[], object]) -> float:
        return 1000 * time_calls(call, DEVICE, self.seconds).seconds


def steps(effort: Effort) -> Iterator[Line]:
    """Yield study 1's training step, eager and compiled, and the sparse one beside it."""
    mha, sparse = (effort.config("mechanisms", name) for name in ("mha", "sparse_256"))
    plain = time_plain(mha, DEVICE, effort.seconds)
    for how in ("eager", "compiled"):
        full, chosen = (
            effort.ms(warm(config, DEVICE, compiled=CUDA and how == "compiled")[0].advance)
            for config in (mha, sparse)
        )
        yield Line(
            work=f"training step of study 1's mha, {how}", value=full, unit="ms",
            goal=Goal("value", FAST) if how == "compiled" else None,
            beside="an eager loop of the same model", reference=plain,
        )  # fmt: skip
        yield Line(
            work=f"training step of sparse_256 there, {how}", value=chosen, unit="ms",
            goal=Goal("ratio", 1.5), beside=f"mha, {how}", reference=full,
        )  # fmt: skip


def rates(variant: str, side: str, beside: str, goal: Goal, effort: Effort) -> Iterator[Line]:
    """Yield tokens/s of a variant of `hybrids`, beside another model of its sizes."""
    config = effort.config("hybrids", variant)

    def rate(side: str) -> float:
        begin = partial(SIDES[side], variant, config)
        return measured(begin, config, effort.seconds)["tokens_per_second"]

    work = f"training of hybrids' {variant}, compiled"
    line = Line(work=work, value=rate("compiled"), unit="tokens/s", goal=goal, beside=beside)
    torch.cuda.empty_cache()
    try:
        yield replace(line, reference=rate(side))
    except (ImportError, RuntimeError) as error:
        yield replace(line, beside=f"{beside}: {reason(error)}")


def serving(what: Literal["decode", "prefill"], effort: Effort) -> Iterator[Line]:
    """Yield a line per mechanism, context and batch."""
    sizes = Sizes(d_model=32, n_layers=2, n_heads=2, vocab_size=64) if effort.tiny else Sizes()
    ceilings = measure_ceilings(DEVICE, effort.seconds / 4)
    under = Conditions(device=DEVICE, ceilings=ceilings, compiled=CUDA, seconds=effort.seconds)
    kinds = ("grouped_query", "mla", "gated_delta_net", "sliding_window:window=512")
    for name, setup in setups_of(named(kinds, ()), sizes).items():
        for context in (16,) if effort.tiny else (1024, 16_384):
            for batch in (1, 8) if what == "decode" else (1,):
                found = measure(setup, Point(name, what, context, batch), under)
                work = f"{what} {name}, {context:,} tokens, batch {batch}"
                if found["status"] != "ok":
                    raise RuntimeError(f"{work}: {found['reason']}")
                if what == "prefill":
                    beside, limit = "its FLOPs at the matrix rate", 1 / 0.6
                    bound = found["seconds"] * (found["matrix_fraction"] or 0.0)
                else:
                    beside, limit = "the memory bound", 2.0 if batch == 1 else 1.5
                    bound = found["bound_seconds"]
                yield Line(
                    work=work, value=1000 * found["seconds"], unit="ms",
                    goal=Goal("ratio", round(limit, 2)), beside=beside, reference=1000 * bound,
                )  # fmt: skip


def layers(effort: Effort) -> Iterator[Line]:
    """Yield one layer with a window, and a sparse one, beside full attention."""
    length, width, heads = (64, 32, 2) if effort.tiny else (16_384, 768, 12)
    x_BTD = torch.randn(1, length, width, device=DEVICE, requires_grad=True)
    like_BTD = torch.randn_like(x_BTD)

    def took(kind: str, **own: int) -> float:
        given = {"kind": kind, "n_heads": heads, "n_kv_heads": heads, **own}
        layer = MechanismConfig.from_dict(given).build(width).to(DEVICE).train()
        run: Callable[[Tensor], Tensor] = torch.compile(layer) if CUDA else layer

        def call() -> None:
            with autocast(effort.config("mechanisms", "mha").train, DEVICE):
                y_BTD = run(x_BTD)
            y_BTD.backward(like_BTD.to(y_BTD.dtype))

        return effort.ms(call)

    full = {"beside": "full attention", "reference": took("grouped_query")}
    for goal, kind, own in (
        (Goal("value", 2.0), "sliding_window", {"window": 512}),
        (Goal("ratio", 1.0), "deepseek_sparse", {"top_k": 512}),
    ):
        work = f"a layer of {kind}, {own}, {length:,} tokens"
        yield Line(work=work, value=took(kind, **own), unit="ms", goal=goal, **full)


def commands(study: str, goals: dict[str, float], options: str, effort: Effort) -> Iterator[Line]:
    """Yield the seconds of a whole `attnlab run`, beside those of the training steps in it."""
    short = "--steps 4 --only mha,identity --no-check" if effort.tiny else ""
    command = [sys.executable, "-m", "attnlab", "run", study, *options.split(), *short.split()]
    at_a_time = 1 if CUDA else len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
        environment = os.environ | {name: f"{folder}/{name}" for name in names}
        for state, goal in goals.items():
            out, begin = Path(folder) / state, time.perf_counter()
            whole: Any = [*command, "--out", str(out)], {"env": environment, "text": True}
            done = subprocess.run(whole[0], capture_output=True, check=False, **whole[1])
            seconds = time.perf_counter() - begin
            if done.returncode:
                raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
            summaries = [json.loads(of.read_text()) for of in out.glob("*/seed-*/summary.json")]
            yield Line(
                work=f"attnlab run {study} {options}".strip() + f", {state}", value=seconds,
                unit="s", goal=Goal("value", goal),
                beside=f"training steps alone, {at_a_time} runs at a time",
                reference=sum(of["train_time"] for of in summaries) / at_a_time,
            )  # fmt: skip


def reports(effort: Effort) -> Iterator[Line]:
    """Yield the CPU seconds of a report, and the size of its page."""
    runs, variants = (4, 2) if effort.tiny else (500, 200)
    seconds, size = report_of(runs, variants)
    work = f"report of {runs} runs of {variants} variants"
    yield Line(work=work, value=seconds, unit="CPU s", goal=Goal("value", 10.0))
    yield Line(work=f"page of the {work}", value=size / 1e6, unit="MB", goal=Goal("value", 3.0))


def driver(effort: Effort) -> Iterator[Line]:
    """Yield the memory of the process that starts the runs."""
    few, many = (2, 6) if effort.tiny else (100, 1000)
    before, after = memory_of_the_driver(few, many)
    yield Line(
        work=f"memory of the driver after {many:,} runs", value=after / 2**20, unit="MiB",
        goal=Goal("ratio", 1.1), beside=f"after {few}", reference=before / 2**20,
    )  # fmt: skip


PLAIN, FLA = "a plain model, compiled as a whole", "flash-linear-attention's model, eager"
ON_GPU: dict[str, Callable[[Effort], Iterator[Line]]] = {
    "step": steps,
    "transformer": partial(rates, "transformer", "plain", PLAIN, Goal("ratio", 1.1, True)),
    "deltanet": partial(rates, "deltanet", "fla", FLA, Goal("value", 384e3, True)),
    "decoding": partial(serving, "decode"),
    "prefill": partial(serving, "prefill"),
    "layers": layers,
    "study": partial(commands, "mechanisms", {"cold": 100, "warm": 60}, "--seeds 1 --no-tune"),
}
LINES = {
    **ON_GPU,
    "quickstart": partial(commands, "quickstart", {"checks included": 150}, ""),
    "report": reports,
    "driver": driver,
}


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(LINES))
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed calls, about")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    options = parser.parse_args()
    effort = Effort(options.seconds, options.tiny)
    facts = {"card": CARD, "torch": torch.__version__, "attnlab": attnlab.__version__}
    if effort.tiny:
        torch.set_num_threads(1)
        facts["sizes"] = "tiny: no measurement"
    found, skipped = list[Line](), dict[str, str]()
    text = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    text += ["| work | measured | beside | reference | ratio | goal | reached |"]
    text += ["|--|--:|--|--:|--:|--|--|"]
    print("\n".join(text))
    for name in options.only.split(","):
        try:
            if name in ON_GPU and not (CUDA or effort.tiny):
                raise RuntimeError("it needs a GPU")
            for line in LINES[name](effort):
                found.append(line)
                text.append(line.row())
                print(text[-1], flush=True)
        except Exception as error:  # the other lines go on
            skipped[name] = reason(error)
            text.append(f"| {name} | skipped | {skipped[name]} | | | | |")
            print(text[-1], flush=True)
        torch.cuda.empty_cache()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [asdict(of) | {"ratio": of.ratio, "reached": of.reached} for of in found]
    write_json(options.out / "speed.json", facts | {"lines": lines, "skipped": skipped})
    (options.out / "speed.md").write_text("\n".join([*text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
