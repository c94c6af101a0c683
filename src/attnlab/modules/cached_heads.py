"""Rotary heads that decode from a ring of keys and values: every token kept is looked at.

A mechanism says how all tokens attend at once (`_attend`) and how many it keeps (`_slots`).

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head.
"""

from torch import Tensor

from attnlab.modules.kv_cache import KVCache
from attnlab.modules.rotary_heads import RotaryHeads


class CachedHeads(RotaryHeads):
    """For a mechanism to inherit, before `Mechanism[KVCache]`."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._attend(*self._qkv(x_BTD, start=0))

    def init_state(self, batch_size: int, capacity: int) -> KVCache:
        n_kv_heads = self.k_proj.out_features // self.head_dim
        slots, widths = self._slots(capacity), (self.head_dim, self.v_head_dim)
        return KVCache.empty(batch_size, n_kv_heads, slots, widths, like=self.o_proj.weight)

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, KVCache]:
        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start=0)
        state = self.init_state(x_BTD.shape[0], capacity).append(k_BGTK, v_BGTV)
        return self._attend(q_BHTK, k_BGTK, v_BGTV), state

    def step(self, x_BD: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
        q_BH1K, k_BG1K, v_BG1V = self._qkv(x_BD[:, None], start=state.seen)
        state = state.append(k_BG1K, v_BG1V)
        return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state

    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        """`y_BTD` of all tokens at once."""
        raise NotImplementedError  # every mechanism has its own

    def _slots(self, capacity: int) -> int:
        """How many tokens are kept where there is room for `capacity`."""
        return capacity
