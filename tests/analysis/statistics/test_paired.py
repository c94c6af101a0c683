"""Differences paired by block of the held-out text."""

import numpy as np
import pytest

from attnlab.analysis.statistics.paired import differences_on_text


def test_the_error_of_the_text_is_that_of_drawing_another_text():
    rng, blocks, shown = np.random.default_rng(0), 100, []
    for _ in range(60):
        hard_B = rng.standard_normal(blocks)  # alike for all variants
        loss_VB = 5 + hard_B + 0.1 * rng.standard_normal((2, blocks))
        shown.append(differences_on_text(loss_VB, np.full(blocks, 1024.0), 0)[1])
    spread = np.std([difference.mean for difference in shown], ddof=1)
    assert np.mean([it.half_width for it in shown]) == pytest.approx(1.96 * spread, rel=0.25)
    assert np.mean([abs(it.mean) <= it.half_width for it in shown]) >= 0.85


def test_neighbouring_blocks_that_are_alike_count_for_less():
    rng, blocks = np.random.default_rng(1), 216
    alone = 0.1 * rng.standard_normal(blocks)
    alike = np.repeat(0.1 * rng.standard_normal(blocks // 6), 6)
    tokens = np.full(blocks, 100.0)
    halves = [
        differences_on_text(np.array([np.zeros(blocks), of]), tokens, 0)[1].half_width
        for of in (alone, alike)
    ]
    assert halves[1] > 1.5 * halves[0]


def test_a_block_counts_as_its_tokens():
    loss_VB = np.array([[0.0, 0.0], [1.0, 3.0]])
    assert differences_on_text(loss_VB, np.array([3.0, 1.0]), 0)[1].mean == pytest.approx(1.5)
