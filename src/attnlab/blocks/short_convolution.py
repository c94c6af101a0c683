"""Short convolution: each channel looks at its own last few tokens.

    y_t = silu( sum_{j < W} w_j x_{t-W+1+j} )

so that w_{W-1} multiplies the present token, as in a causal `nn.Conv1d` with one group a channel.
It is a sum of W shifted elementwise products: faster than `conv1d` forward and backward on a CPU,
and free of its transposes. Its products are no matrix products, so it adds nothing to a `Cost`.

Yang et al. 2024 (arXiv:2412.06464) after Gu and Dao 2023 (arXiv:2312.00752).
Shapes: B batch, T tokens, C channels, W width of the convolution, P = W - 1 past tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over T, then SiLU. The output has the dtype of the input."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(self.initial_weight(channels, width))

    @staticmethod
    def initial_weight(
        channels: int, width: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """`w_CW` uniform in +-W^-0.5, which is also `nn.Conv1d`'s rule."""
        return torch.empty(channels, width).uniform_(
            -(width**-0.5), width**-0.5, generator=generator
        )

    def forward(self, x_BTC: Tensor) -> Tensor:
        """`y_BTC`, the tokens before the first being zeros."""
        return self._over(self._padded(x_BTC), x_BTC.shape[1])

    def init_state(self, batch_size: int) -> Tensor:
        """`past_BPC`: the inputs before the next one, all zeros. In the weight's dtype."""
        return self.weight.new_zeros(batch_size, self.width - 1, len(self.weight))

    def prefill(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """`y_BTC`, and the `past_BPC` after the last token, also of fewer tokens than W - 1."""
        padded_BSC = self._padded(x_BTC)
        past_BPC = padded_BSC[:, x_BTC.shape[1] :].to(self.weight.dtype, copy=True)
        return self._over(padded_BSC, x_BTC.shape[1]), past_BPC

    def step(self, x_BC: Tensor, past_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """One more token: `y_BC` and the next `past_BPC`."""
        window_BWC = torch.cat([past_BPC, x_BC[:, None].to(past_BPC.dtype)], 1)
        return self._sum(window_BWC.unbind(1), x_BC.dtype), window_BWC[:, 1:]

    def _padded(self, x_BTC: Tensor) -> Tensor:
        return pad(x_BTC, (0, 0, self.width - 1, 0))

    def _over(self, padded_BSC: Tensor, tokens: int) -> Tensor:
        shifted = [padded_BSC[:, j : j + tokens] for j in range(self.width)]
        return self._sum(shifted, padded_BSC.dtype)

    def _sum(self, shifted: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        first_C, *rest = self.weight.to(wide).unbind(1)
        total = shifted[0] * first_C
        for x, w_C in zip(shifted[1:], rest, strict=True):
            total = torch.addcmul(total, x, w_C)
        return silu(total).to(dtype)
