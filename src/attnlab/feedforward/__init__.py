"""The feed-forward half of a block: one file, one kind."""

from attnlab.feedforward.dense import Dense
from attnlab.feedforward.layer import FeedForward, FeedForwardLayer
from attnlab.feedforward.mixture_of_experts import MixtureOfExperts
from attnlab.feedforward.swiglu import SwiGLU

__all__ = ["Dense", "FeedForward", "FeedForwardLayer", "MixtureOfExperts", "SwiGLU"]
