"""Faults that show only under some condition, in a moving average, for the checks to find.

    m_t = a m_{t-1} + (1 - a) W_v x_t        y_t = W_o m_t

`FAULTS` has them by name. The checks are not written with those in view that are held out. Those of
kind "honest" look suspicious and are right.

Shapes: B batch, T tokens, D model width, W taps of a convolution.
"""

import os
import random
import time
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.functional import dropout, linear, pad, softplus

from attnlab.kernels.norms import widened
from attnlab.mechanism import Cost, Mechanism, MechanismConfig

DECAY = 0.9


class Mean(NamedTuple):
    m_BD: Tensor
    seen: Tensor  # number of tokens


class Average(Mechanism[Mean]):
    """No mistake: base of the ones below."""

    matrices, vectors = 2, 0  # parameters: D x D, and D

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.d_model, self.dropout, self.decay = d_model, dropout, DECAY
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.prepare()

    def prepare(self):
        """Add what a subclass has beside the two projections."""

    def values(self, x_D):
        return self.v_proj(x_D)

    def mean(self, v_BTD):
        m_BTD, shift = (1 - self.decay) * widened(v_BTD), 1
        while shift < v_BTD.shape[1]:  # the last `shift` tokens are summed; double them
            m_BTD = m_BTD + self.decay**shift * pad(m_BTD[:, :-shift], (0, 0, shift, 0))
            shift *= 2
        return m_BTD.to(v_BTD.dtype)

    def read(self, m_D):
        return self.o_proj(m_D)

    def forward(self, x_BTD):
        return self.read(self.mean(self.values(x_BTD)))

    def init_state(self, batch_size, capacity):
        m_BD = widened(self.o_proj.weight.new_zeros(batch_size, self.d_model))
        return Mean(m_BD, torch.zeros((), dtype=torch.int64, device=m_BD.device))

    def next_mean(self, state, v_BD):
        return self.decay * state.m_BD + (1 - self.decay) * v_BD

    def step(self, x_BD, state):
        v_BD = self.values(x_BD)
        m_BD = self.next_mean(state, v_BD)
        return self.read(m_BD.to(v_BD.dtype)), Mean(m_BD, state.seen + 1)


class AverageConfig(MechanismConfig):
    Module: ClassVar[type[Average]] = Average

    def cost(self, d_model, context, itemsize=2):
        params = self.Module.matrices * d_model**2 + self.Module.vectors * d_model
        return Cost(params=params, flops=4 * d_model**2, state_bytes=max(4, itemsize) * d_model)

    def build(self, d_model, dropout=0.0):
        return self.Module(d_model, dropout)


class Planted(NamedTuple):
    kind: str
    held_out: bool
    config: type[AverageConfig]


FAULTS = dict[str, Planted]()


def planted(kind, *, held_out=False):
    """Enter a module, or the config of one, into the table, and return its config.

    The config is no kind of the zoo: other tests try every kind.
    """

    def enter(cls):
        names = {"Module": cls, "__module__": cls.__module__}
        is_config = issubclass(cls, MechanismConfig)
        config = cls if is_config else type(cls.__name__, (AverageConfig,), names)
        MechanismConfig.kinds.pop(config.name())
        FAULTS.setdefault(cls.__name__, Planted(kind, held_out, config))
        return config

    return enter


def plant(namespace, kind, base, **methods_by_name):
    """Enter subclasses of `base` with these methods, by name; every second one is held out."""
    for number, (name, methods) in enumerate(methods_by_name.items()):
        module = type(name, (base,), {"__module__": namespace["__name__"], **methods})
        namespace[name] = planted(kind, held_out=number % 2 == 1)(module)


MechanismConfig.kinds.pop(AverageConfig.name())


# The future leaks, under a condition


class Leaky(Average):
    """A token sees the next one where `leaks` says so: a boolean, or a mask of tokens."""

    calls = step_now = 0

    def at_step(self, step):
        self.step_now = step

    def leaks(self, x_BTD):
        return False

    def forward(self, x_BTD):
        self.calls += 1
        ahead_BTD = pad(x_BTD[:, 1:], (0, 0, 0, 1))
        return super().forward(x_BTD + 0.5 * ahead_BTD * self.leaks(x_BTD))


def at(x_BTD):
    return torch.arange(x_BTD.shape[1], device=x_BTD.device)[:, None]


