"""A training step, as in a run: forward, backward, clipping and AdamW.

On CUDA it is one CUDA graph. Tokens are random, the same in every step.
"""

from dataclasses import replace

import torch
from torch import Tensor

from attnlab.benchmarking.conditions import Conditions, bare_model, random_tokens
from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.work import counted_flops
from attnlab.device.memory import PeakMemory
from attnlab.device.timer import MOST_CALLS, time_calls
from attnlab.record import Json
from attnlab.training.assemble import step_of_one_batch
from attnlab.training.config import TrainConfig
from attnlab.training.step import EAGER_STEPS, autocast, forward_and_backward


def measure_training(setup: Setup, point: Point, under: Conditions) -> Json:
    """Measure one step at this context and batch."""
    device = under.device
    config = replace(
        setup.train,
        seq_len=point.context,
        batch_size=point.batch,
        steps=EAGER_STEPS + 1 + MOST_CALLS,
        warmup_steps=0,
    )
    tokens_BT1 = random_tokens(setup, (point.batch, point.context + 1), device)
    flops = counted_flops(lambda: _forward_and_backward(setup, config, tokens_BT1))
    memory = PeakMemory(device)
    model = bare_model(setup, device).train()
    with memory.measuring():
        step = step_of_one_batch(config, model, tokens_BT1, compiled=under.compiled)
        while not step.warm:
            step.advance()
        times = time_calls(step.advance, device, under.seconds)
    dtype = config.precision_on(device.type)
    kernels = {m.kernel_on(device, getattr(torch, dtype)) for m in model.mechanisms()}
    return {
        **times._asdict(),
        "tokens_per_second": point.batch * point.context / times.seconds,
        "peak_memory_bytes": memory.peak_bytes,
        "flops_counted": flops,
        "dtype": dtype,
        "kernels": sorted(kernels),
        "cuda_graph": device.type == "cuda" and config.cuda_graph == "auto",
    }


def _forward_and_backward(setup: Setup, config: TrainConfig, tokens_BT1: Tensor) -> None:
    """Run one step without a graph, on a model of its own: a later graph must not refer to it."""
    model = bare_model(setup, tokens_BT1.device).train()
    forward_and_backward(model, tokens_BT1, autocast(config, tokens_BT1.device))
