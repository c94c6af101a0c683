"""Native sparse attention: compressed tokens, selected blocks and a window, summed by gates.

    y_t = W_o [ sum_b g_t^b sum_{s in S_t^b} softmax_s(q_t . k_s^b / sqrt(K)) v_s^b ]_heads
    g_t = sigmoid(W_g x_t), one number per head and branch b

| branch b   | keys and values                         | a token t attends to                      |
|------------|-----------------------------------------|-------------------------------------------|
| compressed | W_2 silu(W_1 [l tokens + e]), every d   | all that are complete, d i + l <= t + 1   |
| selected   | of the tokens                           | `top_k` blocks of `block_size` tokens     |
| window     | of the tokens                           | itself and the `window` - 1 before it     |

Each branch has keys and values of its own. The compressed ones are an MLP, shared by the heads, of
`compression_size` l tokens with a learned encoding e of their places, from one `compression_stride`
d to the next. The selected blocks are the first one, the query's own and the one before it, and the
best by the compressed branch's weights; query heads that share keys select together. Queries and
keys of the other two branches are rotated.

A decoding step reads the compressed tokens, `top_k` blocks and the window. The state holds the
selected branch's keys and values of all tokens, those of the window and of the last l tokens, and
the compressed ones. Training is linear in memory; its time is that of full attention, since it
computes all scores of the selected branch and masks them. The published model has a `top_k` of 16
and a window of 512.

Yuan et al. 2025 (arXiv:2502.11089).
Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K head width, b
branches, C compressed tokens, L the tokens of one, n selected blocks, M their tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from attnlab.config import Problem
from attnlab.kernels import (
    block_attention,
    compressed_attention,
    sparse_attention,
    windowed_attention,
)
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.kv_cache import KVCache, attend_once
from attnlab.modules.matrix_memory import at_least_1
from attnlab.modules.rotary import Rope, rope_problems, rotate, rotation

_BRANCHES = 3  # compressed, selected, window


@dataclass(frozen=True, kw_only=True)
class NSA(MechanismConfig):
    n_heads: int = 4  # number of query heads
    n_kv_heads: int = 4  # number of key and value heads; must divide n_heads
    head_dim: int | None = None  # width of a head; None: d_model / n_heads
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    compression_size: int = 32  # tokens that are compressed to one
    compression_stride: int = 16  # tokens from one compressed token to the next
    block_size: int = 64  # tokens per selected block
    top_k: int = 4  # selected blocks: the first, the last two, and the best
    window: int = 256  # tokens of the window, the query's own included

    @property
    def scheme(self) -> compressed_attention.Scheme:
        sizes = self.compression_size, self.compression_stride, self.block_size
        return compressed_attention.Scheme(*sizes, self.top_k)

    def problems(self) -> Iterator[Problem]:
        yield from at_least_1(self, "n_heads", "compression_stride", "top_k", "window")
        if self.n_heads >= 1 and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            yield Problem("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if self.head_dim is not None and (self.head_dim < 2 or self.head_dim % 2):
            yield Problem("head_dim", f"must be even and positive, got {self.head_dim}")
        for name in ("compression_size", "block_size"):
            value, stride = getattr(self, name), self.compression_stride
            if value < 1 or (stride >= 1 and value % stride):
                message = f"must be a multiple of compression_stride {stride}, got {value}"
                yield Problem(name, message)
        yield from rope_problems(self.rope_theta, None)

    def problems_at(self, d_model: int) -> Iterator[Problem]:
        if self.head_dim is None and d_model % self.n_heads:
            yield Problem("n_heads", f"{self.n_heads} does not divide d_model {d_model}")
        elif self.head_width(d_model) % 2:
            width = self.head_width(d_model)
            yield Problem("n_heads", f"a head of {width} is odd: RoPE rotates pairs of columns")

    def head_width(self, d_model: int) -> int:
        return self.head_dim or d_model // self.n_heads

    def _matrices(self, d_model: int) -> int:
        """Return the size of the projections: queries and outputs, keys and values, gates."""
        width = self.head_width(d_model)
        heads = 2 * self.n_heads + 2 * _BRANCHES * self.n_kv_heads
        return d_model * (heads * width + _BRANCHES * self.n_heads)

    def _compression(self, d_model: int) -> int:
        """Return the size of the two MLPs."""
        return 2 * (self.compression_size + 1) * self.head_width(d_model) ** 2

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        width, compressed = self.head_width(d_model), self.scheme.compressed(context)
        mlps = self._compression(d_model)
        encodings = 2 * self.compression_size * width
        read = compressed + min(context, self.top_k * self.block_size) + min(context, self.window)
        products = self._matrices(d_model) + 2 * self.n_heads * width * read
        # every step compresses the last tokens, as every step must do the same work
        products += self.n_kv_heads * mlps if compressed else 0
        held = context + min(context, self.window) + min(context, self.compression_size)
        return Cost(
            params=self._matrices(d_model) + mlps + encodings,
            flops=2 * products,
            state_bytes=itemsize * 2 * self.n_kv_heads * width * (held + compressed),
        )

    def forward_flops(self, d_model: int, context: int) -> int:
        """Return the FLOPs with all pairs that the kernels compute, masked ones included."""
        width = self.head_width(d_model)
        pairs = sparse_attention.pairs(context) + compressed_attention.pairs(context, self.scheme)
        of_head = 2 * 2 * width * pairs
        of_head += windowed_attention.flops(context, width, width, self.window, "banded")
        compressed = self.n_kv_heads * self.scheme.compressed(context)
        others = self.n_heads * of_head + 2 * compressed * self._compression(d_model)
        return 2 * self._matrices(d_model) + others // context

    def build(self, d_model: int, dropout: float = 0.0) -> "NativeSparseAttention":
        return NativeSparseAttention(self, d_model, dropout)


class Compression(nn.Module):
    """MLP from keys, or values, of l tokens and their places to one."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.encoding = nn.Parameter(torch.zeros(size, width))
        self.in_proj = nn.Linear(size * width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BGTK: Tensor, stride: int) -> Tensor:
        """Return `x_BGCK` of all l successive tokens, from one stride to the next."""
        size, width = self.encoding.shape
        if x_BGTK.shape[2] < size:
            return x_BGTK[:, :, :0]
        x_BGCLK = x_BGTK.unfold(2, size, stride).mT + self.encoding.to(x_BGTK.dtype)
        return self.out_proj(silu(self.in_proj(x_BGCLK.reshape(*x_BGCLK.shape[:3], size * width))))


