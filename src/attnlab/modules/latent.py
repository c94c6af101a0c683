"""A narrow latent of a token, for several projections to read out of instead of the token itself.

    c_t = norm(W x_t)

DeepSeek-AI 2024 (arXiv:2405.04434). Shapes: T tokens, D model width, R rank.
"""

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """It computes in the dtype of its weight, and gives that of its input, autocast or not."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Latent(nn.Module):
    def __init__(self, d_model: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, rank, bias=bias)
        self.norm = RMSNorm(rank)

    def forward(self, x_TD: Tensor) -> Tensor:
        """`latent_TR`"""
        return self.norm(self.proj(x_TD))
