"""The statistics of a study folder, and the verdict in sentences that a newcomer understands.

The Pareto front of each cost, and the variant to pick for each use case.
"""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from support.reported_study import edit, steady, write_study

from attnlab.analysis.analysis import analyse, scaling_answer
from attnlab.analysis.costs import Cost
from attnlab.analysis.headline import winner
from attnlab.analysis.hypotheses.in_range import LossInRange
from attnlab.analysis.picks import front_of
from attnlab.analysis.statistics.power_law import Speedup
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import write_json, write_tuning_choice
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.profile import profile_tables
from attnlab.reporting.tables.rows import rows


def headline(folder, losses, **more):
    return analyse(write_study(folder, losses, **more)).headline


def test_a_winner_is_named_with_its_lead_and_the_others_with_theirs(tmp_path):
    losses = {"mha": steady(5.2, 1), "mla": steady(5.2003, 2), "delta": steady(5.0, 3)}
    first, second = headline(tmp_path, losses)
    assert first.startswith(
        "At this recipe, delta predicts this text best: 5.000 nats/token on the validation"
    )
    assert "0.200 ± 0.00" in first
    assert "better than the next, mha." in first
    assert second == "Worse than the best: mha and mla (0.200 nats/token behind)."


def test_an_end_without_a_bound_is_infinite_in_every_sentence(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.2, 2), "delta": steady(5.3, 3)}
    write_study(tmp_path, losses)
    for name in losses:
        bound = None if name == "mha" else 0.01
        write_tuning_choice(tmp_path, name, {"allowance": bound, "learning_rate": 1e-3})
    found = analyse(tmp_path)
    assert ", ∞] better than the next, mla." in found.headline[0]
    assert not re.search(r"\b(inf|nan)\b", markdown(found, None))
    for name in losses:
        write_tuning_choice(tmp_path, name, {"allowance": None, "learning_rate": 1e-3})
    text = markdown(analyse(tmp_path), None)
    assert "minimum detectable difference (80 % power): ∞ nats/token" in text
    assert not re.search(r"\b(inf|nan)\b", text)


def test_what_is_equal_within_the_margin_of_the_best_makes_no_winner(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0003, 2), "delta": steady(5.3, 3)}
    first, second = headline(tmp_path, losses)
    assert first == (
        "At this recipe, no winner: mha, which has the lowest mean (5.000 nats/token on the "
        "validation text), and mla are equivalent within the margin of 0.01 nats/token."
    )
    assert second == "Worse than mha: delta (0.300 nats/token behind)."


def test_a_separable_lead_within_the_margin_is_no_lead(tmp_path):
    exact = [1e-5 * x for x in (0, 1, -1, 2, -2)]
    losses = {"mha": [5.0 + x for x in exact], "mla": [5.002 - x for x in exact]}
    analysis = analyse(write_study(tmp_path, losses))
    assert analysis.pairs["mha", "mla"].separable
    assert "no winner: mha" in analysis.headline[0]
    assert "equivalent within the margin" in analysis.headline[0]


WIDE = {  # of ten noisy variants, one is clearly worse
    **{f"v{i}": [5 + i / 100 + x for x in (0.05, -0.04, 0.02, -0.06, 0.03)] for i in range(3)},
    "far": [9.0, 9.1, 9.05, 8.9, 9.0],
}


def test_variants_that_may_be_the_best_are_named_and_the_seeds_that_would_decide(tmp_path):
    first, second = headline(tmp_path, WIDE, baseline="v0")
    assert first.startswith("At this recipe, no winner: v0, v1 and v2 may each be the best (lowest")
    assert "Worse than v0: far (" in second
    assert "Undecided between v0 and v1 with 5 seeds" in second


def evenly(step, seed):
    noise = np.random.default_rng(seed).standard_normal((5, 4)).tolist()
    return {f"v{v}": [5 + step * v + 0.01 * x for x in of] for v, of in enumerate(noise)}


def test_a_winner_of_the_comparisons_with_the_best_is_no_contradiction_to_its_letter(tmp_path):
    analysis = analyse(write_study(tmp_path, evenly(0.028, seed=6), baseline="v4"))
    first, second = analysis.headline
    assert set(analysis.letters["v0"]) & set(analysis.letters["v1"])
    assert "v0 predicts this text best" in first
    assert first.endswith("Among all pairs, v0 is not distinguishable from v1.")
    assert "v1" not in second


