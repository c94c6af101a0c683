"""One block of the language model: a mechanism and a feed-forward layer.

    x = x + mix(RMSNorm(x))        x = x + feedforward(RMSNorm(x))

Shapes: B batch, T tokens, D model width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from attnlab.kernels.norms import RMSNorm
from attnlab.mechanism import Handed, Mechanism
from attnlab.model.feedforward import FeedForward
from attnlab.model.handing import Route, handing


class Block(nn.Module):
    """A mechanism and a feed-forward layer, each with a norm before and a residual connection.

    Every pass gets what the mechanism takes from earlier layers, and returns what later ones take
    from it, by name.
    """

    def __init__(
        self,
        mechanism: Mechanism[Any],
        route: Route,
        feedforward: FeedForward,
        d_model: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout, self.gives = dropout, route.given
        self.mix_norm = RMSNorm(d_model)
        self.mix = mechanism
        fed = feedforward.present
        self.feedforward_norm = RMSNorm(d_model) if fed else nn.Identity()
        self.feedforward = feedforward.build(d_model, dropout)

    def forward(self, x_BTD: Tensor, taken: Handed) -> tuple[Tensor, list[Tensor], Handed]:
        """Return `y_BTD`, the auxiliary losses of the block's layers, and what it gives."""
        run = self.mix.forward_with_loss if self.training else self.mix
        normed_BTD = _autocast(self.mix_norm(x_BTD))
        mixed, given = handing(run, normed_BTD, taken=taken, gives=self.gives)
        mixed_BTD, of_mixing = mixed if self.training else (mixed, None)
        x_BTD = self._add(x_BTD, mixed_BTD)
        normed_BTD, layer = _autocast(self.feedforward_norm(x_BTD)), self.feedforward
        fed_BTD, of_feeding = (
            layer.forward_with_loss(normed_BTD) if self.training else (layer(normed_BTD), None)
        )
        losses = [loss for loss in (of_mixing, of_feeding) if loss is not None]
        return self._add(x_BTD, fed_BTD), losses, given

    def prefill(self, x_BTD: Tensor, capacity: int, taken: Handed) -> tuple[Tensor, Any, Handed]:
        """Return `y_BTD` of a prompt, the decode state after it, and what it gives."""
        normed_BTD = _autocast(self.mix_norm(x_BTD))
        mixed, given = handing(
            self.mix.prefill, normed_BTD, capacity, taken=taken, gives=self.gives
        )
        mixed_BTD, state = mixed
        return self._feed(self._add(x_BTD, mixed_BTD)), state, given

    def step(self, x_BD: Tensor, state: Any, taken: Handed) -> tuple[Tensor, Any, Handed]:
        """Return `y_BD` of one more token, the new decode state, and what it gives."""
        normed_BD = _autocast(self.mix_norm(x_BD))
        mixed, given = handing(self.mix.step, normed_BD, state, taken=taken, gives=self.gives)
        mixed_BD, state = mixed
        return self._feed(self._add(x_BD, mixed_BD)), state, given

    def _feed(self, x_D: Tensor) -> Tensor:
        return self._add(x_D, self.feedforward(_autocast(self.feedforward_norm(x_D))))

    def _add(self, x_D: Tensor, branch_D: Tensor) -> Tensor:
        return x_D + drop(branch_D, self.dropout, self.training)


def _autocast(x: Tensor) -> Tensor:
    """Return `x` in the dtype of autocast if it is on: cast once, not in every projection."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
