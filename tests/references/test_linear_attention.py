"""Linear attention equals independent implementations.

Three models equal transformers', on its paths without fused kernels.

Mamba-2: dt = softplus(. + dt_bias) without limits, A = -exp(A_log), no scale of C, the skip by D,
the norm over all channels after the gate, in both. The layout differs:

- `in_proj` holds the rows of z (attnlab's `g_proj`), x, B, C and dt; attnlab has five projections.
- The channels of `conv1d` are those of x, B, C in this order; attnlab's are C, B, x. Its weight has
  a middle dimension of 1, and by default it has a bias, which the test disables.
- The reference may have several B and C (`n_groups`); attnlab has one for all heads.
- The reference's width is fixed: `num_heads * head_dim = expand * hidden_size`.

Gated DeltaNet (Qwen3-Next's): q and k divided by sqrt(|.|^2 + 1e-6) after the convolution, queries
scaled by K^-0.5, g = -exp(A_log) softplus(a + dt_bias), beta = sigmoid(b), the norm before the
gate, in both. The layout differs:

- `in_proj_qkvz` holds, head by head, the rows of q, k, v and of the output gate z (attnlab's
  `g_proj`); `in_proj_ba` holds b and a, head by head. attnlab has six projections.
- `conv1d` has a middle dimension of 1; its channels are in the same order, q of all heads first.
- Its `rms_norm_eps` is 1e-6 by default, attnlab's is 1e-5 as in flash-linear-attention's layer; the
  test sets it.
- Qwen3-Next has several value heads per key head, attnlab one.

Lightning attention (MiniMax-01's): silu after the projections, fixed decays, the norm over all
channels before the gate, in both. `qkv_proj` holds, head by head, the rows of q, k and v. The
reference's decays depend on the layer; its first layer of two has a factor of 1 + 1e-5.

Kernels equal flash-linear-attention's naive definitions.

Those are single files that need torch and einops alone. They are loaded by path: importing the
package would import its kernels, and with them Triton.

The mathematics is the same: scale K^-0.5, memory of K x V, g as a logarithm. Four things differ.
The order of arguments differs between functions, so they are passed by name. `delta_rule` has heads
before tokens. `naive_dsa` scales the index scores by I^-0.5; in attnlab the weights include that.
attnlab's gated linear attention leaves the scale of queries to its mechanisms.

RWKV-7's time mixing equals loops over tokens. The loop follows the paper's letters: its memory is
V x K, with the transition on the right, one head and one token at a time, and the previous token is
read from the sequence.

Shapes: B batch, T tokens, D model width, H heads, G key-value heads, K key width, V value width, S
keys, J index heads, I index width, C channels.
"""

import importlib.metadata
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.agreement import (
    DTYPES,
    Weights,
    assert_agree,
    assert_close,
    assert_is_definition,
    computing_in,
    decoded,
    drawn,
    randomize,
    tokens,
)
from torch import Tensor
from torch.nn.functional import normalize

from attnlab.config import ConfigError
from attnlab.kernels import gated_delta_rule as rule
from attnlab.kernels import gated_linear_attention as linear
from attnlab.kernels import generalized_delta_rule as generalized
from attnlab.kernels import sparse_attention
from attnlab.kernels.lightning_indexer import Index
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.lightning_attention import LightningAttention
from attnlab.mechanisms.mamba2 import Mamba2
from attnlab.mechanisms.rwkv7 import RWKV7
from attnlab.model.language_model import ModelConfig
from attnlab.modules.delta_memory import after_writes, as_writes

with pytest.MonkeyPatch.context() as patch:
    # if these are installed, transformers imports them and runs their kernels
    for package in ("mamba_ssm", "causal_conv1d", "fla"):
        patch.setitem(sys.modules, package, None)
    from transformers.models.mamba2 import modeling_mamba2 as modeling_of_mamba2
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.minimax import modeling_minimax
    from transformers.models.minimax.configuration_minimax import MiniMaxConfig
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling_of_delta_net
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