def test_worse_than_the_best_is_said_of_what_shares_no_letter_with_it(tmp_path):
    analysis = analyse(write_study(tmp_path, evenly(0.01, seed=0), baseline="v4"))
    assert analysis.hsu["v3"].low == 0
    assert set(analysis.letters["v3"]) & set(analysis.letters["v0"])
    assert analysis.headline[1].startswith(
        "Worse than v0: v4 (0.040 nats/token behind). v3 is not the best, whichever is, though not "
        "distinguishable from v0 alone. Undecided between v0 and v2"
    )


def test_the_seeds_that_decide_follow_from_the_noise_of_the_two(tmp_path):
    noisy = {"mha": steady(5.0, 1), "mla": [4.8, 5.3, 4.6, 5.2, 4.9], "gqa": steady(5.2, 3)}
    _, second = headline(tmp_path, noisy)
    assert "Undecided between mla and mha with 5 seeds: a difference of 0.040" in second
    assert "needs more than 100" in second
    level = {"mha": [4.8, 5.3, 4.6, 5.2, 5.1], "mla": [5.3, 4.8, 5.2, 4.6, 5.1]}
    _, second = headline(tmp_path / "level", level)
    assert second.endswith("5 seeds: their means differ by less than 0.001 nats/token.")


def test_the_rival_of_the_best_is_one_that_may_be_the_best(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa": steady(5.02, 2), "mla": [5.1, 5.12, 5.3, 4.9, 5.0]}
    first, second = headline(tmp_path, losses)
    assert "mha and mla may each be the best" in first
    assert "Undecided between mha and mla" in second
    assert "gqa" in second.partition(".")[0]


def test_equal_losses_have_no_lowest_one_and_their_names_a_plural(tmp_path):
    equal = steady(5.0, 1)
    first, _ = headline(tmp_path / "all", {"mha": equal, "mla": equal})
    assert first == "mha and mla have equal losses: 5.000 nats/token on the validation text."
    first, _ = headline(tmp_path / "two", {"mha": equal, "mla": equal, "far": steady(5.2, 3)})
    assert "mha and mla predict this text best" in first


def test_what_is_equivalent_to_the_best_is_not_called_worse_than_it_beside(tmp_path):
    exact = [1e-5 * x for x in (0, 1, -1, 2, -2)]
    losses = {"mha": [5.0 + x for x in exact], "mla": [5.002 - x for x in exact]}
    first, second = headline(tmp_path, losses | {"far": [5.5 + x for x in exact]})
    assert "mla are equivalent" in first
    assert second == "Worse than the best: far (0.500 nats/token behind)."


def test_a_run_that_went_astray_is_reported_without_a_warning(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": [*steady(5.1, 2)[:4], 400.0]}
    assert "Seed 4 of mla is set aside" in headline(tmp_path, losses)[1]


def test_a_spiked_seed_is_named(tmp_path):
    spiked = [*steady(5.1, 2)[:4], 7.5]
    losses = {"mha": steady(5.0, 1), "mla": spiked, "gqa": steady(5.2, 3)}
    _, second = headline(tmp_path, losses)
    assert "Seed 4 of mla is set aside as an outlier: 7.500, where its other seeds" in second


def test_a_study_of_one_variant_answers_by_its_hypotheses(tmp_path):
    claim = LossInRange(variants=("mha",), high=1.6).to_dict()
    first, second = headline(tmp_path, {"mha": [1.48, 1.52, 1.5012]}, hypotheses=[claim])
    assert first == "Supported: mha has a loss of at most 1.6 nats/token."
    assert second == (
        "mha: 1.500 [1.451, 1.550]. mha is the only variant compared (1.500 nats/token on the "
        "validation text)."
    )


def test_a_row_counts_the_seeds_that_the_verdict_counts(tmp_path):
    spiked = [*steady(5.1, 2)[:4], 7.5]
    losses = {"mha": steady(5.0, 1), "mla": spiked, "gqa": steady(5.2, 3)}
    found = analyse(write_study(tmp_path, losses))
    row = next(row for row in rows(found) if row.name == "mla")
    assert row.seeds == "5/5, 1 set aside"
    assert row.numbers["final_loss"].spread < 0.01
    assert row.numbers["final_perplexity"].mean == pytest.approx(math.exp(found.means["mla"]))


def test_a_variant_without_a_bound_is_named_apart(tmp_path):
    write_study(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.2, 2), "delta": steady(8.3, 3)})
    for name, bound in (("mha", 0.01), ("mla", 0.01), ("delta", None)):
        write_tuning_choice(tmp_path, name, {"allowance": bound, "learning_rate": 1e-3})
    assert analyse(tmp_path).headline[0] == (
        "No winner: mha may be the best (lowest mean: mha, 5.000 nats/token on the validation "
        "text), and so may delta, of which the search found no bound."
    )


