"""Parts of the loss, and of the text: differences to the baseline, each with an interval."""

from dataclasses import replace

import numpy as np
import pytest
from support.written_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.statistics.paired import differences_on_text
from attnlab.record import RunFolder, StudyRecord
from attnlab.reporting.figures.comparison import panel_pdfs
from attnlab.reporting.pages import markdown, page


def study_of_parts(folder, seeds=5, variants=("mha", "delta", "twin")):
    """Return an analysis: delta is 0.3 worse on recall tokens, twin is delta again."""
    write_study(folder, {name: [None] * seeds for name in variants})
    for name in variants:
        own = 0.0 if name == "mha" else 0.3
        for seed, noise in enumerate(steady(0.0, 1 + (name != "mha"), seeds=seeds)):
            write_run(
                RunFolder(folder, name, seed),
                5.0 + own / 2 + noise,
                function="mha" if name == "mha" else "delta",
                final_recall_loss=2.0 + own + noise,
                final_other_loss=6.0 + noise,
                final_loss_by_position={
                    "first": [0, 1, 2, 3, 4],
                    "loss": [6.0 + noise] * 4 + [5 + own + noise],
                },
            )
    return analyse(folder)


def test_parts_of_the_loss_have_intervals_against_the_baseline(tmp_path):
    analysis = study_of_parts(tmp_path / "s")
    assert analysis.parts.keys() == {"delta", "twin"}
    delta, twin = analysis.parts["delta"], analysis.parts["twin"]
    assert delta == twin  # one function, which counts once
    assert delta.recall.mean == pytest.approx(0.3, abs=0.01)
    assert delta.recall.separable
    assert not delta.other.separable
    assert delta.recall_more.mean == pytest.approx(0.3)
    assert list(delta.position) == [0, 1, 2, 4]  # octaves: the third and fourth position are one
    assert [of.separable for of in delta.position.values()] == [False, False, False, True]
    # ranges of positions hold at once: wider than one interval of the same noise
    assert delta.position[0].half_width > 1.2 * delta.other.half_width


def test_parts_have_the_error_rate_of_a_look_where_seeds_are_added(tmp_path):
    fixed = study_of_parts(tmp_path / "s").parts["delta"]
    replace(StudyRecord.read(tmp_path / "s"), most_seeds=10).write(tmp_path / "s")
    found = analyse(tmp_path / "s").parts["delta"]
    assert found.recall.half_width > 1.1 * fixed.recall.half_width
    assert found.position[4].half_width > 1.1 * fixed.position[4].half_width


@pytest.mark.parametrize(("seeds", "said"), [(3, "Bars: simultaneous 95 %"), (1, "One seed: no")])
def test_they_are_drawn_on_the_page_and_for_papers(tmp_path, seeds, said):
    analysis = study_of_parts(tmp_path / "s", seeds)
    for of in analysis.parts.values():
        assert (of.recall.half_width is None) == (seeds == 1)
    html, text = page(analysis), markdown(analysis, None)
    for title in ("on recall tokens", "on all other tokens"):
        assert f"Difference to mha {title} (nats/token)" in html
    assert "Loss by position minus mha" in html
    assert said in html
    assert "delta, from position 5: +0.3" in html
    assert "| Δ recall tokens (nats/token) |" in text
    assert {"recall", "other", "positions"} <= panel_pdfs(analysis).keys()


def test_nothing_is_claimed_of_what_was_not_recorded(tmp_path):
    analysis = analyse(write_study(tmp_path / "s", {"mha": steady(5.0), "delta": steady(5.1, 2)}))
    assert analysis.parts == {}
    assert "Difference by position" not in page(analysis)
    assert not {"recall", "other", "positions"} & panel_pdfs(analysis).keys()


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
