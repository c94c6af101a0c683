"""Costs of variants: decoding, time and its noise, and parts of the loss."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from support.reported_study import steady, write_run, write_study

from attnlab.analysis import numbers
from attnlab.analysis.analysis import analyse
from attnlab.analysis.costs import Cost, Serving
from attnlab.analysis.statistics.paired import Estimate, differences_on_text
from attnlab.record import RunFolder, StudyRecord, write_json
from attnlab.reporting.figures import comparison
from attnlab.reporting.figures.comparison import _Panels, panel_pdfs
from attnlab.reporting.pages import markdown, page


def point(variant, context, seconds, *, batch=1, state=None, what="decode", status="ok"):
    return {
        **{"variant": variant, "what": what, "context": context, "batch": batch},
        **{"status": status, "seconds": seconds, "state_bytes": state},
    }


def served(folder, *points):
    write_json(folder / "bench.json", {"points": list(points)})
    return Serving.read(folder)


def test_times_are_taken_where_the_most_variants_were_measured_at_the_longest_context(tmp_path):
    found = served(
        tmp_path,
        *(point(name, context, 0.001 * context) for name in "ab" for context in (1, 4)),
        point("a", 16, 9.0),
        point("b", 16, None, status="out_of_memory"),
        point("a", 4, 7.0, batch=8),
        point("b", 4, 7.0, batch=8),
        point("a", 4, 5.0, what="prefill"),
    )
    assert (found.context, found.batch) == (4, 1)
    assert found.decode_seconds == {"a": 0.004, "b": 0.004}


def test_the_state_of_one_sequence_grows_by_its_slope_over_the_longest_contexts(tmp_path):
    found = served(
        tmp_path,
        *(point("full", context, 1.0, batch=2, state=2 * 10 * context) for context in (4, 8, 16)),
        *(point("window", context, 1.0, state=80) for context in (8, 16)),
        point("once", 8, 1.0, state=80),
    )
    assert found.state_growth == {"full": pytest.approx(10), "window": 0}


@pytest.mark.parametrize(("spread", "cheaper"), [(0.02, True), (0.4, False), (None, True)])
def test_times_to_decode_that_overlap_are_the_same(tmp_path, spread, cheaper):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0, 2)}
    write_study(tmp_path, losses)
    times = {"mha": 1.2, "mla": 1.0}
    points = [point(name, 4, of) | {"spread_seconds": spread} for name, of in times.items()]
    served(tmp_path, *points)
    (front,) = (front for front in analyse(tmp_path).fronts if front.key == "decode_seconds")
    assert (front.front == ("mla",)) is cheaper


def test_without_a_bench_nothing_is_known(tmp_path):
    found = Serving.read(tmp_path)
    assert (found.decode_seconds, found.state_growth) == ({}, {})


def timed(first, second, **more):
    estimates = {"a": Estimate.of(first), "b": Estimate.of(second)}
    return Cost(
        key="step_time",
        label="time",
        unit="seconds",
        resolution=0.05,
        of={name: estimate.mean for name, estimate in estimates.items()},
        over_runs=estimates,
        **more,
    )


@pytest.mark.parametrize(
    ("first", "second", "cheaper"),
    [
        ([1.0, 1.01, 0.99, 1.0], [2.0, 2.01, 1.99, 2.0], True),
        ([1.0, 1.8, 0.9, 1.5], [1.6, 1.2, 2.1, 1.4], False),  # within the noise over runs
        ([1.0], [2.0], False),  # one run shows no noise
        ([1.0, 1.0001], [1.02, 1.0201], False),  # within the resolution
    ],
)
def test_a_time_is_shorter_only_outside_its_noise_and_resolution(first, second, cheaper):
    assert timed(first, second).cheaper("a", "b") == cheaper
    assert not timed(first, second).cheaper("b", "a")


def test_times_of_steps_that_overlap_are_the_same():
    times = [1.0, 1.01, 0.99, 1.0], [1.2, 1.21, 1.19, 1.2]
    assert timed(*times).cheaper("a", "b")
    assert not timed(*times, quartiles={"a": (0.9, 1.15), "b": (1.1, 1.3)}).cheaper("a", "b")


def test_names_of_the_same_work_show_how_far_apart_equal_times_are(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 3)}
    more = {"mha": {"step_time": 0.0109}, "gqa_1": {"step_time": 0.0100}}
    same = {"function": "gqa_1", "step_time": 0.0113}
    found = analyse(write_study(tmp_path, losses, mqa=same, **more))
    pick = next(pick for pick in found.picks if "training speed first" in pick.use_cases)
    assert pick.variant is None
    assert "within its error" in pick.reason


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
    assert "| Δ from position 5 (nats/token) |" in text
    late = numbers.comparison(analysis.parts["delta"].position[4])
    assert re.search(rf"\| delta \|.*\| {re.escape(late)} \|", text)
    # the loss by position itself has the standard deviation over seeds
    assert (re.search(r"mha, from position 5: [0-9.]+ ± ", html) is None) == (seeds == 1)
    assert {"recall", "other", "positions"} <= panel_pdfs(analysis).keys()


def test_a_panel_by_itself_says_of_which_tokens_it_is_and_if_bars_are_missing(
    tmp_path, monkeypatch
):
    analysis = study_of_parts(tmp_path / "s")
    for kind in ("recall", "other"):
        axes = Figure().subplots()
        _Panels(analysis).every()[kind].draw(axes)
        assert axes.get_xlabel() == f"difference on {kind} tokens (nats/token)"
    assert "No bars" not in _Panels(analysis).every()["positions"].caption
    monkeypatch.setattr(comparison, "MOST_BARS", 1)
    assert "No bars are drawn" in _Panels(analysis).every()["positions"].caption


def test_nothing_is_claimed_of_what_was_not_recorded(tmp_path, empty_charts):
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
