"""Time of a step by kind of kernel: how much of it computes, and how much of it waits.

    python benchmarks/kernel_times.py [--only step,sparse,transformer,decoding] [--json F] [--tiny]

Each of these is a step of `speed_table.py`, recorded as a CUDA graph and compiled; `plain` is the
Transformer that `beside_fla_models.py` compiles as a whole. For each:

- the milliseconds of a step by CUDA events, without the profiler, and its bound: the FLOPs of its
  matrix products at the measured matrix rate, or its bytes at half the measured copy rate;
- kernels per step, the share of the step in which none runs, and the milliseconds by kind;
- the kernels that take longest, with calls per step, microseconds per step, and their names.

A kernel's kind follows from its name, which torch's compiler makes of the operations that are fused
in it. `--tiny` profiles operators of tiny steps on a CPU instead, for a test.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from beside_fla_models import plain_step, warm
from beside_fla_models import random_tokens as random_text
from speed_rows import CUDA, DEVICE, Effort, card, reason, release
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from attnlab.benchmarking.point import Conditions, Point, random_tokens
from attnlab.benchmarking.targets import Sizes, setups_of
from attnlab.benchmarking.work import counted_flops
from attnlab.benchmarking.workloads import bytes_of, served, states_at, warm_decoder
from attnlab.device.flops import Ceilings, measure_ceilings
from attnlab.device.measuring import wait_for_device
from attnlab.inference.decoder import tensors
from attnlab.record import Json, write_json
from attnlab.study.targets import named
from attnlab.training.run import RunConfig
from attnlab.training.step import autocast, forward_and_backward

STEPS = 10  # that are profiled
LONGEST = 24  # kernels that are listed
KINDS = (  # the first whose pattern is found in the name of a kernel
    ("optimizer and clipping", r"adam|multi_tensor|foreach|lpnorm|clip"),
    ("attention", r"flash|fmha|sdpa|flex_attention|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|cublas|splitk|gemv|_tem_|bmm|addmm|::mm\b|_mm_"),
    ("softmax and loss", r"softmax|logsumexp|(_|::)exp(_|$)|nll|cross_entropy|amax"),
    ("copies and fills", r"memcpy|memset|copy_kernel|catarray|fillfunctor|aten::(copy_|cat|fill_)"),
    ("sorting and indexing", r"sort|topk|radix|gather|scatter|index|embedding"),
    ("normalisation and elementwise", r"triton_|elementwise|reduce_kernel|norm|aten::"),
)


class Work(NamedTuple):
    """A step that is repeated, and the least seconds it could take."""

    advance: Callable[[], object]
    bound_seconds: float
    bound: str  # in words


def training(variant: str, study: str, effort: Effort, ceilings: Ceilings) -> Work:
    """Return the compiled training step of a variant."""
    config = effort.config(study, variant)
    step, _ = warm(config, DEVICE, compiled=CUDA)
    return Work(step.advance, *_of_matrices(config, ceilings))


def plain(effort: Effort, ceilings: Ceilings) -> Work:
    """Return the step of the plain Transformer, compiled as a whole."""
    config = effort.config("hybrids", "transformer")
    return Work(plain_step("transformer", config), *_of_matrices(config, ceilings))


def decoding(effort: Effort, ceilings: Ceilings, context: int = 1024) -> Work:
    """Return a decoding step of 12 x 768 at batch 1."""
    sizes = Sizes(d_model=32, n_layers=2, n_heads=2, vocab_size=64) if effort.tiny else Sizes()
    ((name, setup),) = setups_of(named(("grouped_query",), ()), sizes).items()
    under = Conditions(device=DEVICE, ceilings=ceilings, compiled=CUDA, seconds=effort.seconds)
    point = Point(name, "decode", 16 if effort.tiny else context, 1)
    model, tokens_B = served(setup, under), random_tokens(setup, (1,), DEVICE)
    states = states_at(model, setup, point)
    moved = bytes_of(model.parameters()) + bytes_of(tensors(states))
    decoder = warm_decoder(model, states, under, tokens_B)
    seconds = moved / (ceilings.copy_bytes_per_second / 2)
    return Work(partial(decoder.step, tokens_B), seconds, "its bytes at half the copy rate")


WORK: dict[str, Callable[[Effort, Ceilings], Work]] = {
    "step": partial(training, "mha", "mechanisms"),
    "sparse": partial(training, "sparse_256", "mechanisms"),
    "transformer": partial(training, "transformer", "hybrids"),
    "plain": plain,
    "deltanet": partial(training, "deltanet", "hybrids"),
    "decoding": decoding,
    "decoding_16k": partial(decoding, context=16_384),
}


def _of_matrices(config: RunConfig, ceilings: Ceilings) -> tuple[float, str]:
    """Return the seconds that the matrix products of a training step take at the full rate."""
    vocab_size, train = config.data.tokenizer.vocab_size, config.train
    model = config.model.build(vocab_size).to(DEVICE).train()
    tokens_BT1 = random_text(vocab_size, DEVICE)[: train.batch_size * (train.seq_len + 1)].long()
    tokens_BT1 = tokens_BT1.view(train.batch_size, -1)
    once = partial(forward_and_backward, model, tokens_BT1, autocast(train, DEVICE))
    flops = counted_flops(once) or 0
    return flops / ceilings.matrix_flops_per_second, "its matrix products at the matrix rate"


def profiled(advance: Callable[[], object], steps: int) -> list[tuple[str, float, float]]:
    """Return name, begin and end in microseconds of every kernel of some steps."""
    wait_for_device(DEVICE)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + CUDA]) as found:
        for _ in range(steps):
            advance()
        wait_for_device(DEVICE)
    kind = DeviceType.CUDA if CUDA else DeviceType.CPU
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in found.events() or ()
        if event.device_type == kind and not (event.cpu_children if not CUDA else ())
    ]


def busy(kernels: list[tuple[str, float, float]]) -> float:
    """Return the microseconds in which at least one kernel runs."""
    total, until = 0.0, float("-inf")
    for _, begin, end in sorted(kernels, key=lambda kernel: kernel[1]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def kind_of(name: str) -> str:
    """Return the kind of a kernel.

    >>> kind_of("triton_red_fused__softmax_3"), kind_of("nvjet_sm90_tst_128x256")
    ('softmax and loss', 'matrix products')
    """
    matching = (kind for kind, pattern in KINDS if re.search(pattern, name.lower()))
    return next(matching, "other")


def analysed(name: str, work: Work, effort: Effort) -> Json:
    """Return where the time of a step goes."""
    ms, steps = effort.ms(work.advance), 2 if effort.tiny else STEPS
    profiled(work.advance, 1)  # the first profile of a process misses some kernels
    kernels = profiled(work.advance, steps)
    if not kernels:
        raise RuntimeError("torch's profiler sees no kernels; CUPTI may lack permission")
    by_kind, by_name = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for of, begin, end in kernels:
        by_kind[kind_of(of)].append(end - begin)
        by_name[of].append(end - begin)
    longest = sorted(by_name, key=lambda of: -sum(by_name[of]))[:LONGEST]
    busy_ms = busy(kernels) / steps / 1000
    return {
        "work": name, "card": card(), "torch": torch.__version__, "ms": ms,
        "bound_ms": 1000 * work.bound_seconds, "bound": work.bound,
        "kernels": len(kernels) / steps, "busy_ms": busy_ms, "idle": max(0.0, 1 - busy_ms / ms),
        "kinds": {
            kind: {"calls": len(by_kind[kind]) / steps, "ms": sum(by_kind[kind]) / steps / 1000}
            for kind in sorted(by_kind, key=lambda kind: -sum(by_kind[kind]))
        },
        "longest": [
            {"name": of, "calls": len(by_name[of]) / steps, "us": sum(by_name[of]) / steps}
            for of in longest
        ],
    }  # fmt: skip


def shown(found: Json) -> Iterator[str]:
    """Yield the lines of a report."""
    yield (
        f"{found['work']}: {found['ms']:.4g} ms/step, bound {found['bound_ms']:.4g} ms "
        f"({found['bound']}); {found['kernels']:.0f} kernels/step, "
        f"busy {found['busy_ms']:.4g} ms, idle {found['idle']:.0%}"
    )
    for kind, of in found["kinds"].items():
        yield f"  {of['ms']:9.4f} ms {of['calls']:7.1f} calls  {kind}"
    for kernel in found["longest"]:
        yield f"  {kernel['us']:9.1f} us {kernel['calls']:7.1f} x  {kernel['name'][:110]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="step,sparse,transformer,plain,decoding")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed steps, about")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    effort, rows = Effort(options.seconds, options.tiny), list[Any]()
    ceilings = measure_ceilings(DEVICE, options.seconds / 4)
    print(f"{card()}, torch {torch.__version__}: {ceilings.matrix_flops_per_second:.4g} FLOP/s, "
          f"copies {ceilings.copy_bytes_per_second:.4g} B/s")  # fmt: skip
    for name in options.only.split(","):
        try:
            rows.append(analysed(name, WORK[name](effort, ceilings), effort))
            print("\n".join(shown(rows[-1])), flush=True)
        except Exception as error:  # the others go on
            print(f"{name}: {reason(error)}", flush=True)
        release()
        if options.json:
            write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
