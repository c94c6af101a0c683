"""Plain forms of flash-linear-attention's functions, with which some of its layers run on a CPU.

fla-core has, beside the kernels of an operation, its definition in plain torch: a loop over tokens.
On a machine without CUDA these definitions take the place of the functions that a layer calls, and
so do the plain convolution and norms below. They compute in float32.

| what the layers call                                            | what takes its place        |
|-----------------------------------------------------------------|-----------------------------|
| `chunk_`, `fused_chunk_` and `fused_recurrent_` of an operation | its definition in `fla.ops` |
| sums and products of RWKV-7 that one kernel computes            | their definitions in `fla`  |
| short convolution, token shift, RoPE, (gated) RMS norm          | the functions of this file  |

Yang and Zhang 2024 (github.com/fla-org/flash-linear-attention).
Shapes: B batch, T tokens, H heads, D channels, W width of a convolution.
"""

import inspect
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, normalize, rms_norm, silu, softplus

from attnlab.kernels.flash_linear_attention_clone import imported

LAYERS = (
    *("DeltaNet", "GatedDeltaNet", "GatedDeltaProduct", "GatedLinearAttention"),
    *("KimiDeltaAttention", "MultiScaleRetention", "RWKV7Attention"),
)
_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: nn.Identity(),
    "silu": silu,
    "swish": silu,
    "sigmoid": torch.sigmoid,
}
_DEFINITIONS = {  # by operation: the functions that layers call, and the definition's name
    "delta_rule": ("chunk_delta_rule fused_recurrent_delta_rule", "delta_rule_recurrence"),
    "gated_delta_product": (
        "chunk_gated_delta_product",
        "naive_recurrent_gated_delta_product",
    ),
    "gated_delta_rule": (
        "chunk_gated_delta_rule fused_recurrent_gated_delta_rule",
        "naive_recurrent_gated_delta_rule",
    ),
    "gla": ("chunk_gla fused_chunk_gla fused_recurrent_gla", "naive_recurrent_gla"),
    "kda": ("chunk_kda fused_recurrent_kda", "naive_recurrent_kda"),
    "simple_gla": (
        "chunk_simple_gla fused_recurrent_simple_gla",
        "naive_recurrent_simple_gla",
    ),
}
_THEIRS = (  # functions, and their definitions in the same module
    ("ops.rwkv7.fused_addcmul", "fused_addcmul_rwkv7", "torch_addcmul_rwkv7"),
    ("ops.rwkv7.fused_k_update", "fused_k_rwkv7", "k_update_ref"),
    ("ops.rwkv7.gate_output_correction", "gate_output_correction", "gate_output_correction_ref"),
)
_BY_HEAD = ("delta_rule",)  # operations whose definition has heads before tokens


@cache
def use() -> None:
    """Let the layers of flash-linear-attention call plain forms in this process.

    Raises ImportError if they cannot be imported.
    """
    imported("fla.layers")
    for operation, (names, definition) in _DEFINITIONS.items():
        naive = getattr(imported(f"fla.ops.{operation}.naive"), definition)
        for name in names.split():
            _replace(f"ops.{operation}", name, _defined(naive, operation in _BY_HEAD))
    for module, name, plain in _OWN:
        _replace(module, name, plain)
    for module, name, definition in _THEIRS:
        _replace(module, name, getattr(imported(f"fla.{module}"), definition))


def _replace(module: str, name: str, plain: Callable[..., Any]) -> None:
    """Put a plain form into every module of the package that has the function."""
    original = getattr(imported(f"fla.{module}"), name)
    for path, found in list(sys.modules.items()):
        if path.partition(".")[0] == "fla":
            for attribute, value in list(vars(found).items()):
                if value is original:
                    setattr(found, attribute, plain)


