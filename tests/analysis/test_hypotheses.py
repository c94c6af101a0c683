"""A hypothesis is supported, refuted, undecided or not judged, by the intervals of the study."""

import shutil
from dataclasses import replace

import pytest
from support import fake_workers
from support.reported_study import edit, steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.fairness import between_studies
from attnlab.analysis.hypotheses import Evidence, Hypothesis
from attnlab.analysis.hypotheses.across_studies import (
    AdvantageGrows,
    BetterThanInStudy,
    NeededInEveryLayer,
)
from attnlab.analysis.hypotheses.evidence import NotJudgedError
from attnlab.analysis.hypotheses.in_range import AccuracyInRange, CostInRange, LossInRange
from attnlab.analysis.hypotheses.ordered import Ordered, OrderedByCost, Ranked
from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.config import ConfigError
from attnlab.config.own_code import load_file
from attnlab.record import RunFolder
from attnlab.record.packed_study import pack
from attnlab.reporting.files import write_report
from attnlab.reporting.pages import markdown
from attnlab.study.targets import load_study

LOSSES = {
    "mha": steady(5.1, 1),
    "window": steady(5.1003, 2),  # equivalent to mha within the margin of 0.01
    "delta": steady(5.0, 3),
    "identity": steady(5.4, 4),
}
NOISY = {  # as far apart, but only identity is distinguishable from the others
    "mha": [5.0, 5.3, 5.1, 5.2, 5.1],
    "window": [5.3, 5.0, 5.2, 5.1, 5.2],
    "delta": [5.1, 5.1, 5.3, 4.9, 5.1],
    "identity": [9.1, 9.4, 9.0, 9.2, 9.3],
}


def judged(folder, hypothesis, losses=LOSSES, **more):
    study = write_study(folder, losses, hypotheses=[hypothesis.to_dict()], **more)
    (found,) = analyse(study).judgements
    assert found.statement == hypothesis.statement
    return found.ruling, " ".join(found.found)


def pair(first, second):
    return Better(variants=(first,), than=(second,))


@pytest.mark.parametrize(
    ("hypothesis", "statement"),
    [
        (Better(variants=("a",), than=("b",)), "a is better than b."),
        (Better(variants=("a",), than=("b", "c")), "a is better than each of b and c."),
        (Better(variants=("a", "b"), than=("c",)), "Each of a and b is better than c."),
        (Ordered(variants=("a", "b", "c")), "The order is a, b and c, the best first."),
        (
            OrderedByCost(cost="step_time", variants=("a", "b")),
            "By time of a training step, the order is a and b, the lowest first.",
        ),
        (Ranked(variant="a"), "a is better than every other variant."),
        (
            Ranked(variant="a", among="worst", places=3),
            "a is worse than all but 2 of the other variants.",
        ),
        (Equivalent(variants=("a", "b")), "a and b are equivalent within the study's margin."),
        (AccuracyInRange(variants=("a",), low=0.99), "a has an accuracy of at least 0.99."),
        (
            AccuracyInRange(variants=("a", "b"), low=0.1, high=0.2, length=2048),
            "Each of a and b has an accuracy of 0.1 to 0.2 in sequences of 2,048 tokens.",
        ),
        (LossInRange(variants=("a",), low=1, high=2.5), "a has a loss of 1 to 2.5 nats/token."),
        (
            LossInRange(variants=("a", "b"), high=2.5, best=True),
            "Each of a and b has a lowest validation loss of at most 2.5 nats/token.",
        ),
        (Equivalent(margin=0.1056), "All variants are equivalent within 0.1056 nats/token."),
        (
            CostInRange(cost="parameters", low=162.6e6, high=177.8e6),
            "Parameters: every variant has 162.6 M to 177.8 M.",
        ),
        (
            CostInRange(cost="peak_memory_bytes", low=1e9, high=2e9),
            "Peak memory in training: every variant has 1.0 GB to 2.0 GB.",
        ),
        (
            NeededInEveryLayer(study="layers"),
            "Without attention in any one layer, the model is worse (study layers).",
        ),
    ],
)
def test_the_sentence_shown_is_written_from_the_fields_that_are_judged(hypothesis, statement):
    assert hypothesis.statement == statement
    assert Hypothesis.from_dict(hypothesis.to_dict()) == hypothesis


