"""Grouped query heads of softmax attention: projections, decoding, and settings of both.

    q_t = rotate(norm(W_q c_t))        k_t = rotate(norm(W_k c'_t))        v_t = W_v c'_t
    a_t^h = sum_s w_ts^h v_s^{g(h)}    y_t = W_o [ gate_t^h * a_t^h ]_heads

The kinds of attention that share them differ in the tokens s that a token attends to, and state
`_attend`. Each setting is off by default, and composes with the others:

- `output_gate`: gate_t = sigmoid(W_g x_t), one number per head, or one per element of the heads'
  outputs; W_g is `g_proj`. Qiu et al. 2025 (arXiv:2505.06708).
- `differential`: heads h and h + H / 2 are one head with two softmaxes over the same values, those
  of two heads side by side, of which a part of the second is subtracted:
      a = (1 - i) norm(a_1 - l a_2)    l = exp(p_1 . r_1) - exp(p_2 . r_2) + i    i = 0.8
  with p and r learned (`lambda_q1` and so on) and i the same in all layers. Every token pays for
  two sums over values, of twice the width. Ye et al. 2024 (arXiv:2410.05258).
- `exclusive`: a_t <- a_t - (a_t . u_t) u_t, where u_t = v_t / |v_t| is the direction of the token's
  own value: a head adds nothing that the token has already (exclusive self-attention).
  Zhai 2026 (arXiv:2603.09078).
- `value_residual`: v_t <- m_1 v_t + m_2 v_t', where v' are the values of the first layer that gives
  any of this shape, and m is learned per layer, 0.5 at first; it is `value_mix`. The decode state
  holds the mixed values, and no more. Zhou et al. 2024 (arXiv:2410.17897).
- `shared_kv`: k and v are those of the nearest earlier layer that gives any of this shape, rotation
  and window. The layer has queries alone, and no decode state. Brandon et al. 2024
  (arXiv:2405.12981), Sun et al. 2024 (arXiv:2405.05254).
- `sinks`, `alibi` and `logit_softcap` change the scores before the softmax. `kernels/scores.py` has
  their equations and sources. ALiBi is usual without RoPE, which `rope_head_dim=0` gives.

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads,
K width of a query and a key head, V width of a value head, R width of a latent, M = H K.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import normalize

from attnlab.config import Problem
from attnlab.kernels.scores import Scores, alibi_slopes
from attnlab.mechanism import Cost, Giver, Handed, HandingMechanism
from attnlab.modules.kv_cache import KVCache
from attnlab.modules.rotary_heads import RotaryHeads, RotaryHeadsConfig

_LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
_LAMBDA_INIT = 0.8

Cache = KVCache | tuple[()]  # decode state: nothing where keys and values are an earlier layer's


@dataclass(frozen=True, kw_only=True)
class SoftmaxHeadsConfig(RotaryHeadsConfig):
    """Settings of the heads. A mechanism's config inherits it before `MechanismConfig`."""

    output_gate: Literal["head", "element"] | None = None  # gate on the outputs, one per this

    sinks: bool = False  # a learned logit per head in the softmax, without a value
    alibi: bool = False  # penalty on the distance of query and key
    logit_softcap: float | None = None  # scores are squeezed smoothly to between - and + this

    differential: bool = False  # the difference of two softmaxes, by pairs of heads
    exclusive: bool = False  # remove the part of a head's output along the token's own value

    value_residual: bool = False  # add the values of the first layer to the layer's own
    shared_kv: bool = False  # keys and values are those of an earlier layer

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.logit_softcap is not None and not 0 < self.logit_softcap < math.inf:
            yield Problem("logit_softcap", f"must be positive and finite, got {self.logit_softcap}")
        if self.differential and self.n_kv_heads % 2:
            yield Problem("n_kv_heads", f"must be even for pairs of heads, got {self.n_kv_heads}")
        if self.shared_kv and self.value_residual:
            yield Problem("value_residual", "has no values to add to with shared_kv: choose one")
        if self.shared_kv and self.kv_lora_rank is not None:
            message = "must be none with shared_kv: keys and values are an earlier layer's"
            yield Problem("kv_lora_rank", message)

    def gives(self, d_model: int) -> tuple[str, ...]:
        """Return the names of its keys and values, and of its values; see `MechanismConfig`."""
        if self.shared_kv:
            return ()
        of_values = () if self.value_residual else (self.values_name(d_model),)
        return (*of_values, self.keys_values_name(d_model))

    def takes(self, d_model: int) -> Mapping[str, Giver]:
        """Return what the settings take from an earlier layer; see `MechanismConfig`."""
        if self.shared_kv:
            return {self.keys_values_name(d_model): "nearest"}
        return {self.values_name(d_model): "first"} if self.value_residual else {}

    def giver(self) -> Any:
        """Return the same mechanism with keys and values of its own, if this one takes any."""
        if not (self.shared_kv or self.value_residual):
            return None
        return replace(self, shared_kv=False, value_residual=False)

    @property
    def scores_are_products(self) -> bool:
        """True if every kernel serves the scores, but for sinks; see `Scores.are_products`."""
        return not self.alibi and self.logit_softcap is None

    @property
    def kept_tokens(self) -> int:
        """Number of first tokens that the decode state keeps, whatever it drops."""
        return 0

    def attended(self, context: int) -> int:
        """Return the number of `context` tokens that are attended to, and kept for decoding."""
        return context

    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        """Return the cost of one decode step; see `MechanismConfig.cost`."""
        key, value = self.head_widths(d_model)
        q_input, kv_input = self.projection_inputs(d_model)
        latents = (self.q_lora_rank or 0) + (self.kv_lora_rank or 0)
        queries = self.n_heads * key
        keys_values = 0 if self.shared_kv else self.n_kv_heads * (key + value)
        outputs, gates = self.n_heads * value, self.n_gates(d_model)
        matrices = d_model * (latents + outputs + gates)
        matrices += q_input * queries + kv_input * keys_values
        biases = self.bias * (latents + queries + keys_values + gates + d_model)
        norms = latents + self.qk_norm * (2 - self.shared_kv) * key
        others = self.sinks * self.n_heads + self.differential * 4 * key + self.value_residual * 2
        seen = self.attended(context)
        scores_and_sums = self.n_heads * sum(self.attention_widths(d_model)) * seen
        return Cost(
            params=matrices + biases + norms + others,
            flops=2 * (matrices + scores_and_sums),
            state_bytes=itemsize * keys_values * seen,
        )

    def attention_widths(self, d_model: int) -> tuple[int, int]:
        """Return the widths of a key head, and of the values that a head sums."""
        key, value = self.head_widths(d_model)
        return key, value * (1 + self.differential)

    def n_gates(self, d_model: int) -> int:
        """Return the number of gates per token."""
        if self.output_gate is None:
            return 0
        of_elements = self.n_heads * self.head_widths(d_model)[1]
        return of_elements if self.output_gate == "element" else self.n_outputs

    @property
    def n_outputs(self) -> int:
        """Number of heads that the output projection reads."""
        return self.n_heads // (1 + self.differential)

    def forward_flops_with(self, d_model: int, context: int, of_head: int) -> int:
        """Return the FLOPs per token of `forward` if attention takes `of_head` per head."""
        of_step = 2 * self.n_heads * sum(self.attention_widths(d_model)) * self.attended(context)
        of_projections = self.cost(d_model, context).flops - of_step
        return of_projections + self.n_heads * of_head // context


