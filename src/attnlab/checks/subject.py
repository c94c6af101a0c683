"""The mechanism under test: its device, dtype, parameters, shapes, modes and inputs.

Checks run on the CPU in float64, where a mistake exceeds the roundings by ten orders of magnitude,
and again as training runs it: in float32, and in bfloat16 under autocast, where the mechanism
receives bfloat16. A mechanism that does not run in float64 is checked in float32, and one that does
not run on the CPU on a CUDA device. One that computes in a single dtype is checked in it, on a CUDA
device if there is one. What computes in a narrower dtype inside is held to the roundings of that.

Parameters do not have the initial values of training: a projection that is initialised with zeros
would hide the computation before it. Matrices are drawn at the scale that keeps the variance of
their inputs, all other parameters are moved away from their initial values, and frozen ones stay.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.modes import (
    DROPOUT,
    EVAL,
    LATE,
    TRAIN,
    EmptyAs,
    Mode,
    NotJudgedError,
    Place,
    enliven,
    first_that_runs,
    narrowest_dtype,
    placed,
    require_tensor,
    seeded,
    tolerance,
)
from attnlab.checks.small_configs import Shapes, normal
from attnlab.config import ConfigError
from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.model.handing import Stack, stacked


@dataclass(frozen=True, kw_only=True)
class Subject(Shapes):
    """A mechanism at one model width, and everything that its checks need.

    One that takes tensors of earlier layers is judged in a `Stack` behind them.
    """

    d_model: int
    seed: int = 0
    varies: bool = False  # a kind by its name, whose settings may be varied
    before: tuple[MechanismConfig, ...] = ()  # the layers that it takes from

    @property
    def judged(self) -> tuple[MechanismConfig, ...]:
        """The settings of all layers that are judged: those before, and the mechanism's own."""
        return (*self.before, self.config)

    @property
    def layers(self) -> tuple[MechanismConfig, ...]:
        """The mechanisms of a small model: two, or those that are judged."""
        return self.judged if self.before else (self.config,) * 2

    def exact(self, tokens: int) -> tuple[int, str]:
        """Return `tokens`, or the length up to which decoding is exact, and a note if it is less.

        Raises NotJudgedError if that length is no sequence.
        """
        limits = [each.exact_length for each in self.judged if each.exact_length is not None]
        limit = min(limits, default=None)
        if limit is None or limit >= tokens:
            return tokens, ""
        if limit < 2:
            raise NotJudgedError(f"exact_length is {limit}: there is nothing to compare")
        return limit, f"compared up to {limit} tokens, its exact_length"

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """Results that several properties need and none changes."""
        return {}

    def built(self, mode: Mode = EVAL) -> Mechanism[Any]:
        """Return a module that many calls share, which change nothing: that is judged first.

        Its parameters have no gradients, and nobody else changes them.
        """
        key = "built", mode
        if key not in self.memo:
            self.memo[key] = self.build(mode)
        return self.memo[key]

    @torch.no_grad()
    def output(self, mode: Mode, batch: int, tokens: int) -> Tensor:
        """Return `y_BTD` of `tokens(batch, tokens, mode)`, computed once for all properties.

        That the same call gives the same bits is judged before any property asks for it.
        """
        key = "output", mode, batch, tokens
        if key not in self.memo:
            x_BTD = self.tokens(batch, tokens, mode)
            self.memo[key] = self.forward(self.built(mode), mode, x_BTD)
        return self.memo[key]

    @torch.no_grad()
    def decoded(self, batch: int, tokens: int, prompt: int = 0) -> Tensor:
        """Return `y_BTD` of `tokens(batch, tokens)`, decoded once for all properties."""
        key = "decoded", batch, tokens, prompt
        if key not in self.memo:
            self.memo[key] = self.decode(self.built(), self.tokens(batch, tokens), prompt)
        return self.memo[key]

    @cached_property
    def violated(self) -> set[str]:
        """The names of the properties that were found to be violated."""
        return set()

    @cached_property
    def has_schedule(self) -> bool:
        """True if the mechanism changes with the training step."""
        parts = (part for part in self.built().modules() if isinstance(part, Mechanism))
        kinds = {type(part) for part in parts} - {Stack}
        return any(kind.at_step is not Mechanism.at_step for kind in kinds)

    def apart(self, *modes: Mode) -> list[Mode]:
        """Return the modes that differ: without a schedule, all training steps are alike."""
        return [mode for mode in modes if mode.step == LATE or self.has_schedule]

    @cached_property
    def is_noisy(self) -> bool:
        """True if training adds noise: two calls under different seeds differ."""
        mechanism, x_BTD = self.build(TRAIN), self.tokens(2, 19)
        with torch.no_grad():
            first, second = (self.forward_with_loss(mechanism, TRAIN, x_BTD, s)[0] for s in (0, 1))
        return not torch.equal(first, second)

    @cached_property
    def off_in_training(self) -> float:
        """The relative deviation of outputs of training from those of eval; 0 if roundings."""
        train_BTD, eval_BTD = (self.output(mode, 4, self.short) for mode in (TRAIN, EVAL))
        off = (train_BTD - eval_BTD).abs().max() / eval_BTD.abs().max().clamp_min(1e-30)
        return 0.0 if off <= self.limit_in(EVAL) else float(off)

    @cached_property
    def decodes(self) -> bool:
        """True if the mechanism has the methods of decoding."""
        return self.built().decodes

    @cached_property
    def device(self) -> torch.device:
        return self._place[0]

    @cached_property
    def dtype(self) -> torch.dtype:
        return self._place[1]

    @cached_property
    def serves_float32(self) -> bool:
        """False if a kernel refuses float32, as some on CUDA do; then it trains under autocast."""
        is_narrow = torch.finfo(self.dtype).eps > torch.finfo(torch.float32).eps
        return not is_narrow or self.config.computes_in is not None

    def served(self, mode: Mode) -> Mode:
        """Return the mode, under autocast to bfloat16 where float32 is not served."""
        if not mode.float32 or self.serves_float32:
            return mode
        name = f"{mode.name} in bfloat16"
        return mode._replace(name=name, autocast=True, float32=False)

    def autocast_in(self, mode: Mode) -> torch.autocast:
        """Return the context of autocast, which is off in most modes."""
        return self.served(mode).autocast_on(self.device)

    def dtype_in(self, mode: Mode) -> torch.dtype:
        """Return the dtype of inputs in this mode."""
        mode = self.served(mode)
        if mode.autocast:
            return torch.bfloat16
        return torch.float32 if mode.float32 else self.dtype

    def limit_in(self, mode: Mode) -> float:
        """Return the relative deviation that roundings may cause in this mode."""
        mode = self.served(mode)
        if mode.autocast or mode.float32:
            return tolerance(self.dtype_in(mode))
        return tolerance(self.precision)

    def build(self, mode: Mode = EVAL) -> Mechanism[Any]:
        """Return the mechanism in this mode, with the same parameters every time."""
        with seeded(self.seed), EmptyAs(0.0):
            mechanism = self.made(mode.dropout)
        enliven(mechanism, self.seed)
        dtype = torch.float32 if mode.autocast or mode.float32 else self.dtype
        return placed(mechanism, self.device, dtype, mode)

    def made(self, dropout: float = 0.0) -> Mechanism[Any]:
        """Return the mechanism with what its constructor sets."""
        return stacked(self.before, self.config, self.d_model, dropout)

    def trial(self) -> tuple[Mechanism[Any], int]:
        """Return a mechanism to try devices and dtypes with, and its model width."""
        return self.made(), self.d_model

    def can_drop(self) -> bool:
        """True if it supports dropout on this device; a kernel may refuse it."""
        try:
            with seeded(0):
                mechanism = self.made(DROPOUT.dropout)
        except ConfigError:
            return False
        try:
            mechanism.kernel_on(self.device, self.dtype)
        except ValueError:
            return False
        return True

    def tokens(self, batch: int, tokens: int, mode: Mode = EVAL, seed: int = 0) -> Tensor:
        """Return inputs `x_BTD`, standard normal, drawn from `seed`."""
        shape, dtype = (batch, tokens, self.d_model), self.dtype_in(mode)
        return normal(shape, 1000 * self.seed + seed).to(self.device, dtype, copy=True)

    def forward(self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor) -> Tensor:
        """Return `y_BTD`, computed as the model does in this mode."""
        return self.forward_with_loss(mechanism, mode, x_BTD)[0]

    def forward_with_loss(
        self, mechanism: Mechanism[Any], mode: Mode, x_BTD: Tensor, seed: int | None = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Return `y_BTD` and, in training, the auxiliary loss. Dropout draws from `seed`."""
        with nullcontext() if seed is None else seeded(seed), self.autocast_in(mode):
            y_BTD, loss = (
                mechanism.forward_with_loss(x_BTD) if mode.training else (mechanism(x_BTD), None)
            )
        return require_tensor(y_BTD), loss

    def decode(
        self,
        mechanism: Mechanism[Any],
        x_BTD: Tensor,
        prompt: int = 0,
        mode: Mode = EVAL,
        spare: int = 0,
        seed: int | None = 0,
    ) -> Tensor:
        """Return `y_BTD`: the first `prompt` tokens by `prefill`, the others one by one.

        The state has room for `spare` more tokens than there are.
        """
        batch, capacity = x_BTD.shape[0], x_BTD.shape[1] + spare
        outputs = list[Tensor]()
        random = nullcontext() if seed is None else seeded(seed)
        with random, self.autocast_in(mode):
            if prompt:
                y_BTD, state = mechanism.prefill(x_BTD[:, :prompt], capacity)
                outputs.extend(y_BTD.unbind(1))
            else:
                state = mechanism.init_state(batch, capacity)
            for x_BD in x_BTD[:, prompt:].unbind(1):
                y_BD, state = mechanism.step(x_BD, state)
                outputs.append(y_BD)
        return torch.stack(outputs, 1)

    @contextmanager
    def at(self, mode: Mode, batch: int, tokens: int, more: str = "") -> Generator[Place]:
        """Yield mode and shape, and add them as a note to exceptions raised inside."""
        mode = self.served(mode)
        dtype = str(self.dtype_in(mode)).removeprefix("torch.")
        name = mode.name if mode.autocast else f"{mode.name} in {dtype}"
        place = Place(name, batch, tokens, more)
        try:
            yield place
        except Exception as error:
            error.add_note(str(place))
            raise

    @cached_property
    def precision(self) -> torch.dtype:
        """The narrowest dtype of the numbers inside, for inputs in `dtype`, if it can be seen."""
        mechanism, x_BTD = self.build(), self.tokens(2, 19)  # drawn in float32, not observed

        def call() -> None:
            self.forward(mechanism, EVAL, x_BTD)
            if mechanism.decodes:
                self.decode(mechanism, x_BTD, prompt=14)  # a block of 16 tokens ends after it

        return narrowest_dtype(call, self.dtype) or self.dtype

    @cached_property
    def _place(self) -> tuple[torch.device, torch.dtype]:
        return first_that_runs(self.trial, self.config.computes_in)
