"""The gated delta rule: a matrix memory that forgets by a gate and overwrites along a key.

    S_t = (I - beta_t k_t k_t^T) Diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T      y_t = K^-0.5 q_t S_t

| gate      | g            | of                   | flash-linear-attention's |
|-----------|--------------|----------------------|--------------------------|
| `none`    | None         | DeltaNet             | `chunk_delta_rule`       |
| `head`    | (B, T, H)    | Gated DeltaNet       | `chunk_gated_delta_rule` |
| `channel` | (B, T, H, K) | Kimi Delta Attention | `chunk_kda`              |

It has the three forms of kernels/forms.py.

Within a chunk of C tokens, with G the running sum of g and A the part strictly below the diagonal
of the decayed scores (kernels/chunks.py) of beta k and k, what the tokens write is U - W S for the
memory S before the chunk, where

    (I + A) [U W] = [beta v, beta exp(G) k]

With R = (exp(G_last - G) k)^T the memory after the chunk is Diag(exp(G_last)) S + R (U - W S), so
linear in S: one product a chunk is all that is sequential. Keys are meant to be of length 1 and
beta in [0, 1].

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464); Yang et al. 2024 (arXiv:2406.06484); Kimi Team
2025 (arXiv:2510.26692).
Shapes: B batch, T tokens, H heads, K key width, V value width, G decays of a head: 1 or K;
N chunks, C tokens of a chunk, Z = B H, F = V + K.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

from attnlab.kernels import flash_linear_attention as flash
from attnlab.kernels.chunks import begin, chunk_length, decayed_scores, decays, join, split, wide
from attnlab.kernels.compiled import opaque
from attnlab.kernels.forms import Form, Gate, Kernel, form_that_runs, gate_of

_FUNCTIONS: dict[Gate, str] = {
    "none": "chunk_delta_rule",
    "head": "chunk_gated_delta_rule",
    "channel": "chunk_kda",
}


def resolve(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int, gate: Gate = "head"
) -> Form:
    """The form that runs, by the rule of kernels/forms.py.

    Raises:
        ValueError: `fla` was named and cannot run on this device; says why.
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
    """`y_BTHV` and the memory after the last token, `memory_BHKV`, which begins as zeros.

    Queries and keys are made of length 1 before.
    """
    gate = gate_of(g_BTH, k_BTHK)
    chosen = resolve(kernel, v_BTHV.device, v_BTHV.dtype, k_BTHK.shape[-1], gate)
    if chosen == "fla":
        return fla(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, make_unit=True)
    run = {"recurrent": recurrent, "chunked": chunked}[chosen]
    return run(unit(q_BTHK), unit(k_BTHK), v_BTHV, g_BTH, beta_BTH)


