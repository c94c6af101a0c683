"""Ring buffer of the last tokens' keys and values, and attention of one query to it.

The first `kept` tokens of a text may stay: their slots come before the ring, which never overwrites
them.

All shapes are those of the full ring, and the number of tokens seen is a tensor: every decode step
does the same work and can be recorded as a CUDA graph.

Shapes: B batch, H query heads, G key-value heads, R query heads per key-value head, S slots,
T tokens, K key width, V value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.kernels.scores import UNCHANGED, Scores


class KVCache(NamedTuple):
    """Ring buffer. Slot order is irrelevant: softmax attention is permutation-invariant in keys.

    `kept`, the number of first tokens that stay, is the same in all calls of one cache.
    """

    k_BGSK: Tensor
    v_BGSV: Tensor
    seen: Tensor  # tokens written so far, also the next token's position: int64, no dimension

    @classmethod
    def empty(
        cls, batch_size: int, n_kv_heads: int, capacity: int, widths: tuple[int, int], like: Tensor
    ) -> "KVCache":
        """Return a ring of `capacity` empty slots. `widths` are those of a key and a value head."""
        k_BGSK, v_BGSV = (like.new_zeros(batch_size, n_kv_heads, capacity, w) for w in widths)
        return cls(k_BGSK, v_BGSV, none_seen(like))

    def append(self, k_BGTK: Tensor, v_BGTV: Tensor, kept: int = 0) -> "KVCache":
        """Write T more tokens in place. If T exceeds the number of slots, the last ones stay.

        Tokens are kept of the first call, where T exceeds the number of slots.
        """
        slots, tokens = self.k_BGSK.shape[2], k_BGTK.shape[2]
        position_T, kept = next_positions(self.seen, tokens), min(kept, slots - 1)
        if tokens > slots:
            last = slice(tokens - slots + kept, None)
            position_T = torch.cat([position_T[:kept], position_T[last]])
            k_BGTK, v_BGTV = (
                torch.cat([x[:, :, :kept], x[:, :, last]], 2) if kept else x[:, :, last]
                for x in (k_BGTK, v_BGTV)
            )
        slot_T = self._slot(position_T, kept)
        self.k_BGSK.index_copy_(2, slot_T, k_BGTK.to(self.k_BGSK.dtype))
        self.v_BGSV.index_copy_(2, slot_T, v_BGTV.to(self.v_BGSV.dtype))
        return KVCache(self.k_BGSK, self.v_BGSV, self.seen + tokens)

    def last_values(self, kept: int = 0) -> Tensor:
        """Return `v_BG1V` of the last token."""
        return self.v_BGSV.index_select(2, self._slot(self.seen - 1, kept)[None])

    def attend(self, q_BHK: Tensor, scores: Scores = UNCHANGED, kept: int = 0) -> Tensor:
        """Return `y_BHV`: attention of the last token's query to all tokens held, scale K^-0.5."""
        slots = self.k_BGSK.shape[2]
        slot_S, kept = torch.arange(slots, device=self.seen.device), min(kept, slots - 1)
        last = self.seen - 1
        age_S = (last - slot_S) % (slots - kept)  # of the last token that was written there
        if kept:
            age_S = torch.where(slot_S < kept, last - slot_S, age_S)
        is_seen_S = filled(self.seen, slots)
        return attend_once(q_BHK, self.k_BGSK, self.v_BGSV, is_seen_S, scores, age_S)

    def _slot(self, position_T: Tensor, kept: int) -> Tensor:
        """Return the slots of tokens at these positions."""
        slots = self.k_BGSK.shape[2]
        kept = min(kept, slots - 1)
        ring_T = kept + (position_T - kept) % (slots - kept)
        return torch.where(position_T < kept, position_T, ring_T) if kept else ring_T


def attend_once(
    q_BHK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    is_seen_S: Tensor,
    scores: Scores = UNCHANGED,
    age_S: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Return `y_BHV`: attention of one query per head to the slots in `is_seen`.

    `scale` is the factor on the products; None: K^-0.5.
    `is_seen` has shape (S), (B, S) or (B, G, 1, S). `age`, which changes of the scores need, is the
    distance to the query in tokens.
    """
    n_kv_heads = k_BGSK.shape[1]
    factor = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    q_BGRK = (q_BHK * factor).unflatten(1, (n_kv_heads, -1))
    scores_BGRS = q_BGRK @ k_BGSK.to(q_BHK.dtype).mT
    if scores.are_unchanged:
        weights_BGRS = softmax_over_seen(scores_BGRS, is_seen_S)
    else:
        assert age_S is not None
        changed_BH1S = scores.changed(scores_BGRS.flatten(1, 2)[:, :, None], age_S)
        weights_BH1S = scores.weights(changed_BH1S, ~is_seen_S)
        weights_BGRS = weights_BH1S[:, :, 0].unflatten(1, (n_kv_heads, -1)).to(q_BHK.dtype)
    return (weights_BGRS @ v_BGSV.to(q_BHK.dtype)).flatten(1, 2)


def softmax_over_seen(scores_S: Tensor, is_seen_S: Tensor) -> Tensor:
    """Return weights (B, ..., S) of scores (B, ..., S), zero for slots that are not seen.

    `is_seen` has shape (S) or (B, S), or as many dimensions as the scores. The softmax is computed
    in float32 or wider; the result has the dtype of the scores.
    """
    if is_seen_S.ndim == 2:
        is_seen_S = is_seen_S[(slice(None), *[None] * (scores_S.ndim - 2))]
    wide = torch.promote_types(scores_S.dtype, torch.float32)
    return scores_S.masked_fill(~is_seen_S, -torch.inf).softmax(-1, dtype=wide).to(scores_S.dtype)


def none_seen(like: Tensor) -> Tensor:
    """Return the number of tokens of an empty state: an int64 zero on the device of `like`."""
    return like.new_zeros((), dtype=torch.int64)


def next_positions(seen: Tensor, tokens: int) -> Tensor:
    """Return `position_T` of the next T tokens."""
    return seen + torch.arange(tokens, device=seen.device)


def filled(seen: Tensor, slots: int) -> Tensor:
    """Return `is_seen_S`: True for the slots that hold a token, slots being filled in order."""
    return torch.arange(slots, device=seen.device) < seen
