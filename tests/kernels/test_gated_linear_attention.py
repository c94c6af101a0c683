"""Every form of gated linear attention equals its definition: outputs, memory, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agreement import CUDA, assert_recordable, assert_same, on_cuda, relative_errors
from torch.utils.flop_counter import FlopCounterMode

from attnlab.kernels import flash_linear_attention as flash
from attnlab.kernels.gated_linear_attention import (
    chunked,
    gated_linear_attention,
    recurrent,
    resolve,
    step,
)

NAMES = ("q", "k", "v", "g", "memory")
FUNCTIONS = {"head": "chunk_simple_gla", "channel": "chunk_gla"}
CPU = torch.device("cpu")


def inputs(tokens, gate, key=8, value=8, *, heads=2, decay=0.1, dtype=torch.float64, seed=0):
    """Return q, k, v, g and an initial memory."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = (
        normal(2, tokens, heads, key) * key**-0.5,
        normal(2, tokens, heads, key),
        normal(2, tokens, heads, value),
        -decay * normal(2, tokens, heads, *([key] if gate == "channel" else [])).exp(),
        normal(2, heads, key, value),
    )
    return [x.to(dtype).requires_grad_() for x in made]


def results(run, arguments):
    """Return outputs, last memory, and the gradient of every argument, by name."""
    y, memory = run(*arguments)
    loss = y.square().mean() + (memory * memory.detach().roll(1, -1)).mean()
    gradients = torch.autograd.grad(loss, arguments)
    named = zip((f"d{name}" for name in NAMES), gradients, strict=False)
    return {"y": y, "memory": memory, **dict(named)}


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 200),
    gate=st.sampled_from(list(FUNCTIONS)),
    key=st.sampled_from([1, 5, 8]),
    value=st.sampled_from([1, 3, 8]),
    chunk=st.sampled_from([None, 1, 16, 64]),
    decay=st.sampled_from([0.0, 0.02, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_chunks_compute_the_definition_and_its_gradients(
    tokens, gate, key, value, chunk, decay, seed
):
    arguments = inputs(tokens, gate, key, value, decay=decay, seed=seed)
    actual = results(lambda *x: chunked(*x, chunk=chunk), arguments)
    assert_same(actual, results(recurrent, arguments), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("g", [-50.0, -1000.0])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_a_strong_decay_gives_finite_gradients_and_the_definition(gate, g, dtype):
    arguments = inputs(130, gate, dtype=dtype)
    with torch.no_grad():
        arguments[3][:, ::3] = g  # other tokens hardly decay
    actual = results(chunked, arguments)
    assert all(x.isfinite().all() for x in actual.values())
    rounding = 100 * abs(g) * torch.finfo(dtype).eps  # of the running sum of g in a chunk
    assert_same(actual, results(recurrent, arguments), rtol=rounding, atol=rounding)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 31, 32, 64, 99])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_a_sequence_in_two_parts_equals_one_pass(gate, cut):
    *sequence, memory = inputs(100, gate)
    y, last = chunked(*sequence, memory)
    first_y, between = chunked(*(x[:, :cut] for x in sequence), memory)
    second_y, end = chunked(*(x[:, cut:] for x in sequence), between)
    torch.testing.assert_close(torch.cat([first_y, second_y], 1), y)
    torch.testing.assert_close(end, last)


@torch.no_grad()
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_steps_follow_the_definition_and_take_a_write_and_a_read(gate):
    *sequence, memory = inputs(40, gate, key=5, value=3)
    expected_y, expected_memory = recurrent(*sequence, memory)
    outputs = []
    with FlopCounterMode(display=False) as counter:
        for token in zip(*(x.unbind(1) for x in sequence), strict=True):
            y, memory = step(*token, memory)
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected_y)
    torch.testing.assert_close(memory, expected_memory)
    assert counter.get_total_flops() == 40 * 2 * 2 * (2 * 2 * 5 * 3)


@torch.no_grad()
def test_without_decay_it_is_linear_attention():
    q, k, v, g, memory = inputs(90, "channel", decay=0.0)
    scores = torch.einsum("bthk,bshk->bhts", q, k).tril()
    expected = torch.einsum("bhts,bshv->bthv", scores, v) + torch.einsum(
        "bthk,bhkv->bthv", q, memory
    )
    torch.testing.assert_close(chunked(q, k, v, g, memory)[0], expected)


@pytest.mark.parametrize("run", [recurrent, chunked])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_autocast_changes_nothing(gate, run):
    arguments = inputs(70, gate, dtype=torch.float32)

    def under_autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return run(*arguments)

    actual = results(under_autocast, arguments)
    for name, value in results(run, arguments).items():
        assert torch.equal(actual[name], value), name


def test_auto_is_chunked_on_a_cpu_and_naming_fla_there_says_why_not():
    assert resolve("auto", CPU, torch.bfloat16, 32, "channel") == "chunked"
    with pytest.raises(ValueError, match=r"'fla' cannot run here.*CUDA.*'chunked' runs anywhere"):
        resolve("fla", CPU, torch.bfloat16, 32, "channel")


def test_only_one_gate_per_head_is_refused_for_its_gradients(monkeypatch):
    hopper = {"capability": (9, 0), "fla": "0.6.0", "layers": None, "triton": "3.6.0"}
    monkeypatch.setattr(flash, "facts", lambda: flash.Facts(**hopper, tilelang=False, nvcc=False))
    assert resolve("auto", CUDA, torch.bfloat16, 32, "head") == "chunked"
    assert resolve("auto", CUDA, torch.bfloat16, 32, "channel") == "fla"


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [64, 75, 1024])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_fla_in_bfloat16_is_within_1_percent_and_its_gradients_within_3(gate, tokens):
    if reason := flash.unusable_because("cuda", FUNCTIONS[gate]):
        pytest.skip(reason)
    *arguments, _ = inputs(tokens, gate, heads=4, key=32, value=32, decay=0.05)
    low, exact = on_cuda(arguments, torch.bfloat16)
    errors = relative_errors(
        results(lambda *x: gated_linear_attention(*x, "fla"), low),
        results(lambda *x: gated_linear_attention(*x, "recurrent"), exact),
    )
    for name, error in errors.items():
        assert error < (0.01 if name in ("y", "memory") else 0.03), errors


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 75, 1024])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_chunks_on_cuda_compute_the_definition(gate, tokens):
    arguments = inputs(tokens, gate, heads=4, key=32, value=32, decay=0.05)
    low, exact = on_cuda(arguments, torch.float32)
    errors = relative_errors(results(chunked, low), results(recurrent, exact))
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.gpu
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_chunks_can_be_recorded_in_a_cuda_graph(gate):
    arguments, _ = on_cuda(inputs(200, gate, heads=4, key=32, value=32), torch.float32)
    assert_recordable(chunked, arguments)