D = 24


def weights_of_mamba2(weights: Weights, ours: Mamba2) -> Weights:
    inner, state = ours.n_heads * ours.head_dim, ours.d_state
    z, x, B, C, dt = weights["in_proj.weight"].split([inner, inner, state, state, ours.n_heads])
    channels = weights["conv1d.weight"].squeeze(1)
    x_CW, B_CW, C_CW = channels.split([inner, state, state])
    projections = {"q": C, "k": B, "v": x, "g": z, "dt": dt, "o": weights["out_proj.weight"]}
    return {
        **{f"{name}_proj.weight": weight for name, weight in projections.items()},
        **{name: weights[name] for name in ("A_log", "dt_bias", "D", "norm.weight")},
        "qkv_conv1d.weight": torch.cat([C_CW, B_CW, x_CW]),
    }


def assert_mamba2_same(x_BTD: Tensor, **settings) -> None:
    ours = Mamba2(**settings)
    config = Mamba2Config(
        hidden_size=D,
        num_hidden_layers=1,
        num_heads=ours.n_heads,
        head_dim=ours.head_dim,
        expand=ours.n_heads * ours.head_dim // D,
        state_size=ours.d_state,
        conv_kernel=ours.conv_size,
        n_groups=1,
        use_conv_bias=False,
        chunk_size=16,
    )
    with computing_in(x_BTD.dtype, modeling_of_mamba2):
        theirs = modeling_of_mamba2.Mamba2Mixer(config, layer_idx=0).to(x_BTD.dtype)
        randomize(theirs)
        with torch.no_grad():  # from heads that hardly decay to heads that decay within a token
            theirs.A_log.copy_(torch.linspace(-6, 0, ours.n_heads))
        assert_agree(
            ours.build(D),
            theirs,
            run=theirs,
            to_ours=lambda weights: weights_of_mamba2(weights, ours),
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 45), (1, 70)])
def test_it_is_transformers(batch, number, dtype):
    assert_mamba2_same(tokens(batch, number, D, dtype), n_heads=6, head_dim=8, d_state=10)


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [2, 5])
def test_it_is_transformers_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 40, D, torch.float64)
    assert_mamba2_same(x_BTD, n_heads=3, head_dim=8, d_state=7, conv_size=conv_size, kernel=kernel)


WIDTH = 40


def weights_of_delta_net(weights: Weights, ours: GatedDeltaNet) -> Weights:
    keys, values = ours.head_dim, ours.value_dim
    qkvz_HMD = weights["in_proj_qkvz.weight"].unflatten(0, (ours.n_heads, -1))
    q, k, v, z = (x_HMD.flatten(0, 1) for x_HMD in qkvz_HMD.split([keys, keys, values, values], 1))
    b, a = weights["in_proj_ba.weight"].unflatten(0, (ours.n_heads, 2)).unbind(1)
    projections = {"q": q, "k": k, "v": v, "g": z, "b": b, "a": a, "o": weights["out_proj.weight"]}
    return {
        **{f"{name}_proj.weight": weight for name, weight in projections.items()},
        "A_log": weights["A_log"],
        "dt_bias": weights["dt_bias"],
        "qkv_conv1d.weight": weights["conv1d.weight"].squeeze(1),
        "o_norm.weight": weights["norm.weight"],
    }


