"""Faults of batches, shapes and ranges, and honest mechanisms: moving averages with one change.

Shapes: B batch, T tokens, D model width, W taps of a convolution.
"""

import torch
from torch import nn
from torch.nn.functional import dropout, pad, softplus

from attnlab.modules.norms import widened
from support.planted_faults import (
    TABLE,
    Average,
    AverageConfig,
    Noisy,
    WithGain,
    at,
    cost_with,
    plant,
    planted,
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


def memory_order(self, x_BTD):
    strides = x_BTD.new_empty(x_BTD.shape).stride()
    return Average.forward(self, x_BTD.as_strided(x_BTD.shape, strides))


def equal_axes(self, x_BTD):
    equal = x_BTD.shape[0] == x_BTD.shape[1] > 1
    return Average.forward(self, x_BTD.transpose(0, 1) if equal else x_BTD)


def with_512_positions(self, x_BTD):
    return Average.forward(self, x_BTD * torch.ones(512).to(x_BTD)[at(x_BTD)])


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
    ConfusesEqualAxes={"forward": equal_axes},
    FailsOnOneSequence={"forward": lambda self, x: Average.forward(self, x.squeeze(0))},
    FailsPast512Tokens={"forward": with_512_positions},
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


def with_positions(self, v_BTD):
    scale_T1 = (at(v_BTD).to(v_BTD.dtype) * 0.5).cos()
    return Average.mean(self, v_BTD * scale_T1)


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
)
plant(
    globals(),
    "precision",
    Average,
    BFloat16Inside={"mean": lambda self, v: Average.mean(self, v.bfloat16()).to(v.dtype)},
    HalfPast512Tokens={"mean": long_in_half},
    PositionsInTheDtypeOfTheInput={"mean": with_positions, "next_mean": at_the_position},
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
)
plant(
    globals(),
    "honest",
    Average,
    Float32Inside={"values": lambda self, x: softplus(self.v_proj(x).float()).to(x.dtype)},
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
    ComplexRotary={
        "prepare": complex_table,
        "mean": lambda self, v: Average.mean(self, turned(self, v, at(v))),
        "next_mean": lambda self, s, v: Average.next_mean(self, s, turned(self, v, s.seen)),
    },
)


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


FAULTS = dict(TABLE)  # of all three files
