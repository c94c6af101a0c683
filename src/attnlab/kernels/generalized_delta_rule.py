"""The generalized delta rule: a memory that decays by channel and is corrected along a direction.

    S_t = Diag(exp(g_t)) S_{t-1} - b_t (c_t^T S_{t-1}) + k_t v_t^T        y_t = q_t S_t

c_t is what is read before the decay, and b_t where that is subtracted: what is removed and what is
written need not be the same, as they are in the delta rule. c has length 1, b = a c with a in
[0, 1] per channel, and -1 <= g <= 0, so that no memory grows.

| form        | implementation                                                          |
|-------------|-------------------------------------------------------------------------|
| `recurrent` | the definition, token by token                                          |
| `chunked`   | matrix products within chunks of tokens, one step between chunks        |

Within a chunk of C tokens let G be the running sum of g, and S the memory before the chunk. Token t
removes u_t = c_t^T S_{t-1}. With A, E, P and R the decayed scores (kernels/chunks.py) of c exp(-g)
with b and k, strictly before the token, and of q with b and k, up to it,

    (I + A) u = (c exp(G - g)) S + E v        y = (q exp(G)) S - P u + R v

so that the memory after the chunk is linear in S. exp(-g) is at most e.

Peng et al. 2025 (arXiv:2503.14456).
Shapes: B batch, T tokens, H heads, K key width, V value width; N chunks, C tokens per chunk,
Z = B H, F = V + K.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from attnlab.kernels.chunks import (
    LinearScan,
    begin,
    chunk_length,
    decayed_scores,
    join,
    score_flops,
    split,
    wide,
)
from attnlab.kernels.gated_delta_rule import UnitLowerSolve

Form = Literal["recurrent", "chunked"]


def generalized_delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    b_BTHK: Tensor,
    c_BTHK: Tensor,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV`, and `memory_BHKV` after the last token; it starts at zero.

    They are float32, or float64 where an input is.
    """
    run = {"recurrent": recurrent, "chunked": chunked}[form]
    return run(q_BTHK, k_BTHK, v_BTHV, g_BTHK, b_BTHK, c_BTHK)


def recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    b_BTHK: Tensor,
    c_BTHK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV` and the last `memory_BHKV` by the definition, token by token."""
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g, b, c = wide(q_BTHK, k_BTHK, v_BTHV, g_BTHK, b_BTHK, c_BTHK)
        memory_BHKV = begin(None, k, v)
        outputs: list[Tensor] = []
        for t in range(k.shape[1]):
            token = q[:, t], k[:, t], v[:, t], g[:, t], b[:, t], c[:, t]
            y_BHV, memory_BHKV = step(*token, memory_BHKV)
            outputs.append(y_BHV)
        return torch.stack(outputs, 1), memory_BHKV


def chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    b_BTHK: Tensor,
    c_BTHK: Tensor,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `recurrent`, computed in chunks, for any T >= 1.

    C is a power of two: 32 on a CPU, 64 elsewhere. The result is differentiable once.
    """
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g, b, c = wide(q_BTHK, k_BTHK, v_BTHV, g_BTHK, b_BTHK, c_BTHK)
        batch, tokens, heads, width = k.shape
        chunk = chunk or chunk_length(tokens, k.device)
        q_NZCK, k_NZCK, v_NZCV, g_NZCK, b_NZCK, c_NZCK = (
            split(x, chunk) for x in (q, k, v, g, b, c * (-g).exp())
        )
        total_NZCK = g_NZCK.cumsum(-2)
        decay_NZCK, last_NZ1K = total_NZCK.exp(), total_NZCK[..., -1:, :]
        A_NZCC, P_NZCC = decayed_scores(total_NZCK, b_NZCK, c_NZCK, q_NZCK)
        E_NZCC, R_NZCC = decayed_scores(total_NZCK, k_NZCK, c_NZCK, q_NZCK)
        wanted_NZCF = torch.cat([E_NZCC.tril(-1) @ v_NZCV, c_NZCK * decay_NZCK], -1)
        removed: Any = UnitLowerSolve.apply(A_NZCC, wanted_NZCF)
        U_NZCV, W_NZCK = removed.split([v.shape[-1], width], -1)

        carry_NZCK = (last_NZ1K - total_NZCK).exp()
        b_NZKC, k_NZKC = (b_NZCK * carry_NZCK).mT, (k_NZCK * carry_NZCK).mT
        eye_KK = torch.eye(width, device=k.device, dtype=k.dtype)
        keep_NZKK = eye_KK * decay_NZCK[..., -1:, :] - b_NZKC @ W_NZCK
        written_NZKV = k_NZKC @ v_NZCV - b_NZKC @ U_NZCV
        memory_ZKV = begin(None, k, v).flatten(0, 1)
        memory_NZKV, last_ZKV = LinearScan.apply(keep_NZKK, written_NZKV, memory_ZKV)  # pyright: ignore[reportGeneralTypeIssues]

        u_NZCV = U_NZCV + W_NZCK @ memory_NZKV
        y_NZCV = (q_NZCK * decay_NZCK) @ memory_NZKV - P_NZCC @ u_NZCV + R_NZCC @ v_NZCV
        return join(y_NZCV, batch, tokens), last_ZKV.unflatten(0, (batch, heads))


def flops(tokens: int, key_width: int, value_width: int, form: Form) -> int:
    """Return the FLOPs of one head for a sequence: those of `chunked` on a CPU, or `recurrent`."""
    memory, widths = key_width * value_width, key_width + value_width
    if form == "recurrent":
        return 3 * 2 * tokens * memory  # what is removed, where, and what is read; see `step`
    chunk = chunk_length(tokens, torch.device("cpu"))
    of_chunk = 4 * score_flops(chunk, key_width, "channel")
    of_chunk += 2 * chunk * max(0, (chunk**2 - 1) // 3 - 1)  # the inverse, from blocks of 2 on
    of_chunk += 2 * chunk**2 * (widths + value_width)  # the solution, and E v
    of_chunk += 2 * chunk * key_width * (widths + value_width)  # keep, written
    of_chunk += 2 * key_width * memory  # the scan
    of_chunk += 2 * chunk * (2 * memory + 2 * chunk * value_width)  # u and y
    return -(-tokens // chunk) * of_chunk


def step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BHK: Tensor,
    b_BHK: Tensor,
    c_BHK: Tensor,
    memory_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return `y_BHV` of one token and the memory after it. 6 K V FLOPs per head."""
    with torch.autocast(v_BHV.device.type, enabled=False):
        q, k, v, g, b, c, memory_BHKV = wide(q_BHK, k_BHK, v_BHV, g_BHK, b_BHK, c_BHK, memory_BHKV)
        removed_BH1V = c[:, :, None] @ memory_BHKV
        kept_BHKV = g[..., None].exp() * memory_BHKV + k[..., None] * v[:, :, None]
        memory_BHKV = kept_BHKV - b[..., None] @ removed_BH1V
        return (q[:, :, None] @ memory_BHKV)[:, :, 0], memory_BHKV
