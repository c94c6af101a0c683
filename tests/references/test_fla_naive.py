"""Kernels equal flash-linear-attention's naive definitions.

Those are single files that need torch and einops alone. They are loaded by path: importing the
package would import its kernels, and with them Triton.

The mathematics is the same: scale K^-0.5, memory of K x V, g as a logarithm. Four things differ.
The order of arguments differs between functions, so they are passed by name. `delta_rule` has heads
before tokens. `naive_dsa` scales the index scores by I^-0.5; in attnlab the weights include that.
attnlab's gated linear attention leaves the scale of queries to its mechanisms.

Shapes: B batch, T tokens, H heads, G key-value heads, K key width, V value width, S keys, J index
heads, I index width.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.agreement import DTYPES, assert_close, computing_in
from torch.nn.functional import normalize

from attnlab.kernels import gated_delta_rule as rule
from attnlab.kernels import gated_linear_attention as linear
from attnlab.kernels import sparse_attention

SIZES = [(1, 1, 1, 1, 1), (3, 7, 2, 4, 6), (2, 75, 3, 8, 5), (1, 130, 2, 16, 16)]  # B T H K V


def naive(operation: str) -> ModuleType:
    try:
        package = importlib.metadata.distribution("fla-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fla-core is not installed; it holds the definitions: pip install fla-core")
    path = Path(str(package.locate_file(f"fla/ops/{operation}/naive.py")))
    spec = importlib.util.spec_from_file_location(f"naive_{operation}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(batch, number, heads, key, value, dtype, gate="head"):
    """Return queries, keys, values, g, beta and an initial memory."""
    generator = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = (
        normalize(normal(batch, number, heads, key), dim=-1),
        normalize(normal(batch, number, heads, key), dim=-1),
        normal(batch, number, heads, value),
        -0.1 * normal(batch, number, heads, *([key] if gate == "channel" else [])).exp(),
        normal(batch, number, heads).sigmoid(),
        normal(batch, heads, key, value),
    )
    return [x.to(dtype).requires_grad_() for x in made]


def over_tokens(step):
    """Return the results of decode steps over all tokens."""

    def stepped(*arguments):
        *sequences, memory_BHKV = arguments
        outputs = []
        for t in range(sequences[0].shape[1]):
            token = (None if x is None else x[:, t] for x in sequences)
            y_BHV, memory_BHKV = step(*token, memory_BHKV)
            outputs.append(y_BHV)
        return torch.stack(outputs, 1), memory_BHKV

    return stepped


RULE = [rule.recurrent, rule.chunked, over_tokens(rule.step)]
LINEAR = [linear.recurrent, linear.chunked, over_tokens(linear.step)]
FORMS = ["recurrent", "chunked", "step"]


def assert_same(run, definition, arguments, reference: ModuleType) -> None:
    """Assert equal results and equal gradients of a random linear function of all of them."""
    with computing_in(arguments[0].dtype, reference):
        expected = definition(*arguments)
        direction = [x.detach().roll(1, 1) + 0.5 for x in expected]
        d_expected = torch.autograd.grad(expected, arguments, direction)
    actual = run(*arguments)
    d_actual = torch.autograd.grad(actual, arguments, direction)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, e, f"result {i}")
    for i, (a, e) in enumerate(zip(d_actual, d_expected, strict=True)):
        assert_close(a, e, f"the gradient by argument {i}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@pytest.mark.parametrize("run", RULE, ids=FORMS)
def test_the_gated_delta_rule_is_flas(run, form, size, dtype):
    reference = naive("gated_delta_rule")
    function = getattr(reference, f"naive_{form}_gated_delta_rule")

    def definition(q, k, v, g, beta, memory):
        return function(
            q=q, k=k, v=v, g=g, beta=beta, initial_state=memory, output_final_state=True
        )

    assert_same(run, definition, inputs(*size, dtype), reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", RULE, ids=FORMS)
def test_without_decay_it_is_flas_delta_rule(run, size, dtype):
    reference = naive("delta_rule")
    q, k, v, _, beta, memory = inputs(*size, dtype)

    def definition(q, k, v, beta, memory):
        by_head = (x.transpose(1, 2) for x in (q, k, v, beta))
        y_BHTV, memory_BHKV = reference.delta_rule_recurrence(*by_head, initial_state=memory)
        return y_BHTV.transpose(1, 2), memory_BHKV

    def ungated(q, k, v, beta, memory):
        return run(q, k, v, None, beta, memory)

    assert_same(ungated, definition, [q, k, v, beta, memory], reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", RULE, ids=FORMS)
def test_with_a_decay_a_channel_it_is_flas_kimi_delta_attention(run, size, dtype):
    reference = naive("kda")

    def definition(q, k, v, g, beta, memory):
        return reference.naive_recurrent_kda(
            q, k, v, g, beta, initial_state=memory, output_final_state=True
        )

    assert_same(run, definition, inputs(*size, dtype, gate="channel"), reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("run", RULE[:2], ids=FORMS[:2])
def test_it_is_also_flas_chunks_of_kimi_delta_attention(run, dtype):
    reference = naive("kda")

    def definition(q, k, v, g, beta, memory):
        return reference.naive_chunk_kda(
            q, k, v, g, beta, initial_state=memory, output_final_state=True, chunk_size=16
        )

    assert_same(run, definition, inputs(2, 48, 2, 8, 5, dtype, gate="channel"), reference)


def scaled(run):
    """Run attnlab's function on queries scaled as the reference scales them."""
    return lambda q, *others: run(q * q.shape[-1] ** -0.5, *others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("run", LINEAR, ids=FORMS)
@pytest.mark.parametrize(
    ("gate", "operation", "function"),
    [
        ("channel", "gla", "naive_recurrent_gla"),
        ("head", "simple_gla", "naive_recurrent_simple_gla"),
        ("head", "simple_gla", "naive_chunk_simple_gla"),
    ],
)
def test_gated_linear_attention_is_flas(gate, operation, function, run, size, dtype):
    reference = naive(operation)
    q, k, v, g, _, memory = inputs(*size, dtype, gate)

    def definition(q, k, v, g, memory):
        return getattr(reference, function)(
            q, k, v, g, initial_state=memory, output_final_state=True
        )

    assert_same(scaled(run), definition, [q, k, v, g, memory], reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [1, 6, 100])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_sparse_attention_is_flas(n_kv_heads, top_k, dtype):
    reference = naive("dsa")
    batch, number, heads, index_heads, index_width = 2, 45, 4, 24, 10
    q, _, _, *_ = inputs(batch, number, heads, 6, 5, dtype)
    _, k, v, *_ = inputs(batch, number, n_kv_heads, 6, 5, dtype)
    index_q, _, _, _, weights, _ = inputs(batch, number, index_heads, index_width, 1, dtype)
    index_k = inputs(batch, number, 1, index_width, 1, dtype)[1][:, :, 0]

    def definition(q, k, v):
        return (reference.naive_dsa(q, k, v, index_q, index_k, weights, topk=top_k),)

    def run(q, k, v):
        index = sparse_attention.Index(index_q, index_k, weights * index_width**-0.5)
        selected_BTS = sparse_attention.select(sparse_attention.index_scores(index), top_k)
        k_BHSK, v_BHSV = (
            x.transpose(1, 2).repeat_interleave(heads // n_kv_heads, 1) for x in (k, v)
        )
        y_BHTV, _ = sparse_attention.attend(q.transpose(1, 2), k_BHSK, v_BHSV, selected_BTS)
        return (y_BHTV.transpose(1, 2),)

    assert_same(run, definition, [q, k, v], reference)
