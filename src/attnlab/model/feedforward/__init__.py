"""The feed-forward layer of a block: one file per kind."""

from attnlab.model.feedforward.dense import Dense
from attnlab.model.feedforward.layer import FeedForward, FeedForwardLayer
from attnlab.model.feedforward.mixture_of_experts import MixtureOfExperts
from attnlab.model.feedforward.no_feed_forward import NoFeedForward
from attnlab.model.feedforward.swiglu import SwiGLU

__all__ = [
    "Dense",
    "FeedForward",
    "FeedForwardLayer",
    "MixtureOfExperts",
    "NoFeedForward",
    "SwiGLU",
]