@pytest.mark.parametrize(
    ("names", "ruling", "words"),
    [
        (("delta", "mha"), "supported", "delta is better than mha by 0.100 nats/token [0.09"),
        (("delta", "mha", "identity"), "supported", "3 of 3 pairs are in this order."),
        (
            ("delta", "mha", "identity"),
            "supported",
            "mha is better than identity by 0.300 nats/token [",
        ),
        (("identity", "mha"), "refuted", "identity is worse than mha by 0.300 nats/token ["),
        (
            ("mha", "window"),
            "refuted",
            "mha and window are equivalent within the margin: difference -0.000 nats/token [-0.",
        ),
        (("mha", "window", "delta"), "refuted", "window is worse than delta"),
        (("delta", "gone"), "not judged", "Not compared: gone (the study has no such variant)."),
        (("mha", "delta", "gone"), "refuted", "Not compared: gone"),
    ],
)
def test_an_order_is_supported_by_all_pairs_and_refuted_by_one(tmp_path, names, ruling, words):
    found = judged(tmp_path, Ordered(variants=names))
    assert found[0] == ruling
    assert words in found[1]


def test_an_order_is_undecided_where_one_pair_is(tmp_path):
    ruling, words = judged(tmp_path, Ordered(variants=("mha", "window", "identity")), NOISY)
    assert ruling == "undecided"
    assert "2 of 3 pairs are in this order." in words
    assert "mha is not distinguishable from window: difference -0.0" in words
    assert "mha is better than identity by 4.0" in words


def test_the_minimum_detectable_difference_is_not_repeated_per_hypothesis(tmp_path):
    hypotheses = [pair("mha", "window").to_dict()] * 2
    analysis = analyse(write_study(tmp_path, NOISY, hypotheses=hypotheses))
    assert analysis.detectable is not None
    assert [judged.ruling for judged in analysis.judgements] == ["undecided", "undecided"]
    assert markdown(analysis, None).count("inimum detectable difference") == 1


def test_better_is_supported_or_refuted_or_undecided(tmp_path):
    worse = pair("mha", "identity")
    ruling, words = judged(tmp_path / "a", worse)
    assert ruling == "supported"
    assert words.startswith("mha is better than identity by 0.300 nats/token [")
    ruling, words = judged(tmp_path / "b", worse, LOSSES | {"identity": steady(5.1001, 5)})
    assert ruling == "refuted"
    assert words.startswith("mha and identity are equivalent within the margin")
    assert judged(tmp_path / "c", pair("mha", "delta"))[0] == "refuted"
    assert judged(tmp_path / "d", pair("mha", "window"), NOISY)[0] == "undecided"


def test_better_than_several_names_every_difference(tmp_path):
    every = Better(variants=("delta",), than=("mha", "window", "identity"))
    ruling, words = judged(tmp_path / "a", every)
    assert ruling == "supported"
    assert words.startswith("Worse than delta by, in nats/token: mha 0.100 [0.09")
    assert "identity 0.400 [" in words
    ruling, words = judged(tmp_path / "b", Better(variants=("mha",), than=("window", "delta")))
    assert ruling == "refuted"
    assert "mha and window are equivalent within the margin" in words
    assert "mha is worse than delta by 0.100 nats/token [" in words
    gone = Better(variants=("delta",), than=("mha", "gone"))
    ruling, words = judged(tmp_path / "c", gone)
    assert ruling == "not judged"
    assert "delta is better than mha by" in words
    assert "Not compared: gone (the study has no such variant)." in words


def test_many_pairs_with_one_result_share_one_sentence(tmp_path):
    losses = {f"v{i}": [100 * (loss - 5) for loss in steady(5.0, i)] for i in range(8)}
    names = tuple(losses)
    every = Better(variants=names[1:], than=names[:1])
    ruling, words = judged(tmp_path, every, losses, baseline="v0")
    assert ruling == "undecided"
    assert words.startswith(
        "Not distinguishable: v1, v2, v3 and 4 others from v0 (7 pairs, differences "
    )
    assert words.count("istinguishable") == 1


