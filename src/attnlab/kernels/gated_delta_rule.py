"""The gated delta rule: a matrix memory that forgets by a scalar and overwrites along a key.

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T        y_t = K^-0.5 q_t S_t

| kernel      | what it is                                                         | where    |
|-------------|--------------------------------------------------------------------|----------|
| `recurrent` | the definition, token by token                                     | anywhere |
| `chunked`   | matrix products within chunks of tokens, one product between them  | anywhere |
| `fla`       | flash-linear-attention's chunk_gated_delta_rule, dtype of `v`      | CUDA     |

`auto` is `fla` where it can run (CUDA, and what kernels/fla.py asks for) on bfloat16 or float16
with heads of at most 256, and `chunked` everywhere else. The first two compute in float32, or
float64 if that is given, also under autocast.

Within a chunk of C tokens, with G the running sum of g, E_cs = exp(G_c - G_s) for s <= c and 0
elsewhere, and A the part of (beta k k^T) * E strictly below the diagonal, what the tokens write is
U - W S for the memory S before the chunk, where

    (I + A) [U W] = [beta v, beta exp(G) k]

With R = (E_last k)^T the memory after the chunk is exp(G_last) S + R (U - W S), so linear in S: one
product a chunk is all that is sequential. Keys are meant to be of length 1 and beta in [0, 1].

Yang, Kautz, Hatamizadeh 2024 (arXiv:2412.06464); Yang et al. 2024 (arXiv:2406.06484).
Shapes: B batch, T tokens, H heads, K key width, V value width; N chunks, C tokens of a chunk,
Z = B H, F = V + K.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from attnlab.kernels import fla as flash

Kernel = Literal["auto", "recurrent", "chunked", "fla"]


def resolve(kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int) -> Kernel:
    """The kernel that runs: `auto` by the rule above, any other as named.

    Raises:
        ValueError: `fla` was named and cannot run on this device; says why.
    """
    if kernel == "auto":
        fits = dtype in (torch.bfloat16, torch.float16) and key_width <= 256
        return "fla" if fits and flash.unusable_because(device.type) is None else "chunked"
    if kernel == "fla" and (reason := flash.unusable_because(device.type)):
        raise ValueError(f"kernel 'fla' cannot run here: {reason}. 'chunked' runs anywhere")
    return kernel


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """`y_BTHV` and the memory after the last token, `memory_BHKV`, which begins as zeros."""
    chosen = resolve(kernel, v_BTHV.device, v_BTHV.dtype, k_BTHK.shape[-1])
    run = {"recurrent": recurrent, "chunked": chunked, "fla": fla}[chosen]
    return run(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH)


def recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, from a memory or from zeros. Returns `y_BTHV` and the last `memory_BHKV`."""
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g, beta = _wide(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH)
        width = k.shape[-1]
        memory_BHKV = _begin(memory_BHKV, k, v)
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        outputs: list[Tensor] = []
        for t in range(k.shape[1]):
            k_BHK1, v_BH1V = k[:, t, :, :, None], v[:, t, :, None]
            beta_BH11 = beta[:, t, :, None, None]
            keep_BHKK = g[:, t, :, None, None].exp() * (eye_KK - beta_BH11 * k_BHK1 * k_BHK1.mT)
            memory_BHKV = keep_BHKK @ memory_BHKV + beta_BH11 * k_BHK1 * v_BH1V
            outputs.append((q[:, t, :, None] * width**-0.5 @ memory_BHKV)[:, :, 0])
        return torch.stack(outputs, 1), memory_BHKV


def chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in chunks, for any T >= 1. C is a power of two: 32 on a CPU, 64 elsewhere.

    Differentiable once. Nothing in it waits for the device, so it can be recorded in a CUDA graph.
    """
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g, beta = _wide(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH)
        batch, tokens, heads, width = k.shape
        memory_ZKV = _begin(memory_BHKV, k, v).flatten(0, 1)
        chunk = chunk or (32 if k.device.type == "cpu" else 64)
        chunk = min(chunk, 1 << (tokens - 1).bit_length())
        q_NZCK, k_NZCK, v_NZCV = (_split(x, chunk) for x in (q, k, v))
        g_NZC1, beta_NZC1 = (_split(x[..., None], chunk) for x in (g, beta))

        total_NZC1 = g_NZC1.cumsum(-2)
        later_CC = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
        # masked before exp: exp(G_c - G_s) overflows for s > c, and inf * 0 is no gradient
        E_NZCC = (total_NZC1 - total_NZC1.mT).masked_fill(later_CC, -torch.inf).exp()
        decay_NZC1 = total_NZC1.exp()

        written_NZCK = k_NZCK * beta_NZC1
        A_NZCC = (written_NZCK @ k_NZCK.mT) * E_NZCC
        wanted_NZCF = torch.cat([v_NZCV * beta_NZC1, written_NZCK * decay_NZC1], -1)
        UW_NZCF: Any = _UnitLowerSolve.apply(A_NZCC, wanted_NZCF)

        carried_NZKC = (k_NZCK * E_NZCC[..., -1:, :].mT).mT
        RU_NZKV, RW_NZKK = (carried_NZKC @ UW_NZCF).split([v.shape[-1], width], -1)
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        keep_NZKK = eye_KK * decay_NZC1[..., -1:, :] - RW_NZKK
        memory_NZKV, last_ZKV = _LinearScan.apply(keep_NZKK, RU_NZKV, memory_ZKV)  # pyright: ignore[reportGeneralTypeIssues]

        U_NZCV, W_NZCK = UW_NZCF.split([v.shape[-1], width], -1)
        fresh_NZCV = U_NZCV - W_NZCK @ memory_NZKV
        scores_NZCC = (q_NZCK @ k_NZCK.mT) * E_NZCC
        y_NZCV = (q_NZCK * decay_NZC1) @ memory_NZKV + scores_NZCC @ fresh_NZCV
        y_BTHV = y_NZCV.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
        return y_BTHV[:, :tokens] * width**-0.5, last_ZKV.unflatten(0, (batch, heads))


def fla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """flash-linear-attention's kernels. `y_BTHV` has the dtype of `v`, the memory is float32."""
    run = flash.chunk_gated_delta_rule()
    q, k = q_BTHK.to(v_BTHV.dtype), k_BTHK.to(v_BTHV.dtype)
    return run(q, k, v_BTHV, g_BTH, beta_BTH, initial_state=memory_BHKV, output_final_state=True)


def step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, beta_BH: Tensor, memory_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: `y_BHV` and the memory after it. 6 K V FLOPs a head: read, write, read."""
    with torch.autocast(v_BHV.device.type, enabled=False):
        q, k, v, g, beta, memory_BHKV = _wide(q_BHK, k_BHK, v_BHV, g_BH, beta_BH, memory_BHKV)
        q_BH1K, k_BH1K, v_BH1V = q[:, :, None], k[:, :, None], v[:, :, None]
        memory_BHKV = memory_BHKV * g[..., None, None].exp()
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


def _split(x_BTHX: Tensor, chunk: int) -> Tensor:
    """(B, T, H, X) into (N, Z, C, X). Zeros are appended: they neither forget nor write."""
    batch, tokens, heads, width = x_BTHX.shape
    missing = -tokens % chunk
    padded = pad(x_BTHX, (0, 0, 0, 0, 0, missing)) if missing else x_BTHX
    x_BNCHX = padded.unflatten(1, (-1, chunk))
    return x_BNCHX.permute(1, 0, 3, 2, 4).reshape(-1, batch * heads, chunk, width)


def _begin(memory_BHKV: Tensor | None, k_BTHK: Tensor, v_BTHV: Tensor) -> Tensor:
    batch, _, heads, width = k_BTHK.shape
    if memory_BHKV is None:
        return k_BTHK.new_zeros(batch, heads, width, v_BTHV.shape[-1])
    return memory_BHKV.to(k_BTHK.dtype)


def _wide(*tensors: Tensor) -> list[Tensor]:
    """All in one dtype: float32, or float64 where one of them is."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return [x.to(torch.float64 if double else torch.float32) for x in tensors]
