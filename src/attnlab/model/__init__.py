"""The language model around the mechanisms. Importing it registers the feed-forward layers."""

from attnlab.model import feedforward, mixture_of_experts

__all__ = ["feedforward", "mixture_of_experts"]