class SoftmaxHeads(RotaryHeads[Cache], HandingMechanism[Cache]):
    """A mechanism of such heads, without the rule of which tokens attend to which."""

    alibi_slopes: Tensor | None

    def __init__(self, config: SoftmaxHeadsConfig, d_model: int, dropout: float) -> None:
        super().__init__(config, d_model, has_keys_values=not config.shared_kv)
        self.config, self.dropout = config, dropout
        self.values_name = config.values_name(d_model)
        self.keys_values_name = config.keys_values_name(d_model)
        gates = config.n_gates(d_model)
        self.g_proj = nn.Linear(d_model, gates, config.bias) if gates else None
        self.sinks = nn.Parameter(torch.zeros(config.n_heads)) if config.sinks else None
        self.value_mix = nn.Parameter(torch.full((2,), 0.5)) if config.value_residual else None
        if config.differential:
            for name in _LAMBDAS:
                setattr(self, name, nn.Parameter(torch.empty(self.head_dim).normal_(0, 0.1)))
        slopes_H = alibi_slopes(config.n_heads) if config.alibi else None
        self.register_buffer("alibi_slopes", slopes_H, persistent=False)

    @abstractmethod
    def _attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        """Return `y_BHTV`: what each head reads, of all tokens at once."""

    def forward(self, x_BTD: Tensor, handed: Handed | None = None) -> Tensor:
        q_BHTK, k_BGTK, v_BGTV = self._read(x_BTD, handed)
        return self._all(x_BTD, q_BHTK, k_BGTK, self._values(v_BGTV))

    def init_state(self, batch_size: int, capacity: int) -> Cache:
        if self.config.shared_kv:
            return ()  # the giver holds it
        slots, widths = self.config.attended(capacity), (self.head_dim, self.v_head_dim)
        like = self.o_proj.weight
        return KVCache.empty(batch_size, self.config.n_kv_heads, slots, widths, like)

    def prefill(
        self, x_BTD: Tensor, capacity: int, handed: Handed | None = None
    ) -> tuple[Tensor, Cache]:
        q_BHTK, k_BGTK, v_BGTV = self._read(x_BTD, handed)
        state = self.init_state(x_BTD.shape[0], capacity)
        if isinstance(state, KVCache):
            state = state.append(k_BGTK, v_BGTV, self.config.kept_tokens)
        return self._all(x_BTD, q_BHTK, k_BGTK, self._values(v_BGTV)), state

    def step(
        self, x_BD: Tensor, state: Cache, handed: Handed | None = None
    ) -> tuple[Tensor, Cache]:
        x_B1D, kept = x_BD[:, None], self.config.kept_tokens
        if isinstance(state, KVCache):
            q_BH1K, k_BG1K, v_BG1V = self._read(x_B1D, handed, start=state.seen)
            cache = state = state.append(k_BG1K, v_BG1V, kept)
            if handed is not None:
                handed[self.keys_values_name] = cache
        else:
            cache = self._taken(handed, self.keys_values_name)  # the giver's, with this token
            q_BH1K = self._queries(x_B1D, start=cache.seen - 1)
            v_BG1V = cache.last_values(kept).to(q_BH1K.dtype)
        whole = cache._replace(v_BGSV=self._values(cache.v_BGSV))
        y_BH1V = whole.attend(q_BH1K[:, :, 0], self._scores(), kept)[:, :, None]
        return self._output(x_B1D, y_BH1V, self._values(v_BG1V))[:, 0], state

    def _read(
        self, x_BTD: Tensor, handed: Handed | None, start: int | Tensor = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `q_BHTK, k_BGTK, v_BGTV`, the layer's own or taken; hand on what is its own."""
        if self.config.shared_kv:
            return self._queries(x_BTD, start), *self._taken(handed, self.keys_values_name)
        q_BHTK, k_BGTK, v_BGTV = self._qkv(x_BTD, start)
        if self.value_mix is not None:
            own, first = self.value_mix
            v_BGTV = own * v_BGTV + first * self._taken(handed, self.values_name)
        elif handed is not None:
            handed[self.values_name] = v_BGTV
        if handed is not None:
            handed[self.keys_values_name] = k_BGTK, v_BGTV
        return q_BHTK, k_BGTK, v_BGTV

    @staticmethod
    def _taken(handed: Handed | None, name: str) -> Any:
        assert handed is not None, f"the model hands no {name}"
        return handed[name]

    def _all(self, x_BTD: Tensor, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor) -> Tensor:
        """Return `y_BTD` of all tokens at once."""
        return self._output(x_BTD, self._attend(q_BHTK, k_BGTK, v_BGTV), v_BGTV)

    def _values(self, v_BGTV: Tensor) -> Tensor:
        """Return the values that a head sums: of pairs of heads, side by side, those of both."""
        if not self.config.differential:
            return v_BGTV
        return torch.cat(v_BGTV.chunk(2, 1), -1).repeat(1, 2, 1, 1)

    def _difference(self, y_BTHV: Tensor) -> Tensor:
        """Return the normed difference of pairs of heads, in float32 or wider inside."""
        wide = torch.promote_types(y_BTHV.dtype, torch.float32)
        first, second = (
            (self.get_parameter(q).to(wide) * self.get_parameter(k).to(wide)).sum().exp()
            for q, k in (_LAMBDAS[:2], _LAMBDAS[2:])
        )
        plus_BTHV, minus_BTHV = y_BTHV.to(wide).chunk(2, 2)
        left_BTHV = plus_BTHV - (first - second + _LAMBDA_INIT) * minus_BTHV
        normed_BTHV = left_BTHV * (left_BTHV.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return ((1 - _LAMBDA_INIT) * normed_BTHV).to(y_BTHV.dtype)

    def _scores(self) -> Scores:
        """Return the changes of the scores."""
        return Scores(self.config.logit_softcap, self.alibi_slopes, self.sinks)

    def _output(self, x_BTD: Tensor, y_BHTV: Tensor, v_BGTV: Tensor) -> Tensor:
        """Return `y_BTD` of what the heads have read, and of the tokens' own values.

        Everything after the kernel is computed token by token, as the output projection reads it.
        So the kernel's backward pass gets a gradient in one layout, whatever the settings.
        """
        y_BTHV = rearrange(y_BHTV, "B H T V -> B T H V")
        if self.config.differential:
            y_BTHV, v_BGTV = self._difference(y_BTHV), v_BGTV[:, : v_BGTV.shape[1] // 2]
        if self.config.exclusive:
            y_BTHV = without_direction(y_BTHV, rearrange(v_BGTV, "B G T V -> B T G V"))
        if self.g_proj is not None:
            gate_BTHV = self.g_proj(x_BTD).unflatten(-1, (self.config.n_outputs, -1)).sigmoid()
            y_BTHV = y_BTHV * gate_BTHV
        return self.o_proj(y_BTHV.flatten(2))


def without_direction(y_BTHV: Tensor, v_BTGV: Tensor) -> Tensor:
    """Return `y` without its part along the value of its group, computed in float32 or wider.

    It is 0 where the rest is rounding alone, as at the first token, which reads only itself.
    """
    wide = torch.promote_types(y_BTHV.dtype, torch.float32)
    u_BTG1V = normalize(v_BTGV.to(wide), dim=-1)[..., None, :]
    y_BTGRV = y_BTHV.unflatten(2, (v_BTGV.shape[2], -1))
    along_BTGR1 = (y_BTGRV * u_BTG1V).sum(-1, keepdim=True)
    rest_BTGRV = y_BTGRV - along_BTGR1 * u_BTG1V
    largest_BTGR1 = rest_BTGRV.detach().abs().amax(-1, keepdim=True)
    is_rounding_BTGR1 = largest_BTGR1 <= 8 * torch.finfo(wide).eps * along_BTGR1.detach().abs()
    return rest_BTGRV.masked_fill(is_rounding_BTGR1, 0.0).flatten(2, 3).to(y_BTHV.dtype)
