"""Short convolution: each channel looks at its own last few tokens.

    y_t = silu( sum_{j < W} w_j x_{t-W+1+j} )

so that w_{W-1} multiplies the present token, as in a causal `nn.Conv1d` with one group a channel.
It is a sum of W shifted elementwise products: faster than `conv1d` forward and backward on a CPU,
free of its transposes, and one kernel on CUDA, where flash-linear-attention has one for it as well.
They are no matrix products, so it adds nothing to a `Cost`.

Yang et al. 2024 (arXiv:2412.06464) after Gu and Dao 2023 (arXiv:2312.00752).
Shapes: B batch, T tokens, C channels, W width of the convolution, P = W - 1 past tokens,
S = P + T.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.compiled import opaque
from attnlab.kernels.forms import Kernel, through_fla
from attnlab.kernels.fused import fused


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over T, then SiLU. The output has the dtype of the input."""

    def __init__(self, channels: int, width: int, kernel: Kernel = "auto") -> None:
        super().__init__()
        self.width = width
        self.kernel: Kernel = kernel
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
        if through_fla(self.kernel, x_BTC, "causal_conv1d"):
            return _through_fla(x_BTC, self.weight)
        return _from_the_start(x_BTC, self.weight)

    def init_state(self, batch_size: int) -> Tensor:
        """`past_BPC`: the inputs before the next one, all zeros. In the weight's dtype."""
        return self.weight.new_zeros(batch_size, self.width - 1, len(self.weight))

    def prefill(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """`y_BTC`, and the `past_BPC` after the last token, also of fewer tokens than W - 1."""
        last_BPC = x_BTC[:, 1 - self.width or x_BTC.shape[1] :]
        missing = self.width - 1 - last_BPC.shape[1]
        past_BPC = pad(last_BPC, (0, 0, missing, 0)).to(self.weight.dtype, copy=True)
        return self(x_BTC), past_BPC

    def step(self, x_BC: Tensor, past_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """One more token: `y_BC` and the next `past_BPC`."""
        window_BWC = torch.cat([past_BPC, x_BC[:, None].to(past_BPC.dtype)], 1)
        return _slide(window_BWC, self.weight)[:, 0].to(x_BC.dtype), window_BWC[:, 1:]


@fused
def _from_the_start(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    """`y_BTC`; x is widened once and not once a product, and after it is padded: a compiler then
    keeps it narrow for the backward pass.
    """
    x_BSC = pad(x_BTC, (0, 0, weight_CW.shape[1] - 1, 0))
    wide = torch.promote_types(x_BTC.dtype, torch.float32)
    return _slide(x_BSC.to(wide), weight_CW).to(x_BTC.dtype)


@opaque
def _through_fla(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    return fla.function("causal_conv1d")(x_BTC, weight_CW, activation="silu")[0]


def _slide(x_BSC: Tensor, weight_CW: Tensor) -> Tensor:
    """The window over all it fits into: W - 1 tokens fewer come out. In float32 or wider."""
    tokens = x_BSC.shape[1] - weight_CW.shape[1] + 1
    first_C, *rest = weight_CW.to(torch.promote_types(x_BSC.dtype, torch.float32)).unbind(1)
    total_BTC = x_BSC[:, :tokens] * first_C
    for j, w_C in enumerate(rest, start=1):
        total_BTC = torch.addcmul(total_BTC, x_BSC[:, j : j + tokens], w_C)
    return silu(total_BTC)
