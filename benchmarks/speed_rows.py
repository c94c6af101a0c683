"""The rows of `speed_table.py`: what is measured, beside which reference, and the goal.

A reference that is a bound is named so. What only a GPU can decide is measured in its other forms,
too, beside the form that attnlab uses.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from beside_fla_models import LOOP_STEPS, SIDES, measured, time_plain, warm
from many_runs import memory_of_the_driver, report_of

from attnlab.benchmarking.point import Conditions, Point
from attnlab.benchmarking.session import measure
from attnlab.benchmarking.targets import Sizes, setups_of
from attnlab.device.flops import measure_ceilings
from attnlab.device.measuring import PeakMemory, time_calls
from attnlab.kernels import compiled
from attnlab.mechanism import MechanismConfig
from attnlab.study.targets import load_study, named
from attnlab.training.loop import Clock, train
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"


def card() -> str:
    return torch.cuda.get_device_name() if CUDA else f"CPU, {len(os.sched_getaffinity(0))} cores"


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
    details: dict[str, Any] | None = None  # for speed.jsonl

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

    def step_ms(self, config: RunConfig, *, compiled: bool = True) -> float:
        """Return milliseconds of a training step."""
        step, _ = warm(config, DEVICE, compiled=CUDA and compiled)
        return self.ms(step.advance)


def step(effort: Effort) -> Iterator[Line]:
    """Yield study 1's training step, eager and compiled, beside a plain loop."""
    mha = effort.config("mechanisms", "mha")
    plain = time_plain(mha, DEVICE, effort.seconds)
    for how in ("eager", "compiled"):
        yield Line(
            work=f"training step of study 1's mha, {how}",
            value=effort.step_ms(mha, compiled=how == "compiled"), unit="ms",
            goal=Goal("value", 1.5 if "H200" in card() else 1.75) if how == "compiled" else None,
            beside="an eager loop of the same model", reference=plain,
        )  # fmt: skip


def variants(effort: Effort) -> Iterator[Line]:
    """Yield the training step of every variant of study 1, eager and compiled.

    The details have its peak memory, the seconds of the first steps, and by how much a step takes
    longer in the whole training loop, with logging and bookkeeping: the median over stretches of 50
    steps.
    """
    for name in list(load_study("mechanisms").variants)[: 1 if effort.tiny else None]:
        config = effort.config("mechanisms", name)
        plain = time_plain(config, DEVICE, effort.seconds)
        memory = PeakMemory(DEVICE)
        with memory.measuring():
            step, first = warm(config, DEVICE, compiled=False)
        ms, clock = effort.ms(step.advance), Clock()
        steps = 50 if effort.tiny else LOOP_STEPS
        loop = replace(
            config.train, steps=step.step + steps, warmup_steps=0, eval_every=10**9,
            checkpoint_every=10**9, log_every=50,
        )  # fmt: skip
        for _ in train(step, loop, dict, clock, memory):
            pass
        overhead = 1000 * (clock.step_seconds or float("nan")) / ms - 1
        yield Line(
            work=f"training step of study 1's {name}, eager", value=ms, unit="ms",
            beside="an eager loop of the same model", reference=plain,
            details={"peak_bytes": memory.peak_bytes, "first_s": first, "overhead": overhead},
        )  # fmt: skip
        del step
        release()
        yield Line(
            work=f"training step of study 1's {name}, compiled", value=effort.step_ms(config),
            unit="ms", beside="the same, eager", reference=ms,
        )  # fmt: skip
        release()


def sparse(effort: Effort) -> Iterator[Line]:
    """Yield the sparse step beside that of full attention."""
    mha, chosen = (effort.config("mechanisms", name) for name in ("mha", "sparse_256"))
    for how in ("eager", "compiled"):
        full = effort.step_ms(mha, compiled=how == "compiled")
        yield Line(
            work=f"training step of sparse_256 there, {how}",
            value=effort.step_ms(chosen, compiled=how == "compiled"), unit="ms",
            goal=Goal("ratio", 1.5) if how == "compiled" else None,
            beside=f"mha, {how}", reference=full,
        )  # fmt: skip


def compilation(effort: Effort) -> Iterator[Line]:
    """Yield what compiling costs in a process, and from how many steps on it pays."""
    for variant in ("mha", "sparse_256"):
        with tempfile.TemporaryDirectory() as folder:
            found = {
                state: _in_a_process(variant, effort, Path(folder) / "compiled", compiled)
                for state, compiled in (("eager", False), ("cold", True), ("warm", True))
            }
        saved = max(found["eager"]["ms"] - found["warm"]["ms"], 1e-9) / 1000
        for state in ("cold", "warm"):
            extra = found[state]["warm_up_s"] - found["eager"]["warm_up_s"]
            yield Line(
                work=f"first steps of study 1's {variant} in a new process, compiled, {state}",
                value=found[state]["warm_up_s"], unit="s", beside="the same, not compiled",
                reference=found["eager"]["warm_up_s"],
                details={"pays_from_steps": extra / saved, **found},
            )  # fmt: skip


