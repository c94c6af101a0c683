"""Faults that show only under some condition, in a moving average, for the checks to find.

    m_t = a m_{t-1} + (1 - a) W_v x_t        y_t = W_o m_t

`TABLE` has those of this file, of `planted_faults_in_use.py` and of `planted_faults_of_numbers.py`,
by name. The checks are not written with those in view that are held out. Those of kind "honest"
look suspicious and are right.

Shapes: B batch, T tokens, D model width.
"""

import random
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.modules.norms import widened

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


TABLE = dict[str, Planted]()


def planted(kind, *, held_out=False):
    """Enter a module, or the config of one, into the table, and return its config.

    The config is no kind of the zoo: other tests try every kind.
    """

    def enter(cls):
        names = {"Module": cls, "__module__": cls.__module__}
        is_config = issubclass(cls, MechanismConfig)
        config = cls if is_config else type(cls.__name__, (AverageConfig,), names)
        MechanismConfig.kinds.pop(config.name())
        TABLE.setdefault(cls.__name__, Planted(kind, held_out, config))
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
    "LeaksForLargeInputs": lambda self, x: x.detach().abs().amax(-1, keepdim=True) > 10,
}
plant(globals(), "leak", Leaky, **{n: {"leaks": each} for n, each in CONDITIONS.items()})


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
class ScaledByTheLengthPast256(Average):
    def forward(self, x_BTD):
        return super().forward(x_BTD) * (256 / max(256, x_BTD.shape[1])) ** 0.5


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
)