def test_what_may_be_better_than_two_that_are_equivalent_is_named(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa": steady(5.001, 3), "wide": [5.0, 5.3, 5.1, 4.9, 5.6]}
    found = analyse(write_study(tmp_path, losses))
    assert found.headline[0].endswith("within the margin of 0.01 nats/token; wide may be better.")
    assert found.picks[0].reason.endswith("within the margin. wide may be better.")


def test_a_noisy_variant_that_is_not_the_best_is_named_beside_the_winner(tmp_path):
    losses = {"mha": [4.99, 4.99, 4.99, 5.0], "mla": [5.06, 5.06, 5.07, 5.07]}
    first, _ = headline(tmp_path, {**losses, "noisy": [5.13, 5.07, 5.05, 5.05]})
    assert first.endswith(
        "better than the next, mla, by comparisons with the best. Among all pairs, mha is not "
        "distinguishable from noisy."
    )


def test_a_lead_that_the_baselines_intervals_show_has_one(tmp_path):
    losses = {"mha": [5.01, 5.01, 4.99, 5.0], "mla": [5.02, 5.05, 5.03, 5.05]}
    found = analyse(write_study(tmp_path, {**losses, "far": [5.46, 5.53, 5.5, 5.51]}))
    assert found.pairs["mla", "mha"].separable < found.to_baseline["mla"].separable
    assert "0.035 ± 0.0" in found.headline[0]


@pytest.mark.parametrize(
    ("bound", "change"), [(0.0, "More seeds:"), (0.02, "Closer tuning of mha")]
)
def test_seeds_are_not_asked_for_where_tuning_hides_the_difference(tmp_path, bound, change):
    wide = [0.0, 0.02, -0.02, 0.01, -0.01]
    losses = {"mha": [5.0 + x for x in wide], "mla": [5.0 - x for x in wide]}
    write_study(tmp_path, losses, mha={"state_bytes": 100}, mla={"state_bytes": 50})
    for name in losses:
        choice = {"allowance": bound, "search_noise": 0.0, "learning_rate": 1e-3}
        write_tuning_choice(tmp_path, name, choice)
    memory = next(it for it in analyse(tmp_path).picks if "memory first" in it.use_cases)
    assert (memory.variant, memory.would_change[: len(change)]) == ("mha", change)


def test_of_two_without_any_error_each_may_be_the_best(tmp_path):
    losses = {"mha": [0.0] * 4, "mla": [0.0, 0.0, 0.0, 1e-6], "gqa": [8.3] * 4}
    found = analyse(write_study(tmp_path, losses))
    assert [of[0] for of in found.leaders] == ["mha", "mla"]
    assert "not the best" not in found.headline[1]


@pytest.mark.parametrize("others", [{}, {"gqa": [5.2, 5.5, 5.8]}])
def test_equal_losses_over_seeds_are_no_proof_of_a_small_error(tmp_path, others):
    losses = {"mha": [5.0] * 3, "mla": [5.1] * 3, **others}
    found = analyse(write_study(tmp_path, losses))
    assert found.judged == bool(others)
    assert not found.pairs["mha", "mla"].separable
    if not others:
        assert "seeds of each variant gave equal losses: no estimate of the error" in found.why


def test_what_is_not_compared_is_said_without_a_verdict_too(tmp_path):
    lost = ["loss is nan", *steady(5.0, 1)[1:]]
    found = analyse(write_study(tmp_path, {"mha": lost, "mla": steady(5.1, 2)}))
    assert "Not compared: mha (diverged with seed 0 (of 5): loss is nan)." in found.headline[1]
    assert "intervals" not in markdown(found, None)


def test_answers_are_said_with_their_error_and_seeds_that_do_not_learn_are_seen(
    tmp_path, empty_charts
):
    losses = {"mha": steady(0.4, 1), "mla": steady(0.41, 2), "delta": steady(3.0, 3)}
    write_study(tmp_path, losses, **{name: {"final_by_group": {}} for name in losses})
    accuracy = {"mha": (0.94, 0.03, 0.95, 0.96, 0.94), "mla": (0.92, 0.93, 0.91, 0.92, 0.92)}
    for name, values in {**accuracy, "delta": (0.1,) * 5}.items():
        for seed, value in enumerate(values):
            edit(tmp_path / name / f"seed-{seed}" / "summary.json", final_accuracy=value)
    found = analyse(tmp_path)
    said = "mha 0.764 (seeds: 0.94, 0.03, 0.95, 0.96, 0.94)"
    assert found.headline[1].startswith(
        f"Accuracy of answers (95 % interval of each alone): {said}"
    )
    assert "delta 0." not in found.headline[1]  # it is worse, and in the table
    text, shown = markdown(found, None), page(found)
    assert "| 0.920 \\[0.911, 0.929] |" in text
    assert "± 0.000 |" not in text
    chart = shown.index("accuracy of answers against decode state")
    assert shown.index('id="answer"') < chart < shown.index('id="bar"')


def test_accuracies_of_which_a_seed_diverged_are_marked(tmp_path):
    answers = {"final_by_group": {}, "final_accuracy": 0.9}
    losses = {"mha": [0.4, 0.5, 0.6], "mla": [0.4, "loss is nan", 0.6]}
    found = analyse(write_study(tmp_path, losses, mha=answers, mla=answers))
    (table,) = profile_tables(found)
    cells = {line[0]: line[1] for line in table.lines}
    assert (cells["mha"], cells["mla"]) == ("0.900 [0.900, 0.900]", "0.900 [0.900, 0.900] *")
    assert table.note.endswith(
        "*: of the finished seeds alone; mla on text: 1 of 3 seeds diverged."
    )


def test_accuracies_that_agree_over_seeds_have_the_error_of_the_answers(tmp_path):
    right = {"all": {"accuracy": 1.0, "loss": 0.1, "answers": 400}}
    answers = {"final_by_group": right, "final_accuracy": 1.0}
    in_range = {"kind": "accuracy_in_range", "variants": ["mha"], "low": 0.995}
    losses = {"mha": [0.1, 0.11, 0.12], "mla": [0.4, 0.5, 0.6]}
    folder = write_study(tmp_path, losses, mha=answers, mla=answers, hypotheses=[in_range])
    found = analyse(folder)
    assert "mha 1.000 [0.990, 1.000]" in found.headline[1]
    assert found.judgements[0].ruling == "undecided"


def test_that_one_variant_has_no_verdict_is_said_once(tmp_path):
    first, second = headline(tmp_path, {"mha": [5.0]})
    assert first == "mha is the only variant compared (5.000 nats/token on the validation text)."
    assert second.startswith("No verdict: mha is the only variant that can be compared.")


def test_one_seed_is_no_verdict(tmp_path):
    first, second = headline(tmp_path, {"mha": [5.0], "mla": [5.1]})
    assert first.startswith("mha has the lowest loss (5.000 nats/token on the validation text)")
    assert first.endswith("but that is no verdict.")
    assert second.endswith("Run it with --seeds 4 or more for error bars.")


def test_nothing_finished_is_said(tmp_path):
    first, second = headline(tmp_path, {"mha": [None], "mla": ["loss is nan"]})
    assert first == "No run that can be compared has finished yet."
    assert "mla" in second


def test_who_was_left_out_is_in_the_headline(tmp_path):
    losses = {"mha": steady(5.2, 1), "mla": steady(5.0, 2), "wild": ["loss is nan"] * 5}
    _, second = headline(tmp_path, losses)
    assert "Not compared: wild (diverged with seeds 0, 1, 2, 3, 4 (of 5): loss is nan)." in second


def test_a_control_that_does_not_tie_is_the_headline(tmp_path):
    losses = {
        name: steady(loss, place)
        for place, (name, loss) in enumerate(
            {"mha": 5.0, "gqa_1": 5.1, "mqa": 5.2, "mla": 5.0}.items()
        )
    }
    _, second = headline(tmp_path, losses, mqa={"function": "gqa_1"})
    assert "do not trust this verdict" in second


@pytest.mark.parametrize("losses", [{"mha": [5.0]}, {"mha": [5.0, 5.1]}])
def test_a_single_variant_stands_alone(tmp_path, losses):
    assert headline(tmp_path, losses)[0].startswith("mha is the only variant compared (5.0")


def verdict_on(folder, losses, **more):
    return verdict_of(read_table(write_study(folder, losses, **more)))


def test_one_variant_minus_another_is_the_other_minus_it_turned_round(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.01, 2), "gqa": steady(5.02, 3)}
    found = verdict_on(tmp_path, losses)
    there, back = found.pairs["mha", "gqa"], found.pairs["gqa", "mha"]
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))
    assert (back.p, back.separable) == (there.p, there.separable)
    assert found.to_baseline["gqa"].mean == back.mean
    assert found.to_best["mla"] == found.pairs["mla", found.order[0]]
    assert set(found.to_baseline) == {"mla", "gqa"}


