"""A pre-norm language model that differs between variants only in the mechanism of each layer.

    x_0 = E[tokens]
    x   = x + mix_l(RMSNorm(x));  x = x + feedforward_l(RMSNorm(x))      for every layer l
    logits = RMSNorm(x) W^T                  W = E: tied, or a matrix of its own: untied_embeddings

A mechanism may take tensors that earlier ones give (`model/handing.py`).

Shapes: B batch, T tokens, D model width, V vocabulary, N = B T.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from attnlab.config import Config, Problem
from attnlab.kernels.compiled import compile_once
from attnlab.kernels.cross_entropy import Answers, mean_loss
from attnlab.kernels.norms import RMSNorm
from attnlab.mechanism import Cost, Mechanism, MechanismConfig
from attnlab.model.block import Block
from attnlab.model.feedforward import Dense, FeedForward
from attnlab.model.handing import Handover, in_every_layer, problems_of_handing, routes
from attnlab.model.initialization import constructed, initialise, linear_default
from attnlab.model.layer_pattern import (
    ByLayer,
    layers_of,
    path_of_layer,
    problems_in,
    shortest_tile,
)


class Parts(NamedTuple):
    """Number of parameters by part of the model."""

    embedding: int  # of the output projection, too, unless it is untied
    attention: int  # the mechanisms of all kinds
    feed_forward: int
    other: int  # norms
    idle: int = 0  # those of `feed_forward` in experts that a token is not routed to
    head: int = 0  # the output projection, if it is no part of `embedding`

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return self.embedding + self.head + self.attention + self.feed_forward + self.other

    @property
    def active(self) -> int:
        """Number of parameters that are used for one token."""
        return self.total - self.idle


class Losses(NamedTuple):
    """The losses of one batch, scalars: recorded separately, minimised as a sum."""

    language_model: Tensor  # nats/token
    auxiliary: Tensor  # auxiliary losses of mechanisms and feed-forward layers, summed over layers


MOST_LAYERS, MOST_WIDTH = 10_000, 1 << 20  # beyond any model


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The language model: its mechanisms and its size."""

    mechanisms: tuple[MechanismConfig, ...] | ByLayer  # a tuple is repeated over the layers
    n_layers: int = 4  # number of blocks, each a mechanism and a feed-forward layer
    d_model: int = 128  # model width: the size of a token's vector
    feedforward: FeedForward = field(default_factory=Dense)  # feed-forward layer of every block
    dropout: float = 0.0  # probability: attention weights, hidden layers, residual branches
    untied_embeddings: bool = False  # True: the output projection is no longer the embedding

    def problems(self) -> Iterator[Problem]:
        sizes = ("n_layers", self.n_layers, MOST_LAYERS), ("d_model", self.d_model, MOST_WIDTH)
        wrong = [(name, value, most) for name, value, most in sizes if not 1 <= value <= most]
        for name, value, most in wrong:
            yield Problem(name, f"must be at least 1, and at most {most}; got {value}")
        if not 0 <= self.dropout < 1:
            yield Problem("dropout", f"must be in [0, 1), got {self.dropout}")
        if not wrong:
            found = list(problems_in(self.mechanisms, self.n_layers, self.d_model))
            found = found or self._problems_of_handing()
            yield from (problem.under("mechanisms") for problem in found)

    def _problems_of_handing(self) -> list[Problem]:
        """Return one problem per mechanism that takes what no earlier layer gives."""
        first = dict[str, Problem]()
        for layer, message in problems_of_handing(self.per_layer(), self.d_model):
            path = path_of_layer(self.mechanisms, layer)
            first.setdefault(path, Problem(path, message))
        return list(first.values())

    def per_layer(self) -> list[MechanismConfig]:
        """Return the mechanism of every layer, in order."""
        return layers_of(self.mechanisms, self.n_layers)

    def in_every_layer(self, mechanism: MechanismConfig) -> "ModelConfig":
        """Return the model with one mechanism; if it takes something, layer 0 is its giver.

        Raises ConfigError if it does not fit, or takes something and names no giver.
        """
        return replace(self, mechanisms=in_every_layer(mechanism, self.n_layers, self.d_model))

    def identity_fields(self) -> dict[str, Any]:
        """Return `to_dict`, equal for all ways to write the same layers."""
        tile = shortest_tile(self.per_layer())
        return self.to_dict() | {"mechanisms": [mechanism.to_dict() for mechanism in tile]}

    def parts(self, vocab_size: int) -> Parts:
        """Return the numbers of parameters, before any tensor exists."""
        feed_forward = self.feedforward.cost(self.d_model).params
        return Parts(
            embedding=vocab_size * self.d_model,
            attention=sum(m.cost(self.d_model, 1).params for m in self.per_layer()),
            feed_forward=self.n_layers * feed_forward,
            other=((1 + self.feedforward.present) * self.n_layers + 1) * self.d_model,
            idle=self.n_layers * (feed_forward - self.feedforward.active_params(self.d_model)),
            head=vocab_size * self.d_model if self.untied_embeddings else 0,
        )

    @property
    def states_cost(self) -> bool:
        """True if every mechanism states its cost; if not, `cost` is an estimate to plan with."""
        return all(mechanism.states_cost for mechanism in self.per_layer())

    @property
    def states_flops(self) -> bool:
        """True if the FLOPs of every mechanism are known; if not, `cost` estimates them."""
        return all(mechanism.states_flops for mechanism in self.per_layer())

    def cost(self, vocab_size: int, context: int, itemsize: int = 2) -> Cost:
        """Return the cost of one token that sees `context` tokens, itself included."""
        layers = [m.cost(self.d_model, context, itemsize) for m in self.per_layer()]
        return Cost(
            params=self.parts(vocab_size).total,
            flops=sum(layer.flops for layer in layers) + self._unmixed_flops(vocab_size),
            state_bytes=sum(layer.state_bytes for layer in layers),
        )

    def forward_flops(self, vocab_size: int, context: int) -> int:
        """Return the FLOPs of one token that sees `context` tokens, when all are read at once."""
        mixing = sum(m.forward_flops(self.d_model, context) for m in self.per_layer())
        return mixing + self._unmixed_flops(vocab_size)

    def _unmixed_flops(self, vocab_size: int) -> int:
        """Return the FLOPs per token of feed-forward layers and output projection."""
        of_head, feeding = 2 * vocab_size * self.d_model, self.feedforward.cost(self.d_model).flops
        return of_head + self.n_layers * feeding

    def build(self, vocab_size: int, seed: int = 0) -> "LanguageModel":
        """Return the model with the initial values of the seed, on the CPU, in training mode."""
        mechanisms = [
            constructed(lambda m=m: m.build(self.d_model, self.dropout), f"blocks.{i}.mix.", seed)
            for i, m in enumerate(self.per_layer())
        ]
        with linear_default(lambda _: None):  # `initialise` fills them
            model = LanguageModel(self, vocab_size, mechanisms)
        of_mechanisms = {id(p) for mechanism in mechanisms for p in mechanism.parameters()}
        initialise({n: p for n, p in model.named_parameters() if id(p) not in of_mechanisms}, seed)
        return model


