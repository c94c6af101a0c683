"""The workloads of a bench: a training step, the prefill of a prompt, a decoded token.

A training step is that of a run: forward, backward, clipping and AdamW; on CUDA it is one CUDA
graph. Tokens are random, the same in every step.

In serving, weights and states are bfloat16 on CUDA and float32 elsewhere. Prefill is the time to
the first token of a prompt. A decoded token is measured at a full context: each step does the work
of the token at position `context`, in a CUDA graph on CUDA.

A decode step must read every weight and the whole state. Its lower bound is the time in which the
device reads that many bytes, half of the time of a copy, which reads and writes each byte once:

    bound = (bytes of weights + bytes of state) / (copy bandwidth / 2)
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.benchmarking.point import Conditions, Point, bare_model, random_tokens
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.work import counted_flops
from attnlab.device.measuring import MOST_CALLS, PeakMemory, Times, time_calls
from attnlab.inference.decoder import Decoder, full_state, is_count, tensors
from attnlab.model.language_model import LanguageModel
from attnlab.record import Json
from attnlab.training.assemble import step_of_one_batch
from attnlab.training.config import TrainConfig
from attnlab.training.step import EAGER_STEPS, autocast, forward_and_backward


class NoStepError(ValueError):
    """A mechanism of the model has no decode state, which prefill and decoding need."""


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


def measure_prefill(setup: Setup, point: Point, under: Conditions) -> Json:
    """Measure reading a prompt of `context` tokens, up to the logits of the next token."""
    memory = PeakMemory(under.device)
    model = served(setup, under)
    prompt_BT = random_tokens(setup, (point.batch, point.context), under.device)
    prefill = partial(model.prefill, compiled=under.compiled)
    with torch.inference_mode():
        flops = counted_flops(lambda: model.prefill(prompt_BT, point.context))
        held = bytes_of(tensors(model.prefill(prompt_BT, point.context)[1]))
        with memory.measuring():
            times = time_calls(
                lambda: prefill(prompt_BT, point.context), under.device, under.seconds
            )
    return {
        **times._asdict(),
        "tokens_per_second": point.batch * point.context / times.seconds,
        "peak_memory_bytes": memory.peak_bytes,
        "flops_counted": flops,
        "cuda_graph": False,
        **_served(model, setup, point, under, held, times),
    }


def measure_decoding(setup: Setup, point: Point, under: Conditions) -> Json:
    """Measure decoding one token of every sequence, the last of its context."""
    memory = PeakMemory(under.device)
    model = served(setup, under)
    tokens_B = random_tokens(setup, (point.batch,), under.device)
    states = states_at(model, setup, point)
    held = bytes_of(tensors(states))
    with torch.inference_mode():
        flops = counted_flops(lambda: model.step(tokens_B, states))
    with memory.measuring():
        decoder = warm_decoder(model, states, under, tokens_B)
        times = time_calls(lambda: decoder.step(tokens_B), under.device, under.seconds)
    return {
        **times._asdict(),
        "tokens_per_second": point.batch / times.seconds,
        "peak_memory_bytes": memory.peak_bytes,
        "flops_counted": flops,
        "cuda_graph": under.device.type == "cuda" and decoder.graph_problem is None,
        "graph_problem": decoder.graph_problem,
        "decodes_by": sorted({mechanism.decodes_by for mechanism in model.mechanisms()}),
        **_served(model, setup, point, under, held, times),
    }


def served(setup: Setup, under: Conditions) -> LanguageModel:
    """Return the model in eval mode, in the dtype of serving.

    Raises NoStepError if a mechanism has no decode state.
    """
    model = bare_model(setup, under.device).to(under.serving_dtype).eval()
    for mechanism in model.mechanisms():
        if not mechanism.decodes:
            raise NoStepError(
                f"{type(mechanism).__name__} has no `step`: only training is measured"
            )
    return model


def states_at(model: LanguageModel, setup: Setup, point: Point) -> list[Any]:
    """Return states in which the next token is the last of the context.

    A state that counts tokens in Python cannot be filled directly: it comes from a prompt, and its
    count increases with each step.
    """
    states = full_state(model, point.batch, point.context)
    if Decoder(model, states).graph_problem is None:
        return states
    prompt = random_tokens(setup, (point.batch, point.context - 1), model.embed.weight.device)
    if not prompt.shape[1]:
        return states
    with torch.inference_mode():
        return model.prefill(prompt, point.context + EAGER_STEPS + 1 + MOST_CALLS)[1]


def warm_decoder(
    model: LanguageModel, states: list[Any], under: Conditions, tokens_B: torch.Tensor
) -> Decoder:
    """Return a decoder after its warm-up: compiled if asked for, its graph recorded on CUDA."""
    decoder = Decoder(model, states, compiled=under.compiled, hold=True)
    for _ in range(EAGER_STEPS + 1):
        decoder.step(tokens_B)
    return decoder


def bytes_of(parts: Iterable[torch.Tensor]) -> int:
    """Return the bytes of these tensors, except for counts of tokens."""
    return sum(part.nbytes for part in parts if not is_count(part))


def _served(
    model: LanguageModel, setup: Setup, point: Point, under: Conditions, held: int, times: Times
) -> Json:
    """Return the measurements that prefill and decoding share."""
    dtype = under.serving_dtype
    cost = setup.model.cost(setup.vocab_size, point.context, dtype.itemsize)
    weights = bytes_of(model.parameters())
    return {
        "state_bytes": held,
        "state_bytes_stated": point.batch * cost.state_bytes if setup.model.states_cost else None,
        "state_bytes_per_token": held / (point.batch * point.context),
        "weight_bytes": weights,
        "bandwidth_fraction": (weights + held)
        / times.seconds
        / under.ceilings.copy_bytes_per_second,
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": sorted({m.kernel_on(under.device, dtype) for m in model.mechanisms()}),
    }
