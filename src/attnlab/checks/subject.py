"""The mechanism under test: how it is built, at which shapes, in which modes, on which numbers.

Checks run on the CPU in float64, where a mistake stands out by ten orders of magnitude; a mechanism
that refuses it is taken in float32, and one that refuses the CPU on the CUDA device there is. One
that computes in a single dtype is taken in it, on the CUDA device where there is one.

Parameters are not left as the model starts them: a projection that begins at zero would hide all
that lies behind it. Matrices are drawn at the scale that keeps the variance of what they multiply,
and everything else moves a little away from its initial value.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnlab.config import ConfigError
from attnlab.mechanism import Mechanism, MechanismConfig

LATE = 1_000_000  # a training step by which every schedule is over
_CUDA = [("cuda", torch.float32), ("cuda", torch.bfloat16)]  # some kernels have no float32
REACH_WORDS = ("window", "top_k", "chunk", "block")  # fields that bound what a token sees at once


class Mode(NamedTuple):
    """One way to run a mechanism."""

    name: str
    training: bool
    step: int = LATE
    dropout: float = 0.0
    autocast: bool = False  # to bfloat16, parameters in float32

    def autocast_on(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast)


EVAL = Mode("eval", training=False)
TRAIN = Mode("train", training=True)
FIRST_STEP = Mode("train at step 0", training=True, step=0)
DROPOUT = Mode("train with dropout", training=True, dropout=0.5)
BFLOAT16_EVAL = Mode("eval in bfloat16", training=False, autocast=True)
BFLOAT16_TRAIN = Mode("train in bfloat16", training=True, autocast=True)


@dataclass(frozen=True, kw_only=True)
class Subject:
    config: MechanismConfig
    d_model: int
    seed: int = 0
    quick: bool = False  # fewer shapes and modes: what is run before every study

    @cached_property
    def reach(self) -> int:
        """The longest window, top-k, chunk or block that the settings name; 0 where none does."""
        return max(bounds(self.config).values(), default=0)

    @property
    def past(self) -> int:
        """An odd length beyond what the settings bound: twice as long where that is cheap."""
        if not self.reach:
            return 37
        return max(37, 2 * self.reach + 3) if self.reach <= 32 else (self.reach + 3) | 1

    @property
    def lengths(self) -> list[int]:
        """Sequence lengths to look at, shortest first; blocks of 64 and 128 tokens end inside."""
        return [1, 7, self.past] if self.quick else sorted({1, 2, 7, 75, 139, self.past})

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Batch sizes 1 and 3 in turn, and the lengths."""
        return [(1 if i % 2 else 3, tokens) for i, tokens in enumerate(self.lengths)]

    def exact(self, tokens: int) -> int:
        """No more tokens than decoding is promised to be exact for."""
        limit = self.config.exact_length
        return tokens if limit is None else min(tokens, limit)

    def cuts(self, tokens: int) -> list[int]:
        """Where to part a sequence: at both ends, in the middle, and around every boundary."""
        edges = {1, 2, tokens // 3, tokens // 2, tokens - 1}
        boundaries = (self.reach,) if self.quick else (self.reach, 16, 32, 64, 128)
        edges |= {b + offset for b in boundaries for offset in (-1, 0, 1)}
        if tokens <= 12:
            edges |= set(range(tokens))
        return sorted(edge for edge in edges if 0 < edge < tokens)

    @cached_property
    def device(self) -> torch.device:
        return self._place[0]

    @cached_property
    def dtype(self) -> torch.dtype:
        return self._place[1]

    def dtype_in(self, mode: Mode) -> torch.dtype:
        """Of the numbers that the mode computes with."""
        return torch.bfloat16 if mode.autocast else self.dtype

    def build(self, mode: Mode = EVAL) -> Mechanism[Any]:
        """The mechanism in this mode, with the same parameters every time."""
        with _seeded(self.seed):
            mechanism = self.config.build(self.d_model, mode.dropout)
        _enliven(mechanism, self.seed)
        dtype = torch.float32 if mode.autocast else self.dtype
        mechanism = mechanism.to(self.device, dtype).train(mode.training)
        mechanism.at_step(mode.step)
        return mechanism

    def can_drop(self) -> bool:
        """Whether it has dropout here: a kernel may have none, and say so."""
        try:
            with _seeded(0):
                mechanism = self.config.build(self.d_model, DROPOUT.dropout)
        except ConfigError:
            return False
        try:
            mechanism.kernel_on(self.device, self.dtype)
        except ValueError:
            return False
        return True

    def tokens(self, batch: int, tokens: int, mode: Mode = EVAL, seed: int = 0) -> Tensor:
        """`x_BTD`, standard normal; another `seed` gives others."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        x_BTD = torch.randn(batch, tokens, self.d_model, generator=generator, dtype=torch.float64)
        return x_BTD.to(self.device, torch.float32 if mode.autocast else self.dtype)

    def forward(self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor) -> Tensor:
        """`y_BTD` as the model asks for it in this mode."""
        return self.forward_with_loss(mechanism, mode, x_BTD)[0]

    def forward_with_loss(
        self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Also the auxiliary loss, in training. Dropout draws from `seed`."""
        with _seeded(seed), mode.autocast_on(x_BTD.device):
            if mode.training:
                return mechanism.forward_with_loss(x_BTD)
            return mechanism(x_BTD), None

    def decode(
        self, mechanism: Mechanism[Any], x_BTD: Tensor, prompt: int = 0, mode: Mode = EVAL
    ) -> Tensor:
        """`y_BTD`, the first `prompt` tokens through `prefill` and the others one by one."""
        batch, tokens = x_BTD.shape[:2]
        outputs = list[Tensor]()
        with _seeded(0), mode.autocast_on(x_BTD.device):
            if prompt:
                y_BTD, state = mechanism.prefill(x_BTD[:, :prompt], tokens)
                outputs.extend(y_BTD.unbind(1))
            else:
                state = mechanism.init_state(batch, tokens)
            for x_BD in x_BTD[:, prompt:].unbind(1):
                y_BD, state = mechanism.step(x_BD, state)
                outputs.append(y_BD)
        return torch.stack(outputs, 1)

    @contextmanager
    def at(self, mode: Mode, batch: int, tokens: int, more: str = "") -> Generator[str]:
        """Words for this place; they go along with whatever is raised here."""
        dtype = str(self.dtype_in(mode)).removeprefix("torch.")
        name = mode.name if mode.autocast else f"{mode.name}, {dtype}"
        words = f"{name}, batch {batch}, {tokens} {'token' if tokens == 1 else 'tokens'}{more}"
        try:
            yield words
        except Exception as error:
            error.add_note(words)
            raise

    @cached_property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        """The first device and dtype that the mechanism runs on; the first of all if none."""
        cuda = torch.cuda.is_available()
        places = [("cpu", torch.float64), ("cpu", torch.float32), *_CUDA * cuda]
        if self.config.computes_in is not None:
            places = [("cuda" if cuda else "cpu", self.config.computes_in)]
        for device, dtype in places:
            try:
                with torch.no_grad(), _seeded(0):
                    mechanism = self.config.build(self.d_model).to(device, dtype).eval()
                    x_BTD = torch.zeros(2, 5, self.d_model, device=device, dtype=dtype)
                    mechanism(x_BTD)
                    self.decode(mechanism, x_BTD, prompt=3)
            except Exception:
                continue
            return torch.device(device), dtype
        device, dtype = places[0]
        return torch.device(device), dtype


def bounds(config: MechanismConfig) -> dict[str, int]:
    """Settings that bound what a token sees at once, by name.

    >>> from attnlab.mechanisms.sliding_window import SlidingWindow
    >>> bounds(SlidingWindow(window=64))
    {'window': 64}
    """
    named = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if any(word in field.name for word in REACH_WORDS)
    }
    return {name: value for name, value in named.items() if type(value) is int}


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw from this seed, and leave the caller's random streams as they were."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _enliven(mechanism: Mechanism[Any], seed: int) -> None:
    for i, (name, parameter) in enumerate(mechanism.named_parameters()):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        noise = torch.randn(parameter.shape, generator=generator)
        value = mechanism.initial_value(name, generator)
        if value is not None:
            parameter.copy_(value + 0.1 * noise)
        elif parameter.ndim >= 2:
            parameter.copy_(noise * max(parameter.shape[-2:]) ** -0.5)
        else:
            parameter.copy_((0 if name.endswith("bias") else 1) + 0.1 * noise)
