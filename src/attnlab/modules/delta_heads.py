"""Heads that overwrite by key: what DeltaNet, Gated DeltaNet and Kimi Delta Attention share.

    q, k, v = conv(W x)  each, q and k then of length 1        beta_t = sigmoid(w_b x_t)

and the gated delta rule over them (kernels/gated_delta_rule.py). They differ in how a memory
forgets, and in the gate of the output.

Yang et al. 2024 (arXiv:2406.06484).
Shapes: D model width, H heads, K key width, V value width, C channels of queries, keys and values.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnlab.config import Problem
from attnlab.kernels import gated_delta_rule as rule
from attnlab.kernels.forms import Gate
from attnlab.mechanism import Cost
from attnlab.modules.convolved_memory import ConvolvedMemory, Inputs
from attnlab.modules.memory_heads import MemoryHeadsConfig, at_least_1
from attnlab.modules.widened import widened


@dataclass(frozen=True, kw_only=True)
class DeltaHeadsConfig(MemoryHeadsConfig):
    """For a mechanism's config to inherit, before `MechanismConfig`."""

    conv_size: int = 4  # tokens that a convolution sees, the present one included

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from at_least_1(self, "conv_size")

    def delta_cost(self, d_model: int, itemsize: int, weights: int, vectors: int) -> Cost:
        """The cost of a layer whose gates have so many numbers in matrices and in vectors.

        The matrix memory is kept in float32 or wider.
        """
        convolved, memory = 2 * self.keys + self.values, self.keys * self.value_dim
        products = d_model * (2 * self.keys + 2 * self.values + self.n_heads) + weights
        return Cost(
            params=products + self.conv_size * convolved + self.value_dim + vectors,
            flops=2 * products + 3 * 2 * memory,  # what the key recalls, the write, the read
            state_bytes=max(itemsize, 4) * memory + itemsize * (self.conv_size - 1) * convolved,
        )


class DeltaHeads(ConvolvedMemory):
    """The constructor of a mechanism also sets `b_proj`."""

    gate: ClassVar[Gate]
    b_proj: nn.Linear

    def __init__(self, heads: DeltaHeadsConfig) -> None:
        super().__init__()
        self.heads = heads
        self.memory_shape = heads.n_heads, heads.head_dim, heads.value_dim

    @abstractmethod
    def log_decay(self, x_D: Tensor) -> Tensor | None:
        """g of x (..., D): (..., H), (..., H, K) or None, as `gate` says."""

    def inputs(self, x_D: Tensor, qkv_C: Tensor) -> Inputs:
        """Queries, keys and values by head, then g and beta."""
        heads, key, value = self.memory_shape
        q_C, k_C, v_C = qkv_C.split([heads * key, heads * key, heads * value], -1)
        q_HK, k_HK = (each_C.unflatten(-1, (heads, key)) for each_C in (q_C, k_C))
        v_HV = v_C.unflatten(-1, (heads, value))
        return q_HK, k_HK, v_HV, self.log_decay(x_D), widened(self.b_proj(x_D)).sigmoid()

    def over_time(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH = inputs
        return rule.gated_delta_rule(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, self.heads.kernel)

    def one_more(self, inputs: Inputs, memory_BHKV: Tensor) -> tuple[Tensor, Tensor]:
        q_BHK, k_BHK, v_BHV, g_BH, beta_BH = inputs
        return rule.step(rule.unit(q_BHK), rule.unit(k_BHK), v_BHV, g_BH, beta_BH, memory_BHKV)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return rule.resolve(self.heads.kernel, device, dtype, self.heads.head_dim, self.gate)