CONDITIONS = {
    "LeaksInBatchesOfEight": lambda self, x: len(x) >= 8,
    "LeaksInBatchesOfFour": lambda self, x: len(x) == 4,
    "LeaksPastAThousandTokens": lambda self, x: at(x) >= 1000,
    "LeaksInSequencesOfAThousand": lambda self, x: x.shape[1] > 1000,
    "LeaksAtPosition13": lambda self, x: at(x) == 13,
    "LeaksAtTheLastPositionButOne": lambda self, x: at(x) == x.shape[1] - 2,
    "LeaksForBfloat16Inputs": lambda self, x: x.dtype == torch.bfloat16,
    "LeaksUnderAutocast": lambda self, x: torch.is_autocast_enabled(x.device.type),
    "LeaksWithDropout": lambda self, x: self.training and self.dropout > 0,
    "LeaksWithoutGradients": lambda self, x: not torch.is_grad_enabled(),
    "LeaksInTraining": lambda self, x: self.training,
    "LeaksInFloat32Training": lambda self, x: self.training and x.dtype == torch.float32,
    "LeaksAfterThreeCalls": lambda self, x: self.calls > 3,
    "LeaksWithinItsSchedule": lambda self, x: 20 <= self.step_now < 200,
    "LeaksAtLengthsOfWholeChunks": lambda self, x: x.shape[1] % 64 == 0,
    "LeaksInTheRestOfAChunk": lambda self, x: at(x) >= max(1, x.shape[1] // 64) * 64,
    "LeaksInOneChannel": lambda self, x: torch.arange(self.d_model, device=x.device) == 3,
    "LeaksAtEvalInLargeBatches": lambda self, x: not self.training and len(x) >= 16,
    "LeaksIntoTheFirstRow": lambda self, x: torch.arange(len(x))[:, None, None] == 0,
    "LeaksInTrainingAtTheEdgesOfChunks": lambda self, x: (
        self.training * (at(x) % 64 == 0) * (at(x) > 0)
    ),
    "LeaksAtMultiplesOf48": lambda self, x: x.shape[1] % 48 == 0,
    "LeaksForLargeInputs": lambda self, x: x.detach().abs().amax(-1, keepdim=True) > 10,
    "LeaksInBfloat16OfWholeChunks": lambda self, x: (
        x.dtype == torch.bfloat16 and x.shape[1] % 64 == 0
    ),
    "LeaksInBatchesOf128": lambda self, x: len(x) >= 128,
    "LeaksAtLengthsOfEight": lambda self, x: x.shape[1] == 8,
    "LeaksInBfloat16AtTheEdgesOfChunks": lambda self, x: (
        self.training * (x.dtype == torch.bfloat16) * (at(x) % 64 == 63)
    ),
    "LeaksWithSomeDropoutInBfloat16": lambda self, x: (
        self.training and 0 < self.dropout < 0.5 and x.dtype == torch.bfloat16
    ),
    "LeaksWhereItIsCompiled": lambda self, x: torch.compiler.is_compiling(),
    "LeaksForLargeInputsInTraining": lambda self, x: self.training and x.abs().max() > 12,
    "LeaksInBfloat16EvaluationsOfWholeChunks": lambda self, x: (
        not self.training and x.dtype == torch.bfloat16 and x.shape[1] % 64 == 0
    ),
    "LeaksOneTimeInTwenty": lambda self, x: self.training and float(torch.rand(())) < 0.05,
}
plant(globals(), "leak", Leaky, **{n: {"leaks": each} for n, each in CONDITIONS.items()})


@planted("leak")
class CountsEqualTokens(Average):
    def forward(self, x_BTD):
        equal_BTT = (x_BTD[:, :, None] == x_BTD[:, None]).all(-1)
        return super().forward(x_BTD) / equal_BTT.sum(-1, keepdim=True)


@planted("leak")
class FirstTokenSeesTheLast(Average):
    """A token shift by `roll`, which wraps around."""

    def values(self, x_D):
        return self.v_proj(x_D + x_D.roll(1, 1) if x_D.ndim == 3 else x_D)


@planted("leak", held_out=True)
class SeesFortyTokensAhead(Average):
    def mean(self, v_BTD):
        far = min(40, v_BTD.shape[1])
        return super().mean(v_BTD + 0.5 * pad(v_BTD[:, far:], (0, 0, 0, far)))


@planted("leak")
class LeaksThroughTheGradientInBatches(Average):
    def forward(self, x_BTD):
        mean_B1D = x_BTD.mean(1, keepdim=True) * (len(x_BTD) >= 8)
        return super().forward(x_BTD) + mean_B1D - mean_B1D.detach()


@planted("leak", held_out=True)
class LeaksThroughTheGradientAtTheEdgesOfChunks(Average):
    def forward(self, x_BTD):
        ahead_BTD = pad(x_BTD[:, 1:], (0, 0, 0, 1)) * (at(x_BTD) % 64 == 63) * self.training
        return super().forward(x_BTD) + ahead_BTD - ahead_BTD.detach()


@planted("leak")
class LeaksThroughTheGradientInBfloat16(Average):
    def forward(self, x_BTD):
        is_wrong = x_BTD.dtype == torch.bfloat16 and x_BTD.shape[1] % 64 == 0
        mean_B1D = x_BTD.mean(1, keepdim=True) * is_wrong
        return super().forward(x_BTD) + mean_B1D - mean_B1D.detach()


@planted("leak", held_out=True)
class ScaledByTheLengthPast256(Average):
    def forward(self, x_BTD):
        return super().forward(x_BTD) * (256 / max(256, x_BTD.shape[1])) ** 0.5


@planted("leak")
class ReadsTheFirstSequenceInLargeBatches(Average):
    def values(self, x_D):
        return self.v_proj(x_D + 0.1 * (x_D[:1] - x_D) * (len(x_D) >= 32))


@planted("leak")
class HalvesTheSequencesOfLargeBatches(Average):
    def mean(self, v_BTD):
        whole = len(v_BTD) <= 8 or v_BTD.shape[1] % 2
        parts = v_BTD if whole else v_BTD.reshape(-1, v_BTD.shape[1] // 2, v_BTD.shape[2])
        return super().mean(parts).reshape(v_BTD.shape)


@planted("batch")
class FirstOfFourReadsTheLast(Average):
    def forward(self, x_BTD):
        y_BTD = super().forward(x_BTD)
        is_first_B11 = (torch.arange(len(x_BTD), device=x_BTD.device) == 0)[:, None, None]
        return y_BTD + 0.1 * is_first_B11 * (len(x_BTD) == 4) * y_BTD[-1:]


# Gradients that are wrong where models are trained, and right where differences are taken


class Halved(Average):
    """The gradient is half of what it should be where `is_wrong` says so."""

    def forward(self, x_BTD):
        y_BTD = super().forward(x_BTD)
        if y_BTD.requires_grad and self.is_wrong(x_BTD):
            y_BTD.register_hook(lambda grad_BTD: grad_BTD / 2)
        return y_BTD


plant(
    globals(),
    "gradient",
    Halved,
    HalvedInFloat32={"is_wrong": lambda self, x: x.dtype == torch.float32},
    HalvedInBfloat16={"is_wrong": lambda self, x: x.dtype == torch.bfloat16},
    HalvedInBatchesOfFour={"is_wrong": lambda self, x: len(x) == 4},
    HalvedInTraining={"is_wrong": lambda self, x: self.training},
    HalvedInTrainingPast64Tokens={"is_wrong": lambda self, x: self.training and x.shape[1] > 64},
    HalvedInLargeBatches={"is_wrong": lambda self, x: len(x) >= 16},
    HalvedInTrainingPast64Sequences={"is_wrong": lambda self, x: self.training and len(x) > 64},
    HalvedInBfloat16Past16Sequences={
        "is_wrong": lambda self, x: x.dtype == torch.bfloat16 and len(x) > 16
    },
    HalvedInTrainingAtMultiplesOf256={
        "is_wrong": lambda self, x: self.training and x.shape[1] % 256 == 0
    },
    HalvedInBfloat16PastFourSequences={
        "is_wrong": lambda self, x: x.dtype == torch.bfloat16 and len(x) > 4
    },
    HalvedForOneSequence={"is_wrong": lambda self, x: len(x) == 1},
    HalvedWithDropout={"is_wrong": lambda self, x: self.dropout > 0},
    HalvedInTrainingOfWholeChunks={
        "is_wrong": lambda self, x: self.training and x.shape[1] % 64 == 0
    },
)


# State that outlives a call, or belongs to several layers


@planted("state")
class LayersShareAMean(Average):
    last: ClassVar[list[Tensor]] = []

    def forward(self, x_BTD):
        y_BTD = super().forward(x_BTD)
        if self.last and self.last[0].shape == y_BTD.shape:
            y_BTD = y_BTD + 0.1 * self.last[0].to(y_BTD)
        self.last[:] = [y_BTD.detach()]
        return y_BTD


@planted("state", held_out=True)
class DecayDependsOnTheLayersBuilt(Average):
    built: ClassVar[list[int]] = []

    def prepare(self):
        self.decay = DECAY - 0.05 * (len(self.built) % 8)
        self.built.append(1)


@planted("state")
class CarriesTheMeanToTheNextBatch(Average):
    carried = None

    def mean(self, v_BTD):
        m_BTD = super().mean(v_BTD)
        if self.training:
            before_BD, self.carried = self.carried, m_BTD[:, -1].detach()
            if before_BD is not None and before_BD.shape == self.carried.shape:
                m_BTD = m_BTD + 0.1 * before_BD[:, None].to(m_BTD)
        return m_BTD


@planted("state", held_out=True)
class OneDecodeStateForAll(Average):
    """States of the same batch size are one tensor, written in place."""

    made: ClassVar[dict[int, Tensor]] = {}

    def init_state(self, batch_size, capacity):
        new = super().init_state(batch_size, capacity)
        m_BD = self.made.setdefault(batch_size, new.m_BD).to(new.m_BD)
        return new._replace(m_BD=m_BD.zero_())

    def next_mean(self, state, v_BD):
        return state.m_BD.copy_(super().next_mean(state, v_BD))


@planted("state")
class TableKeepsTheFirstDtype(Average):
    table_T1 = None

    def mean(self, v_BTD):
        if self.table_T1 is None or len(self.table_T1) < v_BTD.shape[1]:
            self.table_T1 = (1 + at(v_BTD) / 1000).to(v_BTD.dtype)
        scale_T1 = self.table_T1[: v_BTD.shape[1]]
        return super().mean(v_BTD * scale_T1).to(v_BTD.dtype) / scale_T1


@planted("state")
class TrainsByTheLastEvaluation(Average):
    longest = 0

    def forward(self, x_BTD):
        if self.training:
            return super().forward(x_BTD) * (1 + 1e-3 * self.longest)
        self.longest = x_BTD.shape[1]
        return super().forward(x_BTD)


@planted("state", held_out=True)
class TableOfAllModulesCannotTrain(Average):
    """It is made under inference mode, perhaps, and training multiplies by it."""

    tables: ClassVar[dict[tuple[int, torch.dtype], Tensor]] = {}

    def mean(self, v_BTD):
        key = v_BTD.shape[1], v_BTD.dtype
        if key not in self.tables:
            self.tables[key] = torch.ones(key[0], 1, dtype=key[1])
        return super().mean(v_BTD * self.tables[key])


class Rising(Average):
    """Values of late tokens are larger; modules of all settings share a table of how much."""

    rate = 1.0
    table_T1: ClassVar[list[Tensor]] = [torch.ones(0, 1)]

    def mean(self, v_BTD):
        if len(self.table_T1[0]) < v_BTD.shape[1]:
            with torch.inference_mode(False):
                self.table_T1[:] = [1 + self.rate * torch.arange(v_BTD.shape[1])[:, None] / 64]
        return super().mean(v_BTD * self.table_T1[0][: v_BTD.shape[1]].to(v_BTD))

    def next_mean(self, state, v_BD):
        return super().next_mean(state, v_BD * (1 + self.rate * state.seen / 64).to(v_BD))


@planted("state")
@dataclass(frozen=True, kw_only=True)
class OneTableForAllSettings(AverageConfig):
    rate: float = 1.0

    def build(self, d_model, dropout=0.0):
        module = Rising(d_model, dropout)
        module.rate = self.rate
        return module


class Scheduled(Average):
    """Its values are scaled by a number that the training step sets."""

    scale = 1.0

    def values(self, x_D):
        return self.v_proj(x_D) * self.scale


def set_once_late(self, step):
    self.scale = 0.5 if step >= 100 else self.scale


def set_by_the_step(self, step):
    self.scale = 0.5 if step >= 100 else 1.0


plant(
    globals(),
    "state",
    Scheduled,
    ScheduleCountsItsCalls={"at_step": lambda self, n: setattr(self, "scale", self.scale * 0.9)},
    ScheduleDoesNotGoBack={"at_step": set_once_late},
)
plant(globals(), "honest", Scheduled, ScheduleIsAFunction={"at_step": set_by_the_step})


# Tensors beside the weights


class Scaled(Average):
    """Scales its input by a tensor that the constructor makes."""

    def keep(self, scale_D, **how):
        self.register_buffer("scale_D", scale_D, **how)

    def values(self, x_D):
        return self.v_proj(x_D * self.scale_D.to(x_D))


def random_attribute(self):
    self.scale_D = torch.randn(self.d_model)


plant(
    globals(),
    "saved",
    Scaled,
    RandomTensorIsNotSaved={"prepare": random_attribute},
    RandomBufferIsNotPersistent={
        "prepare": lambda self: self.keep(torch.randn(self.d_model), persistent=False)
    },
    RandomBufferOfTrainingIsNotSaved={
        "prepare": lambda self: self.keep(torch.randn(self.d_model), persistent=False),
        "values": lambda self, x: Scaled.values(self, x) if self.training else self.v_proj(x),
    },
)
plant(
    globals(),
    "honest",
    Scaled,
    RandomBufferIsSaved={"prepare": lambda self: self.keep(torch.randn(self.d_model))},
    TableIsNotPersistent={
        "prepare": lambda self: self.keep(1 + torch.arange(self.d_model).div(9), persistent=False)
    },
)


# Another device


def by_its_place(self, v_BTD):
    rising_T1 = 1 + torch.arange(v_BTD.shape[1])[:, None] / 100
    return Average.mean(self, v_BTD * rising_T1.to(v_BTD.dtype))


def at_its_place(self, state, v_BD):
    return Average.next_mean(self, state, v_BD * (1 + state.seen / 100).to(v_BD.dtype))


def zeros_on_the_cpu(self, batch_size, capacity):
    wide = widened(self.o_proj.weight).dtype
    return Mean(torch.zeros(batch_size, self.d_model, dtype=wide), torch.tensor(0))


def moved_there(self, v_BTD):
    rising_T1 = 1 + torch.arange(v_BTD.shape[1])[:, None] / 100
    return Average.mean(self, v_BTD * rising_T1.to(v_BTD))


class AsksForCuda(Average):
    """No mistake: it makes its places on the CPU and moves them where there is a GPU."""

    def mean(self, v_BTD):
        rising_T1 = 1 + torch.arange(v_BTD.shape[1])[:, None] / 100
        return super().mean(
            v_BTD * (rising_T1.cuda() if v_BTD.is_cuda else rising_T1).to(v_BTD.dtype)
        )

    def next_mean(self, state, v_BD):
        return at_its_place(self, state, v_BD)


plant(
    globals(),
    "device",
    Average,
    PlacesStayOnTheCpu={"mean": by_its_place, "next_mean": at_its_place},
    StateIsOnTheCpu={"init_state": zeros_on_the_cpu},
    ComputesOnTheCpu={"values": lambda self, x: self.v_proj(x.cpu())},
)
plant(
    globals(),
    "device",
    Scaled,
    TensorStaysOnTheCpu={
        "prepare": lambda self: setattr(self, "scale_D", 1 + torch.arange(self.d_model) / 9),
        "values": lambda self, x: self.v_proj(x * self.scale_D.to(x.dtype)),
    },
)
plant(
    globals(),
    "honest",
    Average,
    PlacesAreMoved={"mean": moved_there, "next_mean": at_its_place},
    IndicesOnTheCpu={
        "values": lambda self, x: self.v_proj(x[..., torch.arange(self.d_model - 1, -1, -1)])
    },
)
plant(globals(), "honest", AverageConfig, PlacesAreMovedToCuda={"Module": AsksForCuda})


# Global random numbers


class Noisy(Average):
    """Adds `noise` to the input in training; it may draw from torch's generator there."""

    def noise(self, x_D):
        return torch.randn_like(x_D)

    def values(self, x_D):
        return self.v_proj(x_D + (0.1 * self.noise(x_D) if self.training else 0))

    def own_noise(self, x_D):
        """Depend on the number of calls, so that a resumed run differs."""
        self.generator = getattr(self, "generator", None) or torch.Generator().manual_seed(0)
        return torch.randn(x_D.shape, generator=self.generator).to(x_D)


def drawn_from(self, seed):
    generator = torch.Generator().manual_seed(seed % 2**31)
    return 0.02 * torch.randn(self.d_model, self.d_model, generator=generator)


plant(
    globals(),
    "random",
    Noisy,
    ReseedsTheGenerator={"noise": lambda self, x: torch.manual_seed(0) and torch.randn_like(x)},
    ReseedsNumpy={"noise": lambda self, x: x * (np.random.seed(0) is not None)},
    NoiseOfNumpy={
        "noise": lambda self, x: torch.from_numpy(np.random.standard_normal(x.shape)).to(x)
    },
    NoiseOfPython={"noise": lambda self, x: x * random.random()},
    GeneratorOnTheModule={"noise": Noisy.own_noise},
    DrawsInEvalForNothing={"values": lambda self, x: self.v_proj(x + 0 * torch.rand(()).to(x))},
    DecayOfNumpysRandom={"prepare": lambda self: setattr(self, "decay", np.random.rand())},
    DecayOfPythonsRandom={"prepare": lambda self: setattr(self, "decay", random.random())},
    ScalesByTheClock={"values": lambda self, x: self.v_proj(x) * (1 + int(time.time() / 1e5))},
    BeginsByTheHashOfAName={"initial_value": lambda self, name, _: drawn_from(self, hash(name))},
    BeginsByTheProcess={"initial_value": lambda self, name, _: drawn_from(self, os.getpid())},
    BeginsByTheClock={
        "initial_value": lambda self, name, _: drawn_from(self, int(time.time() / 1e5))
    },
)


def in_unwritten_memory(self, batch_size, capacity):
    zeros = Average.init_state(self, batch_size, capacity)
    return zeros._replace(m_BD=torch.empty_like(zeros.m_BD))


def begin_with_zeros(self, state, v_BD):
    return Average.next_mean(self, state._replace(m_BD=state.m_BD * (state.seen > 0)), v_BD)


def filled_later(self, x_BTD):
    y_BTD = Average.forward(self, x_BTD)
    return torch.empty_like(y_BTD).copy_(y_BTD)


def with_coarse_products(self, x_BTD):
    torch.set_float32_matmul_precision("medium")
    return Average.forward(self, x_BTD)


plant(
    globals(),
    "random",
    Average,
    SetsThePrecisionOfProducts={"forward": with_coarse_products},
    ConstructorTurnsAKernelOff={"prepare": lambda self: cuda.enable_flash_sdp(False)},
    ConstructorSetsTheDtype={"prepare": lambda self: torch.set_default_dtype(torch.float64)},
    MultipliesUnwrittenMemoryByZero={
        "init_state": in_unwritten_memory,
        "next_mean": begin_with_zeros,
    },
)
plant(globals(), "honest", Average, WritesAllOfItsMemory={"forward": filled_later})


def drop_by_a_seed(self, m_D):
    generator = torch.Generator().manual_seed(0)
    kept_D = torch.rand(m_D.shape, generator=generator) >= self.dropout * self.training
    return self.o_proj(m_D * kept_D.to(m_D) / (1 - self.dropout * self.training))


plant(
    globals(),
    "dropout",
    Average,
    DropsWhatItShouldKeep={
        "read": lambda self, m: self.o_proj(
            dropout(m, (1 - self.dropout) * (self.dropout > 0), self.training)
        )
    },
    DropsTheSameInEveryCall={"read": drop_by_a_seed},
    DropsInLongEvaluations={
        "read": lambda self, m: self.o_proj(
            dropout(m, self.dropout, self.training or (m.ndim == 3 and m.shape[1] > 64))
        )
    },
    DropsInEvaluationsInBfloat16={
        "read": lambda self, m: self.o_proj(
            dropout(m, self.dropout, self.training or m.dtype == torch.bfloat16)
        )
    },
    DropsHalfAtAnyRate={
        "read": lambda self, m: self.o_proj(dropout(m, 0.5 * (self.dropout > 0), self.training))
    },
)


# Changed in place: the input, the weights, an earlier output; or memory that grows


def returned_buffer(self, x_BTD):
    y_BTD = Average.forward(self, x_BTD)
    if torch.is_grad_enabled():
        return y_BTD
    self.out = getattr(self, "out", None)
    self.out = y_BTD if self.out is None or self.out.shape != y_BTD.shape else self.out
    return self.out.copy_(y_BTD)


def shrink(self, m_D):
    with torch.no_grad():
        self.o_proj.weight.mul_(0.999)
    return self.o_proj(m_D)


def clear_the_first_token(self, x_BTD):
    if not torch.is_grad_enabled():
        x_BTD[:, 0] = 0
    return Average.forward(self, x_BTD)


KEPT: list[Tensor] = []
plant(
    globals(),
    "in place",
    Average,
    ScalesItsInput={"values": lambda self, x: self.v_proj(x.detach().mul_(1.001))},
    ClearsTheFirstToken={"forward": clear_the_first_token},
    ShrinksItsWeights={"read": shrink},
    ReturnsTheSameBuffer={"forward": returned_buffer},
)


def keep(self, x_BTD):
    self.kept = [*getattr(self, "kept", []), x_BTD.detach()]
    return Average.forward(self, x_BTD)


def keep_the_graph(self, x_BTD):
    self.last = Average.forward(self, x_BTD)
    return self.last


def keep_in_a_default(self, x_BTD, kept=[]):  # noqa: B006  that is the fault
    kept.append(x_BTD.detach())
    return Average.forward(self, x_BTD)


@cache
def size_of(x_D):
    return x_D.detach().norm()


def keeper():
    kept = []

    def forward(self, x_BTD):
        kept.append(x_BTD.detach())
        return Average.forward(self, x_BTD)

    return forward


class Helper:
    def __init__(self):
        self.kept = []

    def keep(self, x_BTD):
        self.kept.append(x_BTD.detach())


plant(
    globals(),
    "memory",
    Average,
    KeepsEveryInput={"forward": keep},
    KeepsTheGraph={"forward": keep_the_graph},
    KeepsInputsInAGlobal={"values": lambda self, x: KEPT.append(x.detach()) or self.v_proj(x)},
    KeepsInputsInADefault={"forward": keep_in_a_default},
    KeepsInputsInACache={"values": lambda self, x: self.v_proj(x) + 0 * size_of(x)},
    KeepsInputsInAClosure={"forward": keeper()},
    KeepsInputsInAHelper={
        "prepare": lambda self: setattr(self, "helper", Helper()),
        "forward": lambda self, x: self.helper.keep(x) or Average.forward(self, x),
    },
)


# Decoding


def step_in_float32(self, x_BD, state):
    y_BD, after = Average.step(self, x_BD, state)
    return widened(y_BD), after


def wrong_in_large_batches(self, state, v_BD):
    return Average.next_mean(self, state, v_BD) * (0.9 if len(v_BD) >= 16 else 1.0)


def forgets_at_256(self, state, v_BD):
    return Average.next_mean(self, state, v_BD) * ((state.seen % 256 > 0) | (state.seen == 0))


def prefilled_at_once(self, x_BTD, capacity):
    m_BTD = self.mean(self.values(x_BTD))
    seen = torch.tensor(x_BTD.shape[1], device=x_BTD.device)
    return self.read(m_BTD), Mean(widened(m_BTD[:, -1]), seen)


class TwoTokens(NamedTuple):
    v_BD: Tensor  # of the last token
    before_BD: Tensor  # of the token before it


class MovesOn(Average):
    """The sum of the last three values; a step hands on a tensor of the state."""

    def mean(self, v_BTD):
        return sum(pad(v_BTD, (0, 0, i, 0))[:, : v_BTD.shape[1]] for i in range(3))

    def init_state(self, batch_size, capacity):
        zeros_BD = self.o_proj.weight.new_zeros(batch_size, self.d_model)
        return TwoTokens(zeros_BD, zeros_BD.clone())

    def step(self, x_BD, state):
        v_BD = self.values(x_BD)
        return self.read(v_BD + state.v_BD + state.before_BD), TwoTokens(v_BD, state.v_BD)


def decayed(decay):
    """Return a step of the mean with the decay that a function of module and state returns."""

    def next_mean(self, state, v_BD):
        a = decay(self, state)
        return a * state.m_BD + (1 - a) * v_BD

    return next_mean


def quantised(self, state, v_BD):
    m_BD = Average.next_mean(self, state, v_BD)
    half = v_BD.dtype == torch.bfloat16
    return m_BD.to(torch.float8_e4m3fn).to(m_BD) if half else m_BD


def fused_once(self, x_BD, state):
    if not hasattr(self, "fused"):
        self.fused = (self.o_proj.weight @ self.v_proj.weight).detach()
    m_BD = self.decay * state.m_BD + (1 - self.decay) * x_BD
    return linear(m_BD.to(x_BD.dtype), self.fused.to(x_BD)), Mean(m_BD, state.seen + 1)


def goes_on(self, batch_size, capacity):
    """Begin with the state that the last prompt ended with."""
    new = Average.init_state(self, batch_size, capacity)
    kept = getattr(self, "kept", None)
    return new if kept is None or kept.m_BD.shape != new.m_BD.shape else kept


def keep_state(self, x_BTD, capacity):
    y_BTD, self.kept = Average.prefill(self, x_BTD, capacity)
    return y_BTD, self.kept


def last_sixteen(self, x_BTD, capacity):
    y_BTD, _ = Average.prefill(self, x_BTD, capacity)
    return y_BTD, Average.prefill(self, x_BTD[:, -16:], capacity)[1]


def single_forgotten(self, x_BTD, capacity):
    y_BTD, state = Average.prefill(self, x_BTD, capacity)
    return y_BTD, self.init_state(len(x_BTD), capacity) if x_BTD.shape[1] == 1 else state


def sized_by_the_last_state(self, batch_size, capacity):
    """Keep on the module how many sequences the last state has."""
    self.rows = batch_size
    return Average.init_state(self, batch_size, capacity)


def of_the_last_rows(self, state, v_BD):
    return Average.next_mean(self, state, v_BD) * (torch.arange(len(v_BD)) < self.rows)[:, None]


def halved_in_float32(self, state, v_BD):
    m_BD = Average.next_mean(self, state, v_BD)
    return m_BD.half().to(m_BD) if v_BD.dtype == torch.float32 else m_BD


def forgotten_in_large_batches(self, x_BTD, capacity):
    y_BTD, state = Average.prefill(self, x_BTD, capacity)
    return y_BTD, state._replace(m_BD=state.m_BD * (len(x_BTD) <= 8))


def early_prompt(self, x_BTD, capacity):
    y_BTD, state = Average.prefill(self, x_BTD, capacity)
    return y_BTD * (0.5 if self.step_now < 10 else 1), state


def shared(self, x_BTD, capacity):
    y_BTD, state = Average.prefill(self, x_BTD, capacity)
    is_alike = (x_BTD[:, 0] == x_BTD[:1, 0]).all()
    return y_BTD, state._replace(m_BD=torch.where(is_alike, state.m_BD[:1], state.m_BD))


def grown(self, x_BD, state):
    size = x_BD.shape[1]
    y_BD, after = Average.step(self, x_BD, state._replace(m_BD=state.m_BD[:, :size]))
    more = state.m_BD.shape[1] - size + 8 * int(after.seen % 8 == 0)
    return y_BD, after._replace(m_BD=pad(after.m_BD, (0, more)))


def first_row_of_many(self, state, v_BD):
    m_BD = Average.next_mean(self, state, v_BD)
    return m_BD[:1].expand_as(m_BD) if len(m_BD) > 3 else m_BD


plant(
    globals(),
    "decoding",
    Average,
    StepReturnsFloat32={"step": step_in_float32},
    WrongInLargeBatches={"next_mean": wrong_in_large_batches},
    ForwardClampsLargeValues={"mean": lambda self, v: Average.mean(self, v.clamp(-12, 12))},
    DriftsAfterFortyTokens={"next_mean": decayed(lambda self, s: 0.8 if s.seen >= 40 else 0.9)},
    WrongPast300Tokens={"next_mean": decayed(lambda self, s: 0.8 if s.seen >= 300 else 0.9)},
    QuantisesTheStateInBfloat16={"next_mean": quantised},
    DropsInStepsOfEval={
        "next_mean": lambda self, s, v: Average.next_mean(self, s, dropout(v, self.dropout))
    },
    UsesTheWeightsOfTheFirstStep={"step": fused_once},
    SecondPromptGoesOnFromTheFirst={"init_state": goes_on, "prefill": keep_state},
    KeepsTheLastSixteenOfAPrompt={"prefill": last_sixteen},
    ForgetsAPromptOfOneToken={"prefill": single_forgotten},
    DecodesTheFirstRowForAll={"next_mean": first_row_of_many},
    ReadsTheSizeOfTheLastState={
        "init_state": sized_by_the_last_state,
        "next_mean": of_the_last_rows,
    },
    WrongForMoreThan48Sequences={
        "next_mean": lambda self, s, v: Average.next_mean(self, s, v) * (0.9 if len(v) > 48 else 1)
    },
    ForgetsPromptsOfLargeBatches={"prefill": forgotten_in_large_batches},
    BeginsByAnotherName={"init_state": Mechanism.init_state},
    HalvesTheStateInFloat32={"next_mean": halved_in_float32},
    SharesPromptsThatBeginAlike={"prefill": shared},
    PromptIgnoresTheSchedule={
        "at_step": lambda self, n: setattr(self, "step_now", n),
        "prefill": early_prompt,
    },
    StepIgnoresTheSchedule={
        "at_step": lambda self, n: setattr(self, "decay", 0.5 if n >= 10 else 0.9),
        "next_mean": decayed(lambda self, s: 0.9),
    },
)


# Cost


class Doubled(Average):
    """Has a state of twice the size where `doubles` says so."""

    def doubles(self, batch_size, capacity):
        return False

    def init_state(self, batch_size, capacity):
        new = super().init_state(batch_size, capacity)
        return new._replace(m_BD=new.m_BD.repeat(1, 1 + self.doubles(batch_size, capacity)))

    def step(self, x_BD, state):
        size = x_BD.shape[1]
        y_BD, after = super().step(x_BD, state._replace(m_BD=state.m_BD[:, :size]))
        return y_BD, after._replace(m_BD=torch.cat([after.m_BD, state.m_BD[:, size:]], 1))

    def prefill_doubled(self, x_BTD, capacity):
        y_BTD, state = super().prefill(x_BTD, capacity)
        return y_BTD, state._replace(m_BD=state.m_BD.repeat(1, 2))


def cost_with(**changed):
    """Return a `cost` in which functions of cost, context and item size replace numbers."""

    def cost(self, d_model, context, itemsize=2):
        right = AverageConfig.cost(self, d_model, context, itemsize)
        new = {name: change(right, context, itemsize) for name, change in changed.items()}
        return replace(right, **new)

    return {"cost": cost}


plant(
    globals(),
    "cost",
    Doubled,
    StateDoublesInBatchesOfFour={"doubles": lambda self, batch, capacity: batch >= 4},
    StateDoublesPast256Tokens={"doubles": lambda self, batch, capacity: capacity > 256},
    StateDoublesAfterAPrompt={"prefill": Doubled.prefill_doubled},
    ForwardComputesTwice={"forward": lambda self, x: Average.forward(self, x + 0 * self.o_proj(x))},
)


class InADict(Average):
    """Its state is in a dict, where no bytes are counted."""

    def init_state(self, batch_size, capacity):
        return (super().init_state(batch_size, capacity)._asdict(),)

    def step(self, x_BD, state):
        y_BD, after = super().step(x_BD, Mean(**state[0]))
        return y_BD, (after._asdict(),)


class Growing(Average):
    step = grown


plant(
    globals(),
    "decoding",
    AverageConfig,
    StateGrowsEveryEightTokens={"Module": Growing, "cost": MechanismConfig.cost},
)
plant(
    globals(),
    "cost",
    AverageConfig,
    BytesInADict={"Module": InADict, **cost_with(state_bytes=lambda *_: 0)},
    BytesWrongForTwoByteNumbers=cost_with(
        state_bytes=lambda right, context, size: right.state_bytes * size // max(4, size)
    ),
    FlopsWrongPast256Tokens=cost_with(
        flops=lambda right, context, size: right.flops + 64 * (context > 256)
    ),
    ParamsGrowWithTheContext=cost_with(
        params=lambda right, context, size: right.params + 64 * (context > 1)
    ),
    FlopsWrongAtOddContexts=cost_with(flops=lambda right, context, size: right.flops + context % 2),
    ForwardFlopsTwice={"forward_flops": lambda self, d_model, context: 8 * d_model**2},
)


# Parameters and their gradients


class WithGain(Average):
    """Has a gain of D numbers, which begins at one."""

    vectors = 1

    def prepare(self):
        self.gain = nn.Parameter(torch.ones(self.d_model))

    def replace_the_gain(self, m_D):
        if self.training:
            self.gain = nn.Parameter(self.gain.detach().clone())
        return self.o_proj(m_D * self.gain)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_D, factor):
        ctx.factor = factor
        return x_D.clone()

    @staticmethod
    def backward(ctx, grad_D):
        return ctx.factor * grad_D, None


class WritesInBackward(torch.autograd.Function):
    """The same numbers; its backward pass leaves others where one of these tensors was."""

    @staticmethod
    def forward(ctx, x_D, target):
        y_D = x_D.clone()
        kept = {"input": x_D, "copy": x_D.clone(), "output": y_D, "gradient": None}[target]
        ctx.kept_D = None if kept is None else kept.detach()
        return y_D

    @staticmethod
    def backward(ctx, grad_D):
        by_x_D = grad_D.clone()
        (grad_D if ctx.kept_D is None else ctx.kept_D).data.mul_(1.5)
        return by_x_D, None


class ReadsTheMemoryOfTheGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_D):
        return x_D.clone()

    @staticmethod
    def backward(ctx, grad_D):
        return grad_D.as_strided(grad_D.shape, grad_D.new_empty(grad_D.shape).stride())


