"""Causal softmax attention, with key-value heads shared by groups of query heads.

    y_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(K)) v_s

| kernel      | implementation                                                      | where        |
|-------------|---------------------------------------------------------------------|--------------|
| `plain`     | the definition: scores of T x T, softmax in float32                 | anywhere     |
| `blocked`   | the definition, one block of queries after another                  | anywhere     |
| `sdpa`      | torch's scaled_dot_product_attention, with the kernel that torch    | anywhere     |
|             | selects; O(T) memory where that is a fused one                      |              |
| `math`      | its kernel with scores of T x T                                     | anywhere     |
| `flash`     | FlashAttention-2, or torch's version of it on a CPU; O(T) memory.   | half         |
|             | Dao 2023 (arXiv:2307.08691)                                         | precision on |
|             |                                                                     | CUDA; a CPU, |
|             |                                                                     | no dropout   |
| `efficient` | xFormers' memory-efficient attention; O(T) memory                   | CUDA         |
| `cudnn`     | cuDNN's attention; O(T) memory                                      | CUDA, half   |
|             |                                                                     | precision    |
| `flex`      | torch's FlexAttention, compiled; O(T) memory                        | CUDA,        |
|             |                                                                     | no dropout   |

`auto` is `sdpa`, or `blocked` on a CPU with dropout: torch's fused CPU kernel has no dropout, and
its fallback makes a T x T mask. All compute the same function.

With scores that are no products alone, capped or penalised by distance (`scores.py`), `plain`,
`blocked` and `flex` serve; `auto` is then `flex` on CUDA without dropout, and `blocked` elsewhere.
Sinks are served by all.

torch keeps cuDNN's backward pass by the layouts of queries, keys and values, and not by that of the
gradient that it was made for. A second layer in the process whose gradient has another layout gets
wrong gradients without an error (pytorch pull request 191576). So `fused_attention` hands every
gradient on in the layout of the output.

Shapes: B batch, H query heads, G key-value heads (G divides H), T tokens, K key width,
V value width.
"""

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention

from attnlab.config import ConfigError, Problem
from attnlab.kernels import flex
from attnlab.kernels.scores import UNCHANGED, Scores, with_sink

Kernel = Literal["auto", "plain", "blocked", "sdpa", "math", "flash", "efficient", "cudnn", "flex"]

_BLOCK = 128  # queries per block
_WIDEST = 256  # head width that `flash` and `cudnn` support
_WRITTEN_OUT = ("plain", "blocked")
_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def auto(device: torch.device, dropout: float, *, products: bool = True) -> Kernel:
    """Return the kernel that `auto` stands for, for scores that are products or changed ones."""
    if not products:
        return "flex" if device.type == "cuda" and not dropout else "blocked"
    return "blocked" if device.type == "cpu" and dropout else "sdpa"


def resolve(
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    dropout: float,
    width: int,
    products: bool = True,
) -> Kernel:
    """Return the kernel that runs: `auto` by the rule above, any other as named.

    `width` is that of the widest head, of keys or values. `products` is false if scores are capped
    or penalised.

    Raises:
        ValueError: the named kernel cannot run; the message says why.
    """
    if kernel == "auto":
        return auto(device, dropout, products=products)
    if not products:
        _require_changes(kernel)
    if kernel == "flex":
        flex.require(device, dropout, instead="sdpa")
    elif reason := _refusal(kernel, device, dtype, dropout, width):
        raise ValueError(f"kernel {kernel!r} {reason}")
    return kernel


def require(kernel: Kernel, dropout: float, *, products: bool = True) -> None:
    """Raise ConfigError if the named kernel supports dropout, or changed scores, on no device."""
    if not products:
        _require_changes(kernel)
    if kernel == "flex":
        flex.require_no_dropout(dropout, instead="sdpa" if products else "blocked")


def _require_changes(kernel: Kernel) -> None:
    if kernel not in ("auto", "flex", *_WRITTEN_OUT):
        message = (
            f"kernel {kernel!r} supports neither a softcap nor ALiBi: use 'auto', or 'flex' on CUDA"
        )
        raise ConfigError([Problem("kernel", message)])


def attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    *,
    kernel: Kernel,
    dropout: float = 0.0,
    scores: Scores = UNCHANGED,
) -> Tensor:
    """Return `y_BHTV`. `dropout` is the probability of dropping an attention weight."""
    if kernel == "flex":
        return flex.attention(q_BHTK, k_BGTK, v_BGTV, scores=scores)
    repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
    k_BHTK, v_BHTV = (
        x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k_BGTK, v_BGTV)
    )
    if kernel == "plain":
        return definition(q_BHTK, k_BHTK, v_BHTV, dropout, scores=scores)
    if kernel == "blocked":
        tokens = q_BHTK.shape[2]
        blocks = [slice(at, min(at + _BLOCK, tokens)) for at in range(0, tokens, _BLOCK)]
        outputs = [
            definition(
                q_BHTK[:, :, block],
                k_BHTK[:, :, : block.stop],
                v_BHTV[:, :, : block.stop],
                dropout,
                block.start,
                scores,
            )
            for block in blocks
        ]
        return torch.cat(outputs, 2)
    assert scores.are_products
    if scores.sinks_H is None:
        return _sdpa(q_BHTK, k_BHTK, v_BHTV, kernel, dropout)
    scale = q_BHTK.shape[-1] ** -0.5
    q_BHTC, k_BHUC, v_BHUV = with_sink(q_BHTK, k_BHTK, v_BHTV, scores.sinks_H)
    q_BHUC = pad(q_BHTC, (0, 0, 1, 0))  # a first query, which attends to the sink alone
    return _sdpa(q_BHUC, k_BHUC, v_BHUV, kernel, dropout, scale)[:, :, 1:]