def test_a_variant_that_diverged_leaves_its_hypothesis_not_judged_with_the_reason(tmp_path):
    losses = LOSSES | {"identity": [5.0, 5.0, "loss is nan", 5.0, 5.0]}
    ruling, words = judged(tmp_path, pair("mha", "identity"), losses)
    assert ruling == "not judged"
    assert words.startswith("Not compared: identity (")
    assert "loss is nan" in words


@pytest.mark.parametrize(
    ("hypothesis", "ruling"),
    [
        (Ranked(variant="delta"), "supported"),
        (Ranked(variant="mha"), "refuted"),
        (Ranked(variant="mha", places=2), "refuted"),  # window is as good
        (Ranked(variant="mha", places=3), "supported"),
        (Ranked(variant="identity", among="worst"), "supported"),
        (Ranked(variant="delta", among="worst", places=3), "refuted"),
        (Ranked(variant="window", among="worst", places=2), "refuted"),
        (Ranked(variant="window", among="worst", places=3), "supported"),
    ],
)
def test_a_place_is_refuted_by_as_many_as_are_not_behind(tmp_path, hypothesis, ruling):
    assert judged(tmp_path, hypothesis)[0] == ruling


@pytest.mark.parametrize(
    ("hypothesis", "ruling"),
    [
        (Ranked(variant="mha"), "undecided"),
        (Ranked(variant="mha", places=2), "undecided"),
        (Ranked(variant="mha", places=3), "supported"),
        (Ranked(variant="mha", among="worst"), "refuted"),
        (Ranked(variant="mha", among="worst", places=2), "undecided"),
        (Ranked(variant="identity", places=3), "refuted"),
    ],
)
def test_a_place_is_undecided_where_noise_hides_who_is_behind(tmp_path, hypothesis, ruling):
    assert judged(tmp_path, hypothesis, NOISY)[0] == ruling


def test_a_place_is_refuted_with_those_that_take_it(tmp_path):
    ruling, words = judged(tmp_path, Ranked(variant="mha"))
    assert ruling == "refuted"
    assert "mha is better than 1 of 3; by its mean loss it has place 2 of 4." in words
    assert "delta is better than mha by 0.100 nats/token [0.09" in words
    assert "window and mha are equivalent within the margin" in words
    assert "identity" not in words


def test_what_is_not_compared_might_have_any_place(tmp_path):
    losses = LOSSES | {"window": ["loss is nan"] * 5}
    best = Ranked(variant="delta")
    ruling, words = judged(tmp_path / "a", best, losses)
    assert ruling == "not judged"
    assert "Not compared: window (diverged with seeds 0, 1, 2, 3, 4" in words
    assert judged(tmp_path / "b", Ranked(variant="delta", places=2), losses)[0] == "supported"
    assert judged(tmp_path / "c", Ranked(variant="mha"), losses)[0] == "refuted"
    assert judged(tmp_path / "d", Equivalent(margin=0.5), losses)[0] == "not judged"
    assert judged(tmp_path / "e", Ranked(variant="window"), losses)[0] == "not judged"


def test_names_of_one_function_share_a_place(tmp_path):
    losses = {**LOSSES, "delta_again": steady(5.0, 3)}
    best = Ranked(variant="delta")
    ruling, words = judged(tmp_path, best, losses, delta_again={"function": "delta"})
    assert ruling == "supported"
    assert "delta is better than 3 of 3; by its mean loss it has place 1 of 4." in words


@pytest.mark.parametrize(
    ("margin", "names", "ruling"),
    [
        (0.5, (), "supported"),
        (0.3, (), "refuted"),
        (0.4, (), "undecided"),  # the interval of 0.4 contains it
        (0.05, ("mha", "window"), "supported"),
        (0.05, ("mha", "gone"), "not judged"),
    ],
)
def test_a_margin_is_compared_with_the_intervals_of_all_pairs(tmp_path, margin, names, ruling):
    assert judged(tmp_path, Equivalent(margin=margin, variants=names))[0] == ruling


