"""Parts of the chunked form of recurrences with a matrix memory.

A log decay g is given per head or per channel of the keys; G is its running sum within a chunk.
Token c of a chunk reads what token s wrote with the decayed score

    scores_cs = sum_k a_ck exp(G_ck - G_sk) b_sk    for s <= c, and 0 elsewhere

An implementation must compute no positive exponent, which would overflow. With one decay per head,
exp(G_c - G_s) is a matrix of its own. With one per channel the tokens are halved repeatedly: tokens
of a second half read those of the first across the boundary r between them, and both exp(G_c - G_r)
and exp(G_r - G_s) are at most 1. This takes log2 C rounds of batched products and no tensor of size
C x C x K. Exponents are differences of running sums, so scores have a relative error of at most
about |G| times the dtype's rounding.

Yang et al. 2023 (arXiv:2312.06635) divide chunks into blocks of one size for the same reason.
Shapes: B batch, T tokens, H heads, K key width, V value width, G decays per head: 1 or K;
N chunks, C tokens per chunk, Z = B H, X any width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


def chunk_length(tokens: int, device: torch.device) -> int:
    """Return the least power of two >= `tokens`, but at most 32 on a CPU and 64 elsewhere."""
    return min(32 if device.type == "cpu" else 64, 1 << (tokens - 1).bit_length())


def split(x_BTHX: Tensor, chunk: int) -> Tensor:
    """Return `x_NZCX`. Zeros are appended to the last chunk; they neither decay nor write."""
    batch, tokens, heads, width = x_BTHX.shape
    missing = -tokens % chunk
    padded = pad(x_BTHX, (0, 0, 0, 0, 0, missing)) if missing else x_BTHX
    x_BNCHX = padded.unflatten(1, (-1, chunk))
    return x_BNCHX.permute(1, 0, 3, 2, 4).reshape(-1, batch * heads, chunk, width)


def join(x_NZCX: Tensor, batch: int, tokens: int) -> Tensor:
    """Return `x_BTHX`, the inverse of `split`."""
    x_NBHCX = x_NZCX.unflatten(1, (batch, -1))
    return x_NBHCX.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]


def begin(memory_BHKV: Tensor | None, k_BTHK: Tensor, v_BTHV: Tensor) -> Tensor:
    """Return the memory before the first token in the dtype of k, zeros where it is None."""
    batch, _, heads, width = k_BTHK.shape
    if memory_BHKV is None:
        return k_BTHK.new_zeros(batch, heads, width, v_BTHV.shape[-1])
    return memory_BHKV.to(k_BTHK.dtype)


def wide(*tensors: Tensor) -> list[Tensor]:
    """Return all tensors in float32, or in float64 if one of them is float64."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return [x.to(torch.float64 if double else torch.float32) for x in tensors]


def decays(g: Tensor, k_HK: Tensor) -> Tensor:
    """Return g (..., H), per head, or (..., H, K), per channel, as (..., H, G)."""
    return g if g.ndim == k_HK.ndim else g[..., None]


def decayed_scores(total_NZCG: Tensor, b_NZCK: Tensor, *a_NZCK: Tensor) -> list[Tensor]:
    """Return `scores_NZCC` as above for each a. `total` is the running sum G; C is a power of 2."""
    if total_NZCG.shape[-1] > 1:
        return list(_by_halves(torch.stack(a_NZCK), b_NZCK, total_NZCG).unbind())
    chunk = b_NZCK.shape[-2]
    causal_CC = b_NZCK.new_ones(chunk, chunk).tril()
    # masked before exp, which overflows for s > c, and again after it: on a CPU, products take a
    # sixth of the time of a masked fill with -inf and of its exp
    decay_NZCC = ((total_NZCG - total_NZCG.mT) * causal_CC).exp() * causal_CC
    return [(a @ b_NZCK.mT) * decay_NZCC for a in a_NZCK]


def score_flops(chunk: int, key_width: int, gate: str) -> int:
    """Return the FLOPs of `decayed_scores` of one chunk, head and a; `gate` as of the kernels.

    >>> score_flops(4, 8, "head"), score_flops(4, 8, "channel")
    (256, 96)
    """
    return (chunk * (chunk - 1) if gate == "channel" else 2 * chunk**2) * key_width


def _by_halves(a_ANZCK: Tensor, b_NZCK: Tensor, total_NZCK: Tensor) -> Tensor:
    """Return `scores_ANZCC` for A tensors a, built up from blocks of one token on the diagonal."""
    size = 1
    blocks = (a_ANZCK * b_NZCK).sum(-1)[..., None, None]  # (A, N, Z, C / size, size, size)
    while size < b_NZCK.shape[-2]:
        a, b, total = (x.unflatten(-2, (-1, 2, size)) for x in (a_ANZCK, b_NZCK, total_NZCK))
        written, reading = total.unbind(-3)
        boundary = written[..., -1:, :]
        a_late = a[..., 1, :, :] * (reading - boundary).exp()
        b_early = b[..., 0, :, :] * (boundary - written).exp()
        early, late = blocks.unflatten(-3, (-1, 2)).unbind(-3)
        rows = [early, torch.zeros_like(early)], [a_late @ b_early.mT, late]
        blocks = torch.cat([torch.cat(row, -1) for row in rows], -2)
        size *= 2
    return blocks.squeeze(-3)


class LinearScan(torch.autograd.Function):
    """Compute S_{n+1} = M_n S_n + R_n. M (N, Z, K, K), R (N, Z, K, V), S_0 (Z, K, V).

    Returns S_0 to S_{N-1} in one tensor, and S_N. One product per chunk, forward and backward.
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
