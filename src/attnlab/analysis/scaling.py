"""Scaling: the loss of each family of a ladder against FLOPs, parameters, tokens and seconds."""

from dataclasses import replace

from attnlab.analysis.table import Table
from attnlab.record import Cell, cells_of


def cells_of_table(table: Table) -> dict[Cell, Table]:
    """Return the table of each size and training length of a ladder, the baseline's first.

    Variants are compared within one of them only. A study that is no ladder has one, its own.
    """
    study, names = table.study, [variant.name for variant in table.variants]
    cells = cells_of(names, study.baseline, study.rungs)
    if len(cells) < 2:
        return dict.fromkeys(cells or (Cell("", "", (), study.baseline),), table)
    return {
        cell: replace(
            table,
            study=replace(study, variants=cell.variants, baseline=cell.baseline),
            variants=tuple(v for v in table.variants if v.name in cell.variants),
        )
        for cell in cells
    }