def test_equivalence_of_many_gives_the_span_and_counts_the_pairs(tmp_path):
    ruling, words = judged(tmp_path, Equivalent(margin=0.35))
    assert ruling == "refuted"
    assert "The means span 0.400 nats/token [0." in words
    assert "from delta to identity." in words
    assert "Of 6 pairs, 5 are within 0.35 nats/token, and 1 differ by more." in words


def test_equivalent_variants_must_lie_within_the_study_margin(tmp_path):
    hypothesis = Equivalent(variants=("mha", "window"))
    assert judged(tmp_path / "a", hypothesis)[0] == "supported"
    apart = LOSSES | {"window": steady(5.15, 2)}
    assert judged(tmp_path / "b", hypothesis, apart)[0] == "refuted"
    noisy = {"mha": [5.0, 5.3, 5.1], "window": [5.3, 5.0, 5.2]}
    ruling, words = judged(tmp_path / "c", hypothesis, noisy)
    assert ruling == "undecided"
    assert "mha is not distinguishable from window" in words
    equal = {"mha": LOSSES["mha"], "window": LOSSES["mha"], "delta": LOSSES["delta"]}
    ruling, words = judged(tmp_path / "d", hypothesis, equal)
    assert ruling == "supported"
    assert words == "mha and window have equal losses, to the last bit."


def test_a_cost_is_compared_with_the_range_to_the_digits_published(tmp_path):
    sizes = {"mha": 1.5e9, "window": 1.54e9, "delta": 1.6e9, "identity": 1.2e9}
    more = {name: {"peak_memory_bytes": size} for name, size in sizes.items()}
    fields = {"cost": "peak_memory_bytes", "low": 1.2e9, "high": 1.5e9}
    exact, rounded = (CostInRange(**fields, resolution=digit) for digit in (0.0, 0.05e9))
    ruling, words = judged(tmp_path / "a", exact, **more)
    assert ruling == "refuted"
    assert "Measured: 1.2 GB (identity) to 1.6 GB (delta)." in words
    assert "2 of 4 are in the range; outside: window (1.5 GB) and delta (1.6 GB)." in words
    assert "3 of 4 are in the range" in judged(tmp_path / "b", rounded, **more)[1]
    more["delta"]["peak_memory_bytes"] = 1.3e9
    assert judged(tmp_path / "c", rounded, **more)[0] == "supported"
    assert judged(tmp_path / "d", rounded)[0] == "not judged"
    far = {name: {"peak_memory_bytes": 3e9} for name in sizes}
    assert judged(tmp_path / "e", rounded, **far)[1].endswith("None is in the range.")
    del more["delta"]
    ruling, words = judged(tmp_path / "f", rounded, **more)
    assert ruling == "not judged"
    assert words.endswith("Not measured yet: delta.")


@pytest.mark.parametrize(
    ("order", "times", "ruling", "words"),
    [
        (("a", "b", "c"), {}, "supported", "3 of 3 pairs are in this order."),
        (
            ("b", "a", "c"),
            {},
            "refuted",
            "Shown to be false: b before a.",
        ),
        (("a", "b", "c"), {"b": 1.01}, "refuted", "Shown to be false: a before b."),  # equal
        (("a", "b", "c"), {"b": 1.01, "noise": 0.1}, "undecided", "2 of 3 pairs"),
        (("a", "b", "gone"), {}, "not judged", "Not measured: gone."),
    ],
)
def test_an_order_by_cost_is_judged_by_the_intervals_of_the_times(
    tmp_path, order, times, ruling, words
):
    noise = times.get("noise", 0.001)
    means = {"a": 1.0, "b": 2.0, "c": 4.0} | {n: t for n, t in times.items() if n in order}
    losses = {name: steady(5.0, place) for place, name in enumerate(means)}
    study = write_study(
        tmp_path / "s",
        losses,
        baseline="a",
        hypotheses=[OrderedByCost(cost="step_time", variants=order).to_dict()],
    )
    for place, (name, mean) in enumerate(means.items()):
        for seed in range(5):
            time = mean * (1 + noise * ((2 * seed + place) % 5 - 2))
            edit(RunFolder(study, name, seed).path / "summary.json", step_time=time)
    (found,) = analyse(study).judgements
    assert found.ruling == ruling
    assert words in " ".join(found.found)
    assert "Measured: a 1000 ms" in " ".join(found.found)


