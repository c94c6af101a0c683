"""The gated delta rule: a matrix memory that decays by a gate and is overwritten along a key.

    S_t = (I - beta_t k_t k_t^T) Diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T      y_t = K^-0.5 q_t S_t

| gate      | shape of g   | used by              | flash-linear-attention's |
|-----------|--------------|----------------------|--------------------------|
| `none`    | None         | DeltaNet             | `chunk_delta_rule`       |
| `head`    | (B, T, H)    | Gated DeltaNet, also | `chunk_gated_delta_rule` |
|           |              | of several writes    |                          |
| `channel` | (B, T, H, K) | Kimi Delta Attention | `chunk_kda`              |

Queries and keys are scaled to length 1 first. The forms are those of
kernels/flash_linear_attention.py.

Within a chunk of C tokens, with G the running sum of g and A the part strictly below the diagonal
of the decayed scores (kernels/chunks.py) of beta k and k, the tokens write U - W S for the memory S
before the chunk, where

    (I + A) [U W] = [beta v, beta exp(G) k]

With R = (exp(G_last - G) k)^T the memory after the chunk is Diag(exp(G_last)) S + R (U - W S),
which is linear in S: only one product per chunk is sequential. beta is in [0, 2]: beyond 1,
I - beta k k^T has the eigenvalue 1 - beta < 0, and no memory grows, since |1 - beta| <= 1.

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464); Yang et al. 2024 (arXiv:2406.06484); Kimi Team
2025 (arXiv:2510.26692).
Shapes: B batch, T tokens, H heads, K key width, V value width, G decays per head: 1 or K;
N chunks, C tokens per chunk, Z = B H, F = V + K.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.chunks import (
    LinearScan,
    begin,
    chunk_length,
    decayed_scores,
    decays,
    join,
    score_flops,
    split,
    wide,
)
from attnlab.kernels.compiled import opaque
from attnlab.kernels.flash_linear_attention import Form, Gate, Kernel, form_that_runs, gate_of
from attnlab.kernels.norms import rms_norm

_FUNCTIONS: dict[Gate, str] = {
    "none": "chunk_delta_rule",
    "head": "chunk_gated_delta_rule",
    "channel": "chunk_kda",
}


def resolve(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int, gate: Gate = "head"
) -> Form:
    """Return the form that runs, by the rule of kernels/flash_linear_attention.py.

    Raises:
        ValueError: `fla` was named and cannot run on this device; the message says why.
    """
    return form_that_runs(kernel, device, dtype, key_width, _FUNCTIONS[gate])


def gated_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTH: Tensor,
    kernel: Kernel,
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV`, and `memory_BHKV` after the last token; it starts at zero.

    Args:
        q_BTHK: queries of any length; they are scaled to length 1.
        k_BTHK: keys of any length; they are scaled to length 1.
        v_BTHV: values.
        g_BTH: log decays by head, by channel (B, T, H, K), or None for no decay.
        beta_BTH: strength of each write, in [0, 2].
        kernel: the form, or `auto`.

    Raises:
        ValueError: `fla` was named and cannot run on this device; the message says why.
    """
    gate = gate_of(g_BTH, k_BTHK)
    chosen = resolve(kernel, v_BTHV.device, v_BTHV.dtype, k_BTHK.shape[-1], gate)
    if chosen == "fla":
        return _through_fla(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH)
    run = {"recurrent": recurrent, "chunked": chunked}[chosen]
    return run(unit(q_BTHK), unit(k_BTHK), v_BTHV, g_BTH, beta_BTH)


def unit(x_HK: Tensor) -> Tensor:
    """Return x / sqrt(|x|^2 + 1e-6) over the last dimension, by the RMS norm: one kernel."""
    width = x_HK.shape[-1]
    return rms_norm(x_HK, None, 1e-6 / width) * width**-0.5


def recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV` and the last `memory_BHKV` by the definition, from a memory or from zero.

    Queries and keys must have length 1.
    """
    with torch.autocast(v_BTHV.device.type, enabled=False):
        g_BTHG = _decays(g_BTH, k_BTHK)
        q, k, v, g, beta = wide(q_BTHK, k_BTHK, v_BTHV, g_BTHG, beta_BTH)
        width = k.shape[-1]
        memory_BHKV = begin(memory_BHKV, k, v)
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        outputs: list[Tensor] = []
        for t in range(k.shape[1]):
            k_BHK1, v_BH1V = k[:, t, :, :, None], v[:, t, :, None]
            beta_BH11 = beta[:, t, :, None, None]
            keep_BHKK = g[:, t, :, None].exp() * (eye_KK - beta_BH11 * k_BHK1 * k_BHK1.mT)
            memory_BHKV = keep_BHKK @ memory_BHKV + beta_BH11 * k_BHK1 * v_BH1V
            outputs.append((q[:, t, :, None] * width**-0.5 @ memory_BHKV)[:, :, 0])
        return torch.stack(outputs, 1), memory_BHKV


def chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `recurrent`, computed in chunks, for any T >= 1.

    C is a power of two: 32 on a CPU, 64 elsewhere. The result is differentiable once. No operation
    waits for the device, so it can be recorded in a CUDA graph.
    """
    with torch.autocast(v_BTHV.device.type, enabled=False):
        g_BTHG = _decays(g_BTH, k_BTHK)
        q, k, v, g, beta = wide(q_BTHK, k_BTHK, v_BTHV, g_BTHG, beta_BTH)
        batch, tokens, heads, width = k.shape
        memory_ZKV = begin(memory_BHKV, k, v).flatten(0, 1)
        chunk = chunk or chunk_length(tokens, k.device)
        q_NZCK, k_NZCK, v_NZCV, g_NZCG = (split(x, chunk) for x in (q, k, v, g))
        beta_NZC1 = split(beta[..., None], chunk)

        total_NZCG = g_NZCG.cumsum(-2)
        decay_NZCG, last_NZ1G = total_NZCG.exp(), total_NZCG[..., -1:, :]
        written_NZCK = k_NZCK * beta_NZC1
        A_NZCC, scores_NZCC = decayed_scores(total_NZCG, k_NZCK, written_NZCK, q_NZCK)
        wanted_NZCF = torch.cat([v_NZCV * beta_NZC1, written_NZCK * decay_NZCG], -1)
        UW_NZCF: Any = UnitLowerSolve.apply(A_NZCC, wanted_NZCF)

        carried_NZKC = (k_NZCK * (last_NZ1G - total_NZCG).exp()).mT
        RU_NZKV, RW_NZKK = (carried_NZKC @ UW_NZCF).split([v.shape[-1], width], -1)
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        keep_NZKK = eye_KK * decay_NZCG[..., -1:, :] - RW_NZKK
        memory_NZKV, last_ZKV = LinearScan.apply(keep_NZKK, RU_NZKV, memory_ZKV)  # pyright: ignore[reportGeneralTypeIssues]

        U_NZCV, W_NZCK = UW_NZCF.split([v.shape[-1], width], -1)
        fresh_NZCV = U_NZCV - W_NZCK @ memory_NZKV
        y_NZCV = (q_NZCK * decay_NZCG) @ memory_NZKV + scores_NZCC @ fresh_NZCV
        y_BTHV = join(y_NZCV, batch, tokens) * width**-0.5
        return y_BTHV, last_ZKV.unflatten(0, (batch, heads))


@opaque
def _through_fla(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor | None, beta_BTH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV` in the dtype of `v`, and the memory in float32.

    The kernels scale queries and keys to length 1 themselves.
    """
    run = fla.function(_FUNCTIONS[gate_of(g_BTH, k_BTHK)])
    q, k = q_BTHK.to(v_BTHV.dtype), k_BTHK.to(v_BTHV.dtype)
    gate = {} if g_BTH is None else {"g": g_BTH}
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return run(q=q, k=k, v=v_BTHV, beta=beta_BTH, **gate, **options)


def flops(tokens: int, key_width: int, value_width: int, gate: Gate, kernel: Kernel) -> int:
    """Return the FLOPs of one head for a sequence: those of `chunked` on a CPU, or `recurrent`.

    `auto` and `fla` count as `chunked`. FLOPs are 2 per multiply-add of matrix products.
    """
    memory = key_width * value_width
    if kernel == "recurrent":
        return 2 * tokens * (key_width * memory + memory)  # keep, read
    chunk, widths = chunk_length(tokens, torch.device("cpu")), key_width + value_width
    of_chunk = 2 * score_flops(chunk, key_width, gate)
    of_chunk += 2 * chunk * max(0, (chunk**2 - 1) // 3 - 1)  # the inverse, from blocks of 2 on
    of_chunk += 2 * (chunk + key_width) * chunk * widths  # U and W, then R U and R W
    of_chunk += 2 * key_width * memory  # the scan
    of_chunk += 2 * chunk * (2 * memory + chunk * value_width)  # W S, then the output
    return -(-tokens // chunk) * of_chunk


def step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor | None,
    beta_BH: Tensor,
    memory_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return `y_BHV` of one token and the memory after it. 6 K V FLOPs per head.

    Queries and keys must have length 1.
    """
    memory_BHKV = write(k_BHK, v_BHV, g_BH, beta_BH, memory_BHKV)
    return read(q_BHK, memory_BHKV), memory_BHKV


