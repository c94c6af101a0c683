"""The feed-forward layer of a block: the same for every token, or a mixture of experts."""

from attnlab.model.feedforward.layer import FeedForward, FeedForwardLayer
from attnlab.model.feedforward.mixture_of_experts import MixtureOfExperts
from attnlab.model.feedforward.mlp import Dense, NoFeedForward, SwiGLU

__all__ = [
    "Dense",
    "FeedForward",
    "FeedForwardLayer",
    "MixtureOfExperts",
    "NoFeedForward",
    "SwiGLU",
]