def _sdpa(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    kernel: Kernel,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """Return `y_BHTV` by torch, with zeros after heads for kernels that need other widths.

    `scale` is the factor on the products; None: K^-0.5.
    """
    if kernel == "cudnn" and q_BHTK.shape[2] == 1:  # it does not support a single token
        q_BHTK, k_BHTK, v_BHTV = (pad(x, (0, 0, 0, 1)) for x in (q_BHTK, k_BHTK, v_BHTV))
        return _sdpa(q_BHTK, k_BHTK, v_BHTV, kernel, dropout, scale)[:, :, :1]
    key, value = q_BHTK.shape[-1], v_BHTV.shape[-1]
    wide_key, wide_value = _padded_widths(key, value, kernel)
    if scale is None and wide_key != key:
        scale = key**-0.5
    backend = _BACKENDS.get(kernel)
    with nullcontext() if backend is None else sdpa_kernel(backend):
        y_BHTV = fused_attention(
            flex.padded(q_BHTK, wide_key),
            flex.padded(k_BHTK, wide_key),
            flex.padded(v_BHTV, wide_value),
            dropout_p=dropout,
            is_causal=True,
            scale=scale,
        )
    return y_BHTV[..., :value]


def fused_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, **settings: Any) -> Tensor:
    """Return `y_BHTV` of torch's scaled_dot_product_attention, whose gradient has its layout."""
    y_BHTV = scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, **settings)
    return _GradientInLayout.apply(y_BHTV) if y_BHTV.requires_grad else y_BHTV


class _GradientInLayout(torch.autograd.Function):
    """The same tensor, whose gradient arrives in the layout of the tensor, copied if need be."""

    @staticmethod
    def forward(y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.stride = inputs[0].stride()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,) = grad_outputs
        if grad.stride() == ctx.stride:
            return grad
        copy = torch.empty_strided(grad.shape, ctx.stride, dtype=grad.dtype, device=grad.device)
        return copy.copy_(grad)


def flops(
    tokens: int,
    key: int,
    value: int,
    kernel: Kernel,
    *,
    products: bool = True,
    sinks: bool = False,
) -> int:
    """Return the FLOPs of one head of key and value width for a sequence.

    Masked pairs are included, except in blocks that `blocked` and `flex` skip. For `auto` they are
    those of the kernel on a CPU without dropout.

    >>> flops(10, 6, 4, "plain"), flops(10, 6, 4, "auto")
    (2000, 2400)
    """
    if kernel == "auto":
        kernel = auto(torch.device("cpu"), 0.0, products=products)
    if sinks and kernel != "flex" and kernel not in _WRITTEN_OUT:
        tokens, key = tokens + 1, key + 1
    pairs = tokens**2
    if kernel == "blocked":
        starts = range(0, tokens, _BLOCK)
        pairs = sum(min(_BLOCK, tokens - at) * min(at + _BLOCK, tokens) for at in starts)
    if kernel == "flex":
        pairs = flex.pairs(tokens, window=tokens)
    widths = (key, value) if kernel in _WRITTEN_OUT else _padded_widths(key, value, kernel)
    return 2 * sum(widths) * pairs


def _padded_widths(key: int, value: int, kernel: Kernel) -> tuple[int, int]:
    """Return the widths of keys and values that torch's kernel computes with."""
    if kernel == "flex":
        return flex.padded_widths(key, value)
    if kernel == "math":
        return key, value
    if kernel in ("efficient", "cudnn"):
        return key + -key % 8, value + -value % 8
    return max(key, value), max(key, value)


def _refusal(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, dropout: float, width: int
) -> str | None:
    """Return why the kernel cannot run, and the remedy; None if it can."""
    if kernel in ("efficient", "cudnn") and device.type != "cuda":
        return f"needs CUDA, and the device is {device.type}: use 'sdpa' or 'auto'"
    if kernel == "flash" and device.type == "cpu" and dropout:
        return (
            f"does not support dropout of attention weights on a CPU, and it is {dropout}: "
            "use 'blocked' or 'auto', or set the dropout to 0"
        )
    if kernel in ("flash", "cudnn") and device.type == "cuda":
        if dtype not in (torch.bfloat16, torch.float16):
            name = str(dtype).removeprefix("torch.")
            return (
                f"computes in bfloat16 or float16 on CUDA, and the dtype is {name}: "
                "use 'efficient' or 'auto', or compute in bfloat16"
            )
        if width > _WIDEST:
            return f"supports heads of up to {_WIDEST}, and one is {width}: use 'efficient'"
    return None


def definition(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    dropout: float = 0.0,
    start: int = 0,
    scores: Scores = UNCHANGED,
) -> Tensor:
    """Return `y_BHTV` by the definition. The first query is at position `start` of the keys."""
    scores_BHTS = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHSK.mT
    tokens, keys = scores_BHTS.shape[-2:]
    row_T = torch.arange(start, start + tokens, device=q_BHTK.device)
    age_TS = row_T[:, None] - torch.arange(keys, device=q_BHTK.device)
    weights_BHTS = scores.weights(scores.changed(scores_BHTS, age_TS), age_TS < 0)
    return drop(weights_BHTS, dropout).to(v_BHSV.dtype) @ v_BHSV