def write(
    k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor | None, beta_BH: Tensor, memory_BHKV: Tensor
) -> Tensor:
    """Return the memory after one write: decay, recall by key, correct. 4 K V FLOPs per head."""
    with torch.autocast(v_BHV.device.type, enabled=False):
        g_BHG = _decays(g_BH, k_BHK)
        k, v, g, beta, memory_BHKV = wide(k_BHK, v_BHV, g_BHG, beta_BH, memory_BHKV)
        k_BH1K, v_BH1V = k[:, :, None], v[:, :, None]
        memory_BHKV = memory_BHKV * g[..., None].exp()
        fresh_BH1V = beta[..., None, None] * (v_BH1V - k_BH1K @ memory_BHKV)
        return memory_BHKV + k_BH1K.mT @ fresh_BH1V


def read(q_BHK: Tensor, memory_BHKV: Tensor) -> Tensor:
    """Return `y_BHV` of a query. 2 K V FLOPs per head."""
    with torch.autocast(q_BHK.device.type, enabled=False):
        q, memory_BHKV = wide(q_BHK, memory_BHKV)
        return (q[:, :, None] * q.shape[-1] ** -0.5 @ memory_BHKV)[:, :, 0]


class UnitLowerSolve(torch.autograd.Function):
    """Solve (I + A) x = b, where only the part of A below the diagonal counts.

    Shapes: A (..., C, C), b and x (..., C, F). The inverse is built from the diagonal: for two
    neighbouring blocks L and M it is

        [ L  . ]^-1   [ L^-1             .    ]
        [ A  M ]    = [ -M^-1 A L^-1     M^-1 ]

    which takes log2 C rounds of batched products of numbers that are at most beta where keys have
    length 1, g <= 0 and 0 <= beta <= 2. The product (I - A)(I + A^2)(I + A^4)... is as short but
    unusable: its powers grow like binomial coefficients, and for 64 nearly equal keys its error in
    float32 is 1e11, compared to 3e-7 here.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor) -> Tensor:
        inverse = _unit_lower_inverse(A)
        x = inverse @ b
        ctx.save_for_backward(inverse, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inverse, x = ctx.saved_tensors
        grad_b = inverse.mT @ grads[0]
        return -(grad_b @ x.mT).tril(-1), grad_b


def _unit_lower_inverse(A: Tensor) -> Tensor:
    """Return (I + A)^-1 of the part of A (..., C, C) below its diagonal; C a power of two."""
    C, size = A.shape[-1], 1
    inverse = torch.eye(C, device=A.device, dtype=A.dtype).expand_as(A).clone()
    while size < C:
        pairs, below = _diagonal_blocks(inverse, 2 * size), _diagonal_blocks(A, 2 * size)
        corner = below[..., size:, :size]
        if size > 1:
            corner = pairs[..., size:, size:] @ (corner @ pairs[..., :size, :size])
        pairs[..., size:, :size].sub_(corner)
        size *= 2
    return inverse


def _diagonal_blocks(x: Tensor, size: int) -> Tensor:
    """Return a view (..., C / size, size, size) of the diagonal blocks of x (..., C, C)."""
    tiles = x.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _decays(g_H: Tensor | None, k_HK: Tensor) -> Tensor:
    """Return g as (..., H, G), with zeros where nothing decays."""
    return k_HK.new_zeros(*k_HK.shape[:-1], 1) if g_H is None else decays(g_H, k_HK)