def unit(x_HK: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last dimension, through the RMS norm, which is one kernel."""
    width = x_HK.shape[-1]
    return rms_norm(x_HK, (width,), eps=1e-6 / width) * width**-0.5


def recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, from a memory or from zeros. Returns `y_BTHV` and the last `memory_BHKV`."""
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
    """The same in chunks, for any T >= 1. C is a power of two: 32 on a CPU, 64 elsewhere.

    Differentiable once. Nothing in it waits for the device, so it can be recorded in a CUDA graph.
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
        UW_NZCF: Any = _UnitLowerSolve.apply(A_NZCC, wanted_NZCF)

        carried_NZKC = (k_NZCK * (last_NZ1G - total_NZCG).exp()).mT
        RU_NZKV, RW_NZKK = (carried_NZKC @ UW_NZCF).split([v.shape[-1], width], -1)
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        keep_NZKK = eye_KK * decay_NZCG[..., -1:, :] - RW_NZKK
        memory_NZKV, last_ZKV = _LinearScan.apply(keep_NZKK, RU_NZKV, memory_ZKV)  # pyright: ignore[reportGeneralTypeIssues]

        U_NZCV, W_NZCK = UW_NZCF.split([v.shape[-1], width], -1)
        fresh_NZCV = U_NZCV - W_NZCK @ memory_NZKV
        y_NZCV = (q_NZCK * decay_NZCG) @ memory_NZKV + scores_NZCC @ fresh_NZCV
        y_BTHV = join(y_NZCV, batch, tokens) * width**-0.5
        return y_BTHV, last_ZKV.unflatten(0, (batch, heads))


@opaque
def fla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor | None,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
    *,
    make_unit: bool = False,
) -> tuple[Tensor, Tensor]:
    """flash-linear-attention's kernels. `y_BTHV` has the dtype of `v`, the memory is float32.

    With `make_unit` they also do what `unit` does to queries and keys.
    """
    run = flash.function(_FUNCTIONS[gate_of(g_BTH, k_BTHK)])
    q, k = q_BTHK.to(v_BTHV.dtype), k_BTHK.to(v_BTHV.dtype)
    gate = {} if g_BTH is None else {"g": g_BTH}
    start = {"initial_state": memory_BHKV, "output_final_state": True}
    of_keys = {"use_qk_l2norm_in_kernel": make_unit}
    return run(q=q, k=k, v=v_BTHV, beta=beta_BTH, **gate, **start, **of_keys)


def step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BH: Tensor | None,
    beta_BH: Tensor,
    memory_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token: `y_BHV` and the memory after it. 6 K V FLOPs a head: read, write, read."""
    with torch.autocast(v_BHV.device.type, enabled=False):
        g_BHG = _decays(g_BH, k_BHK)
        q, k, v, g, beta, memory_BHKV = wide(q_BHK, k_BHK, v_BHV, g_BHG, beta_BH, memory_BHKV)
        q_BH1K, k_BH1K, v_BH1V = q[:, :, None], k[:, :, None], v[:, :, None]
        memory_BHKV = memory_BHKV * g[..., None].exp()
        fresh_BH1V = beta[..., None, None] * (v_BH1V - k_BH1K @ memory_BHKV)
        memory_BHKV = memory_BHKV + k_BH1K.mT @ fresh_BH1V
        return (q_BH1K * k.shape[-1] ** -0.5 @ memory_BHKV)[:, :, 0], memory_BHKV


class _UnitLowerSolve(torch.autograd.Function):
    """x of (I + A) x = b, of A only what is below its diagonal. A (..., C, C), b (..., C, F).

    The inverse grows from the diagonal: of two neighbouring blocks L and M it is

        [ L  . ]^-1   [ L^-1             .    ]
        [ A  M ]    = [ -M^-1 A L^-1     M^-1 ]

    so log2 C rounds of batched products, on numbers of at most 1 where keys have length 1, g <= 0
    and 0 <= beta <= 1. The product (I - A)(I + A^2)(I + A^4)... is as short and cannot be used: its
    powers grow as binomial coefficients, and for 64 nearly equal keys its error in float32 is 1e11
    where this one's is 3e-7.
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
    """(I + A)^-1 of the part of A (..., C, C) below its diagonal; C a power of two."""
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
    """A view (..., C / size, size, size) of the blocks along the diagonal of x (..., C, C)."""
    tiles = x.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


class _LinearScan(torch.autograd.Function):
    """S_{n+1} = M_n S_n + R_n. M (N, Z, K, K), R (N, Z, K, V), S_0 (Z, K, V).

    Returns S_0 to S_{N-1} in one tensor, and S_N. One product a chunk, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, M: Tensor, R: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        chunks = len(M)
        states = S.new_empty(chunks + 1, *S.shape)
        states[0] = S
        for n in range(chunks):
            torch.baddbmm(R[n], M[n], states[n], out=states[n + 1])
        ctx.save_for_backward(M, states)
        return states[:-1], states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        M, states = ctx.saved_tensors
        read, last = grads
        grad = torch.empty_like(states)
        grad[-1] = last
        for n in reversed(range(len(M))):
            torch.baddbmm(read[n], M[n].mT, grad[n + 1], out=grad[n])
        return grad[1:] @ states[:-1].mT, grad[1:], grad[0]


def _decays(g_H: Tensor | None, k_HK: Tensor) -> Tensor:
    """g as (..., H, G); zeros where nothing decays."""
    return k_HK.new_zeros(*k_HK.shape[:-1], 1) if g_H is None else decays(g_H, k_HK)
