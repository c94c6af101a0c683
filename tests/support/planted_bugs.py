"""Mechanisms with one realistic mistake each, for the checks to find.

Each is a shipped mechanism with the smallest change that makes the mistake.

Shapes: B batch, T tokens, D model width, H query heads, G key-value heads, K head width, S keys.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import dropout, layer_norm

from attnlab.kernels import block_attention
from attnlab.kernels.scores import UNCHANGED
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse, DeepseekSparseAttention
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gated_delta_product import GatedDeltaProduct
from attnlab.mechanisms.grouped_query import GroupedQuery, GroupedQueryAttention
from attnlab.mechanisms.identity import Identity, TokenwiseLinear
from attnlab.mechanisms.lightning_attention import LightningAttention, LightningMixer
from attnlab.mechanisms.mla import MLA, MultiHeadLatentAttention
from attnlab.mechanisms.moba import MOBA, MixtureOfBlocks
from attnlab.mechanisms.nsa import NSA, NativeSparseAttention, SparseState
from attnlab.mechanisms.rwkv7 import RWKV7, TimeMixing
from attnlab.mechanisms.sliding_window import SlidingWindow, SlidingWindowAttention
from attnlab.modules.delta_memory import ScalarDecayMemory
from attnlab.modules.kv_cache import KVCache, attend_once
from attnlab.modules.matrix_memory import MemoryHeadsConfig


class Planted:
    """Build the `Module` of the class instead of the original."""

    def build(self, d_model, dropout=0.0):
        if isinstance(self, Identity):
            return self.Module(d_model)
        if isinstance(self, MemoryHeadsConfig | RWKV7):
            return self.Module(self, d_model)
        return self.Module(self, d_model, dropout)


class ScoresOf(GroupedQueryAttention):
    """Attention by its definition, so that subclasses can change a part of it."""

    def _attend(self, q_BHTK, k_BGTK, v_BGTK):
        repeats = q_BHTK.shape[1] // k_BGTK.shape[1]
        k_BHSK, v_BHSK = (x.repeat_interleave(repeats, 1) for x in (k_BGTK, v_BGTK))
        scores_BHTS = q_BHTK @ k_BHSK.mT * q_BHTK.shape[-1] ** -0.5
        return self.weights(scores_BHTS) @ v_BHSK

    def weights(self, scores_BHTS):
        return self.masked(scores_BHTS, self.past(scores_BHTS)).softmax(-1)

    @staticmethod
    def past(scores_BHTS, offset=0):
        return torch.ones_like(scores_BHTS, dtype=torch.bool).tril(offset)

    @staticmethod
    def masked(scores_BHTS, seen_BHTS):
        return scores_BHTS.masked_fill(~seen_BHTS, -torch.inf)


class AttentionWrittenOut(Planted, GroupedQuery):
    """No mistake: base of the ones below."""

    class Module(ScoresOf):
        pass


# The output depends on future tokens


class MaskOffByOne(Planted, GroupedQuery):
    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            return self.masked(scores_BHTS, self.past(scores_BHTS, offset=1)).softmax(-1)


class FutureSeenByLongSequences(Planted, Identity):
    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            shift = -1 if x_BTD.shape[1] > 4_096 else 0
            return super().forward(x_BTD.roll(shift, 1))


class InvertedMask(Planted, GroupedQuery):
    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            seen_BHTS = torch.ones_like(scores_BHTS, dtype=torch.bool).triu()
            return self.masked(scores_BHTS, seen_BHTS).softmax(-1)


class HeadsAndTimeSwapped(Planted, GroupedQuery):
    """A `view` in place of a transpose: heads of one token become rows of others."""

    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            q_BHTK, k_BGTK, v_BGTK = self._qkv(x_BTD, start=0)
            y_BHTK = torch.nn.functional.scaled_dot_product_attention(
                q_BHTK, k_BGTK, v_BGTK, is_causal=True
            )
            return self.o_proj(y_BHTK.reshape(x_BTD.shape))


class TopKOverMaskedPositions(Planted, GroupedQuery):
    """The eight best of all positions, future ones included, and then the mask."""

    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            best_BHT1 = scores_BHTS.topk(min(8, scores_BHTS.shape[-1])).values[..., -1:]
            seen_BHTS = (scores_BHTS >= best_BHT1) & self.past(scores_BHTS)
            itself = torch.eye(scores_BHTS.shape[-1], dtype=torch.bool)
            return self.masked(scores_BHTS, seen_BHTS | itself).softmax(-1)


class SymmetricConvolution(Planted, Identity):
    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            padded_BSD = nn.functional.pad(x_BTD, (0, 0, 1, 1))
            return self.o_proj(padded_BSD[:, :-2] + x_BTD + padded_BSD[:, 2:])


class NormOverTime(Planted, Identity):
    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            return self.o_proj(layer_norm(x_BTD.mT, x_BTD.mT.shape[-1:]).mT)


class MeanOverTime(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            return super().forward(x_BTD - x_BTD.mean(1, keepdim=True))


class SoftmaxOverQueries(Planted, GroupedQuery):
    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            return self.masked(scores_BHTS, self.past(scores_BHTS)).softmax(-2)


class ChunkReadsAhead(Planted, GroupedQuery):
    """A token attends to its whole chunk of 16."""

    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            chunk_T = torch.arange(scores_BHTS.shape[-1]) // 16
            seen_TS = chunk_T[:, None] >= chunk_T
            return self.masked(scores_BHTS, seen_TS.expand_as(scores_BHTS)).softmax(-1)


class ReversedScan(Planted, Identity):
    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            return self.o_proj(x_BTD.flip(1).cumsum(1).flip(1))


class FutureSeenAfterWarmUp(Planted, DeepseekSparse):
    """Right in eval mode and during warm-up; wrong in training after the warm-up."""

    class Module(DeepseekSparseAttention):
        def forward_with_loss(self, x_BTD):
            y_BTD, loss = super().forward_with_loss(x_BTD)
            return (y_BTD if self.is_dense else y_BTD + x_BTD.roll(-1, 1)), loss


class FutureSeenInBfloat16(Planted, GroupedQuery):
    """The branch for half precision forgets the mask."""

    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            if scores_BHTS.dtype == torch.bfloat16:
                return scores_BHTS.softmax(-1)
            return super().weights(scores_BHTS)


class FutureInTheGradient(Planted, GroupedQuery):
    """A straight-through term: zero in the forward pass, the whole future in the backward pass."""

    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            mean_B1D = x_BTD.mean(1, keepdim=True)
            return super().forward(x_BTD) + mean_B1D - mean_B1D.detach()


class ScaledByTheLength(Planted, GroupedQuery):
    """The output depends on the number of future tokens, not on their values."""

    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            return super().forward(x_BTD) / math.log(1 + x_BTD.shape[1])


# Decoding differs from forward


class CacheDropsAToken(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            y_BD, after = super().step(x_BD, state)
            return y_BD, (state if state.seen == 4 else after)


class CacheRepeatsAToken(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            y_BD, state = super().step(x_BD, state)
            if state.seen == 5:
                state = state.append(state.k_BGSK[:, :, 4:5], state.v_BGSV[:, :, 4:5])
            return y_BD, state


class PrefillForgetsTheLastToken(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def prefill(self, x_BTD, capacity):
            y_BTD, state = super().prefill(x_BTD, capacity)
            return y_BTD, state._replace(seen=state.seen - 1)


class RotaryOffsetOfTheQuery(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K = self._qkv(x_BD[:, None], start=state.seen + 1)[0]
            _, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


class RotaryOffsetAfterAPrompt(Planted, GroupedQuery):
    """Steps are consistent with each other, and one position off from the prompt."""

    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen + 1)
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


@dataclass(frozen=True, kw_only=True)
class GatedHeads(Planted, GroupedQuery):
    """No mistake: base of the ones below."""

    Module = GroupedQueryAttention
    output_gate: Literal["head", "element"] | None = "head"


class GateLeftOutOfSteps(GatedHeads):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


class GateOfNothingInSteps(Planted, GroupedQuery):
    """Right without a gate, as by default."""

    class Module(GroupedQueryAttention):
        def _output(self, x_BTD, y_BHTV, v_BGTV):
            return super()._output(x_BTD * (x_BTD.shape[1] > 1), y_BHTV, v_BGTV)


class GroupsInterleavedInSteps(Planted, GroupedQuery):
    """Right if each head is a group, as by default, or all of them are one."""

    class Module(GroupedQueryAttention):
        def _qkv(self, x_BTD, start):
            q_BHTK, k_BGTK, v_BGTV = super()._qkv(x_BTD, start)
            if x_BTD.shape[1] == 1:
                q_BHTK = q_BHTK.unflatten(1, (-1, k_BGTK.shape[1])).transpose(1, 2).flatten(1, 2)
            return q_BHTK, k_BGTK, v_BGTV


class GateOfTheNextToken(GatedHeads):
    class Module(GroupedQueryAttention):
        def _output(self, x_BTD, y_BHTV, v_BGTV):
            return super()._output(x_BTD.roll(-1, 1), y_BHTV, v_BGTV)


class GateThatCostsNothing(GatedHeads):
    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        gates = d_model * self.n_gates(d_model)
        return replace(cost, params=cost.params - gates, flops=cost.flops - 2 * gates)


@dataclass(frozen=True, kw_only=True)
class SinkLeftOutOfSteps(Planted, GroupedQuery):
    sinks: bool = True

    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


@dataclass(frozen=True, kw_only=True)
class SinkLeftOutOfAbsorbedSteps(Planted, MLA):
    sinks: bool = True

    class Module(MultiHeadLatentAttention):
        def step(self, x_BD, state):
            without = copy.copy(self)
            without._scores = lambda: UNCHANGED
            return MultiHeadLatentAttention.step(without, x_BD, state)


@dataclass(frozen=True, kw_only=True)
class DistanceBySlotOfTheRing(Planted, SlidingWindow):
    """Right until the ring has gone round once."""

    alibi: bool = True

    class Module(SlidingWindowAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            k_BGSK, v_BGSK, seen = state = state.append(k_BG1K, v_BG1K)
            slot_S = torch.arange(k_BGSK.shape[2])
            age_S = (seen - 1).clamp(max=len(slot_S) - 1) - slot_S
            is_seen_S = slot_S < seen
            query = q_BH1K[:, :, 0], k_BGSK, v_BGSK, is_seen_S
            return self.o_proj(attend_once(*query, self._scores(), age_S).flatten(1)), state


class SoftcapAfterTheMask(Planted, GroupedQuery):
    """A capped infinity is a number: keys of the future have weights."""

    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            masked_BHTS = self.masked(scores_BHTS, self.past(scores_BHTS))
            return (5 * (masked_BHTS / 5).tanh()).softmax(-1)


@dataclass(frozen=True, kw_only=True)
class ExclusiveOfTheFirstValueInSteps(Planted, GroupedQuery):
    exclusive: bool = True

    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            y_BH1K = state.attend(q_BH1K[:, :, 0])[:, :, None]
            first_BG1K = state.v_BGSV[:, :, :1]
            return self._output(x_BD[:, None], y_BH1K, first_BG1K)[:, 0], state


@dataclass(frozen=True, kw_only=True)
class HalvesSwappedInSteps(Planted, GroupedQuery):
    """A step subtracts the first softmax from the second."""

    differential: bool = True

    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            whole = state._replace(v_BGSV=self._values(state.v_BGSV))
            y_BH1K = whole.attend(q_BH1K[:, :, 0])[:, :, None].roll(q_BH1K.shape[1] // 2, 1)
            return self._output(x_BD[:, None], y_BH1K, self._values(v_BG1K))[:, 0], state


@dataclass(frozen=True, kw_only=True)
class SmallBlocks(Planted, MOBA):
    """No mistake: base of the ones below."""

    Module = MixtureOfBlocks
    block_size: int = 4
    top_k: int = 2


class OwnBlockCompetesByItsMean(SmallBlocks):
    """The mean of a block that has not ended holds tokens that come later."""

    class Module(MixtureOfBlocks):
        def _select(self, q_BHTK, mean_BGNK, start):
            selection = super()._select(q_BHTK, mean_BGNK, start)
            if q_BHTK.shape[2] == 1:
                return selection
            mean_BHNK = mean_BGNK.repeat_interleave(q_BHTK.shape[1] // mean_BGNK.shape[1], 1)
            own_T1 = torch.arange(q_BHTK.shape[2])[:, None] // self.config.block_size
            is_open_TN = torch.arange(mean_BGNK.shape[2]) <= own_T1
            return block_attention.best(q_BHTK @ mean_BHNK.mT, is_open_TN, self.config.top_k)


class BlockMeansLeftOutOfSteps(SmallBlocks):
    class Module(MixtureOfBlocks):
        def _with_mean(self, heads, mean_BGNK):
            return mean_BGNK


class PromptLeavesNoBlockMeans(SmallBlocks):
    class Module(MixtureOfBlocks):
        def prefill(self, x_BTD, capacity):
            y_BTD, state = super().prefill(x_BTD, capacity)
            return y_BTD, state._replace(mean_BGNK=torch.zeros_like(state.mean_BGNK))


class BlockMeansThatCostNothing(SmallBlocks):
    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(
            cost, state_bytes=self.projections_cost(d_model, context, itemsize).state_bytes
        )


@dataclass(frozen=True, kw_only=True)
class SmallBranches(Planted, NSA):
    """No mistake: base of the ones below."""

    Module = NativeSparseAttention
    compression_size: int = 4
    compression_stride: int = 2
    block_size: int = 4
    window: int = 3


class CompressedTokensOneAhead(SmallBranches):
    class Module(NativeSparseAttention):
        def _compressed(self, of):
            return tuple(x_BGCK.roll(-1, 2) for x_BGCK in super()._compressed(of))


class NothingCompressedInSteps(SmallBranches):
    class Module(NativeSparseAttention):
        def _with_compressed(self, state):
            return state


class PromptLeavesNothingCompressed(SmallBranches):
    class Module(NativeSparseAttention):
        def prefill(self, x_BTD, capacity):
            y_BTD, state = super().prefill(x_BTD, capacity)
            nothing = (torch.zeros_like(x) for x in (state.k_BGCK, state.v_BGCK))
            return y_BTD, SparseState(*state[:3], *nothing)


class CompressionThatCostsNothing(SmallBranches):
    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        width = self.head_width(d_model)
        mlps = 2 * self.n_kv_heads * 2 * (self.compression_size + 1) * width**2
        return replace(cost, flops=cost.flops - (mlps if context >= self.compression_size else 0))


class ParametersOfTwoStrides(Planted, NSA):
    """Right for a compression of two strides, as by default."""

    Module = NativeSparseAttention

    def cost(self, d_model, context, itemsize=2):
        two = replace(self, compression_size=2 * self.compression_stride)
        params = NSA.cost(two, d_model, context, itemsize).params
        return replace(super().cost(d_model, context, itemsize), params=params)


@dataclass(frozen=True, kw_only=True)
class WritesHalvedInSteps(Planted, GatedDeltaNet):
    """A step has eigenvalues in [0, 1], `forward` in [-1, 1]."""

    negative_eigenvalues: bool = True

    class Module(ScalarDecayMemory):
        def step(self, x_BD, state):
            without = copy.copy(self)
            without.config = replace(self.config, negative_eigenvalues=False)
            return ScalarDecayMemory.step(without, x_BD, state)


@dataclass(frozen=True, kw_only=True)
class WritesHalvedInStepsOfASwitch(WritesHalvedInSteps):
    """Right as long as the switch is off, as by default."""

    negative_eigenvalues: bool = False


class BytesOfFourTaps(Planted, GatedDeltaNet):
    """Right for a convolution of four tokens, as by default."""

    Module = ScalarDecayMemory

    def cost(self, d_model, context, itemsize=2):
        cost, four = super().cost(d_model, context, itemsize), replace(self, conv_size=4)
        state_bytes = GatedDeltaNet.cost(four, d_model, context, itemsize).state_bytes
        return replace(cost, state_bytes=state_bytes)


class DecaysAtEveryWriteInSteps(Planted, GatedDeltaProduct):
    class Module(ScalarDecayMemory):
        def step(self, x_BD, state):
            more_BH11 = self.decays(x_BD).exp()[..., None, None]
            return super().step(x_BD, state._replace(memory_BHKV=more_BH11 * state.memory_BHKV))


class PromptWrittenOncePerToken(Planted, GatedDeltaProduct):
    class Module(ScalarDecayMemory):
        def prefill(self, x_BTD, capacity):
            once = copy.copy(self)
            once._inputs = lambda *of: once_per_token(ScalarDecayMemory._inputs(self, *of))
            return self(x_BTD), ScalarDecayMemory.prefill(once, x_BTD, capacity)[1]


def once_per_token(of):
    """Return the inputs of a DeltaProduct with every write but the first of strength 0."""
    kept_N1 = (torch.arange(of.beta_NH.shape[-2]) == 0)[:, None]
    return of._replace(beta_NH=of.beta_NH * kept_N1)


class WritesThatCostNothing(Planted, GatedDeltaProduct):
    Module = ScalarDecayMemory

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        more = (self.writes - 1) * 2 * 2 * self.keys * self.value_dim
        return replace(cost, flops=cost.flops - more)


class NothingForgottenInSteps(Planted, LightningAttention):
    class Module(LightningMixer):
        def step(self, x_BD, state):
            without = copy.copy(self)
            without.config = replace(self.config, decay_factor=0.0)
            return LightningMixer.step(without, x_BD, state)


class NormThatCostsNothing(Planted, LightningAttention):
    Module = LightningMixer

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, params=cost.params - self.values)


class TokensShiftedBackwards(Planted, RWKV7):
    class Module(TimeMixing):
        def _inputs(self, x_D, previous_D):
            ahead = nn.functional.pad(x_D, (0, 0, -1, 1)) if x_D.ndim == 3 else previous_D
            return super()._inputs(x_D, ahead)


class PromptForgetsTheTokenBefore(Planted, RWKV7):
    class Module(TimeMixing):
        def prefill(self, x_BTD, capacity):
            y_BTD, state = super().prefill(x_BTD, capacity)
            return y_BTD, state._replace(last_BD=torch.zeros_like(state.last_BD))


class RemovesAfterTheDecayInSteps(Planted, RWKV7):
    class Module(TimeMixing):
        def _inputs(self, x_D, previous_D):
            of = super()._inputs(x_D, previous_D)
            return of if x_D.ndim == 3 else of._replace(u_HK=of.u_HK * of.g_HK.exp())


class TokenBeforeThatCostsNothing(Planted, RWKV7):
    Module = TimeMixing

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, state_bytes=cost.state_bytes - itemsize * d_model)


# What layers hand to later ones


@dataclass(frozen=True, kw_only=True)
class SharedHeads(Planted, GroupedQuery):
    """No mistake: base of the ones below."""

    Module = GroupedQueryAttention
    shared_kv: bool = True


class GivesTheCacheBeforeTheToken(SharedHeads):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state, handed=None):
            y_BD, after = super().step(x_BD, state, handed)
            if handed is not None and not self.config.shared_kv:
                handed[self.keys_values_name] = state
            return y_BD, after


class TakerKeepsACacheOfItsOwn(SharedHeads):
    class Module(GroupedQueryAttention):
        def init_state(self, batch_size, capacity):
            widths = self.head_dim, self.v_head_dim
            return KVCache.empty(batch_size, 4, capacity, widths, self.o_proj.weight)

        def step(self, x_BD, state, handed=None):
            if not self.config.shared_kv:
                return super().step(x_BD, state, handed)
            y_BD, _ = super().step(x_BD, (), handed)
            return y_BD, state


class TakerWritesIntoTheGiversCache(SharedHeads):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state, handed=None):
            y_BD, state = super().step(x_BD, state, handed)
            if self.config.shared_kv:
                k_BGSK, _, seen = handed[self.keys_values_name]
                k_BGSK[:, :, seen - 1] = 0
            return y_BD, state


class GivesWhatItDoesNotName(SharedHeads):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD, handed=None):
            if handed is not None:
                handed["tokens"] = x_BTD
            return super().forward(x_BTD, handed)


@dataclass(frozen=True, kw_only=True)
class ResidualHeads(Planted, GroupedQuery):
    """No mistake: base of the ones below."""

    Module = GroupedQueryAttention
    value_residual: bool = True


class PrefillKeepsValuesWithoutTheResidual(ResidualHeads):
    class Module(GroupedQueryAttention):
        def prefill(self, x_BTD, capacity, handed=None):
            y_BTD, _ = super().prefill(x_BTD, capacity, handed)
            _, k_BGTK, v_BGTK = self._qkv(x_BTD, start=0)
            return y_BTD, self.init_state(len(x_BTD), capacity).append(k_BGTK, v_BGTK)


class ResidualLeftOutOfSteps(ResidualHeads):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state, handed=None):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            if handed is not None:
                handed[self.values_name] = v_BG1K
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


class TakesAndDoesNotRead(ResidualHeads):
    class Module(GroupedQueryAttention):
        def _read(self, x_BTD, handed, start=0):
            if self.value_mix is not None:
                handed = {**handed, self.values_name: self._qkv(x_BTD, start)[2]}
            return super()._read(x_BTD, handed, start)


class RingOverwritesEarly(Planted, SlidingWindow):
    class Module(SlidingWindowAttention):
        def init_state(self, batch_size, capacity):
            state = super().init_state(batch_size, capacity)
            slots = min(capacity, self.config.window - 1)
            return state._replace(
                k_BGSK=state.k_BGSK[:, :, :slots], v_BGSV=state.v_BGSV[:, :, :slots]
            )


class RingStartsAnewAfterAPrompt(Planted, SlidingWindow):
    """Of a prompt longer than the window the first tokens are kept, not the last."""

    class Module(SlidingWindowAttention):
        def prefill(self, x_BTD, capacity):
            y_BTD, state = super().prefill(x_BTD, capacity)
            _, first = super().prefill(x_BTD[:, : self.config.window], capacity)
            return y_BTD, first._replace(seen=state.seen)


@dataclass(frozen=True, kw_only=True)
class RingOverwritesTheKeptToken(Planted, SlidingWindow):
    """A step writes into all slots in turn."""

    n_sink_tokens: int = 2

    class Module(SlidingWindowAttention):
        def step(self, x_BD, state, handed=None):
            q_BH1K, k_BG1K, v_BG1K = self._qkv(x_BD[:, None], start=state.seen)
            state = state.append(k_BG1K, v_BG1K)
            return self.o_proj(state.attend(q_BH1K[:, :, 0]).flatten(1)), state


@dataclass(frozen=True, kw_only=True)
class PromptKeepsItsLastTokensAlone(Planted, SlidingWindow):
    n_sink_tokens: int = 2

    class Module(SlidingWindowAttention):
        def prefill(self, x_BTD, capacity, handed=None):
            y_BTD, _ = super().prefill(x_BTD, capacity)
            _, k_BGTK, v_BGTK = self._qkv(x_BTD, start=0)
            return y_BTD, self.init_state(len(x_BTD), capacity).append(k_BGTK, v_BGTK)


class LongPromptIsForgotten(Planted, SlidingWindow):
    class Module(SlidingWindowAttention):
        def prefill(self, x_BTD, capacity, handed=None):
            y_BTD, state = super().prefill(x_BTD, capacity)
            if x_BTD.shape[1] > 1_500:
                state = state._replace(v_BGSK=state.v_BGSK.roll(1, 2))
            return y_BTD, state


# Sequences of a batch influence each other


class StateSharedInDecoding(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def step(self, x_BD, state):
            y_BD, state = super().step(x_BD, state)
            shared_BGSK = state.k_BGSK[:1].expand_as(state.k_BGSK).clone()
            return y_BD, state._replace(k_BGSK=shared_BGSK)


class MeanOverTheBatch(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            return super().forward(x_BTD - x_BTD.mean(0, keepdim=True))


class BatchStatisticsInTraining(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            centred_BTD = x_BTD - x_BTD.mean(0, keepdim=True) if self.training else x_BTD
            return super().forward(centred_BTD)


# Parameters and costs


class Gated(TokenwiseLinear):
    def __init__(self, d_model):
        super().__init__(d_model)
        self.gate_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD):
        return self.o_proj(x_BTD) * self.gate_proj(x_BTD).sigmoid()

    def step(self, x_BD, state):
        return self(x_BD), state


class GatedIdentity(Planted, Identity):
    """No mistake: base of the ones below."""

    Module = Gated

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return cost + cost


class DetachedGate(GatedIdentity):
    class Module(Gated):
        def forward(self, x_BTD):
            return self.o_proj(x_BTD) * self.gate_proj(x_BTD).sigmoid().detach()


class UnusedParameter(Planted, Identity):
    class Module(TokenwiseLinear):
        def __init__(self, d_model):
            super().__init__(d_model)
            self.scale = nn.Parameter(torch.ones(d_model))

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, params=cost.params + d_model)


class TakerChangesWhatItTakes(ResidualHeads):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD, handed=None):
            if self.value_mix is not None:
                handed[self.values_name].detach().mul_(0.5)
            return super().forward(x_BTD, handed)


class ParametersWithoutTheGate(GatedIdentity):
    def cost(self, d_model, context, itemsize=2):
        return replace(super().cost(d_model, context, itemsize), params=d_model**2)


class FlopsOffByThree(GroupedQuery):
    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, flops=cost.flops + 3)


class BytesWithoutGroups(GroupedQuery):
    """Right if every query head has a key-value head, as by default."""

    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, state_bytes=2 * d_model * itemsize * context)


class BytesWithoutValues(GroupedQuery):
    def cost(self, d_model, context, itemsize=2):
        cost = super().cost(d_model, context, itemsize)
        return replace(cost, state_bytes=cost.state_bytes // 2)


# Numerical range and repeatability


class NotANumberInBfloat16(GatedIdentity):
    """log(1 - sigmoid(x)) is finite in float64; in bfloat16 the sigmoid rounds to 1."""

    class Module(Gated):
        def forward(self, x_BTD):
            forgotten_BTD = (1 - (3 * self.gate_proj(x_BTD)).sigmoid()).log()
            return self.o_proj(x_BTD) * (forgotten_BTD - forgotten_BTD.detach()).exp()


class DropoutWithoutItsFactor(Planted, GroupedQuery):
    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            weight_BHTS = super().weights(scores_BHTS)
            if self.training and self.dropout:
                return weight_BHTS * (torch.rand_like(weight_BHTS) >= self.dropout)
            return weight_BHTS


class OtherInInferenceMode(Planted, GroupedQuery):
    """Faster, and wrong, where no gradients are needed."""

    class Module(ScoresOf):
        def weights(self, scores_BHTS):
            scale = 0.9 if torch.is_inference_mode_enabled() else 1.0
            return super().weights(scale * scores_BHTS)


class DropoutInEval(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            return dropout(super().forward(x_BTD), self.dropout)


class RunningMeanOfAllInputs(Planted, Identity):
    class Module(TokenwiseLinear):
        def __init__(self, d_model):
            super().__init__(d_model)
            self.register_buffer("mean_D", torch.zeros(d_model))

        def forward(self, x_BTD):
            y_BTD = self.o_proj(x_BTD - self.mean_D)
            self.mean_D.lerp_(x_BTD.detach().mean((0, 1)).to(self.mean_D.dtype), 0.1)
            return y_BTD


class PositionKeptOnTheModule(Planted, GroupedQuery):
    """Decoding is right for the first sequence only."""

    class Module(GroupedQueryAttention):
        position = 0

        def step(self, x_BD, state):
            y_BD, after = super().step(x_BD, state._replace(seen=self.position))
            self.position += 1
            return y_BD, after


class BufferFromNumpysStream(Planted, Identity):
    class Module(TokenwiseLinear):
        def __init__(self, d_model):
            super().__init__(d_model)
            self.register_buffer("features_D", torch.from_numpy(np.random.rand(d_model)).float())

        def forward(self, x_BTD):
            return self.o_proj(x_BTD * self.features_D)

        def step(self, x_BD, state):
            return self(x_BD), state


# Dtypes, shapes and settings


class OnlyInFloat32(Planted, Identity):
    """No mistake: a kernel need not support float64."""

    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            if x_BTD.dtype == torch.float64:
                raise TypeError("no kernel for float64")
            return super().forward(x_BTD)


class RaisesOnLongSequences(Planted, Identity):
    class Module(TokenwiseLinear):
        def forward(self, x_BTD):
            if x_BTD.shape[1] >= 7:
                raise RuntimeError("seven is too many\nand this is a second line")
            return super().forward(x_BTD)


class SqueezesALengthOfOne(Planted, GroupedQuery):
    class Module(GroupedQueryAttention):
        def forward(self, x_BTD):
            return super().forward(x_BTD).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class LosesASetting(GroupedQuery):
    def to_dict(self):
        return {key: value for key, value in super().to_dict().items() if key != "n_heads"}