def test_intervals_of_fewer_comparisons_are_narrower_and_all_hold_one_difference(tmp_path):
    losses = {name: steady(5.0, place) for place, name in enumerate(("mha", "mla", "gqa", "x"))}
    found = verdict_on(tmp_path, losses)
    for name, to_baseline in found.to_baseline.items():
        every = found.pairs[name, "mha"]
        assert every.mean == to_baseline.mean
        assert every.alone == to_baseline.alone < to_baseline.half_width < every.half_width


def test_two_functions_under_three_names_get_the_verdict_of_two(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.004, 2)}
    alone = verdict_on(tmp_path / "two", losses)
    same = {"function": "gqa_1"}
    named = verdict_on(tmp_path / "three", losses | {"mqa": losses["gqa_1"]}, mqa=same)
    assert named.pairs["mqa", "mha"] == named.pairs["gqa_1", "mha"] == alone.pairs["gqa_1", "mha"]
    assert named.residual_sd == alone.residual_sd
    assert named.letters["mqa"] == named.letters["gqa_1"]
    assert named.functions == (("mha",), ("gqa_1", "mqa"))
    control = named.pairs["gqa_1", "mqa"]
    assert (control.low, control.mean, control.high, control.separable) == (0, 0, 0, False)


def test_columns_of_equal_numbers_count_once_whatever_their_settings(tmp_path):
    losses = {"mha": steady(5.0, 1), "math": steady(5.004, 2), "flash": steady(5.004, 2)}
    found = verdict_on(tmp_path, losses)
    assert found.functions == (("mha",), ("math", "flash"))
    assert found.pairs["math", "flash"].equivalent