def test_every_layer_is_judged_from_the_study_beside(tmp_path):
    hypothesis = NeededInEveryLayer(study="layers")
    ruling, words = judged(tmp_path / "before", hypothesis)
    assert ruling == "not judged"
    assert words == "Not measured yet; `attnlab run layers` measures it."
    losses = {
        "mha": steady(5.0, 1),
        "without_0": steady(5.0002, 2),
        "without_1": steady(5.2, 3),
        "near_0": steady(5.3, 5),
        "identity": steady(5.5, 4),
    }
    kinds = {
        "mha": ["mha", "mha"],
        "without_0": ["identity", "mha"],
        "without_1": ["mha", "identity"],
        "near_0": ["window", "mha"],  # another mechanism, which mixes tokens
        "identity": ["identity", "identity"],
    }
    more = {name: {"attention_type": of_layers} for name, of_layers in kinds.items()}
    write_study(tmp_path / "layers", losses, **more)
    ruling, words = judged(tmp_path / "after", hypothesis)
    assert ruling == "refuted"
    assert words.startswith("Worse without attention in layer 1; not shown for 1 of 2 layers.")
    assert "mha and without_0 (layer 0) are equivalent within the margin" in words
    assert "mha is better than without_1 (layer 1) by 0.200 nats/token [" in words
    assert "identity" not in words
    assert "near_0" not in words
    needed = losses | {"without_0": steady(5.1, 2)}
    write_study(tmp_path / "again" / "layers", needed, **more)
    assert judged(tmp_path / "again" / "study", hypothesis)[0] == "supported"


@pytest.mark.parametrize(
    ("settings", "ruling"),
    [
        ({"low": 0.9}, "supported"),
        ({"low": 0.97}, "undecided"),
        ({"low": 0.99}, "refuted"),
        ({"high": 0.9}, "refuted"),
        ({"low": 0.1, "high": 0.2, "length": 512}, "supported"),
        ({"low": 0.9, "length": 4096}, "not judged"),
        ({"low": 0.9, "variants": ("mha", "nobody")}, "not judged"),
        ({"high": 0.9, "variants": ("mha", "nobody")}, "refuted"),
    ],
)
def test_an_accuracy_is_judged_by_its_interval_over_seeds(tmp_path, settings, ruling):
    hypothesis = AccuracyInRange(**{"variants": ("mha",), **settings})
    losses = {"mha": [0.1, 0.2, 0.15], "delta": [0.5, 0.4, 0.6]}
    more = {"final_by_length": {"512": {"accuracy": 0.15}}}
    folder = write_study(tmp_path, losses, hypotheses=[hypothesis.to_dict()], mha=more)
    for seed, accuracy in enumerate((0.96, 0.97, 0.965)):  # 0.965 +- 0.0124
        edit(folder / "mha" / f"seed-{seed}" / "summary.json", final_accuracy=accuracy)
    (found,) = analyse(folder).judgements
    assert found.ruling == ruling
    if not settings.keys() - {"low", "high"}:
        assert found.found == ("mha: 0.965 [0.953, 0.977].",)


@pytest.mark.parametrize(
    ("settings", "ruling", "shown"),
    [
        ({"high": 1.6}, "supported", "mha: 1.500 [1.451, 1.550]."),
        ({"low": 1.4, "high": 1.52}, "undecided", "mha: 1.500 [1.451, 1.550]."),
        ({"low": 1.6, "high": 1.8}, "refuted", "mha: 1.500 [1.451, 1.550]."),
        ({"low": 1.2, "high": 1.4, "best": True}, "supported", "mha: 1.300 [1.275, 1.325]."),
        ({"high": 9, "variants": ("nobody",)}, "not judged", "Not measured: nobody."),
    ],
)
def test_a_loss_is_judged_by_its_interval_over_seeds(tmp_path, settings, ruling, shown):
    hypothesis = LossInRange(**{"variants": ("mha",), **settings})
    losses = {"mha": [1.48, 1.52, 1.5012], "delta": [2.0, 2.1, 2.2]}
    folder = write_study(tmp_path, losses, hypotheses=[hypothesis.to_dict()])
    for seed, best in enumerate((1.29, 1.31, 1.3)):
        edit(folder / "mha" / f"seed-{seed}" / "summary.json", best_loss=best)
    (found,) = analyse(folder).judgements
    assert (found.ruling, found.found) == (ruling, (shown,))