class LanguageModel(nn.Module):
    """The model: embedding, blocks, final norm, and output projection: the embedding, or `head`."""

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        mechanisms: Sequence[Mechanism[Any]] | None = None,
    ) -> None:
        """Construct the layers as torch initialises them, by default with the mechanisms set."""
        super().__init__()
        self.config, per_layer = config, config.per_layer()
        mechanisms = mechanisms or [m.build(config.d_model, config.dropout) for m in per_layer]
        self.embed = nn.Embedding(vocab_size, config.d_model)
        self.routes = routes(per_layer, config.d_model)
        self.blocks = nn.ModuleList(
            Block(mechanism, route, config.feedforward, config.d_model, config.dropout)
            for mechanism, route in zip(mechanisms, self.routes, strict=True)
        )
        self.norm = RMSNorm(config.d_model)
        untied = config.untied_embeddings
        self.head = nn.Linear(config.d_model, vocab_size, bias=False) if untied else None

    @property
    def head_VD(self) -> Tensor:
        """The matrix of the output projection."""
        return self.embed.weight if self.head is None else self.head.weight

    def features(self, tokens_BT: Tensor) -> Tensor:
        """Return `x_BTD`, the input of the output projection."""
        return self._features_and_auxiliary(tokens_BT)[0]

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return `logits_BTV` of the next token at every position."""
        return linear(self.features(tokens_BT), self.head_VD)

    @property
    def decodes(self) -> bool:
        """True if every mechanism can compute token by token."""
        return all(mechanism.decodes for mechanism in self.mechanisms())

    def prefill(
        self, tokens_BT: Tensor, capacity: int, *, compiled: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Read a prompt; return `logits_BV` of the next token and the decode state of every layer.

        The states have room for `capacity` tokens, prompt included. `compiled` is as for `losses`.
        """
        run: Any = compile_once(Block.prefill, dynamic=False) if compiled else Block.prefill
        x_BTD, handover = self.embed(tokens_BT), Handover(self.routes)
        states = list[Any]()
        for layer, block in enumerate(self.layers()):
            x_BTD, state, given = run(block, x_BTD, capacity, handover.to(layer))
            handover.keep(layer, given)
            states.append(state)
        return linear(self.norm(x_BTD[:, -1]), self.head_VD), states

    def step(
        self, tokens_B: Tensor, states: list[Any], *, compiled: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Read one more token per sequence; return `logits_BV` of the next and the new states.

        The states that are passed in must not be used again. `compiled` is as for `losses`.
        """
        parts: tuple[Any, ...] = Block.step, _logits_of_one
        if compiled:
            parts = tuple(compile_once(part, dynamic=False, tuned=True) for part in parts)
        run, project = parts
        x_BD, handover = self.embed(tokens_B), Handover(self.routes)
        after = list[Any]()
        for layer, (block, state) in enumerate(zip(self.layers(), states, strict=True)):
            x_BD, state_after, given = run(block, x_BD, state, handover.to(layer))
            handover.keep(layer, given)
            after.append(state_after)
        return project(self.norm, x_BD, self.head_VD), after

    def losses(
        self, tokens_BT1: Tensor, *, answers: Answers | None = None, compiled: bool = False
    ) -> Losses:
        """Return the mean loss over T predicted tokens per row, or over the answers of a task.

        A row has T + 1 tokens. With `compiled`, each block is compiled, once per kind of layer in a
        process. Compiling more than a block at once would gain nothing.
        """
        x_BTD, auxiliary = self._features_and_auxiliary(tokens_BT1[:, :-1], compiled=compiled)
        return Losses(mean_loss(x_BTD, self.head_VD, tokens_BT1, answers), auxiliary)

    def at_step(self, step: int) -> None:
        """Set the training step, from 0, in every mechanism."""
        for mechanism in self.mechanisms():
            mechanism.at_step(step)

    def drain_statistics(self) -> dict[str, object]:
        """Return and reset the statistics of the feed-forward layers since the last call.

        By name, the JSON values of all layers; empty if nothing is counted. Waits for the device.
        """
        counted = [block.feedforward.drain_statistics() for block in self.layers()]
        return {f"router_{name}": [layer[name] for layer in counted] for name in counted[0]}

    def kernels_on(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Return the names of the kernels that a forward pass runs there, for records."""
        parts = [*(block.feedforward for block in self.layers()), *self.mechanisms()]
        return sorted({name for part in parts if (name := part.kernel_on(device, dtype))})

    def layers(self) -> Iterator[Block]:
        """Return the blocks, in order."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def mechanisms(self) -> Iterator[Mechanism[Any]]:
        """Return the mechanism of every layer, in order."""
        return (block.mix for block in self.layers())

    def _features_and_auxiliary(
        self, tokens_BT: Tensor, *, compiled: bool = False
    ) -> tuple[Tensor, Tensor]:
        run: Any = compile_once(Block.forward, dynamic=False) if compiled else Block.__call__
        x_BTD, handover = self.embed(tokens_BT), Handover(self.routes)
        auxiliary = x_BTD.new_zeros(())
        for layer, block in enumerate(self.layers()):
            x_BTD, losses, given = run(block, x_BTD, handover.to(layer))
            handover.keep(layer, given)
            for loss in losses:
                auxiliary = auxiliary + loss
        return self.norm(x_BTD), auxiliary


def _logits_of_one(norm: nn.Module, x_BD: Tensor, weight_VD: Tensor) -> Tensor:
    """Return `logits_BV` of the next token."""
    return linear(norm(x_BD), weight_VD)