def _in_a_process(variant: str, effort: Effort, kept: Path, compiled: bool) -> dict[str, float]:
    """Return the seconds of the first steps, and the milliseconds of one, in a new process."""
    code = (
        "import json, sys, time; begin = time.perf_counter(); import speed_rows as rows; "
        "from attnlab.kernels.compiled import keep_compiled; from pathlib import Path; "
        "keep_compiled(Path(sys.argv[1])); variant, seconds, tiny, compiled = sys.argv[2:]; "
        "effort = rows.Effort(float(seconds), tiny == 'True'); "
        "config = effort.config('mechanisms', variant); loaded = time.perf_counter() - begin; "
        "on = compiled == 'True' and rows.CUDA; "
        "step, took = rows.warm(config, rows.DEVICE, compiled=on); "
        "print(json.dumps({'load_s': loaded, 'warm_up_s': took, 'ms': effort.ms(step.advance)}))"
    )
    given = [str(kept), variant, str(effort.seconds), str(effort.tiny), str(compiled)]
    environment = without_compiled()
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return json.loads(_output([sys.executable, "-c", code, *given], environment).splitlines()[-1])


def without_compiled() -> dict[str, str]:
    """Return the environment, in which nothing says where compiled code is kept."""
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in names}


def _output(command: Sequence[str], environment: dict[str, str]) -> str:
    """Return what a command prints. Raises RuntimeError with its last line if it fails."""
    done = subprocess.run(command, capture_output=True, check=False, env=environment, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it failed"]
        raise RuntimeError(said[-1])
    return done.stdout


def transformer(effort: Effort) -> Iterator[Line]:
    """Yield tokens/s of the Transformer of `hybrids`."""
    beside = "a plain model, compiled as a whole"
    yield _rate("transformer", "plain", beside, Goal("ratio", 1.1, True), effort)


def deltanet(effort: Effort) -> Iterator[Line]:
    """Yield tokens/s of Gated DeltaNet."""
    beside = "flash-linear-attention's model, eager"
    yield _rate("deltanet", "fla", beside, Goal("value", 384e3, True), effort)


def _rate(variant: str, side: str, beside: str, goal: Goal, effort: Effort) -> Line:
    line = Line(
        work=f"training of hybrids' {variant}, compiled", unit="tokens/s", goal=goal,
        value=_tokens_per_second(variant, "compiled", effort), beside=beside,
    )  # fmt: skip
    release()
    try:
        return replace(line, reference=_tokens_per_second(variant, side, effort))
    except (ImportError, RuntimeError) as error:
        return replace(line, beside=f"{beside}: {reason(error)}")


def _tokens_per_second(variant: str, side: str, effort: Effort) -> float:
    release()
    config = effort.config("hybrids", variant)
    begin = partial(SIDES[side], variant, config)
    return measured(begin, config, effort.seconds)["tokens_per_second"]


OTHERS = ("mla", "gated_delta_net", "sliding_window:window=512")


def serving(
    what: Literal["decode", "prefill"],
    kinds: Sequence[str],
    contexts: Sequence[int],
    batch: int,
    effort: Effort,
) -> Iterator[Line]:
    """Yield a line per mechanism and context, and the other forms of the first."""
    sizes = Sizes(d_model=32, n_layers=2, n_heads=2, vocab_size=64) if effort.tiny else Sizes()
    contexts = (16,) if effort.tiny else contexts
    ceilings = measure_ceilings(DEVICE, effort.seconds / 4)
    under = Conditions(device=DEVICE, ceilings=ceilings, compiled=CUDA, seconds=effort.seconds)
    for name, setup in setups_of(named(kinds, ()), sizes).items():
        for context in contexts:
            work = f"{what} {name}, {context:,} tokens, batch {batch}"
            found = measure(setup, point := Point(name, what, context, batch), under)
            yield served(work, found, batch)
            if (what, name, context) == ("decode", "grouped_query", contexts[0]):
                for form, options in FORMS.items():
                    with tuned(options):
                        found = measure(setup, point, under)
                    yield replace(served(f"{work}, {form}", found, batch), goal=None)


FORMS = {  # of a decoding step, beside the one that attnlab uses, by options of the compiler
    "compiled as any other function": {},
    "kernels one after the other": {"coordinate_descent_tuning": True},
    "independent kernels combined": compiled.TUNED | {"combo_kernels": True},
}


@contextmanager
def tuned(options: dict[str, Any]) -> Generator[None]:
    """Compile a decoding step inside with other options."""
    with mock.patch.object(compiled, "TUNED", options):
        compiled.compile_once.cache_clear()  # it keeps the functions with their options
        yield
    compiled.compile_once.cache_clear()


def served(work: str, found: dict[str, Any], batch: int) -> Line:
    if found["status"] != "ok":
        raise RuntimeError(f"{work}: {found['reason']}")
    if found["what"] == "prefill":
        beside, limit = "bound: its FLOPs at the matrix rate", 1 / 0.6
        bound = found["seconds"] * (found["matrix_fraction"] or 0.0)
    else:
        beside, limit = "bound: its bytes at half the copy rate", 2.0 if batch == 1 else 1.5
        bound = found["bound_seconds"]
    return Line(
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
        run: Any = layer.forward_with_loss
        run = torch.compile(run) if CUDA else run
        train = effort.config("mechanisms", "mha").train

        def call() -> None:
            with autocast(train, DEVICE):
                y_BTD, loss = run(x_BTD)
            of_y = like_BTD.to(y_BTD.dtype)
            if loss is None:
                y_BTD.backward(of_y)
            else:
                torch.autograd.backward([y_BTD, loss], [of_y, torch.ones_like(loss)])

        return effort.ms(call)

    full = {"beside": "full attention", "reference": took("grouped_query")}
    for goal, kind, own in (
        (Goal("value", 2.0), "sliding_window", {"window": 512}),
        (Goal("ratio", 1.0), "deepseek_sparse", {"top_k": 512}),
        (Goal("ratio", 1.0), "deepseek_sparse", {"top_k": 512, "n_kv_heads": 1}),
    ):
        work = f"a layer of {kind}, {own}, {length:,} tokens, forward and backward"
        yield Line(work=work, value=took(kind, **own), unit="ms", goal=goal, **full)


def commands(study: str, goals: dict[str, float], options: str, effort: Effort) -> Iterator[Line]:
    """Yield the seconds of a whole `attnlab run`, beside those of the training steps in it.

    The details have the seconds of each run by purpose, and those from the start to the first run.
    """
    study = "quickstart" if effort.tiny else study  # it needs no data
    short = "--steps 4 --only mha,identity --no-check" if effort.tiny else ""
    command = [sys.executable, "-m", "attnlab", "run", study, *options.split(), *short.split()]
    at_a_time = 1 if CUDA else len(os.sched_getaffinity(0))
    names = ("total_time", "compile_time", "train_time", "eval_time", "step_time")
    with tempfile.TemporaryDirectory() as folder:
        environment = without_compiled() | {"ATTNLAB_CACHE": f"{folder}/cache"}
        for state, goal in goals.items():
            out, begin = Path(folder) / state, time.time()
            _output([*command, "--out", str(out)], environment)
            seconds = time.time() - begin
            summaries = {
                "/".join(of.parts[-3:-1]): json.loads(of.read_text())
                for of in sorted(out.glob("*/seed-*/summary.json"))
            }
            runs = {
                run: {name: found.get(name) for name in names} for run, found in summaries.items()
            }
            first = min((of.stat().st_mtime for of in out.glob("*/seed-*/config.json")), default=0)
            yield Line(
                work=f"attnlab run {study} {options}".strip() + f", {state}", value=seconds,
                unit="s", goal=Goal("value", goal),
                beside=f"training steps alone, {at_a_time} runs at a time",
                reference=sum(of["train_time"] for of in runs.values()) / at_a_time,
                details={"first_run_begins_s": first - begin, "runs": runs},
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


class Row(NamedTuple):
    """Some lines, and the seconds after which they are given up."""

    lines: Callable[[Effort], Iterator[Line]]
    limit: float
    needs_gpu: bool = True


CONTEXTS = (1024, 16_384)
OF_STUDY = {"cold": 100.0, "warm": 60.0}
ROWS = {
    "step": Row(step, 90),
    "sparse": Row(sparse, 200),
    "variants": Row(variants, 600),
    "compile": Row(compilation, 240),
    "transformer": Row(transformer, 200),
    "deltanet": Row(deltanet, 150),
    "decoding": Row(partial(serving, "decode", ("grouped_query",), CONTEXTS, 1), 180),
    "decoding_others": Row(partial(serving, "decode", OTHERS, CONTEXTS, 1), 300),
    "batch_8": Row(partial(serving, "decode", ("grouped_query", *OTHERS), CONTEXTS[:1], 8), 300),
    "prefill": Row(partial(serving, "prefill", ("grouped_query", *OTHERS), CONTEXTS, 1), 400),
    "layers": Row(layers, 240),
    "study": Row(partial(commands, "mechanisms", OF_STUDY, "--seeds 1 --no-tune"), 400),
    "study_compiled": Row(
        partial(commands, "mechanisms", OF_STUDY, "--seeds 1 --no-tune train.compile=on"), 500
    ),
    "quickstart": Row(
        partial(commands, "quickstart", {"checks included": 150.0}, ""), 900, needs_gpu=False
    ),
    "report": Row(reports, 300, needs_gpu=False),
    "driver": Row(driver, 300, needs_gpu=False),
}


def release() -> None:
    """Free the memory of the last model."""
    gc.collect()  # a model and its optimizer refer to each other
    if CUDA:
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    said = " ".join(str(error).split())  # one line
    return f"{type(error).__name__}: {said[:300]}"