def _exact(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function without autocast."""

    @wraps(function)
    def run(*arguments: Any, **settings: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return function(*arguments, **settings)

    return run


def _defined(definition: Callable[..., Any], by_head: bool) -> Callable[..., Any]:
    """Return a function of an operation's arguments that computes its definition."""
    parameters = inspect.signature(definition).parameters

    @_exact
    def run(**given: Any) -> tuple[Tensor, Tensor | None]:
        of = _prepared(given)
        if "gk" in parameters:
            of["gk"] = of.pop("g", None) if of.get("gk") is None else of["gk"]
        of.setdefault("scale", of["q"].shape[-1] ** -0.5)
        of["output_final_state"] = True
        dtype, arguments = of["v"].dtype, {n: x for n, x in of.items() if n in parameters}
        if by_head:
            tensors = {n: x for n, x in arguments.items() if n in ("q", "k", "v", "beta")}
            arguments |= {name: x.transpose(1, 2) for name, x in tensors.items()}
        y, memory = definition(**arguments)
        return (y.transpose(1, 2) if by_head else y).to(dtype), memory

    return run


def _prepared(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments after what the kernels compute beside the operation."""
    of = dict(given)
    if of.get("use_qk_l2norm_in_kernel"):
        of |= {name: normalize(of[name].float(), dim=-1) for name in ("q", "k")}
    if of.get("use_beta_sigmoid_in_kernel"):
        of["beta"] = of["beta"].float().sigmoid() * (1 + bool(of.get("allow_neg_eigval")))
    if of.get("use_gate_in_kernel"):
        g, rate = of["g"].float(), of["A_log"].float().exp()
        bias = 0 if of.get("dt_bias") is None else of["dt_bias"].float().view(g.shape[2:])
        of["g"] = -(rate if g.ndim == 3 else rate.view(-1, 1)) * softplus(g + bias)
    return of


def _retention(q: Tensor, **more: Any) -> tuple[Tensor, Tensor | None]:
    """Return simple gated linear attention with the fixed decay of each head."""
    definition = imported("fla.ops.simple_gla.naive").naive_recurrent_simple_gla
    rate_H = 2.0 ** (-5 - torch.arange(q.shape[2], device=q.device))
    return _defined(definition, by_head=False)(
        q=q, g=(1 - rate_H).log().expand(q.shape[:3]), **more
    )


@_exact
def _rwkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, **more: Any) -> Any:
    definition = imported("fla.ops.generalized_delta_rule.dplr.naive").dplr_recurrence
    scaled = r.float() * r.shape[-1] ** 0.5 * more.get("scale", 1.0)  # the definition scales, too
    by_head = (x.float().transpose(1, 2) for x in (scaled, k, v, a, b, w))
    y, memory = definition(*by_head, more.get("initial_state"))
    return y.transpose(1, 2).to(v.dtype), memory


def _rwkv7_of_steps(r: Tensor, w: Tensor, k: Tensor, v: Tensor, **more: Any) -> Any:
    kk, a = more.pop("kk"), more.pop("a")
    return _rwkv7(r, w, k, v, -kk, kk * a, **more)


@_exact
def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return `y_BTD`, and the last inputs `past_BDW` if wanted."""
    del more
    x_BDT, width = x.float().mT, weight.shape[1]
    before = x_BDT.new_zeros(len(x), len(weight), width)
    x_BDS = torch.cat([before if initial_state is None else initial_state.float(), x_BDT], -1)
    y_BDT = conv1d(
        x_BDS[..., 1:],
        weight.float()[:, None],
        bias if bias is None else bias.float(),
        groups=len(weight),
    )
    y = _ACTIVATIONS[activation](y_BDT.mT).to(x.dtype)
    last = x_BDS[..., -width:].to(x.dtype) if output_final_state else None
    return y if residual is None else y + residual, last


def _causal_conv1d_update(x: Tensor, cache: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    y, last = _causal_conv1d(x, initial_state=cache, output_final_state=True, **more)
    assert last is not None
    return y, cache.copy_(last)


@_exact
def _rms_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, **more: Any
) -> Tensor:
    assert bias is None
    assert more.get("residual") is None
    wide = None if weight is None else weight.float()
    return rms_norm(x.float(), x.shape[-1:], wide, eps).to(x.dtype)


@_exact
def _rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str = "swish",
    eps: float = 1e-6,
    **more: Any,
) -> Tensor:
    normed = _rms_norm(x.float(), weight, bias, eps, **more)
    return (normed * _ACTIVATIONS[activation](g.float())).to(x.dtype)


def _rotary_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, seqlen_offsets: int = 0, **more: Any
) -> Tensor:
    assert not more.get("interleaved")
    seen, half = seqlen_offsets, cos.shape[-1]
    c, s = (angles[seen : seen + x.shape[1], None] for angles in (cos, sin))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * c - second * s, first * s + second * c, rest], -1)


def _token_shift(x: Tensor, *_: Any, cache: Tensor | None = None, **more: Any) -> Any:
    """Return the difference to the previous token, and the last token if wanted."""
    first = torch.zeros_like(x[:, :1]) if cache is None else cache.view(len(x), 1, -1)
    before = torch.cat([first.to(x.dtype), x[:, :-1]], 1)
    return (before - x, x[:, -1].clone()) if more.get("output_cache") else before - x


_OWN = (
    ("modules.causal_conv1d.ops", "causal_conv1d", _causal_conv1d),
    ("modules.causal_conv1d.ops", "causal_conv1d_update", _causal_conv1d_update),
    ("modules.norm.layernorm", "rms_norm", _rms_norm),
    ("modules.norm.fused_norm_gate", "rms_norm_gated", _rms_norm_gated),
    ("modules.rotary.ops", "rotary_embedding", _rotary_embedding),
    ("modules.token_shift", "token_shift", _token_shift),
    ("ops.retention", "chunk_retention", _retention),
    ("ops.retention", "fused_recurrent_retention", _retention),
    ("ops.rwkv7", "chunk_rwkv7", _rwkv7),
    ("ops.rwkv7", "fused_mul_recurrent_rwkv7", _rwkv7_of_steps),
)