class SparseState(NamedTuple):
    """Decode state: caches of the branches, and the last tokens that are to be compressed."""

    selected: KVCache
    window: KVCache
    recent: KVCache
    k_BGCK: Tensor  # compressed
    v_BGCK: Tensor


class Branches(NamedTuple):
    """Queries before and after their rotation, and keys and values of the three branches."""

    q_BHTK: Tensor
    rotated_BHTK: Tensor
    k_bBGTK: tuple[Tensor, ...]
    v_bBGTK: tuple[Tensor, ...]


class NativeSparseAttention(Mechanism[SparseState]):
    def __init__(self, config: NSA, d_model: int, dropout: float) -> None:
        super().__init__()
        self.config, self.dropout, self.scheme = config, dropout, config.scheme
        self.head_dim = width = config.head_width(d_model)
        self.rope = Rope(config.rope_theta, width)
        heads, shared = config.n_heads * width, _BRANCHES * config.n_kv_heads * width
        self.q_proj = nn.Linear(d_model, heads, bias=False)
        self.k_proj = nn.Linear(d_model, shared, bias=False)
        self.v_proj = nn.Linear(d_model, shared, bias=False)
        self.g_proj = nn.Linear(d_model, _BRANCHES * config.n_heads, bias=False)
        self.k_compression = Compression(config.compression_size, width)
        self.v_compression = Compression(config.compression_size, width)
        self.o_proj = nn.Linear(heads, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        of = self._branches(x_BTD, start=0)
        return self._attend(x_BTD, of, *self._compressed(of))

    def init_state(self, batch_size: int, capacity: int) -> SparseState:
        config, like = self.config, self.o_proj.weight
        shape = batch_size, config.n_kv_heads, self.scheme.compressed(capacity), self.head_dim

        def cache(slots: int) -> KVCache:
            widths = self.head_dim, self.head_dim
            return KVCache.empty(batch_size, config.n_kv_heads, slots, widths, like)

        return SparseState(
            selected=cache(capacity),
            window=cache(min(capacity, config.window)),
            recent=cache(min(capacity, config.compression_size)),
            k_BGCK=like.new_zeros(shape),
            v_BGCK=like.new_zeros(shape),
        )

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, SparseState]:
        of = self._branches(x_BTD, start=0)
        k_BGCK, v_BGCK = self._compressed(of)
        state = self._appended(self.init_state(x_BTD.shape[0], capacity), of)
        state.k_BGCK[:, :, : k_BGCK.shape[2]] = k_BGCK
        state.v_BGCK[:, :, : v_BGCK.shape[2]] = v_BGCK
        return self._attend(x_BTD, of, k_BGCK, v_BGCK), state

    def step(self, x_BD: Tensor, state: SparseState) -> tuple[Tensor, SparseState]:
        start = state.selected.seen
        of = self._branches(x_BD[:, None], start)
        state = self._with_compressed(self._appended(state, of))
        blocks = self.scheme.blocks(state.selected.k_BGSK.shape[2])
        k_BGCK, v_BGCK = (x_BGCK.to(of.q_BHTK.dtype) for x_BGCK in (state.k_BGCK, state.v_BGCK))
        y_BH1K, selection_BG1n = compressed_attention.attend_from(
            of.q_BHTK, k_BGCK, v_BGCK, start, self.scheme, blocks
        )
        rotated_BHK, cache = of.rotated_BHTK[:, :, 0], state.selected
        if blocks <= self.config.top_k:
            selected_BHK = cache.attend(rotated_BHK)
        else:
            selection = block_attention.Selection(*(x[:, :, 0] for x in selection_BG1n))
            k_BGMK, v_BGMK, is_seen_BGM = block_attention.gathered(
                cache.k_BGSK, cache.v_BGSV, selection, self.config.block_size, cache.seen
            )
            selected_BHK = attend_once(rotated_BHK, k_BGMK, v_BGMK, is_seen_BGM[:, :, None])
        window_BHK = state.window.attend(rotated_BHK)
        read = y_BH1K, selected_BHK[:, :, None], window_BHK[:, :, None]
        return self._output(x_BD[:, None], read)[:, 0], state

    def _branches(self, x_BTD: Tensor, start: int | Tensor) -> Branches:
        """Return what the branches read of tokens whose first is at position `start`."""
        q_BHTK, k_BGTK, v_BGTK = (
            rearrange(projection(x_BTD), "B T (H K) -> B H T K", K=self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        by = rotation(self.rope, start, x_BTD.shape[1], like=q_BHTK)
        compressed, *others = k_BGTK.chunk(_BRANCHES, 1)
        k_bBGTK = compressed, *(rotate(k, by) for k in others)
        return Branches(q_BHTK, rotate(q_BHTK, by), k_bBGTK, v_BGTK.chunk(_BRANCHES, 1))

    def _compressed(self, of: Branches) -> tuple[Tensor, Tensor]:
        """Return compressed keys and values, `k_BGCK` and `v_BGCK`."""
        stride = self.config.compression_stride
        return self.k_compression(of.k_bBGTK[0], stride), self.v_compression(of.v_bBGTK[0], stride)

    def _attend(self, x_BTD: Tensor, of: Branches, k_BGCK: Tensor, v_BGCK: Tensor) -> Tensor:
        """Return `y_BTD` of all tokens at once."""
        dropout, size = self.dropout if self.training else 0.0, self.config.block_size
        compressed_BHTK, selection = compressed_attention.attend(
            of.q_BHTK, k_BGCK, v_BGCK, self.scheme, dropout
        )
        (_, k_BGTK, k_window), (_, v_BGTK, v_window) = of.k_bBGTK, of.v_bBGTK
        selected_BGTN = selection.among(self.scheme.blocks(x_BTD.shape[1]))
        heads = of.rotated_BHTK, k_BGTK, v_BGTK
        selected_BHTK = block_attention.attend(*heads, selected_BGTN, size, dropout)
        window_BHTK = windowed_attention.windowed_attention(
            *(of.rotated_BHTK, k_window, v_window),
            window=self.config.window,
            kernel="banded",
            dropout=dropout,
        )
        return self._output(x_BTD, (compressed_BHTK, selected_BHTK, window_BHTK))

    def _appended(self, state: SparseState, of: Branches) -> SparseState:
        (recent_k, k, window_k), (recent_v, v, window_v) = of.k_bBGTK, of.v_bBGTK
        return SparseState(  # not `_replace`, of which torch 2.11's compiler may lose tensors
            state.selected.append(k, v),
            state.window.append(window_k, window_v),
            state.recent.append(recent_k, recent_v),
            *(state.k_BGCK, state.v_BGCK),
        )

    def _with_compressed(self, state: SparseState) -> SparseState:
        """Return the state with the last l tokens compressed, if a stride has just ended."""
        size, stride, number = self.scheme.size, self.scheme.stride, state.k_BGCK.shape[2]
        if not number:
            return state
        seen, recent = state.recent.seen, state.recent
        place_1 = ((seen - size) // stride).clamp(0, number - 1)[None]
        is_due = (seen >= size) & ((seen - size) % stride == 0)
        slot_L = (seen + torch.arange(size, device=seen.device)) % size  # the oldest first
        for held_BGCK, ring_BGLK, compress in (
            (state.k_BGCK, recent.k_BGSK, self.k_compression),
            (state.v_BGCK, recent.v_BGSV, self.v_compression),
        ):
            new_BG1K = compress(ring_BGLK.index_select(2, slot_L), stride).to(held_BGCK.dtype)
            old_BG1K = held_BGCK.index_select(2, place_1)
            held_BGCK.index_copy_(2, place_1, torch.where(is_due, new_BG1K, old_BG1K))
        return state

    def _output(self, x_BTD: Tensor, read: tuple[Tensor, ...]) -> Tensor:
        """Return `y_BTD` of what the branches have read."""
        gates_BTbH = self.g_proj(x_BTD).unflatten(-1, (_BRANCHES, -1)).sigmoid()
        gates = (gate_BTH.mT[..., None] for gate_BTH in gates_BTbH.unbind(2))
        y_BHTK = sum(gate * y for gate, y in zip(gates, read, strict=True))
        return self.o_proj(rearrange(y_BHTK, "B H T K -> B T (H K)"))