def test_a_range_of_losses_is_one():
    for low, high, message in (
        (2.0, 1.0, "must lie from 0 to high"),
        (-1.0, 1.0, "must lie from 0 to high"),
        (0.0, float("inf"), "expected a finite number"),
    ):
        with pytest.raises(ConfigError, match=message):
            LossInRange(variants=("a",), low=low, high=high)


def test_a_range_of_accuracies_is_one():
    for settings, message in (
        ({}, "give low or high"),
        ({"low": 0.5, "high": 0.4}, "must lie from 0 to high"),
        ({"high": 1.5}, "must lie from 0 to high"),
        ({"low": 0.5, "length": 0}, "at least 1 token"),
        ({"low": 0.5, "variants": ()}, "name at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            AccuracyInRange(**{"variants": ("a",), **settings})


TWO = {name: LOSSES[name] for name in ("mha", "delta")}
GROWS = AdvantageGrows(variants=("delta",), than=("mha",), study="other")
BETTER_HERE = BetterThanInStudy(variants=("delta",), study="other")


@pytest.fixture(scope="module")
def verdict_on_two(tmp_path_factory):
    return verdict_of(read_table(write_study(tmp_path_factory.mktemp("two") / "own", TWO)))


@pytest.fixture
def own(verdict_on_two, tmp_path):
    """Return the evidence of a study `own` in `tmp_path`."""
    table = replace(verdict_on_two.table, path=tmp_path / "own")
    return Evidence(verdict=replace(verdict_on_two, table=table), costs=())


def other_study(folder, losses=TWO, **of_every_run):
    return write_study(folder / "other", losses, **dict.fromkeys(losses, of_every_run))


def shifted(**by):
    return {name: [loss + by.get(name, 0) for loss in found] for name, found in TWO.items()}


@pytest.mark.parametrize(
    ("hypothesis", "losses", "ruling", "words"),
    [
        (GROWS, shifted(delta=0.05), "supported", "the first minus the second: -0.050 ± 0.0"),
        (
            GROWS,
            shifted(delta=-0.05),
            "refuted",
            "delta minus mha, nats/token: -0.100 ± ",
        ),
        (BETTER_HERE, shifted(delta=0.1), "supported", "delta here is better than delta there"),
    ],
)
def test_another_study_is_read_packed_or_not(own, tmp_path, hypothesis, losses, ruling, words):
    other = other_study(tmp_path, losses)
    found = hypothesis.judge(own)
    assert found.ruling == ruling
    assert words in found.found[0]
    if hypothesis is BETTER_HERE:
        pack(other)
        assert hypothesis.judge(own) == found


def spoil(path):
    path.write_bytes(path.read_bytes()[:-9] + b"spoilt")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda path: None, "Not measured yet; `attnlab run other` measures it."),
        (lambda path: (path / "other").mkdir(), "Not measured yet; `attnlab run other`"),
        (lambda path: spoil(other_study(path) / "study.json"), "Study other cannot be read: "),
        (lambda path: spoil(pack(other_study(path)).path), "runs.jsonl.gz is damaged"),
        (
            lambda path: spoil(other_study(path) / "delta" / "seed-1" / "metrics.jsonl"),
            "Study other is damaged: ",
        ),
        (
            lambda path: other_study(path, {name: of[:1] for name, of in TWO.items()}),
            "Study other: No verdict: one seed gives no estimate of the error. `attnlab run other`",
        ),
        (lambda path: other_study(path, {"mha": TWO["mha"]}), "Study other has no run of delta."),
        (
            lambda path: other_study(path, train={"seq_len": 512}),
            "not comparable with that of other: train.seq_len 1024 here, 512 there.",
        ),
        (
            lambda path: other_study(path, train={"learning_rate": 1e-3}),
            "train.learning_rate 0.0003 here, 0.001 there.",
        ),
        (lambda path: other_study(path, function="mla"), "delta here, mla there."),
        (
            lambda path: other_study(path, data={"kind": "b"}),
            "data.kind none here, b there.",
        ),
    ],
)
def test_another_study_that_does_not_answer_says_why(own, tmp_path, made, words):
    made(tmp_path)
    with pytest.raises(NotJudgedError) as raised:
        GROWS.judge(own)
    assert words in str(raised.value)


