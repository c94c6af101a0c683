"""A ring of keys and values that keeps the last `capacity` tokens, and one query's look at it.

Every shape is that of the ring, however full it is, and the count of tokens is a tensor: a step of
decoding is the same work each time, and can be recorded as a CUDA graph.

Shapes: B batch, H query heads, G key-value heads, R query heads a key-value head, S slots,
T tokens, K key width, V value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """Slot order is irrelevant: softmax attention is permutation-invariant in its keys."""

    k_BGSK: Tensor
    v_BGSV: Tensor
    seen: Tensor  # tokens written so far, also the next token's position: int64, no dimension

    @classmethod
    def empty(
        cls, batch_size: int, n_kv_heads: int, capacity: int, widths: tuple[int, int], like: Tensor
    ) -> "KVCache":
        """Room for `capacity` tokens; `widths` are those of a key and a value head."""
        k_BGSK, v_BGSV = (like.new_zeros(batch_size, n_kv_heads, capacity, w) for w in widths)
        return cls(k_BGSK, v_BGSV, none_seen(like))

    def append(self, k_BGTK: Tensor, v_BGTV: Tensor) -> "KVCache":
        """Write T more tokens, in place. Of more tokens than slots the last are kept."""
        slots, tokens = self.k_BGSK.shape[2], k_BGTK.shape[2]
        dropped = max(0, tokens - slots)
        slot_T = next_positions(self.seen, tokens)[dropped:] % slots
        self.k_BGSK.index_copy_(2, slot_T, k_BGTK[:, :, dropped:].to(self.k_BGSK.dtype))
        self.v_BGSV.index_copy_(2, slot_T, v_BGTV[:, :, dropped:].to(self.v_BGSV.dtype))
        return KVCache(self.k_BGSK, self.v_BGSV, self.seen + tokens)

    def attend(self, q_BHK: Tensor) -> Tensor:
        """`y_BHV`: one query a head over all tokens kept, scaled by K^-0.5."""
        return attend_once(q_BHK, self.k_BGSK, self.v_BGSV, filled(self.seen, self.k_BGSK.shape[2]))


def attend_once(q_BHK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, is_seen_S: Tensor) -> Tensor:
    """`y_BHV`: one query a head over the slots that are seen, (S) or (B, S), scaled by K^-0.5."""
    q_BGRK = (q_BHK * q_BHK.shape[-1] ** -0.5).unflatten(1, (k_BGSK.shape[1], -1))
    scores_BGRS = q_BGRK @ k_BGSK.to(q_BHK.dtype).mT
    weights_BGRS = softmax_over_seen(scores_BGRS, is_seen_S)
    return (weights_BGRS @ v_BGSV.to(q_BHK.dtype)).flatten(1, 2)


def softmax_over_seen(scores_S: Tensor, is_seen_S: Tensor) -> Tensor:
    """Weights of the slots that are seen, (S) or (B, S), of scores (B, ..., S), in their dtype.

    It adds up in float32 or wider.
    """
    if is_seen_S.ndim == 2:
        is_seen_S = is_seen_S[(slice(None), *[None] * (scores_S.ndim - 2))]
    wide = torch.promote_types(scores_S.dtype, torch.float32)
    return scores_S.masked_fill(~is_seen_S, -torch.inf).softmax(-1, dtype=wide).to(scores_S.dtype)


def none_seen(like: Tensor) -> Tensor:
    """The count of an empty state, on the device of `like`."""
    return like.new_zeros((), dtype=torch.int64)


def next_positions(seen: Tensor, tokens: int) -> Tensor:
    """`position_T` of the next T tokens."""
    return seen + torch.arange(tokens, device=seen.device)


def filled(seen: Tensor, slots: int) -> Tensor:
    """`is_seen_S`: which of the slots, filled one after another, hold a token."""
    return torch.arange(slots, device=seen.device) < seen
