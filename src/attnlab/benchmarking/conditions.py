"""Under what all points are measured, and the model that they are measured on."""

import gc
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.benchmarking.targets import Setup
from attnlab.device.peak_rates import Ceilings
from attnlab.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Conditions:
    device: torch.device
    ceilings: Ceilings
    compiled: bool = False
    seconds: float = 1.0  # of timed calls a point, about

    @property
    def serving_dtype(self) -> torch.dtype:
        """Of weights and states where a model is served."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def bare_model(setup: Setup, device: torch.device) -> LanguageModel:
    """The model with the weights its layers begin with, made on the device itself.

    A study's own start from random streams of the CPU's, by name, which takes a second and makes
    nothing faster or slower.
    """
    with torch.device(device):
        return LanguageModel(setup.model, setup.vocab_size)


def random_tokens(setup: Setup, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randint(setup.vocab_size, shape, device=device)


def release(under: Conditions) -> None:
    """Give back what the last point held: memory, and its compiled model."""
    gc.collect()  # a model and its optimizer refer to each other
    if under.device.type == "cuda":
        torch.cuda.empty_cache()
    if under.compiled:  # past a number of models in one process it gives up silently
        torch.compiler.reset()
