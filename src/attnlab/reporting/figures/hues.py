"""The family of each variant, by which it is coloured: one hue per family, grey for references.

The families are those that the study declares. Otherwise variants with mechanisms of one kind
(several recurrent kinds count as one), or of the same mixture of kinds, are a family. The baseline
and the floor, a model without attention, are grey.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from attnlab.analysis.table import Table

BASELINE, FLOOR = "baseline", "floor"
WITHOUT_ATTENTION = frozenset({"identity", "none"})
RECURRENT = ("delta_net", "gated_delta_net", "gla", "kda", "mamba2")
Families = Mapping[str, tuple[str, ...]]  # by variant, a name that only equal families share


def families_of(table: Table) -> Families:
    """Return the family of each variant, in the order of the study."""
    declared = {name: f for f, names in table.study.families.items() for name in names}
    found: dict[str, tuple[str, ...]] = {}
    for variant in table.variants:
        found[variant.name] = family_of(variant.name, variant.config)
        if variant.name == table.study.baseline:
            found[variant.name] = (BASELINE,)
        elif variant.name in declared and found[variant.name] != (FLOOR,):
            found[variant.name] = ("declared", declared[variant.name])
    return found


def family_of(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the family of a variant by the kinds of its mechanisms; its own if none is known."""
    kinds = kinds_of(config)
    if kinds and kinds <= WITHOUT_ATTENTION:
        return (FLOOR,)
    families = {"recurrent" if kind in RECURRENT else kind for kind in kinds}
    return ("kinds", *sorted(families or {name}))


def kinds_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of the mechanisms of all layers; empty where the settings do not say."""
    mechanisms = config.get("model", {}).get("mechanisms") or ()
    if isinstance(mechanisms, Mapping):
        layers: Iterable[Any] = mechanisms.get("layers", {}).values()
        mechanisms = [mechanisms.get("default"), *layers]
    return frozenset(str(of["kind"]) for of in mechanisms if of and "kind" in of)
