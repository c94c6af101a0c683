"""Faults of what a call changes or keeps, of decoding, of cost and of parameters.

Each is the moving average of `planted_faults.py` with one change.

Shapes: B batch, T tokens, D model width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, pad

from support.planted_faults import Average, AverageConfig, Mean, plant

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


plant(
    globals(),
    "memory",
    Average,
    KeepsEveryInput={"forward": keep},
    KeepsTheGraph={"forward": keep_the_graph},
    KeepsInputsInAGlobal={"values": lambda self, x: KEPT.append(x.detach()) or self.v_proj(x)},
)


# Decoding


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


def first_row_of_many(self, state, v_BD):
    m_BD = Average.next_mean(self, state, v_BD)
    return m_BD[:1].expand_as(m_BD) if len(m_BD) > 3 else m_BD


plant(
    globals(),
    "decoding",
    Average,
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
plant(
    globals(),
    "cost",
    AverageConfig,
    BytesWrongForTwoByteNumbers=cost_with(
        state_bytes=lambda right, context, size: right.state_bytes * size // max(4, size)
    ),
    FlopsWrongPast256Tokens=cost_with(
        flops=lambda right, context, size: right.flops + 64 * (context > 256)
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


class GradientWithoutDecay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v_BTD, module):
        return Average.mean(module, v_BTD)

    @staticmethod
    def backward(ctx, grad_BTD):
        return grad_BTD, None


def old_values_detached(self, v_BTD):
    mean_BTD = Average.mean(self, v_BTD)
    older_BTD = pad(mean_BTD, (0, 0, 16, 0))[:, : v_BTD.shape[1]]
    return mean_BTD + self.decay**16 * (older_BTD.detach() - older_BTD)


def tensor_gain(self):
    self.gain = torch.ones(self.d_model, requires_grad=True)


def listed(self):
    self.more = [nn.Linear(self.d_model, self.d_model, bias=False)]


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
plant(
    globals(),
    "parameters",
    Average,
    GradientTwiceTooLarge={"read": lambda self, m: self.o_proj(WrongGradient.apply(m, 2.0))},
    GradientWithAWrongSign={"values": lambda self, x: WrongGradient.apply(self.v_proj(x), -1.0)},
    GradientIgnoresThePast={"mean": lambda self, v: GradientWithoutDecay.apply(v, self)},
    OldValuesDetached={"mean": old_values_detached},
    DetachedPast64Tokens={"mean": in_long_training},
    GainIsNoParameter={
        "prepare": tensor_gain,
        "read": lambda self, m: self.o_proj(m * self.gain.to(m)),
    },
    ProjectionInAList={
        "prepare": listed,
        "read": lambda self, m: self.o_proj(m + self.more[0].to(m.device, m.dtype)(m)),
    },
)