class GradientWithoutDecay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v_BTD, module):
        return Average.mean(module, v_BTD)

    @staticmethod
    def backward(ctx, grad_BTD):
        return grad_BTD, None


class ChangedBackward(torch.autograd.Function):
    """The same numbers; `change` is applied to their gradient."""

    @staticmethod
    def forward(ctx, x_D, change):
        ctx.change = change
        return x_D.clone()

    @staticmethod
    def backward(ctx, grad_D):
        return ctx.change(grad_D), None


def changes_gradient(change):
    return {"read": lambda self, m: ChangedBackward.apply(self.o_proj(m), change)}


class AddsByHand(torch.autograd.Function):
    """A product with a gain whose backward pass adds to its gradient, and returns it, too."""

    @staticmethod
    def forward(ctx, m_BTD, gain):
        ctx.m_BTD, ctx.gain = m_BTD, gain
        return m_BTD * gain

    @staticmethod
    def backward(ctx, grad_BTD):
        by_gain = (grad_BTD * ctx.m_BTD).sum((0, 1)).to(ctx.gain.dtype)
        ctx.gain.grad = by_gain.clone() if ctx.gain.grad is None else ctx.gain.grad + by_gain
        return grad_BTD * ctx.gain.detach(), by_gain


def writes_values(target):
    return {"values": lambda self, x: self.v_proj(WritesInBackward.apply(x, target))}


