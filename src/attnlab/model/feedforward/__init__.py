"""The feed-forward layer of a block: the same for every token, or a mixture of experts."""

from attnlab.model.feedforward.layer import (
    Dense,
    FeedForward,
    FeedForwardLayer,
    NoFeedForward,
    SwiGLU,
)
from attnlab.model.feedforward.mixture_of_experts import MixtureOfExperts

__all__ = [
    "Dense",
    "FeedForward",
    "FeedForwardLayer",
    "MixtureOfExperts",
    "NoFeedForward",
    "SwiGLU",
]
