"""A ring of keys and values that keeps the last `capacity` tokens, and one query's look at it.

Shapes: B batch, H query heads, G key-value heads, S slots, T tokens, K key width, V value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """Slot order is irrelevant: softmax attention is permutation-invariant in its keys."""

    k_BGSK: Tensor
    v_BGSV: Tensor
    seen: int = 0  # tokens written so far, also the next token's position

    @classmethod
    def empty(
        cls, batch_size: int, n_kv_heads: int, capacity: int, widths: tuple[int, int], like: Tensor
    ) -> "KVCache":
        """Room for `capacity` tokens; `widths` are those of a key and a value head."""
        k_BGSK, v_BGSV = (like.new_zeros(batch_size, n_kv_heads, capacity, w) for w in widths)
        return cls(k_BGSK, v_BGSV)

    def append(self, k_BGTK: Tensor, v_BGTV: Tensor) -> "KVCache":
        """Write T more tokens, in place. Of more tokens than slots the last are kept."""
        slots, tokens = self.k_BGSK.shape[2], k_BGTK.shape[2]
        kept = min(slots, tokens)
        first = self.seen + tokens - kept
        slot_T = torch.arange(first, first + kept, device=k_BGTK.device) % slots
        self.k_BGSK.index_copy_(2, slot_T, k_BGTK[:, :, tokens - kept :].to(self.k_BGSK.dtype))
        self.v_BGSV.index_copy_(2, slot_T, v_BGTV[:, :, tokens - kept :].to(self.v_BGSV.dtype))
        return self._replace(seen=self.seen + tokens)

    def attend(self, q_BHK: Tensor) -> Tensor:
        """`y_BHV`: one query a head over all tokens kept, scaled by K^-0.5."""
        filled = min(self.seen, self.k_BGSK.shape[2])
        k_BGSK, v_BGSV = self.k_BGSK[:, :, :filled], self.v_BGSV[:, :, :filled]
        q_BGRK = q_BHK.unflatten(1, (k_BGSK.shape[1], -1))  # R query heads share a key head
        scores_BGRS = (q_BGRK * q_BHK.shape[-1] ** -0.5) @ k_BGSK.to(q_BHK.dtype).mT
        weights_BGRS = scores_BGRS.softmax(-1, dtype=_at_least_float32(q_BHK)).to(q_BHK.dtype)
        return (weights_BGRS @ v_BGSV.to(q_BHK.dtype)).flatten(1, 2)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