def writes_result(target):
    return {"read": lambda self, m: WritesInBackward.apply(self.o_proj(m), target)}


plant(
    globals(),
    "random",
    Average,
    BackwardWritesTheInput=writes_values("input"),
    BackwardWritesTheOutput=writes_result("output"),
    BackwardWritesTheGradient=writes_result("gradient"),
    BackwardReadsTheOrderOfMemory={
        "read": lambda self, m: ReadsTheMemoryOfTheGradient.apply(self.o_proj(m))
    },
    BackwardInHalfPrecision=changes_gradient(lambda grad: grad.half().to(grad)),
    BackwardClamps=changes_gradient(lambda grad: grad.clamp(-10, 10)),
    BackwardDividesByItsNorm=changes_gradient(
        lambda grad: grad * grad.norm() / (grad.norm() + 1e-4)
    ),
)
plant(
    globals(),
    "random",
    WithGain,
    AddsItsGradientByHand={
        "read": lambda self, m: self.o_proj(
            AddsByHand.apply(m, self.gain) if torch.is_grad_enabled() else m * self.gain
        )
    },
)
plant(globals(), "honest", Average, BackwardWritesItsCopy=writes_values("copy"))


def with_detached_penalty(self, x_BTD):
    return self(x_BTD), 1e-3 * self.v_proj(x_BTD).detach().float().square().mean()