def assert_delta_net_same(x_BTD: Tensor, **settings) -> None:
    ours = GatedDeltaNet(**settings)
    config = Qwen3NextConfig(
        hidden_size=WIDTH,
        linear_num_key_heads=ours.n_heads,
        linear_num_value_heads=ours.n_heads,
        linear_key_head_dim=ours.head_dim,
        linear_value_head_dim=ours.value_dim,
        linear_conv_kernel_dim=ours.conv_size,
        rms_norm_eps=1e-5,
    )
    with computing_in(x_BTD.dtype, modeling_of_delta_net):
        theirs = modeling_of_delta_net.Qwen3NextGatedDeltaNet(config, layer_idx=0).to(x_BTD.dtype)
        randomize(theirs)
        with torch.no_grad():  # from heads that hardly decay to heads that decay within a token
            theirs.A_log.copy_(torch.linspace(-6, 0, ours.n_heads))
        assert_agree(
            ours.build(WIDTH),
            theirs,
            run=theirs,
            to_ours=lambda weights: weights_of_delta_net(weights, ours),
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 75), (1, 129)])
@pytest.mark.parametrize("expand_v", [1.0, 2.0, 0.5])
def test_it_is_qwens(expand_v, batch, number, dtype):
    assert_delta_net_same(
        tokens(batch, number, WIDTH, dtype), n_heads=3, head_dim=8, expand_v=expand_v
    )


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [1, 2, 5])
def test_it_is_qwens_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 70, WIDTH, torch.float64)
    assert_delta_net_same(x_BTD, n_heads=4, head_dim=6, conv_size=conv_size, kernel=kernel)


def weights_of_minimax(weights: Weights, ours: LightningAttention) -> Weights:
    qkv_HMD = weights["qkv_proj.weight"].unflatten(0, (ours.n_heads, 3, ours.head_dim))
    q, k, v = (x_HKD.flatten(0, 1) for x_HKD in qkv_HMD.unbind(1))
    projections = {"q": q, "k": k, "v": v, "g": weights["output_gate.weight"]}
    projections["o"] = weights["out_proj.weight"]
    return {
        **{f"{name}_proj.weight": weight for name, weight in projections.items()},
        "o_norm.weight": weights["norm.weight"],
    }


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (2, 45), (1, 70)])
def test_lightning_attention_is_minimaxs(batch, number, kernel):
    ours = LightningAttention(n_heads=4, head_dim=6, kernel=kernel, decay_factor=1 + 1e-5)
    config = MiniMaxConfig(
        hidden_size=D,
        num_attention_heads=ours.n_heads,
        head_dim=ours.head_dim,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        block_size=16,
    )
    x_BTD = tokens(batch, number, D, torch.float64)
    with computing_in(torch.float64, modeling_minimax):
        theirs = modeling_minimax.MiniMaxLightningAttention(config, layer_idx=0).double()
        randomize(theirs)
        rates_H = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625], dtype=torch.float64)
        theirs.slope_rate = (ours.decay_factor * rates_H)[:, None, None]
        decays = theirs.decay_factors(theirs.slope_rate)
        theirs.query_decay, theirs.key_decay, theirs.diagonal_decay = decays
        assert_agree(
            ours.build(D),
            theirs,
            run=lambda x_BTD: theirs(x_BTD, position_embeddings=None, attention_mask=None)[0],
            to_ours=lambda weights: weights_of_minimax(weights, ours),
            x_BTD=x_BTD,
        )


def test_a_negative_decay_factor_is_named():
    with pytest.raises(ConfigError, match="decay_factor: must not be negative, got -1"):
        LightningAttention(decay_factor=-1.0)


SIZES = [(1, 1, 1, 1, 1), (3, 7, 2, 4, 6), (2, 75, 3, 8, 5), (1, 130, 2, 16, 16)]  # B T H K V


