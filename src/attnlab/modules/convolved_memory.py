"""A mixer that reads and writes a matrix memory through one short convolution.

    q, k, v = conv(W x)        y, S = what the mechanism does with them over time

It is the part that DeltaNet, Gated DeltaNet, Kimi Delta Attention and Mamba-2 have in common: the
projections, the convolution over the channels of all three, the decode state and its prefill.

Shapes: B batch, T tokens, D model width, H heads, K key width, V value width, C channels of
queries, keys and values, P past tokens of the convolution.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attnlab.mechanism import Mechanism
from attnlab.modules.short_convolution import ShortConvolution

Inputs = tuple[Any, ...]  # of the recurrence: tensors, and None where it does without


class MemoryState(NamedTuple):
    memory_BHKV: Tensor  # float32 or wider: it sums over all tokens seen
    past_BPC: Tensor  # the last inputs of the convolution, in the parameters' dtype


class ConvolvedMemory(Mechanism[MemoryState]):
    """The constructor of a mechanism sets the four modules that are declared here."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    qkv_conv1d: ShortConvolution
    memory_shape: tuple[int, int, int]  # H, K, V

    @abstractmethod
    def inputs(self, x_D: Tensor, qkv_C: Tensor) -> Inputs:
        """What the recurrence takes, of x (..., D) and its convolved channels (..., C)."""

    @abstractmethod
    def over_time(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """All tokens from an empty memory: `y_BTHV` and the last `memory_BHKV`."""

    @abstractmethod
    def one_more(self, inputs: Inputs, memory_BHKV: Tensor) -> tuple[Tensor, Tensor]:
        """One token: `y_BHV` and the next `memory_BHKV`."""

    @abstractmethod
    def output(self, x_D: Tensor, y_HV: Tensor) -> Tensor:
        """(..., D) of what was read (..., H, V)."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTHV, _ = self.over_time(self.inputs(x_BTD, self.qkv_conv1d(self._qkv_of_all(x_BTD))))
        return self.output(x_BTD, y_BTHV)

    def init_state(self, batch_size: int, capacity: int) -> MemoryState:
        del capacity  # the state is as large for one token as for a million
        weight = self.q_proj.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        memory_BHKV = weight.new_zeros(batch_size, *self.memory_shape, dtype=wide)
        return MemoryState(memory_BHKV, self.qkv_conv1d.init_state(batch_size))

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, MemoryState]:
        del capacity
        qkv_BTC, past_BPC = self.qkv_conv1d.prefill(self._qkv_of_all(x_BTD))
        y_BTHV, memory_BHKV = self.over_time(self.inputs(x_BTD, qkv_BTC))
        return self.output(x_BTD, y_BTHV), MemoryState(memory_BHKV, past_BPC)

    def step(self, x_BD: Tensor, state: MemoryState) -> tuple[Tensor, MemoryState]:
        qkv_BC = torch.cat([self.q_proj(x_BD), self.k_proj(x_BD), self.v_proj(x_BD)], -1)
        qkv_BC, past_BPC = self.qkv_conv1d.step(qkv_BC, state.past_BPC)
        y_BHV, memory_BHKV = self.one_more(self.inputs(x_BD, qkv_BC), state.memory_BHKV)
        return self.output(x_BD, y_BHV), MemoryState(memory_BHKV, past_BPC)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        if name == "qkv_conv1d.weight":
            channels, width = self.qkv_conv1d.weight.shape
            return ShortConvolution.initial_weight(channels, width, generator)
        return None

    def _qkv_of_all(self, x_BTD: Tensor) -> Tensor:
        """In one product: weights are shorter to join than what many tokens make of them."""
        projections = self.q_proj, self.k_proj, self.v_proj
        return linear(x_BTD, torch.cat([projection.weight for projection in projections]))