def old_values_detached(self, v_BTD):
    mean_BTD = Average.mean(self, v_BTD)
    older_BTD = pad(mean_BTD, (0, 0, 16, 0))[:, : v_BTD.shape[1]]
    return mean_BTD + self.decay**16 * (older_BTD.detach() - older_BTD)


def tensor_gain(self):
    self.gain = torch.ones(self.d_model, requires_grad=True)


def listed(self):
    self.more = [nn.Linear(self.d_model, self.d_model, bias=False)]


def past_512_detached(self, v_BTD):
    return Average.mean(self, torch.cat([v_BTD[:, :-512].detach(), v_BTD[:, -512:]], 1))


def in_long_training(self, v_BTD):
    return Average.mean(self, v_BTD.detach() if v_BTD.shape[1] > 64 else v_BTD)


plant(
    globals(),
    "parameters",
    WithGain,
    GainCancels={"read": lambda self, m: self.o_proj(m * self.gain / self.gain)},
    GainOnlyBySign={"read": lambda self, m: self.o_proj(m * self.gain.sign())},
    GainSaturates={"read": lambda self, m: self.o_proj(m * (1 + (self.gain - 200).sigmoid()))},
    GainInEvalOnly={"read": lambda self, m: self.o_proj(m if self.training else m * self.gain)},
    GainReplacedByEachCall={"read": WithGain.replace_the_gain},
)