def naive(operation: str) -> ModuleType:
    try:
        package = importlib.metadata.distribution("fla-core")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fla-core is not installed; it holds the definitions: pip install fla-core")
    path = Path(str(package.locate_file(f"fla/ops/{operation}/naive.py")))
    spec = importlib.util.spec_from_file_location(f"naive_{path.parent.name}", path)
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
        2 * normal(batch, number, heads).sigmoid(),  # beyond 1: negative eigenvalues
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
@pytest.mark.parametrize(("writes", "gated"), [(2, True), (3, True), (2, False)])
@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_with_several_writes_it_is_flas_gated_delta_product(form, writes, gated, dtype):
    """The reference has the writes of all tokens in one row, and does not scale to length 1."""
    reference, (batch, number, *widths) = naive("gated_delta_product"), SIZES[2]
    q, _, _, g, _, _ = inputs(batch, number, *widths, dtype)
    _, k, v, _, beta, _ = inputs(batch, writes * number, *widths, dtype)
    arguments = [q, k, v, beta, *([g] if gated else [])]

    def definition(q, k, v, beta, g=None):
        q, k, scale = rule.unit(q), rule.unit(k), q.shape[-1] ** -0.5
        return reference.naive_recurrent_gated_delta_product(
            q, k, v, g, beta, scale, num_householder=writes
        )

    def run(q, k, v, beta, g=None):
        k, v, beta = (x.unflatten(1, (number, writes)) for x in (k, v, beta))
        y_BSHV, memory_BHKV = rule.gated_delta_rule(*as_writes(q, k, v, g, beta), form)
        return after_writes(y_BSHV, writes), memory_BHKV

    assert_same(run, definition, arguments, reference)


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
        index = Index(index_q, index_k, weights * index_width**-0.5)
        qkv_BHTK = (x.transpose(1, 2) for x in (q, k, v))
        y_BHTV = sparse_attention.attend(*qkv_BHTK, index, top_k=top_k)
        return (y_BHTV.transpose(1, 2),)

    assert_same(run, definition, [q, k, v], reference)


RWKV7_VARIANTS = [
    RWKV7(n_heads=2, head_dim=4, decay_rank=3, learning_rate_rank=2, gate_rank=5),
    RWKV7(n_heads=1, head_dim=5, kernel="recurrent"),
    RWKV7(n_heads=3, head_dim=8, gate_rank=1),
]


def rwkv7_written_out(mechanism, x_TD):
    config, weights = mechanism.config, dict(mechanism.named_parameters())
    size = config.head_dim

    def product(name, x):
        return weights[f"{name}.weight"] @ x

    states = [torch.zeros(size, size, dtype=x_TD.dtype) for _ in range(config.n_heads)]
    rows = []
    for t, x in enumerate(x_TD):
        before = x_TD[t - 1] if t else torch.zeros_like(x)
        mixed = {i: torch.lerp(x, before, weights[f"shift.{i}"]) for i in "rwkvag"}
        r, k, v = (product(f"{i}_proj", mixed[i]) for i in "rkv")
        d = product("w_proj.2", torch.tanh(product("w_proj.0", mixed["w"])))
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(d + weights["w_proj.2.bias"]))
        inner = product("a_proj.2", product("a_proj.0", mixed["a"]))
        a = torch.sigmoid(inner + weights["a_proj.2.bias"])
        gate = product("g_proj.2", torch.sigmoid(product("g_proj.0", mixed["g"])))
        kappa = k * weights["xi"]
        replaced = k * torch.lerp(torch.ones_like(a), a, weights["alpha"])
        outputs = []
        for h in range(config.n_heads):
            part = slice(h * size, (h + 1) * size)
            u = kappa[part] / (kappa[part] @ kappa[part] + 1e-6).sqrt()
            transition = torch.diag(w[part]) - torch.outer(u, a[part] * u)
            states[h] = states[h] @ transition + torch.outer(v[part], replaced[part])
            y = states[h] @ r[part]
            y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5 * size).sqrt()
            y = y * weights["o_norm.weight"][part] + weights["o_norm.bias"][part]
            outputs.append(y + (r[part] @ (weights["rho"][part] * replaced[part])) * v[part])
        rows.append(product("o_proj", torch.cat(outputs) * gate))
    return torch.stack(rows)


def rwkv7_definition(mechanism, x_BTD):
    return torch.stack([rwkv7_written_out(mechanism, x_TD) for x_TD in x_BTD])