def test_a_hypothesis_on_another_study_that_is_missing_is_not_judged(tmp_path):
    ruling, words = judged(tmp_path / "own", replace(GROWS, command="make other"), TWO)
    assert (ruling, words) == ("not judged", "Not measured yet; `make other` measures it.")


def lines_between(tmp_path, own, other, *, apart=(), searched=False):
    """Return in what `mha` differs between two studies with these settings of training."""
    found = []
    for name, train in (("own", own), ("other", other)):
        folder = write_study(tmp_path / name, {"mha": TWO["mha"][:1]}, mha={"train": train})
        table = read_table(folder)
        tuning = {"settings": {"train.weight_decay": [0.0, 0.1]}} if searched else None
        found.append((replace(table.study, tuning=tuning), table.variants[0]))
    return between_studies(*found, apart)


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ({}, {}, ""),
        ({"eval_every": 7, "keep": "none", "log_every": 3}, {}, ""),
        ({"learning_rate": 1.0, "weight_decay": 0.1}, {"searched": True}, ""),
        ({"weight_decay": 0.1}, {}, "train.weight_decay 0.0 here, 0.1 there"),
        ({"seq_len": 512, "batch_size": 8}, {"apart": ("train.seq_len", "train.batch_size")}, ""),
        (
            {"seq_len": 512},
            {"apart": ("train.seq_len",)},
            "tokens in training 40960 here, 20480 there",
        ),
        ({"steps": 5}, {"apart": ("train.steps",)}, ""),
    ],
)
def test_studies_may_differ_in_what_is_asked_about_and_only_with_as_many_tokens(
    tmp_path, other, options, words
):
    own = {"steps": 10, "batch_size": 4, "seq_len": 1024, "weight_decay": 0.0}
    assert lines_between(tmp_path, own, own | other, **options) == words


def test_what_ones_own_kind_judged_holds_while_the_studies_that_it_read_stay(own, tmp_path):
    other, alone = other_study(tmp_path), own.basis()
    assert own.of_study("other").better("delta", "mha") is True
    assert own.basis() != alone
    fresh = replace(own, read={})
    assert fresh.has_basis(own.basis())
    edit(RunFolder(other, "mha", 0).path / "summary.json", test_loss=5.4)
    assert not fresh.has_basis(own.basis())
    shutil.rmtree(other)
    assert not fresh.has_basis(own.basis())
    assert fresh.has_basis(alone)


def test_a_study_is_not_compared_with_itself(own):
    study = replace(load_study("long_context"), name="long_context_4k")
    kinds = [of["kind"] for of in study.record(command="", checked=True).hypotheses]
    assert "advantage_grows" not in kinds
    assert "better" in kinds
    with pytest.raises(NotJudgedError, match="This is study own itself"):
        replace(GROWS, study="own").judge(own)


@pytest.mark.parametrize(
    "hypothesis",
    [pair("mha", "identity"), Ranked(variant="delta"), Ordered(variants=("delta", "mha"))],
)
def test_one_seed_judges_no_loss(tmp_path, hypothesis):
    losses = {name: found[:1] for name, found in LOSSES.items()}
    ruling, words = judged(tmp_path, hypothesis, losses)
    assert ruling == "not judged"
    assert "one seed" in words