def test_practically_equal_is_said_where_the_interval_lies_within_the_margin(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0005, 2), "far": steady(5.5, 3)}
    found = verdict_on(tmp_path, losses)
    near, far = found.pairs["mla", "mha"], found.pairs["far", "mha"]
    assert (near.equivalent, near.separable) == (True, False)
    assert -found.margin < near.low < near.high < found.margin
    assert (far.equivalent, far.separable) == (False, True)


def test_one_seed_gives_no_verdict_and_says_so(tmp_path):
    found = verdict_on(tmp_path, {"mha": [5.0], "mla": [5.1]})
    assert (found.method, found.letters, found.detectable) == ("none", {}, None)
    assert "one seed" in found.why
    assert found.order == ("mha", "mla")
    pair = found.pairs["mla", "mha"]
    assert pair.mean == pytest.approx(0.1)
    assert (pair.low, pair.p, pair.separable, pair.equivalent) == (None, None, False, False)
    uneven = verdict_on(tmp_path / "uneven", {"mha": [5.0, 5.1], "mla": [5.1, None]})
    assert uneven.why == "No verdict: one seed gives no estimate of the error of mla."


def test_one_function_gives_no_verdict(tmp_path):
    losses = steady(5.0, 1)
    found = verdict_on(tmp_path, {"mha": losses, "again": losses})
    assert found.method == "none"
    assert "mha, again gave the same losses" in found.why