@pytest.mark.parametrize("config", RWKV7_VARIANTS, ids=lambda config: f"{config.n_heads} heads")
@pytest.mark.parametrize("number", [2, 37])
def test_rwkv7_is_the_layer_of_the_paper_with_gradients_and_in_decoding(config, number):
    mechanism, x_BTD = drawn(config, D), tokens(1, number, D, torch.float64)
    assert_is_definition(mechanism, rwkv7_definition, x_BTD)
    for prompt in (0, 1, number // 2):
        expected = rwkv7_definition(mechanism, x_BTD).detach()
        assert_close(decoded(mechanism, x_BTD, prompt), expected, f"after {prompt} tokens")


def generalized_inputs(number, heads=2, key=6, value=5, dtype=torch.float64, decay=1.0):
    generator = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, c = (normal(2, number, heads, key) for _ in range(3))
    v, g, c = normal(2, number, heads, value), -decay * torch.rand_like(q), normalize(c, dim=-1)
    made = q, k, v, g, c * normal(2, number, heads, key).sigmoid(), c
    return [x.to(dtype).requires_grad_() for x in made]


def results(run, arguments):
    outputs = run(*arguments)
    slopes = torch.autograd.grad(sum(y.square().sum() for y in outputs), arguments)
    return [*outputs, *slopes]


@pytest.mark.parametrize("chunk", [None, 1, 8, 64])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("number", [1, 33, 70])
def test_chunks_of_the_generalized_rule_compute_the_definition_and_its_gradients(
    number, decay, chunk
):
    arguments = generalized_inputs(number, decay=decay)
    found = results(lambda *x: generalized.chunked(*x, chunk=chunk), arguments)
    for actual, expected in zip(found, results(generalized.recurrent, arguments), strict=True):
        assert_close(actual, expected, f"chunks of {chunk}")


@pytest.mark.parametrize("learning_rate", [0.0, 1.0])
def test_one_direction_of_the_generalized_rule_for_all_tokens_loses_no_precision_in_float32(
    learning_rate,
):
    exact = [x.detach() for x in generalized_inputs(200, key=32, value=32, decay=1e-4)]
    exact[5] = exact[5][:, :1].expand_as(exact[5]).clone()
    exact[4] = learning_rate * exact[5]
    exact = [x.requires_grad_() for x in exact]
    rounded = [x.detach().float().requires_grad_() for x in exact]
    expected = results(generalized.recurrent, exact)
    for actual, value in zip(results(generalized.chunked, rounded), expected, strict=True):
        assert (actual - value).norm() <= 2e-5 * value.norm()


@pytest.mark.parametrize("run", [generalized.recurrent, generalized.chunked])
def test_the_generalized_rule_is_that_of_fla_core(run):
    reference = naive("generalized_delta_rule/dplr")
    q, k, v, g, b, c = (
        x.detach().float().transpose(1, 2) for x in generalized_inputs(45, key=8, value=8)
    )
    scaled = q * q.shape[-1] ** 0.5  # its queries are scaled
    expected, _ = reference.dplr_recurrence(scaled, k, v, c, -b, g)
    actual, _ = run(*(x.transpose(1, 2) for x in (q, k, v, g, b, c)))
    torch.testing.assert_close(actual.transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_vectors_of_rwkv7_begin_where_the_published_first_layer_begins_them():
    config = RWKV7(n_heads=2, head_dim=16)
    model = ModelConfig(mechanisms=(config,), n_layers=1, d_model=D).build(11)
    weights = dict(model.blocks[0].mix.named_parameters())
    assert weights["shift.w"][0] == 1
    assert weights["shift.g"][-1].item() == pytest.approx(1 - (23 / 24) ** 0.2, rel=1e-4)
    assert weights["w_proj.2.bias"][[0, -1]].tolist() == pytest.approx([-8.0, 3.0])
    assert weights["a_proj.2.bias"][[0, -1]].tolist() == pytest.approx([-0.69, 0.31])
    assert weights["xi"][[0, -1]].tolist() == pytest.approx([0.76, 0.66])
    assert weights["r_proj.weight"].std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", ["n_heads", "head_dim", "decay_rank", "gate_rank"])
def test_impossible_settings_of_rwkv7_are_named(name):
    with pytest.raises(ConfigError, match=f"{name}: must be at least 1, got 0"):
        RWKV7(**{name: 0})
