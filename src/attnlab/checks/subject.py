"""The mechanism under test: its device, dtype, parameters, shapes, modes and inputs.

Checks run on the CPU in float64, where a mistake exceeds the roundings by ten orders of magnitude.
A mechanism that does not run in float64 is checked in float32, and one that does not run on the CPU
on a CUDA device. One that computes in a single dtype is checked in it, on a CUDA device if there is
one.

Parameters do not have the initial values of training: a projection that is initialised with zeros
would hide the computation before it. Matrices are drawn at the scale that keeps the variance of
their inputs, and all other parameters are moved away from their initial values.

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

LATE = 1_000_000  # a training step after the end of every schedule
_CUDA = [("cuda", torch.float32), ("cuda", torch.bfloat16)]  # some kernels have no float32
REACH_WORDS = ("window", "top_k", "chunk", "block")  # in names of fields that bound the reach


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
    """A mechanism at one model width, and everything that its checks need."""

    config: MechanismConfig
    d_model: int
    seed: int = 0
    quick: bool = False  # fewer shapes and modes, as before every study

    @cached_property
    def reach(self) -> int:
        """The longest window, top-k, chunk or block in the settings; 0 if there is none."""
        return max(bounds(self.config).values(), default=0)

    @property
    def past(self) -> int:
        """An odd sequence length beyond the reach: about twice as long where that is cheap."""
        if not self.reach:
            return 37
        return max(37, 2 * self.reach + 3) if self.reach <= 32 else (self.reach + 3) | 1

    @property
    def lengths(self) -> list[int]:
        """Sequence lengths to check, ascending; blocks of 64 and 128 tokens end inside."""
        return [1, 7, self.past] if self.quick else sorted({1, 2, 7, 75, 139, self.past})

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(batch size, length): every length, with batch sizes 3 and 1 alternately."""
        return [(1 if i % 2 else 3, tokens) for i, tokens in enumerate(self.lengths)]

    def exact(self, tokens: int) -> int:
        """Return `tokens`, or the length up to which decoding is exact if that is less."""
        limit = self.config.exact_length
        return tokens if limit is None else min(tokens, limit)

    def cuts(self, tokens: int) -> list[int]:
        """Return positions that split a sequence: at both ends, inside, and around boundaries."""
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
        """Return the dtype that the mode computes in."""
        return torch.bfloat16 if mode.autocast else self.dtype

    def build(self, mode: Mode = EVAL) -> Mechanism[Any]:
        """Return the mechanism in this mode, with the same parameters every time."""
        with _seeded(self.seed):
            mechanism = self.config.build(self.d_model, mode.dropout)
        _enliven(mechanism, self.seed)
        dtype = torch.float32 if mode.autocast else self.dtype
        mechanism = mechanism.to(self.device, dtype).train(mode.training)
        mechanism.at_step(mode.step)
        return mechanism

    def can_drop(self) -> bool:
        """True if it supports dropout on this device; a kernel may refuse it."""
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
        """Return inputs `x_BTD`, standard normal, drawn from `seed`."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        x_BTD = torch.randn(batch, tokens, self.d_model, generator=generator, dtype=torch.float64)
        return x_BTD.to(self.device, torch.float32 if mode.autocast else self.dtype)

    def forward(self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor) -> Tensor:
        """Return `y_BTD`, computed as the model does in this mode."""
        return self.forward_with_loss(mechanism, mode, x_BTD)[0]

    def forward_with_loss(
        self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Return `y_BTD` and, in training, the auxiliary loss. Dropout draws from `seed`."""
        with _seeded(seed), mode.autocast_on(x_BTD.device):
            if mode.training:
                return mechanism.forward_with_loss(x_BTD)
            return mechanism(x_BTD), None

    def decode(
        self, mechanism: Mechanism[Any], x_BTD: Tensor, prompt: int = 0, mode: Mode = EVAL
    ) -> Tensor:
        """Return `y_BTD`: the first `prompt` tokens by `prefill`, the others one by one."""
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
        """Yield mode and shape as text, and add it as a note to exceptions raised inside."""
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
        """The first device and dtype on which the mechanism runs; the first of all if none."""
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
    """Return the settings that bound how many tokens a token sees at once, by name.

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
    """Seed the random streams inside, and restore the caller's afterwards."""
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        # torch.manual_seed also queues a call for a device that is not in use, which is slow
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
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