def test_a_variant_far_noisier_than_the_rest_hides_nothing_of_the_others(tmp_path):
    losses = {f"v{place}": steady(5 + place / 50, place) for place in range(6)}
    losses["wild"] = [4.0, 6.5, 5.0, 7.0, 4.5]
    found = verdict_on(tmp_path, losses, baseline="v0")
    assert found.pairs["v5", "v0"].separable
    assert not found.pairs["wild", "v0"].separable


def test_one_spiked_seed_hides_no_difference_and_is_named(tmp_path):
    losses = {f"v{place}": steady(5 + place / 50, place) for place in range(5)}
    whole = verdict_on(tmp_path / "whole", losses, baseline="v0")
    losses["v2"][1] += 0.8
    spiked = verdict_on(tmp_path / "spiked", losses, baseline="v0")
    assert all(pair.separable for pair in whole.pairs.values())
    assert all(pair.separable for pair in spiked.pairs.values())
    assert "Seed 1 of v2 is set aside as an outlier: 5.84" in spiked.why
    (spike,) = spiked.spikes
    assert (spike.variant, spike.seed) == ("v2", 1)


def test_what_is_separable_has_an_interval_that_does_not_cross_0(tmp_path):
    losses = {f"v{place}": steady(5 + place / 500, place) for place in range(8)}
    losses["wild"] = [4.0, 6.5, 5.0, 7.0, 4.5]
    for pair in verdict_on(tmp_path, losses, baseline="v0").pairs.values():
        assert not (pair.separable and pair.low < 0 < pair.high)
        assert pair.low <= pair.mean <= pair.high


def planted(rng):
    """Return losses and costs of a study: unequal noise, seeds that are shared or missing, ties."""
    variants, seeds = rng.integers(3, 6), rng.integers(2, 7)
    shared_S = rng.standard_normal(seeds) * rng.choice([0, 0.03])
    step, losses = rng.choice([0, 0.01, 0.03]), {}
    for v in range(variants):
        noise_S = rng.choice([0.002, 0.01, 0.05]) * rng.standard_normal(seeds)
        runs = (5 + step * v + shared_S + noise_S).tolist()
        losses[f"v{v}"] = [y if s < 2 or rng.uniform() > 0.1 else None for s, y in enumerate(runs)]
    costs = {name: {"state_bytes": int(rng.choice([0, 2**20, 2**21]))} for name in losses}
    return losses, costs


@pytest.mark.parametrize("seed", range(8))
def test_no_part_of_a_verdict_contradicts_another(tmp_path, seed):
    losses, costs = planted(np.random.default_rng(seed))
    found = analyse(write_study(tmp_path, losses, baseline="v0", **costs))
    leaders = {name for names in found.leaders for name in names}
    assert found.best in leaders
    for (one, other), pair in found.pairs.items():
        shared = set(found.letters[one]) & set(found.letters[other])
        assert pair.separable == (not shared)
        worse = pair.separable and pair.mean > 0
        assert not (worse and one in leaders), "a leader is worse than another variant"
        if other == "v0" and pair.separable:
            assert found.to_baseline[one].separable, "fewer comparisons show no less"
    won, first = winner(found), found.headline[0]
    quality, *others = found.picks
    assert (quality.variant in won) if won else quality.variant is None
    assert ("this text best" in first) == bool(won) == ("no winner" not in first)
    for pick in others:
        assert pick.variant is None or found.not_worse(pick.variant, "v0")
    for front in found.fronts:
        for name, (cost, _) in front.points.items():
            cheaper = [n for n, (c, _) in front.points.items() if c < cost]
            beaten = [n for n in cheaper if found.not_worse(n, name)]
            assert not (beaten and name in front.front)


MIB = 2**20


def picks(folder, losses, **more):
    found = analyse(write_study(folder, losses, **more)).picks
    return {use_case: pick for pick in found for use_case in pick.use_cases}


@pytest.fixture
def found(tmp_path):
    losses = {
        "mha": steady(5.1, 1),
        "window": steady(5.1003, 2),
        "delta": steady(5.0, 3),
        "identity": steady(5.4, 4),
    }
    return picks(
        tmp_path,
        losses,
        mha={"state_bytes": 8 * MIB, "step_time": 0.002, "parameters": {"total": 100}},
        window={"state_bytes": 2 * MIB, "step_time": 0.001, "parameters": {"total": 90}},
        delta={"state_bytes": MIB, "step_time": 0.004, "parameters": {"total": 110}},
        identity={"state_bytes": 0, "step_time": 0.0005, "parameters": {"total": 50}},
    )