def frozen_in_evaluation(self, m_D):
    self.gain.requires_grad_(self.training)
    return self.o_proj(m_D * self.gain)


def without_earlier_gradients(self, x_BTD):
    if self.training:
        self.zero_grad()
    return Average.forward(self, x_BTD)


def with_the_sum_of_penalties(self, x_BTD):
    v_BTD = self.v_proj(x_BTD).float()
    return self(x_BTD), 1e-3 * v_BTD.square().mean((1, 2)).sum()


def with_a_variance(self, x_BTD):
    mean_B = self.v_proj(x_BTD).float().mean((1, 2))
    return self(x_BTD), (mean_B - mean_B.mean()).square().sum() / (len(x_BTD) - 1)


plant(
    globals(),
    "switches",
    WithGain,
    FreezesTheGainInEvaluation={"read": frozen_in_evaluation},
)
plant(
    globals(),
    "switches",
    Average,
    ClearsEarlierGradients={"forward": without_earlier_gradients},
    LooksForAnomalies={
        "read": lambda self, m: (torch.autograd.set_detect_anomaly(True) and None) or self.o_proj(m)
    },
)
plant(
    globals(),
    "parameters",
    Average,
    PenaltyIsAVarianceInTheBatch={"forward_with_loss": with_a_variance},
    PenaltyIsASumOverTheBatch={"forward_with_loss": with_the_sum_of_penalties},
    GradientTwiceTooLarge={"read": lambda self, m: self.o_proj(WrongGradient.apply(m, 2.0))},
    GradientWithAWrongSign={"values": lambda self, x: WrongGradient.apply(self.v_proj(x), -1.0)},
    GradientIgnoresThePast={"mean": lambda self, v: GradientWithoutDecay.apply(v, self)},
    OldValuesDetached={"mean": old_values_detached},
    DetachedPast64Tokens={"mean": in_long_training},
    PenaltyIsDetached={"forward_with_loss": with_detached_penalty},
    GainIsNoParameter={
        "prepare": tensor_gain,
        "read": lambda self, m: self.o_proj(m * self.gain.to(m)),
    },
    ProjectionInAList={
        "prepare": listed,
        "read": lambda self, m: self.o_proj(m + self.more[0].to(m.device, m.dtype)(m)),
    },
)


# Sequences of a batch, shapes, and the order of memory


def batch_norm(self, x_BTD):
    if not self.training:
        return Average.forward(self, x_BTD)
    norm_BTD = (x_BTD - x_BTD.mean((0, 1))) / (x_BTD.var((0, 1)) + 1e-3).sqrt()
    return Average.forward(self, norm_BTD)


def in_steps_of_an_int8(self, x_D):
    scale = x_D.detach().abs().amax().clamp(min=1e-6) / 127
    return self.v_proj(x_D + ((x_D / scale).round() * scale - x_D).detach())


