"""Identity: one linear map per token and no mixing between tokens, a lower bound.

    y_t = W_o x_t

A model with it predicts from the current token alone; the difference to another mechanism is what
attending to earlier tokens gains.

Shapes: B batch, T tokens, D model width.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from attnlab.mechanism import Cost, Mechanism, MechanismConfig


@dataclass(frozen=True, kw_only=True)
class Identity(MechanismConfig):
    def cost(self, d_model: int, context: int, itemsize: int = 2) -> Cost:
        del context, itemsize
        return Cost(params=d_model**2, flops=2 * d_model**2, state_bytes=0)

    def build(self, d_model: int, dropout: float = 0.0) -> "TokenwiseLinear":
        del dropout  # there are no attention weights
        return TokenwiseLinear(d_model)


class Nothing(NamedTuple):
    """Empty decode state: no token depends on earlier ones."""


class TokenwiseLinear(Mechanism[Nothing]):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.o_proj(x_BTD)

    def init_state(self, batch_size: int, capacity: int) -> Nothing:
        del batch_size, capacity
        return Nothing()

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, Nothing]:
        return self(x_BTD), self.init_state(x_BTD.shape[0], capacity)

    def step(self, x_BD: Tensor, state: Nothing) -> tuple[Tensor, Nothing]:
        return self.o_proj(x_BD), state