def test_a_hypothesis_of_an_unknown_kind_does_not_stop_the_report(tmp_path):
    recorded = {"kind": "newer", "wording": "So it is.", "source": "Somebody 2020"}
    study = write_study(tmp_path, LOSSES, hypotheses=[recorded])
    (found,) = analyse(study).judgements
    assert (found.statement, found.ruling) == ("A hypothesis of the kind 'newer'.", "not judged")
    assert (found.wording, found.source) == ("So it is.", "Somebody 2020")
    assert "unknown kind 'newer'" in found.found[0]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Ordered(variants=("a",)), "variants: name at least 2"),
        (lambda: Equivalent(variants=("a", "a")), "variants: name each once"),
        (lambda: Better(variants=(), than=("a", "b")), "variants: name at least 1"),
        (lambda: Better(variants=("a", "b"), than=("b",)), "variants: name each once"),
        (lambda: Ranked(variant="a", places=0), "places: must be at least 1, got 0"),
        (lambda: Equivalent(margin=0.0), "margin: must be positive"),
        (lambda: CostInRange(cost="parameters", low=2.0, high=1.0), "low: must not be above"),
        (lambda: Ranked(variant="a", wording="It is."), "wording: name the source"),
        (lambda: Ranked(variant="a", published=(("a", 1.0),)), "published: name the source"),
    ],
)
def test_a_hypothesis_that_cannot_be_judged_is_refused(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()


def test_a_new_kind_is_one_class_with_its_sentence_and_its_judge(tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    kind = tmp_path / "my_kind.py"
    kind.write_text(
        "from dataclasses import dataclass\n"
        "from attnlab.analysis.hypotheses import Evidence, Hypothesis\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Finite(Hypothesis):\n"
        "    variant: str\n"
        "    @property\n"
        "    def statement(self):\n"
        "        return f'{self.variant} has a loss below 6.'\n"
        "    def judge(self, evidence: Evidence):\n"
        "        loss = evidence.verdict.means[self.variant]\n"
        "        return evidence.finding([loss < 6], [f'Its loss is {loss:.1f}.'])\n"
    )
    recorded = {"kind": "my_kind.py:Finite", "variant": "mha"}
    study_dir = write_study(tmp_path / "s", LOSSES, hypotheses=[recorded])
    (stranger,) = analyse(study_dir).judgements  # a record alone executes no file
    assert stranger.ruling == "not judged"
    assert "`attnlab run`, which loads the study" in stranger.found[0]

    (tmp_path / "asks.py").write_text(
        "from dataclasses import replace\n"
        "from my_kind import Finite\n"
        "from support.tiny_study import study\n"
        "study = replace(study, hypotheses=(Finite(variant='mha'),))\n"
    )
    study = load_study(str(tmp_path / "asks.py"))
    assert [each.to_dict()["kind"] for each in study.hypotheses] == [recorded["kind"]]
    (found,) = write_report(study_dir).judgements
    assert (found.ruling, found.found) == ("supported", ("Its loss is 5.1.",))
    assert found.statement == "mha has a loss below 6."

    import_nothing(monkeypatch)
    for _ in range(2):
        (kept,) = write_report(study_dir).judgements
        assert kept == found
    joined = study.record(command="again", checked=False).joined(study_dir)
    assert len(joined.judgements) == 1
    edit(RunFolder(study_dir, "mha", 0).path / "summary.json", test_loss=5.4)
    (changed,) = write_report(study_dir).judgements
    assert (changed.ruling, changed.found[1]) == (
        "not judged",
        "It was supported by other numbers than these.",
    )


def import_nothing(monkeypatch):
    """Let no class of a user's file be in use, as in a process that only reads a record."""
    monkeypatch.setattr("attnlab.analysis.hypotheses.hypothesis.is_own", lambda cls: False)


def test_an_error_in_a_kind_of_ones_own_is_said_in_its_row(tmp_path):
    (tmp_path / "broken_kind.py").write_text(
        "from dataclasses import dataclass\n"
        "from attnlab.analysis.hypotheses import Hypothesis\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Broken(Hypothesis):\n"
        "    statement = 'It works.'\n"
        "    def judge(self, evidence):\n"
        "        return evidence.verdict.means['nobody']\n"
    )
    load_file(tmp_path / "broken_kind.py")
    recorded = {"kind": "broken_kind.py:Broken"}
    (found,) = analyse(write_study(tmp_path / "s", LOSSES, hypotheses=[recorded])).judgements
    assert found.ruling == "not judged"
    assert "broken_kind.py:7: KeyError: 'nobody'" in found.found[0]
