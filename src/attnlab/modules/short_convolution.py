"""Short convolution: each channel is a weighted sum of its own last few tokens.

    y_t = silu( sum_{j < W} w_j x_{t-W+1+j} )

so that w_{W-1} multiplies the current token, as in a causal `nn.Conv1d` with one group per channel.
It is computed as a sum of W shifted elementwise products: on a CPU this is faster than `conv1d`,
forward and backward, and needs no transposes; on CUDA it is one kernel, flash-linear-attention's or
a compiled one. Elementwise products are no matrix products, so they are not in a `Cost`.

Yang et al. 2024 (arXiv:2412.06464) after Gu and Dao 2023 (arXiv:2312.00752).
Shapes: B batch, T tokens, C channels, W width of the convolution, P = W - 1 past tokens,
S = P + T.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.compiled import fused, opaque
from attnlab.kernels.flash_linear_attention import Kernel, through_fla


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
        """Return `w_CW` uniform in +-W^-0.5, the rule of `nn.Conv1d`."""
        return torch.empty(channels, width).uniform_(
            -(width**-0.5), width**-0.5, generator=generator
        )

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return `y_BTC`; tokens before the first count as zeros."""
        if through_fla(self.kernel, x_BTC, "causal_conv1d"):
            return _through_fla(x_BTC, self.weight)
        return _from_the_start(x_BTC, self.weight)

    def init_state(self, batch_size: int) -> Tensor:
        """Return `past_BPC`: the inputs before the first token, zeros in the weight's dtype."""
        return self.weight.new_zeros(batch_size, self.width - 1, len(self.weight))

    def prefill(self, x_BTC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y_BTC`, and `past_BPC` after the last token. T may be less than W - 1."""
        last_BPC = x_BTC[:, 1 - self.width or x_BTC.shape[1] :]
        missing = self.width - 1 - last_BPC.shape[1]
        past_BPC = pad(last_BPC, (0, 0, missing, 0)).to(self.weight.dtype, copy=True)
        return self(x_BTC), past_BPC

    def step(self, x_BC: Tensor, past_BPC: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y_BC` of one more token, and the next `past_BPC`."""
        window_BWC = torch.cat([past_BPC, x_BC[:, None].to(past_BPC.dtype)], 1)
        return _slide(window_BWC, self.weight)[:, 0].to(x_BC.dtype), window_BWC[:, 1:]


@fused
def _from_the_start(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    """Return `y_BTC`. x is widened once, and after padding: a compiler then saves the narrow x for
    the backward pass.
    """
    x_BSC = pad(x_BTC, (0, 0, weight_CW.shape[1] - 1, 0))
    wide = torch.promote_types(x_BTC.dtype, torch.float32)
    return _slide(x_BSC.to(wide), weight_CW).to(x_BTC.dtype)


@opaque
def _through_fla(x_BTC: Tensor, weight_CW: Tensor) -> Tensor:
    return fla.function("causal_conv1d")(x_BTC, weight_CW, activation="silu")[0]


def _slide(x_BSC: Tensor, weight_CW: Tensor) -> Tensor:
    """Return y of the S - W + 1 tokens whose window is complete, in float32 or wider."""
    tokens = x_BSC.shape[1] - weight_CW.shape[1] + 1
    first_C, *rest = weight_CW.to(torch.promote_types(x_BSC.dtype, torch.float32)).unbind(1)
    total_BTC = x_BSC[:, :tokens] * first_C
    for j, w_C in enumerate(rest, start=1):
        total_BTC = torch.addcmul(total_BTC, x_BSC[:, j : j + tokens], w_C)
    return silu(total_BTC)
