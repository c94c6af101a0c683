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
        kinds = kinds_of(variant.config)
        if variant.name == table.study.baseline:
            found[variant.name] = (BASELINE,)
        elif kinds and kinds <= WITHOUT_ATTENTION:
            found[variant.name] = (FLOOR,)
        elif variant.name in declared:
            found[variant.name] = ("declared", declared[variant.name])
        else:
            families = {"recurrent" if kind in RECURRENT else kind for kind in kinds}
            found[variant.name] = ("kinds", *sorted(families or {variant.name}))
    return found


def kinds_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of the mechanisms of all layers; empty where the settings do not say."""
    mechanisms = config.get("model", {}).get("mechanisms") or ()
    if isinstance(mechanisms, Mapping):
        layers: Iterable[Any] = mechanisms.get("layers", {}).values()
        mechanisms = [mechanisms.get("default"), *layers]
    return frozenset(str(of["kind"]) for of in mechanisms if of and "kind" in of)
