"""Gated linear attention: a matrix memory that decays by a gate and adds key-value products.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        y_t = q_t S_t

| gate      | shape of g   | used by                | flash-linear-attention's |
|-----------|--------------|------------------------|--------------------------|
| `head`    | (B, T, H)    | Mamba-2, lightning     | `chunk_simple_gla`       |
| `channel` | (B, T, H, K) | Gated Linear Attention | `chunk_gla`              |

Queries are not scaled here. The forms are those of kernels/flash_linear_attention.py.

Within a chunk of C tokens, with G the running sum of g, the decayed scores (kernels/chunks.py) of q
and k multiply v, and exp(G) q reads the memory before the chunk, which then becomes
Diag(exp(G_last)) S + (exp(G_last - G) k)^T v.

Yang et al. 2023 (arXiv:2312.06635); Dao and Gu 2024 (arXiv:2405.21060).
Shapes: B batch, T tokens, H heads, K key width, V value width, G decays per head: 1 or K;
N chunks, C tokens per chunk, Z = B H.
"""

import torch
from torch import Tensor

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.chunks import (
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

_FUNCTIONS: dict[Gate, str] = {"head": "chunk_simple_gla", "channel": "chunk_gla"}


def resolve(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, key_width: int, gate: Gate
) -> Form:
    """Return the form that runs, by the rule of kernels/flash_linear_attention.py.

    Raises:
        ValueError: `fla` was named and cannot run on this device; the message says why.
    """
    return form_that_runs(kernel, device, dtype, key_width, _FUNCTIONS[gate])


def gated_linear_attention(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV`, and `memory_BHKV` after the last token; it starts at zero.

    Args:
        q_BTHK: queries, used as they are.
        k_BTHK: keys.
        v_BTHV: values.
        g_BTH: log decays by head, or by channel (B, T, H, K).
        kernel: the form, or `auto`.

    Raises:
        ValueError: `fla` was named and cannot run on this device; the message says why.
    """
    device, dtype = v_BTHV.device, v_BTHV.dtype
    chosen = resolve(kernel, device, dtype, k_BTHK.shape[-1], gate_of(g_BTH, k_BTHK))
    run = {"recurrent": recurrent, "chunked": chunked, "fla": _through_fla}[chosen]
    return run(q_BTHK, k_BTHK, v_BTHV, g_BTH)


def recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV` and the last `memory_BHKV` by the definition, from a memory or from zero."""
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g = wide(q_BTHK, k_BTHK, v_BTHV, decays(g_BTH, k_BTHK))
        memory_BHKV = begin(memory_BHKV, k, v)
        outputs: list[Tensor] = []
        for t in range(k.shape[1]):
            written_BHKV = k[:, t, :, :, None] * v[:, t, :, None]
            memory_BHKV = g[:, t, :, :, None].exp() * memory_BHKV + written_BHKV
            outputs.append((q[:, t, :, None] @ memory_BHKV)[:, :, 0])
        return torch.stack(outputs, 1), memory_BHKV


def chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    memory_BHKV: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `recurrent`, computed in chunks, for any T >= 1.

    C is a power of two: 32 on a CPU, 64 elsewhere. No operation waits for the device, so it can be
    recorded in a CUDA graph.
    """
    with torch.autocast(v_BTHV.device.type, enabled=False):
        q, k, v, g = wide(q_BTHK, k_BTHK, v_BTHV, decays(g_BTH, k_BTHK))
        batch, tokens, heads, _ = k.shape
        chunk = chunk or chunk_length(tokens, k.device)
        q_NZCK, k_NZCK, v_NZCV, g_NZCG = (split(x, chunk) for x in (q, k, v, g))

        total_NZCG = g_NZCG.cumsum(-2)
        last_NZ1G = total_NZCG[..., -1:, :]
        written_NZKV = (k_NZCK * (last_NZ1G - total_NZCG).exp()).mT @ v_NZCV
        before_NZKV, last_ZKV = _carry(
            last_NZ1G.mT.exp(), written_NZKV, begin(memory_BHKV, k, v).flatten(0, 1)
        )
        (scores_NZCC,) = decayed_scores(total_NZCG, k_NZCK, q_NZCK)
        y_NZCV = scores_NZCC @ v_NZCV + (q_NZCK * total_NZCG.exp()) @ before_NZKV
        return join(y_NZCV, batch, tokens), last_ZKV.unflatten(0, (batch, heads))


@opaque
def _through_fla(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `y_BTHV` in the dtype of `v`, and the memory in float32."""
    run = fla.function(_FUNCTIONS[gate_of(g_BTH, k_BTHK)])
    q, k = q_BTHK.to(v_BTHV.dtype), k_BTHK.to(v_BTHV.dtype)
    return run(q=q, k=k, v=v_BTHV, g=g_BTH, scale=1.0, output_final_state=True)


def flops(tokens: int, key_width: int, value_width: int, gate: Gate, kernel: Kernel) -> int:
    """Return the FLOPs of one head for a sequence: those of `chunked` on a CPU, or `recurrent`.

    `auto` and `fla` count as `chunked`. FLOPs are 2 per multiply-add of matrix products.
    """
    if kernel == "recurrent":
        return 2 * tokens * key_width * value_width  # read; a write is no matrix product
    chunk = chunk_length(tokens, torch.device("cpu"))
    of_chunk = 2 * 2 * chunk * key_width * value_width  # write, read
    of_chunk += score_flops(chunk, key_width, gate) + 2 * chunk**2 * value_width
    return -(-tokens // chunk) * of_chunk


def step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, memory_BHKV: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `y_BHV` of one token and the memory after it. 4 K V FLOPs per head: write, read."""
    with torch.autocast(v_BHV.device.type, enabled=False):
        q, k, v, g, memory_BHKV = wide(q_BHK, k_BHK, v_BHV, decays(g_BH, k_BHK), memory_BHKV)
        memory_BHKV = memory_BHKV * g[..., None].exp() + k[..., None] @ v[:, :, None]
        return (q[:, :, None] @ memory_BHKV)[:, :, 0], memory_BHKV


def _carry(keep_NZG1: Tensor, written_NZKV: Tensor, memory_ZKV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the memory before each chunk, and after the last."""
    memories = [memory_ZKV]
    for keep_ZG1, written_ZKV in zip(keep_NZG1.unbind(), written_NZKV.unbind(), strict=True):
        memories.append(torch.addcmul(written_ZKV, keep_ZG1, memories[-1]))
    return torch.stack(memories[:-1]), memories[-1]
