"""Every form of the gated delta rule equals its definition: outputs, memory and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agreement import CUDA, assert_recordable, assert_same, on_cuda, relative_errors
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from attnlab.kernels import flash_linear_attention as flash
from attnlab.kernels.gated_delta_rule import chunked, gated_delta_rule, recurrent, resolve, step

NAMES = ("q", "k", "v", "g", "beta", "memory")
GATES = ["head", "channel"]
CPU = torch.device("cpu")


def inputs(
    tokens,
    heads=2,
    key=8,
    value=8,
    *,
    gate="head",
    decay=0.1,
    batch=2,
    dtype=torch.float64,
    seed=0,
    strongest=2.0,
):
    """Return q, k, v, g, beta and an initial memory; queries and keys have length 1.

    beta is in (0, `strongest`).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = (
        normalize(normal(batch, tokens, heads, key), dim=-1),
        normalize(normal(batch, tokens, heads, key), dim=-1),
        normal(batch, tokens, heads, value),
        -decay * normal(batch, tokens, heads, *([key] if gate == "channel" else [])).exp(),
        strongest * normal(batch, tokens, heads).sigmoid(),
        normal(batch, heads, key, value),
    )
    return [x.to(dtype).requires_grad_() for x in made]


def results(run, arguments):
    """Return outputs, last memory, and the gradient of every argument, by name."""
    y, memory = run(*arguments)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum()
        for x in (y, memory)
    )
    gradients = torch.autograd.grad(loss, arguments)
    named = zip((f"d{name}" for name in NAMES), gradients, strict=False)
    return {"y": y, "memory": memory, **dict(named)}


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 200),
    heads=st.integers(1, 3),
    key=st.sampled_from([1, 5, 8]),
    value=st.sampled_from([1, 3, 8]),
    chunk=st.sampled_from([None, 1, 16, 64]),
    decay=st.sampled_from([0.0, 0.02, 1.0, 50.0]),
    gate=st.sampled_from(GATES),
    seed=st.integers(0, 99),
)
def test_chunks_compute_the_definition_and_its_gradients(
    tokens, heads, key, value, chunk, decay, gate, seed
):
    arguments = inputs(tokens, heads, key, value, gate=gate, decay=decay, batch=1, seed=seed)
    actual = results(lambda *x: chunked(*x, chunk=chunk), arguments)
    assert_same(actual, results(recurrent, arguments), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("run", [recurrent, chunked])
def test_without_a_gate_nothing_decays(run):
    q, k, v, g, beta, memory = inputs(70)
    expected = results(run, [q, k, v, torch.zeros_like(g).requires_grad_(), beta, memory])
    y, last = run(q, k, v, None, beta, memory)
    assert_same({"y": y, "memory": last}, {name: expected[name] for name in ("y", "memory")})


def test_a_channel_that_forgets_leaves_the_others_alone():
    q, k, v, g, beta, memory = inputs(70, gate="channel", decay=0.0)
    forgets = torch.zeros_like(g)
    forgets[:, 69, :, 3] = -1000.0
    _, kept = chunked(q, k, v, g, torch.zeros_like(beta), memory)
    _, last = chunked(q, k, v, forgets, torch.zeros_like(beta), memory)
    assert last[:, :, 3].abs().max() == 0
    torch.testing.assert_close(last[:, :, 4:], kept[:, :, 4:])


def test_without_a_memory_it_begins_with_zeros():
    *arguments, memory = inputs(70)
    expected = results(recurrent, [*arguments, torch.zeros_like(memory).requires_grad_()])
    for run in (recurrent, chunked):
        assert_same(results(run, arguments), {k: v for k, v in expected.items() if k != "dmemory"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("g", [-50.0, -1000.0])
@pytest.mark.parametrize("gate", GATES)
def test_a_strong_decay_gives_finite_gradients_and_the_definition(gate, g, dtype):
    arguments = inputs(130, gate=gate, dtype=dtype)
    arguments[3] = torch.full_like(arguments[3], g).requires_grad_()
    actual = results(chunked, arguments)
    assert all(x.isfinite().all() for x in actual.values())
    assert_same(actual, results(recurrent, arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("keys", ["equal", "nearly equal", "alternating", "few"])
def test_repeated_keys_lose_no_precision_in_float32(keys, beta, chunk):
    exact = inputs(200, key=32, value=32, decay=1e-4)
    first = exact[1][:, :1]
    sign = torch.tensor([1.0, -1.0]).repeat(100)[:, None, None]
    exact[1] = {
        "equal": first.expand_as(exact[1]),
        "nearly equal": normalize(first + 0.05 * exact[1], dim=-1),
        "alternating": first * sign,
        "few": exact[1][:, :3].repeat(1, 67, 1, 1)[:, :200],
    }[keys]
    exact[4] = torch.full_like(exact[4], beta)
    exact = [x.detach().requires_grad_() for x in exact]
    rounded = [x.detach().float().requires_grad_() for x in exact]
    actual, expected = (
        results(lambda *x: chunked(*x, chunk=chunk), rounded),
        results(recurrent, exact),
    )
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm().clamp_min(1e-12)
        assert error < (1e-4 if beta > 1 else 2e-5), f"{name}: {error:.1e}"


@torch.no_grad()
@pytest.mark.parametrize("run", [recurrent, chunked])
def test_with_beta_2_the_sign_of_what_a_key_recalls_counts_its_repetitions(run):
    _, k, v, _, beta, memory = inputs(70, decay=0.0)
    k, v = k[:, :1].expand_as(k), torch.zeros_like(v)
    y, _ = run(k, k, v, None, torch.full_like(beta, 2.0), memory)
    sign_T = torch.tensor([-1.0, 1.0], dtype=y.dtype).repeat(35)
    first = (k[:, 0, :, None] * k.shape[-1] ** -0.5 @ memory)[:, :, 0]
    torch.testing.assert_close(y, sign_T[:, None, None] * first[:, None])


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 31, 32, 33, 64, 99])
@pytest.mark.parametrize("gate", GATES)
def test_a_sequence_in_two_parts_equals_one_pass(gate, cut):
    *sequence, memory = inputs(100, gate=gate)
    y, last = chunked(*sequence, memory)
    first_y, between = chunked(*(x[:, :cut] for x in sequence), memory)
    second_y, end = chunked(*(x[:, cut:] for x in sequence), between)
    torch.testing.assert_close(torch.cat([first_y, second_y], 1), y)
    torch.testing.assert_close(end, last)


@torch.no_grad()
@pytest.mark.parametrize("gate", GATES)
def test_steps_follow_the_definition(gate):
    *sequence, memory = inputs(40, key=5, value=3, gate=gate)
    expected_y, expected_memory = recurrent(*sequence, memory)
    outputs = []
    for token in zip(*(x.unbind(1) for x in sequence), strict=True):
        y, memory = step(*token, memory)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected_y)
    torch.testing.assert_close(memory, expected_memory)


@torch.no_grad()
def test_a_step_reads_writes_and_reads_the_memory():
    *sequence, memory = inputs(1, heads=3, key=5, value=7, batch=1)
    with FlopCounterMode(display=False) as counter:
        step(*(x[:, 0] for x in sequence), memory)
    assert counter.get_total_flops() == 3 * (2 * 3 * 5 * 7)


@torch.no_grad()
def test_with_beta_1_a_key_recalls_the_value_last_written():
    q, k, v, g, beta, _ = inputs(50, decay=0.0)
    k[:, 40] = k[:, 10]
    _, memory = chunked(*(x[:, :41] for x in (q, k, v, g, torch.ones_like(beta))))
    recalled = (k[:, 10, :, None] @ memory)[:, :, 0]
    torch.testing.assert_close(recalled, v[:, 40])


@pytest.mark.parametrize("run", [recurrent, chunked])
@pytest.mark.parametrize("gate", GATES)
def test_autocast_changes_nothing(gate, run):
    arguments = inputs(70, gate=gate, dtype=torch.float32)

    def under_autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return run(*arguments)

    actual = results(under_autocast, arguments)
    for name, value in results(run, arguments).items():
        assert torch.equal(actual[name], value), name


def test_a_second_derivative_is_refused_instead_of_wrong():
    arguments = inputs(70)
    (dv,) = torch.autograd.grad(chunked(*arguments)[0].sum(), arguments[2], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dv.sum().backward()


def test_auto_is_chunked_on_a_cpu_and_naming_fla_there_says_why_not():
    for dtype in (torch.bfloat16, torch.float32):
        assert resolve("auto", CPU, dtype, 32) == "chunked"
    with pytest.raises(ValueError, match=r"'fla' cannot run here.*CUDA.*'chunked' runs anywhere"):
        resolve("fla", CPU, torch.bfloat16, 32)


def test_auto_on_cuda_is_fla_where_it_is_right(monkeypatch):
    monkeypatch.setattr(flash, "unusable_because", lambda device_type, function: None)
    assert resolve("auto", CUDA, torch.bfloat16, 32) == "fla"
    assert resolve("auto", CUDA, torch.float32, 32) == "chunked"
    assert resolve("auto", CUDA, torch.bfloat16, 512) == "chunked"
    assert resolve("recurrent", CUDA, torch.bfloat16, 32) == "recurrent"
    monkeypatch.setattr(flash, "unusable_because", lambda device_type, function: "wrong gradients")
    assert resolve("auto", CUDA, torch.bfloat16, 32) == "chunked"


def test_only_one_gate_per_head_is_refused_for_its_gradients(monkeypatch):
    hopper = {"capability": (9, 0), "fla": "0.6.0", "layers": None, "triton": "3.6.0"}
    monkeypatch.setattr(flash, "facts", lambda: flash.Facts(**hopper, tilelang=False, nvcc=False))
    for gate, kernel in (("none", "fla"), ("head", "chunked"), ("channel", "fla")):
        assert resolve("auto", CUDA, torch.bfloat16, 32, gate) == kernel


FUNCTIONS = {
    "none": "chunk_delta_rule",
    "head": "chunk_gated_delta_rule",
    "channel": "chunk_kda",
}


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [64, 75, 1024])
@pytest.mark.parametrize("gate", FUNCTIONS)
def test_fla_in_bfloat16_is_within_1_percent_and_its_gradients_within_3(gate, tokens):
    if reason := flash.unusable_because("cuda", FUNCTIONS[gate]):
        pytest.skip(reason)
    *arguments, _ = inputs(tokens, heads=4, key=32, value=32, gate=gate, decay=0.05)
    low, exact = on_cuda(arguments, torch.bfloat16)

    def run(kernel):
        if gate == "none":
            return lambda q, k, v, beta: gated_delta_rule(q, k, v, None, beta, kernel)
        return lambda *arguments: gated_delta_rule(*arguments, kernel)

    if gate == "none":
        del low[3], exact[3]
    errors = relative_errors(results(run("fla"), low), results(run("recurrent"), exact))
    for name, error in errors.items():
        assert error < (0.01 if name in ("y", "memory") else 0.03), errors


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 75, 1024])
@pytest.mark.parametrize("gate", GATES)
def test_chunks_on_cuda_compute_the_definition(gate, tokens):
    arguments = inputs(tokens, heads=4, key=32, value=32, gate=gate, decay=0.05)
    low, exact = on_cuda(arguments, torch.float32)
    errors = relative_errors(results(chunked, low), results(recurrent, exact))
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.gpu
@pytest.mark.parametrize("gate", GATES)
def test_chunks_can_be_recorded_in_a_cuda_graph(gate):
    arguments, _ = on_cuda(inputs(200, heads=4, key=32, value=32, gate=gate), torch.float32)
    assert_recordable(chunked, arguments)