def test_quality_first_is_the_one_that_all_others_are_worse_than(found):
    pick = found["quality first"]
    assert pick.variant == "delta"
    assert "leads the next, mha, by 0.100 nats/token [" in pick.margin
    assert "mha gaining more than 0.09" in pick.would_change


def test_memory_first_is_the_smallest_state_that_is_not_worse_than_the_baseline(found):
    pick = found["memory first"]
    assert pick.variant == "delta"
    assert "1.00 MiB, 8 times less than mha (8.00 MiB)" in pick.reason
    assert "gives up nothing" in pick.margin
    assert "identity needs 0 B, and is worse than mha by 0.300 nats/token [" in pick.would_change


def test_a_pick_that_is_worse_than_the_best_says_by_how_much(found):
    pick = found["training speed first"]
    assert pick.variant == "window"
    assert "It gives up 0.100 nats/token [0." in pick.margin
    assert "to the best, delta" in pick.margin
    assert found["smallest model"].variant == "window"
    assert "identity needs 50 parameters, and is worse than" in found["smallest model"].would_change


def test_a_pick_that_is_not_worse_is_not_called_indistinguishable(tmp_path):
    noise = (0.0, 0.02, -0.02, 0.01, -0.01)
    losses = {
        "mha": [5.0 + of for of in noise],
        "window": [4.974 + of for of in (*noise[2:], *noise[:2])],
        "delta": [4.5 + of for of in noise],
    }
    states = {"mha": 2 * MIB, "window": MIB, "delta": 3 * MIB}
    more = {name: {"state_bytes": size} for name, size in states.items()}
    pick = picks(tmp_path, losses, **more)["memory first"]
    assert pick.variant == "window"
    assert "window is not worse than mha by the margin: difference -0.026 nats/token [-0." in (
        pick.margin
    )


def test_no_pick_is_separably_worse_than_the_baseline(found):
    assert all(pick.variant != "identity" for pick in found.values())


def test_what_was_not_measured_has_no_winner_and_says_what_measures_it(found):
    pick = found["long context"]
    assert pick.variant is None
    assert "attnlab bench" in pick.would_change


def test_variants_that_are_not_distinguishable_have_no_winner(tmp_path):
    cost = {"state_bytes": MIB}
    found = picks(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.0, 2)}, mha=cost, mla=cost)
    assert found["quality first"].variant is None
    assert found["quality first"].reason == "mha and mla are equivalent within the margin."
    assert "A smaller margin" in found["quality first"].would_change
    assert found["memory first"].variant is None
    assert found["memory first"].reason.startswith("mha and mla need the same within its error")
    assert found["memory first"].reason.endswith(
        "neither is distinguishably better than the other."
    )


