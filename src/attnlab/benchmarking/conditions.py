"""The conditions that all points of a bench share, and the model that they are measured on."""

import gc
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.benchmarking.targets import Setup
from attnlab.device.flops import Ceilings
from attnlab.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Device, its peak rates, and how long each point is timed."""

    device: torch.device
    ceilings: Ceilings
    compiled: bool = False
    seconds: float = 1.0  # approximate duration of the timed calls of a point

    @property
    def serving_dtype(self) -> torch.dtype:
        """Dtype of weights and states in prefill and decoding."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def bare_model(setup: Setup, device: torch.device) -> LanguageModel:
    """Return the model with its layers' own initial weights, allocated on the device itself.

    The initialization of a study draws each parameter on the CPU, which takes a second and does not
    change how fast the model is.
    """
    with torch.device(device):
        return LanguageModel(setup.model, setup.vocab_size)


def random_tokens(setup: Setup, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int64 token ids of this shape, drawn uniformly from the vocabulary."""
    return torch.randint(setup.vocab_size, shape, device=device)


def release(under: Conditions) -> None:
    """Free the memory of the last point, and its compiled model."""
    gc.collect()  # a model and its optimizer refer to each other
    if under.device.type == "cuda":
        torch.cuda.empty_cache()
    if under.compiled:  # torch stops compiling silently after some number of models
        torch.compiler.reset()