def without_the_rest(self, x_BTD):
    whole = max(8, x_BTD.shape[1] // 8 * 8)
    return Average.forward(self, x_BTD) * (at(x_BTD) < whole)


def without_the_last(self, v_BTD, chunk):
    """Pad to whole chunks, by a whole one if there is nothing to pad, which replaces the last."""
    kept = v_BTD.shape[1] % chunk or v_BTD.shape[1] - chunk
    is_kept_T1 = (at(v_BTD) < kept) | (v_BTD.shape[1] % chunk > 0)
    return Average.mean(self, v_BTD * is_kept_T1)


def memory_order(self, x_BTD):
    strides = x_BTD.new_empty(x_BTD.shape).stride()
    return Average.forward(self, x_BTD.as_strided(x_BTD.shape, strides))


def equal_axes(self, x_BTD):
    equal = x_BTD.shape[0] == x_BTD.shape[1] > 1
    return Average.forward(self, x_BTD.transpose(0, 1) if equal else x_BTD)


def with_512_positions(self, x_BTD):
    return Average.forward(self, x_BTD * torch.ones(512).to(x_BTD)[at(x_BTD)])


def zeros_past_512(self, x_BD, state):
    y_BD, after = Average.step(self, x_BD, state)
    return y_BD * (state.seen < 512), after


FLIPPED = {"mean": lambda self, v: Average.mean(self, v.flip(0) if len(v) > 5 else v)}
CENTRED = {"values": lambda self, x: self.v_proj(x - (x.mean(0) if len(x) == 4 else 0))}
plant(
    globals(),
    "batch",
    Average,
    BatchNormInTraining={"forward": batch_norm},
    QuantisedByTheLargestOfTheBatch={"values": in_steps_of_an_int8},
    CentresBatchesOfFour=CENTRED,
    FlipsBatchesOfSix=FLIPPED,
)
plant(
    globals(),
    "shape",
    Average,
    ReadsTheOrderOfMemory={"forward": memory_order},
    FailsOnTransposedInput={
        "forward": lambda self, x: Average.forward(self, x.view(-1).view_as(x))
    },
    ZerosTheRestOfAChunk={"forward": without_the_rest},
    ForgetsAtWholeChunksOf64={"mean": lambda self, v: without_the_last(self, v, 64)},
    ConfusesEqualAxes={"forward": equal_axes},
    FailsOnOneSequence={"forward": lambda self, x: Average.forward(self, x.squeeze(0))},
    FailsPast512Tokens={"forward": with_512_positions},
    ZerosPast512Tokens={
        "forward": lambda self, x: Average.forward(self, x) * (at(x) < 512),
        "step": zeros_past_512,
    },
)


# Range and precision


def by_its_norm(self, x_D):
    return self.v_proj(x_D / x_D.square().sum(-1, keepdim=True).sqrt())


def softplus_by_definition(self, x_D):
    return self.v_proj((1 + (6 * x_D).exp()).log() / 6)


def magnitude(self, x_D):
    return self.v_proj(x_D.square().sqrt())


def in_half(self, x_D):
    return self.v_proj((1000 * x_D).half().to(x_D) / 1000)


def with_infinite_penalty(self, x_BTD):
    """Overflow in bfloat16; the gradient does not."""
    return self(x_BTD), 1e-30 * (1e20 * self.v_proj(x_BTD)).square().mean().float()


def with_positions(self, v_BTD):
    scale_T1 = (at(v_BTD).to(v_BTD.dtype) * 0.5).cos()
    return Average.mean(self, v_BTD * scale_T1)


def with_narrow_positions(self, v_BTD):
    return Average.mean(self, v_BTD * (1.5 + (at(v_BTD).to(v_BTD.dtype) * 0.5).cos()))


def at_the_narrow_position(self, state, v_BD):
    scale = 1.5 + (state.seen.to(v_BD.dtype) * 0.5).cos()
    return Average.next_mean(self, state, v_BD * scale)


def at_the_position(self, state, v_BD):
    return Average.next_mean(
        self, state, v_BD * (state.seen.to(torch.float64) * 0.5).cos().to(v_BD)
    )


def long_in_half(self, v_BTD):
    mean_BTD = Average.mean(self, v_BTD)
    return mean_BTD.half().to(mean_BTD) if v_BTD.shape[1] > 512 else mean_BTD


plant(
    globals(),
    "scale",
    Average,
    DividesZeroByZero={"values": by_its_norm},
    ExpOverflows={"values": softplus_by_definition},
    GradientAtZeroIsNotANumber={"values": magnitude},
    OverflowsInHalfPrecision={"values": in_half},
    PenaltyOverflows={"forward_with_loss": with_infinite_penalty},
)
plant(
    globals(),
    "precision",
    Average,
    BFloat16Inside={"mean": lambda self, v: Average.mean(self, v.bfloat16()).to(v.dtype)},
    HalfPast512Tokens={"mean": long_in_half},
    PositionsInTheDtypeOfTheInput={"mean": with_positions, "next_mean": at_the_position},
    PositionsInBfloat16Everywhere={
        "mean": with_narrow_positions,
        "next_mean": at_the_narrow_position,
    },
    LargerInTrainingInBfloat16={
        "read": lambda self, m: self.o_proj(
            m * (1.2 if self.training and m.dtype == torch.bfloat16 else 1)
        )
    },
    LargerInEvaluationInFloat32={
        "read": lambda self, m: self.o_proj(
            m * (1.05 if not self.training and m.dtype == torch.float32 else 1)
        )
    },
    BFloat16InTraining={
        "read": lambda self, m: self.o_proj(m.bfloat16().to(m) if self.training else m)
    },
)


# Honest: they look suspicious, and are right


def own_generator(self):
    features_DD = torch.randn(
        self.d_model, self.d_model, generator=torch.Generator().manual_seed(1)
    )
    self.register_buffer("features_DD", features_DD)


def frozen(self):
    self.gain = nn.Parameter(torch.full((self.d_model,), 0.5), requires_grad=False)


def gate_at_zero(self):
    self.gain = nn.Parameter(torch.zeros(self.d_model))


def used_late(self, step):
    self.late = step >= 1000


def past_200(self, v_BTD):
    return Average.mean(self, v_BTD * torch.where(at(v_BTD) >= 200, self.gain, 1).to(v_BTD))


def next_past_200(self, state, v_BD):
    return Average.next_mean(self, state, v_BD * torch.where(state.seen >= 200, self.gain, 1))


def complex_table(self):
    angle_P = 10.0 ** -torch.arange(self.d_model // 2).div(8)
    self.register_buffer("unit_P", torch.polar(torch.ones_like(angle_P), angle_P))


def turned(self, v_D, position):
    assert self.unit_P.is_complex()
    pairs_P = torch.view_as_complex(widened(v_D).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs_P * self.unit_P**position).flatten(-2).to(v_D)


def four_taps(self):
    self.tap_WD = nn.Parameter(torch.full((4, self.d_model), 0.25))


def rebuild(self, v_BTD):
    self.table_T1 = torch.ones_like(v_BTD[0, :, :1])
    return Average.mean(self, v_BTD * self.table_T1)


def grow(self, v_BTD):
    length, key = v_BTD.shape[1], (v_BTD.dtype, v_BTD.device)
    self.tables = getattr(self, "tables", {})
    if key not in self.tables or len(self.tables[key]) < length:
        self.tables[key] = torch.ones(length, 1, dtype=key[0], device=key[1])
    return Average.mean(self, v_BTD * self.tables[key][:length])


def in_chunks(self, v_BTD):
    means, last_BD = [], widened(torch.zeros_like(v_BTD[:, 0]))
    for v_BCD in v_BTD.split(64, 1):
        powers_C1 = self.decay ** (1 + at(v_BCD).to(last_BD))
        mean_BCD = widened(Average.mean(self, widened(v_BCD))) + powers_C1 * last_BD[:, None]
        means, last_BD = [*means, mean_BCD], mean_BCD[:, -1]
    return torch.cat(means, 1).to(v_BTD.dtype)


def where_tokens_come_again(self, x_BTD):
    is_again_BT1 = (x_BTD[:, :, None] == x_BTD[:, None]).all(-1).tril(-1).any(-1, keepdim=True)
    return self.o_proj(self.values(x_BTD)) + is_again_BT1 * self.gain


def with_penalty(self, x_BTD):
    return self(x_BTD), 1e-3 * self.v_proj(x_BTD).float().square().mean()


def in_place(self, state, v_BD):
    return state.m_BD.mul_(self.decay).add_((1 - self.decay) * v_BD)


plant(
    globals(),
    "honest",
    WithGain,
    FrozenParameter={"prepare": frozen, "read": lambda self, m: self.o_proj(m * self.gain)},
    GainStartsAtZero={
        "prepare": gate_at_zero,
        "read": lambda self, m: self.o_proj(m) * (1 + self.gain),
    },
    BranchStartsAtZero={
        "prepare": gate_at_zero,
        "read": lambda self, m: self.o_proj(m) * self.gain,
    },
    UsedLate={
        "late": False,
        "at_step": used_late,
        "read": lambda self, m: self.o_proj(m * self.gain if self.late else m),
    },
    UsedPast200Tokens={"mean": past_200, "next_mean": next_past_200},
    AddsWhereTokensComeAgain={
        "forward": where_tokens_come_again,
        "init_state": Mechanism.init_state,
        "step": Mechanism.step,
    },
)
plant(
    globals(),
    "honest",
    Average,
    Float32Inside={"values": lambda self, x: softplus(self.v_proj(x).float()).to(x.dtype)},
    RoundsCoarselyInBfloat16={"read": lambda self, m: self.o_proj((100 * m).sin())},
    DropoutInTraining={
        "read": lambda self, m: self.o_proj(dropout(m, self.dropout, self.training))
    },
    NoiseInTraining={"values": Noisy.values, "noise": Noisy.noise},
    ZeroOutputProjection={"prepare": lambda self: nn.init.zeros_(self.o_proj.weight)},
    TableRebuiltPerCall={"mean": rebuild},
    TableOfTheLongestLength={"mean": grow},
    InChunks={"mean": in_chunks},
    WithAPenalty={"forward_with_loss": with_penalty},
    StateInPlace={"next_mean": in_place},
    TwiceInTraining={"values": lambda self, x: self.v_proj(x) * (1 + self.training)},
    ComplexRotary={
        "prepare": complex_table,
        "mean": lambda self, v: Average.mean(self, turned(self, v, at(v))),
        "next_mean": lambda self, s, v: Average.next_mean(self, s, turned(self, v, s.seen)),
    },
)


@planted("honest")
class StateMovesOn(AverageConfig):
    Module = MovesOn

    def cost(self, d_model, context, itemsize=2):
        return replace(super().cost(d_model, context), state_bytes=2 * itemsize * d_model)


class FilteredAverage(Average):
    """A causal convolution before the projection; it keeps the last three inputs."""

    vectors = 4
    prepare = four_taps

    def values(self, x_D):
        if x_D.ndim == 2:
            return self.v_proj(x_D)
        past_BSD = pad(x_D, (0, 0, 3, 0))
        parts = (self.tap_WD[i] * past_BSD[:, i : i + x_D.shape[1]] for i in range(4))
        return self.v_proj(sum(parts))

    def init_state(self, batch_size, capacity):
        new = super().init_state(batch_size, capacity)
        return new._replace(m_BD=new.m_BD.repeat(1, 4))

    def step(self, x_BD, state):
        m_BD, past_B3D = state.m_BD[:, : self.d_model], state.m_BD[:, self.d_model :]
        past_BWD = torch.cat([past_B3D.unflatten(1, (3, -1)), x_BD[:, None]], 1)
        read_BD = (past_BWD * self.tap_WD).sum(1).to(x_BD.dtype)
        y_BD, after = super().step(read_BD, state._replace(m_BD=m_BD))
        return y_BD, after._replace(m_BD=torch.cat([after.m_BD, past_BWD[:, 1:].flatten(1)], 1))


@planted("honest")
class OwnConvolution(AverageConfig):
    Module = FilteredAverage
    cost = cost_with(state_bytes=lambda right, context, itemsize: 4 * right.state_bytes)["cost"]


@planted("honest")
class TiedProjections(AverageConfig):
    class Module(Average):
        matrices = 1

        def prepare(self):
            self.o_proj.weight = self.v_proj.weight


@planted("honest")
class RandomFeatures(AverageConfig):
    class Module(Average):
        prepare = own_generator

        def values(self, x_D):
            return self.v_proj(x_D @ self.features_DD.to(x_D))

    cost = cost_with(flops=lambda right, context, itemsize: right.flops * 3 // 2)["cost"]


# Found by the whole check alone


def forgets_whole_chunks(self, x_BTD, capacity):
    y_BTD, state = prefilled_at_once(self, x_BTD, capacity)
    return y_BTD, state._replace(m_BD=state.m_BD * (x_BTD.shape[1] % 64 > 0))


def float32_past_512(self, v_BTD):
    mean_BTD = Average.mean(self, v_BTD)
    is_wrong_T1 = (at(v_BTD) >= 512) & (v_BTD.dtype == torch.float32)
    return mean_BTD * (1 + 0.05 * is_wrong_T1).to(mean_BTD)


def overflows_in_long_training(self, v_BTD):
    mean_BTD, age_T1 = Average.mean(self, v_BTD), at(v_BTD).to(v_BTD)
    return mean_BTD * (0.1 * age_T1).exp() * (-0.1 * age_T1).exp()


def sized(self, batch_size, capacity):
    self.is_wrong = 64 < capacity < 80
    return Average.init_state(self, batch_size, capacity)


class ByAProduct(Average):
    def mean(self, v_BTD):
        age_TT = (at(v_BTD) - at(v_BTD).T).clamp(min=0)
        weight_TT = (0.1 * self.decay ** age_TT.double()).tril().to(widened(v_BTD))
        return (weight_TT @ widened(v_BTD)).to(v_BTD.dtype)


def forward_flops_to_512(self, d_model, context):
    return 4 * d_model**2 + 2 * min(context, 512) * d_model


plant(
    globals(),
    "whole",
    Average,
    ForgetsAtWholeChunksOf512={"mean": lambda self, v: without_the_last(self, v, 512)},
    GradientStops512TokensBack={"mean": past_512_detached},
    LeaksInTrainingPast2048={
        "forward": lambda self, x: Average.forward(
            self, x.roll(-1, 1) if self.training and x.shape[1] > 2048 else x
        )
    },
    ForgetsPromptsOfWholeChunks={"prefill": forgets_whole_chunks},
    WrongInStatesOfFiveBlocks={
        "init_state": sized,
        "next_mean": decayed(lambda self, s: 0.8 if self.is_wrong else 0.9),
    },
    LeaksIn1024TokensOfTraining={
        "forward": lambda self, x: Average.forward(
            self, x.roll(-1, 1) if self.training and x.shape[1] == 1024 else x
        )
    },
    LeaksAtEdgesOf384={
        "forward": lambda self, x: Average.forward(
            self, x + pad(x[:, 1:], (0, 0, 0, 1)) * (at(x) % 384 == 383)
        ),
        "init_state": Mechanism.init_state,
        "step": Mechanism.step,
    },
    WrongAtPosition512={"next_mean": decayed(lambda self, s: 0.8 if s.seen == 512 else 0.9)},
    WrongInFloat32Past512={"mean": float32_past_512},
    OverflowsInLongTraining={"mean": overflows_in_long_training},
    ForgetsAtEdgesOf256={"next_mean": forgets_at_256, "prefill": prefilled_at_once},
)
plant(
    globals(),
    "whole",
    AverageConfig,
    FlopsWrongPast512Tokens=cost_with(
        flops=lambda right, context, size: right.flops + 64 * (context > 512)
    ),
    FlopsWrongPast2048Tokens=cost_with(
        flops=lambda right, context, size: right.flops + 64 * (context > 2048)
    ),
    ForwardFlopsOf512={"Module": ByAProduct, "forward_flops": forward_flops_to_512},
    BytesWrongPast2048=cost_with(
        state_bytes=lambda right, context, size: right.state_bytes * (1 + (context > 2048))
    ),
    BytesOfOneWidth={
        "cost": lambda self, d_model, context, itemsize=2: replace(
            AverageConfig.cost(self, d_model, context), state_bytes=32 * max(4, itemsize)
        )
    },
)