def test_of_equal_costs_those_that_are_worse_than_another_are_left_out(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa": steady(4.0, 2), "mla": steady(4.0, 3)}
    costs = {name: {"state_bytes": MIB} for name in losses}
    pick = picks(tmp_path, losses, **costs)["memory first"]
    assert pick.variant is None
    assert pick.reason.startswith("gqa and mla need the same")


def test_of_many_that_share_the_lead_the_distances_of_the_others_are_a_range(tmp_path):
    losses = {f"v{i}": [100 * (x - 5) + i / 100 for x in steady(5.0, i)] for i in range(8)}
    pick = picks(tmp_path, losses)["quality first"]
    assert pick.variant is None
    assert pick.reason.endswith(" and 5 others may be the best.")
    analysis = analyse(tmp_path)
    best, *others = analysis.order
    nearest, furthest = (analysis.to_best[name].mean for name in (others[0], others[-1]))
    behind = f"{nearest:.3f} to {furthest:.3f} nats/token behind"
    assert pick.margin == f"{best} has the lowest mean; the others are {behind}."


def test_two_names_of_one_function_do_not_tie_with_themselves(tmp_path):
    losses = {"mha": steady(5.2, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 2)}
    cost, same = {"state_bytes": 1}, {"function": "gqa_1", "state_bytes": 1}
    found = picks(tmp_path, losses, mha={"state_bytes": 4}, gqa_1=cost, mqa=same)
    for use in ("quality first", "memory first"):
        assert found[use].variant == "gqa_1"
        assert "the same as mqa" in found[use].reason


def test_one_seed_picks_nothing(tmp_path):
    found = picks(tmp_path, {"mha": [5.0], "mla": [4.0]})
    assert {pick.variant for pick in found.values()} == {None}
    assert len(set(found.values())) == 1  # one reason for all of them


def test_long_context_takes_what_grows_least(tmp_path):
    losses = {"mha": steady(5.0, 1), "delta": steady(5.0, 2)}
    write_study(tmp_path, losses)
    write_json(
        tmp_path / "bench.json",
        {
            "points": [
                {
                    **{"variant": name, "what": "decode", "status": "ok", "batch": 1},
                    **{"context": n, "seconds": 0.001, "state_bytes": 64 + growth * n},
                }
                for name, growth in (("mha", 8), ("delta", 0))
                for n in (1024, 4096)
            ]
        },
    )
    found = {pick.use_case: pick for pick in analyse(tmp_path).picks}
    assert found["long context"].variant == "delta"
    assert "0 B/token" in found["long context"].reason
    assert found["decoding speed first"].variant is None


LOSSES = {
    "best": steady(5.0, 1),
    "level": steady(5.0004, 2),
    "worse": steady(5.1, 3),
    "worst": steady(5.2, 4),
}


@pytest.fixture
def verdict(tmp_path):
    return verdict_of(read_table(write_study(tmp_path, LOSSES, baseline="best")))


def front(verdict, resolution=0.01, **of):
    cost = Cost(key="parameters", label="parameters", unit="", resolution=resolution, of=of)
    return front_of(cost, verdict).front


def test_a_variant_that_costs_more_and_is_not_separably_better_is_off(verdict):
    assert front(verdict, best=10, level=5, worse=7, worst=1) == ("worst", "level")


def test_cheaper_and_worse_is_another_point_of_the_front(verdict):
    assert front(verdict, best=10, worse=5, worst=1) == ("worst", "worse", "best")


def test_at_equal_cost_the_separably_better_one_stays(verdict):
    assert front(verdict, best=10, worse=10) == ("best",)
    assert set(front(verdict, best=10, level=10)) == {"best", "level"}


def test_a_difference_within_the_resolution_is_none(verdict):
    assert front(verdict, best=10, level=9.95) == ("level", "best")
    assert front(verdict, best=10, level=9.8) == ("level",)


def test_names_of_one_function_stand_and_fall_together(tmp_path):
    losses = {"mha": steady(5.2, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 2)}
    study = write_study(tmp_path, losses, mqa={"function": "gqa_1"})
    assert set(front(verdict_of(read_table(study)), mha=9, gqa_1=10, mqa=12)) == set(losses)


def test_without_a_verdict_there_are_points_and_no_front(tmp_path):
    verdict = verdict_of(read_table(write_study(tmp_path, {"mha": [5.0], "mla": [5.1]})))
    cost = Cost(key="parameters", label="", unit="", resolution=0.01, of={"mha": 2, "mla": 1})
    found = front_of(cost, verdict)
    assert found.front == ()
    assert found.points == {"mha": (2, 5.0), "mla": (1, 5.1)}


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        (
            {"delta": (1.2, math.inf), "mla": (0.9, 1.1), "identity": (0.0, 0.4)},
            "delta scales better than mha, and identity scales worse, by effective speedup in "
            "training FLOPs: delta 1.00x [1.20, ∞], mla 1.00x [0.90, 1.10], "
            "identity 1.00x [0.00, 0.40].",
        ),
        (
            {"delta": (0.2, 3.0)},
            "No family is shown to scale better than mha, by effective speedup in training FLOPs: "
            "delta 1.00x [0.20, 3.00].",
        ),
        ({"delta": None}, ""),
    ],
)
def test_a_ladder_says_which_families_scale_better_and_which_worse(intervals, said):
    gains = {
        name: Speedup(family=name, loss=3.0, x=1.0, baseline_x=1.0, ratio=1.0, interval=of)
        for name, of in intervals.items()
    }
    along = {"flops": SimpleNamespace(speedups=gains)}
    assert scaling_answer(SimpleNamespace(baseline="mha", along=along)) == said
