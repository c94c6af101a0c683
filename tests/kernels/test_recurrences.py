"""Every form of the gated delta rule and of gated linear attention equals its definition.

Outputs, memory and gradients are compared, for decays per head and per channel.
"""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agreement import CUDA, assert_recordable, assert_same, on_cuda, relative_errors
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from attnlab.kernels import flash_linear_attention as flash
from attnlab.kernels import gated_delta_rule as rule
from attnlab.kernels import gated_linear_attention as linear

CPU = torch.device("cpu")


class Case(NamedTuple):
    """A recurrence, and what decays in it."""

    module: object
    gate: str

    @property
    def is_rule(self):
        return self.module is rule


CASES = {
    "rule, head": Case(rule, "head"),
    "rule, channel": Case(rule, "channel"),
    "linear, head": Case(linear, "head"),
    "linear, channel": Case(linear, "channel"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def inputs(
    tokens,
    case=CASES["rule, head"],
    heads=2,
    key=8,
    value=8,
    *,
    decay=0.1,
    batch=2,
    dtype=torch.float64,
    seed=0,
    strongest=2.0,
):
    """Return q, k, v, g, of the rule also beta in (0, `strongest`), and an initial memory.

    Queries and keys of the rule have length 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (normal(batch, tokens, heads, key) for _ in range(2))
    if case.is_rule:
        q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    v = normal(batch, tokens, heads, value)
    g = -decay * normal(batch, tokens, heads, *([key] if case.gate == "channel" else [])).exp()
    strengths = [strongest * normal(batch, tokens, heads).sigmoid()] if case.is_rule else []
    made = q if case.is_rule else q * key**-0.5, k, v, g, *strengths
    return [x.to(dtype).requires_grad_() for x in (*made, normal(batch, heads, key, value))]


def results(run, arguments):
    """Return outputs, last memory, and the gradient of every argument, by name."""
    y, memory = run(*arguments)
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum()
        for x in (y, memory)
    )
    gradients = torch.autograd.grad(loss, arguments)
    return {"y": y, "memory": memory} | {f"d{i}": x for i, x in enumerate(gradients)}


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 200),
    case=st.sampled_from(list(CASES.values())),
    heads=st.integers(1, 3),
    key=st.sampled_from([1, 5, 8]),
    value=st.sampled_from([1, 3, 8]),
    chunk=st.sampled_from([None, 1, 16, 64]),
    decay=st.sampled_from([0.0, 0.02, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_chunks_compute_the_definition_and_its_gradients(
    tokens, case, heads, key, value, chunk, decay, seed
):
    arguments = inputs(tokens, case, heads, key, value, decay=decay, batch=1, seed=seed)
    actual = results(lambda *x: case.module.chunked(*x, chunk=chunk), arguments)
    assert_same(actual, results(case.module.recurrent, arguments), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("run", [rule.recurrent, rule.chunked])
def test_without_a_gate_nothing_decays(run):
    q, k, v, g, beta, memory = inputs(70)
    expected = results(run, [q, k, v, torch.zeros_like(g).requires_grad_(), beta, memory])
    y, last = run(q, k, v, None, beta, memory)
    assert_same({"y": y, "memory": last}, {name: expected[name] for name in ("y", "memory")})


@torch.no_grad()
def test_without_decay_it_is_linear_attention():
    q, k, v, g, memory = inputs(90, CASES["linear, channel"], decay=0.0)
    scores = torch.einsum("bthk,bshk->bhts", q, k).tril()
    expected = torch.einsum("bhts,bshv->bthv", scores, v) + torch.einsum(
        "bthk,bhkv->bthv", q, memory
    )
    torch.testing.assert_close(linear.chunked(q, k, v, g, memory)[0], expected)


def test_a_channel_that_forgets_leaves_the_others_alone():
    q, k, v, g, beta, memory = inputs(70, CASES["rule, channel"], decay=0.0)
    forgets = torch.zeros_like(g)
    forgets[:, 69, :, 3] = -1000.0
    _, kept = rule.chunked(q, k, v, g, torch.zeros_like(beta), memory)
    _, last = rule.chunked(q, k, v, forgets, torch.zeros_like(beta), memory)
    assert last[:, :, 3].abs().max() == 0
    torch.testing.assert_close(last[:, :, 4:], kept[:, :, 4:])


def test_without_a_memory_it_begins_with_zeros():
    *arguments, memory = inputs(70)
    expected = results(rule.recurrent, [*arguments, torch.zeros_like(memory).requires_grad_()])
    for run in (rule.recurrent, rule.chunked):
        assert_same(results(run, arguments), {k: v for k, v in expected.items() if k != "d5"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("g", [-50.0, -1000.0])
@each_case
def test_a_strong_decay_gives_finite_gradients_and_the_definition(case, g, dtype):
    arguments = inputs(130, case, dtype=dtype)
    with torch.no_grad():
        arguments[3][:, :: 1 if case.is_rule else 3] = g  # other tokens hardly decay
    actual = results(case.module.chunked, arguments)
    assert all(x.isfinite().all() for x in actual.values())
    rounding = 100 * abs(g) * torch.finfo(dtype).eps  # of the running sum of g in a chunk
    rtol, atol = (1e-4, 1e-5) if case.is_rule else (rounding, rounding)
    assert_same(actual, results(case.module.recurrent, arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize("chunk", [32, 64])
@pytest.mark.parametrize("beta", [1.0, 2.0])
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
        results(lambda *x: rule.chunked(*x, chunk=chunk), rounded),
        results(rule.recurrent, exact),
    )
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm().clamp_min(1e-12)
        assert error < (1e-4 if beta > 1 else 2e-5), f"{name}: {error:.1e}"


@torch.no_grad()
@pytest.mark.parametrize("run", [rule.recurrent, rule.chunked])
def test_with_beta_2_the_sign_of_what_a_key_recalls_counts_its_repetitions(run):
    _, k, v, _, beta, memory = inputs(70, decay=0.0)
    k, v = k[:, :1].expand_as(k), torch.zeros_like(v)
    y, _ = run(k, k, v, None, torch.full_like(beta, 2.0), memory)
    sign_T = torch.tensor([-1.0, 1.0], dtype=y.dtype).repeat(35)
    first = (k[:, 0, :, None] * k.shape[-1] ** -0.5 @ memory)[:, :, 0]
    torch.testing.assert_close(y, sign_T[:, None, None] * first[:, None])


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 31, 32, 33, 64, 99])
@each_case
def test_a_sequence_in_two_parts_equals_one_pass(case, cut):
    *sequence, memory = inputs(100, case)
    run = case.module.chunked
    y, last = run(*sequence, memory)
    first_y, between = run(*(x[:, :cut] for x in sequence), memory)
    second_y, end = run(*(x[:, cut:] for x in sequence), between)
    torch.testing.assert_close(torch.cat([first_y, second_y], 1), y)
    torch.testing.assert_close(end, last)


@torch.no_grad()
@each_case
def test_steps_follow_the_definition_and_cost_what_they_recall_write_and_read(case):
    *sequence, memory = inputs(40, case, key=5, value=3)
    expected_y, expected_memory = case.module.recurrent(*sequence, memory)
    outputs = []
    with FlopCounterMode(display=False) as counter:
        for token in zip(*(x.unbind(1) for x in sequence), strict=True):
            y, memory = case.module.step(*token, memory)
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected_y)
    torch.testing.assert_close(memory, expected_memory)
    products = 3 if case.is_rule else 2
    assert counter.get_total_flops() == 40 * 2 * 2 * (products * 2 * 5 * 3)


@torch.no_grad()
def test_with_beta_1_a_key_recalls_the_value_last_written():
    q, k, v, g, beta, _ = inputs(50, decay=0.0)
    k[:, 40] = k[:, 10]
    _, memory = rule.chunked(*(x[:, :41] for x in (q, k, v, g, torch.ones_like(beta))))
    recalled = (k[:, 10, :, None] @ memory)[:, :, 0]
    torch.testing.assert_close(recalled, v[:, 40])


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
@each_case
def test_autocast_changes_nothing(case, form):
    arguments, run = inputs(70, case, dtype=torch.float32), getattr(case.module, form)

    def under_autocast(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return run(*arguments)

    actual = results(under_autocast, arguments)
    for name, value in results(run, arguments).items():
        assert torch.equal(actual[name], value), name


def test_a_second_derivative_is_refused_instead_of_wrong():
    arguments = inputs(70)
    (dv,) = torch.autograd.grad(rule.chunked(*arguments)[0].sum(), arguments[2], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dv.sum().backward()


@each_case
def test_auto_is_chunked_on_a_cpu_and_naming_fla_there_says_why_not(case):
    for dtype in (torch.bfloat16, torch.float32):
        assert case.module.resolve("auto", CPU, dtype, 32, case.gate) == "chunked"
    with pytest.raises(ValueError, match=r"'fla' cannot run here.*CUDA.*'chunked' runs anywhere"):
        case.module.resolve("fla", CPU, torch.bfloat16, 32, case.gate)


def test_auto_on_cuda_is_fla_where_it_is_right(monkeypatch):
    monkeypatch.setattr(flash, "unusable_because", lambda device_type, function: None)
    assert rule.resolve("auto", CUDA, torch.bfloat16, 32) == "fla"
    assert rule.resolve("auto", CUDA, torch.float32, 32) == "chunked"
    assert rule.resolve("auto", CUDA, torch.bfloat16, 512) == "chunked"
    assert rule.resolve("recurrent", CUDA, torch.bfloat16, 32) == "recurrent"
    monkeypatch.setattr(flash, "unusable_because", lambda device_type, function: "wrong gradients")
    assert rule.resolve("auto", CUDA, torch.bfloat16, 32) == "chunked"


def test_only_one_gate_per_head_is_refused_for_its_gradients(monkeypatch):
    hopper = {"capability": (9, 0), "fla": "0.6.0", "layers": None, "triton": "3.6.0"}
    monkeypatch.setattr(flash, "facts", lambda: flash.Facts(**hopper, tilelang=False, nvcc=False))
    for case in (*CASES.values(), Case(rule, "none")):
        expected = "chunked" if case.gate == "head" else "fla"
        assert case.module.resolve("auto", CUDA, torch.bfloat16, 32, case.gate) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [64, 75, 1024])
@pytest.mark.parametrize("case", [*CASES.values(), Case(rule, "none")])
def test_fla_in_bfloat16_is_within_1_percent_and_its_gradients_within_3(case, tokens):
    if reason := flash.unusable_because("cuda", case.module._FUNCTIONS[case.gate]):
        pytest.skip(reason)
    *arguments, _ = inputs(tokens, case, heads=4, key=32, value=32, decay=0.05)
    low, exact = on_cuda(arguments, torch.bfloat16)
    function = rule.gated_delta_rule if case.is_rule else linear.gated_linear_attention

    def run(kernel):
        if case.gate == "none":
            return lambda q, k, v, beta: function(q, k, v, None, beta, kernel)
        return lambda *arguments: function(*arguments, kernel)

    if case.gate == "none":
        del low[3], exact[3]
    errors = relative_errors(results(run("fla"), low), results(run("recurrent"), exact))
    for name, error in errors.items():
        assert error < (0.01 if name in ("y", "memory") else 0.03), errors


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 75, 1024])
@each_case
def test_chunks_on_cuda_compute_the_definition(case, tokens):
    arguments = inputs(tokens, case, heads=4, key=32, value=32, decay=0.05)
    low, exact = on_cuda(arguments, torch.float32)
    errors = relative_errors(
        results(case.module.chunked, low), results(case.module.recurrent, exact)
    )
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.gpu
@each_case
def test_chunks_can_be_recorded_in_a_cuda_graph(case):
    arguments, _ = on_cuda(inputs(200, case, heads=4, key=32, value=32), torch.float32)
    assert_recordable(case.module.chunked, arguments)
