"""Which mechanism is in which layer: a hybrid with its exceptions written out.

    {"default": {"kind": "gated_delta_net"}, "layers": {"5": {...}, "11": {...}}}

The other way to say it is a tuple, tiled over the layers. Layers are numbered from 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnlab.config import Config, Problem
from attnlab.mechanism import MechanismConfig


@dataclass(frozen=True, kw_only=True)
class ByLayer(Config):
    """`layers` have mechanisms of their own, all others the default.

    >>> from attnlab import GatedDeltaNet, Identity
    >>> pattern = ByLayer(default=GatedDeltaNet(), layers={2: Identity()})
    >>> [mechanism.kind() for mechanism in pattern.in_order(4)]
    ['gated_delta_net', 'gated_delta_net', 'identity', 'gated_delta_net']
    """

    default: MechanismConfig | None = None  # none needed where every layer is named
    layers: Mapping[int, MechanismConfig]

    def in_order(self, n_layers: int) -> list[MechanismConfig]:
        """The mechanism of every layer of a model that has no `problems_in`."""
        found = [self.layers.get(layer, self.default) for layer in range(n_layers)]
        return [mechanism for mechanism in found if mechanism is not None]

    def problems_in(self, n_layers: int, d_model: int) -> Iterator[Problem]:
        """What is impossible in a model of so many layers of this width, each with its field."""
        last = n_layers - 1
        for layer in self.layers:
            if not 0 <= layer <= last:
                yield Problem(f"layers.{layer}", f"no such layer: there are 0 to {last}")
        unnamed = [str(layer) for layer in range(n_layers) if layer not in self.layers]
        if self.default is None and unnamed:
            few = ", ".join(unnamed[:4]) + (", ..." if len(unnamed) > 4 else "")
            yield Problem("default", f"name one, for those that layers leaves out: {few}")
        named = {f"layers.{layer}": mechanism for layer, mechanism in self.layers.items()}
        for path, mechanism in {"default": self.default, **named}.items():
            for problem in mechanism.problems_at(d_model) if mechanism else ():
                yield problem.under(path)


def shortest_tile(layers: Sequence[MechanismConfig]) -> tuple[MechanismConfig, ...]:
    """The shortest pattern that gives these layers in whole repeats: one form for one model.

    >>> from attnlab import GatedDeltaNet, Identity
    >>> len(shortest_tile([Identity(), GatedDeltaNet()] * 2))
    2
    """
    whole = (n for n in range(1, len(layers) + 1) if len(layers) % n == 0)
    n = next(n for n in whole if all(layers[i] == layers[i % n] for i in range(len(layers))))
    return tuple(layers[:n])
