"""Tensors that layers hand to later ones: the giver of each, known from the settings, and one pass.

A layer's settings name what it gives and what it takes (`attnlab.mechanism.HandingMechanism`). Of
the earlier layers that give something of the same name, it takes that of the first or of the
nearest. What no later layer takes is not handed: a model without takers computes what it would
compute without this file.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attnlab.config import ConfigError, Problem
from attnlab.mechanism import Giver, Handed, Mechanism, MechanismConfig
from attnlab.model.layer_pattern import ByLayer


class Route(NamedTuple):
    """The givers of one layer, and its takers."""

    takes: Mapping[str, int]  # the layer that gives it, by name
    gives: tuple[str, ...]  # names that a later layer takes
    until: int  # the last layer that takes from this one; this one itself if none does

    @property
    def given(self) -> tuple[str, ...] | None:
        """Names that a later layer takes; None if this layer takes nothing either."""
        return self.gives if self.takes or self.gives else None


def routes(layers: Sequence[MechanismConfig], d_model: int) -> list[Route]:
    """Return the route of every layer of a model for which `problems_of_handing` finds nothing."""
    takes = [
        {name: giver for name, giver in each.items() if giver is not None}
        for each in _givers(layers, d_model)
    ]
    found = list[Route]()
    for layer in range(len(layers)):
        takers = [i for i, each in enumerate(takes) if layer in each.values()]
        names = (name for i in takers for name, giver in takes[i].items() if giver == layer)
        found.append(Route(takes[layer], tuple(dict.fromkeys(names)), max(takers, default=layer)))
    return found


def problems_of_handing(
    layers: Sequence[MechanismConfig], d_model: int
) -> Iterator[tuple[int, str]]:
    """Yield each layer that takes what no earlier layer gives, and a sentence that says so."""
    given = dict[str, None]()
    for layer, givers in enumerate(_givers(layers, d_model)):
        for name in (name for name, giver in givers.items() if giver is None):
            others = f"; earlier layers give {', '.join(given)}" if given else ""
            yield layer, f"layer {layer} takes {name}, and no earlier layer gives them{others}"
        given |= dict.fromkeys(layers[layer].gives(d_model))


def needed_by(
    layers: Sequence[MechanismConfig], layer: int, d_model: int
) -> tuple[MechanismConfig, ...]:
    """Return the earlier layers that a layer takes from, with those that they take from."""
    found, needed = routes(layers, d_model), {layer}
    for each in range(layer, -1, -1):
        needed |= set(found[each].takes.values()) if each in needed else set()
    return tuple(layers[each] for each in sorted(needed - {layer}))


def givers_alone(config: MechanismConfig, d_model: int) -> tuple[MechanismConfig, ...]:
    """Return the layer that stands before `config` where it is used alone; none if it takes none.

    Raises ConfigError if the mechanism takes something and names no giver.
    """
    if not config.takes(d_model):
        return ()
    giver = config.giver()
    if giver is None:
        names = ", ".join(config.takes(d_model))
        message = (
            f"{config.kind()} takes {names} of an earlier layer, and has no `giver`: define one, "
            "or name a study in which a layer before it gives them"
        )
        raise ConfigError([Problem("", message)])
    return (giver,)


def in_every_layer(
    config: MechanismConfig, n_layers: int, d_model: int
) -> tuple[MechanismConfig, ...] | ByLayer:
    """Return the mechanism for every layer; if it takes something, its giver is layer 0.

    Raises ConfigError if it takes something and names no giver.
    """
    givers = givers_alone(config, d_model) if n_layers > 1 else ()
    return ByLayer(default=config, layers=dict(enumerate(givers))) if givers else (config,)


class Handover:
    """Tensors that the layers of one pass have given, until the last layer has taken them."""

    def __init__(self, of_layers: Sequence[Route]) -> None:
        self.routes = of_layers
        self.given = dict[int, Handed]()

    def to(self, layer: int) -> Handed:
        """Return what a layer takes, by name."""
        return {name: self.given[of][name] for name, of in self.routes[layer].takes.items()}

    def keep(self, layer: int, given: Handed) -> None:
        """Keep what a layer has given, and release what no later layer takes."""
        self.given[layer] = given
        for earlier in [each for each in self.given if self.routes[each].until <= layer]:
            del self.given[earlier]


def handing(
    run: Callable[..., Any], *inputs: Any, taken: Handed, gives: Sequence[str] | None
) -> tuple[Any, Handed]:
    """Return what a method of a mechanism returns, and what it gives; `gives` is `Route.given`."""
    if gives is None:
        return run(*inputs), {}
    handed = dict(taken)  # the mechanism puts in what it gives
    result = run(*inputs, handed)
    for name in gives:
        if name not in handed:
            raise KeyError(f"a layer has not put in what its `gives` names: {name}")
    return result, {name: handed[name] for name in gives}


class Stack(Mechanism[tuple[Any, ...]]):
    """Layers that hand to each other, as one mechanism that hands nothing.

        x_{l+1} = x_l + mix_l(x_l)        y = mix_L(x_L)

    So a layer that takes something is checked with those that give it.
    """

    def __init__(self, layers: Sequence[Mechanism[Any]], of_layers: Sequence[Route]) -> None:
        super().__init__()
        self.mixes, self.routes = nn.ModuleList(layers), of_layers

    @property
    def decodes(self) -> bool:
        return all(mix.decodes for mix in self._layers())

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self._through(x_BTD, [(mix, ()) for mix in self._layers()])[0]

    def forward_with_loss(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        calls = [(mix.forward_with_loss, ()) for mix in self._layers()]
        y_BTD, found = self._through(x_BTD, calls)
        losses = [loss for loss in found if loss is not None]
        return y_BTD, torch.stack(losses).sum() if losses else None

    def init_state(self, batch_size: int, capacity: int) -> tuple[Any, ...]:
        return tuple(mix.init_state(batch_size, capacity) for mix in self._layers())

    def prefill(self, x_BTD: Tensor, capacity: int) -> tuple[Tensor, tuple[Any, ...]]:
        y_BTD, states = self._through(x_BTD, [(mix.prefill, (capacity,)) for mix in self._layers()])
        return y_BTD, tuple(states)

    def step(self, x_BD: Tensor, state: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        pairs = zip(self._layers(), state, strict=True)
        y_BD, states = self._through(x_BD, [(mix.step, (own,)) for mix, own in pairs])
        return y_BD, tuple(states)

    def at_step(self, step: int) -> None:
        for mix in self._layers():
            mix.at_step(step)

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        _, layer, own = name.split(".", 2)
        return [*self._layers()][int(layer)].initial_value(own, generator)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str:
        return ", ".join(dict.fromkeys(mix.kernel_on(device, dtype) for mix in self._layers()))

    def _layers(self) -> Iterator[Mechanism[Any]]:
        for mix in self.mixes:
            assert isinstance(mix, Mechanism)
            yield mix

    def _through(
        self, x_BTD: Tensor, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]
    ) -> tuple[Tensor, list[Any]]:
        """Return the last layer's output, and what else the call of each layer returned."""
        handover, others, y_BTD = Handover(self.routes), list[Any](), x_BTD
        for layer, (call, more) in enumerate(calls):
            x_BTD = x_BTD + y_BTD if layer else x_BTD
            taken, gives = handover.to(layer), self.routes[layer].given
            found, given = handing(call, x_BTD, *more, taken=taken, gives=gives)
            handover.keep(layer, given)
            y_BTD, other = found if isinstance(found, tuple) else (found, None)
            others.append(other)
        return y_BTD, others


def stacked(
    before: Sequence[MechanismConfig], config: MechanismConfig, d_model: int, dropout: float = 0.0
) -> Mechanism[Any]:
    """Return the mechanism, in a `Stack` behind those that it takes from, if there are any."""
    if not before:
        return config.build(d_model, dropout)
    layers = [*before, config]
    return Stack([each.build(d_model, dropout) for each in layers], routes(layers, d_model))


def _givers(layers: Sequence[MechanismConfig], d_model: int) -> list[dict[str, int | None]]:
    """Return the layer that gives each name that a layer takes, or None, for every layer."""
    earlier: dict[Giver, dict[str, int]] = {"first": {}, "nearest": {}}
    found = list[dict[str, int | None]]()
    for i, layer in enumerate(layers):
        takes = layer.takes(d_model).items()
        found.append({name: earlier[of].get(name) for name, of in takes})
        for name in layer.gives(d_model):
            earlier["first"].setdefault(name, i)
            earlier["nearest"][name] = i
    return found
