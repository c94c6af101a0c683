"""The study's questions, answered from the data alone."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses.question import (
    BestForCost,
    BestQuality,
    EveryLayer,
    GivesUp,
    Needed,
    Pick,
)

LOSSES = {
    "mha": steady(5.1, 1),
    "window": steady(5.1003, 2),
    "delta": steady(5.0, 3),
    "identity": steady(5.4, 4),
}


def answer(folder, question, losses=LOSSES, **more):
    study = write_study(folder, losses, questions=[question.to_dict()], **more)
    (found,) = analyse(study).answers
    assert found.question == question.text
    return found.short, " ".join(found.evidence)


def test_whether_the_baseline_is_still_the_best(tmp_path):
    short, evidence = answer(tmp_path, BestQuality(text="Is MHA still the best?"))
    assert short.startswith("No: delta is better than mha by 0.100 nats [0.09")
    assert "1 better, 1 not separable, 1 worse" in evidence
    assert "identity is worse than mha by 0.300 nats [" in evidence
    assert "window and mha are practically equal" in evidence


def test_a_baseline_that_no_other_beats_is_said_to_be_the_best(tmp_path):
    losses = {name: LOSSES[name] for name in ("mha", "identity")}
    short, _ = answer(tmp_path, BestQuality(text="?"), losses)
    assert short == "Yes: mha is separably better than every other variant."


def test_many_that_cannot_be_told_from_one_are_counted_and_not_listed(tmp_path):
    losses = {f"v{i}": [100 * (loss - 5) for loss in steady(5.0, i)] for i in range(8)}
    short, evidence = answer(tmp_path / "a", BestQuality(text="?"), losses, baseline="v0")
    assert short == "v0 is not beaten; none of the 7 others can be told from it."
    assert evidence.count("cannot be told from v0") == 7
    asked = GivesUp(text="?", variants=tuple(losses)[1:], than="v0")
    short, evidence = answer(tmp_path / "b", asked, losses, baseline="v0")
    assert short == "Not separable from v0: all 7."
    assert evidence.count("cannot be told from v0") == 7


def test_what_is_worth_its_cost(tmp_path):
    costs = {
        name: {"flops_per_token": flops}
        for name, flops in (("mha", 12e6), ("window", 11e6), ("delta", 10e6), ("identity", 9e6))
    }
    short, evidence = answer(tmp_path, BestForCost(text="?"), **costs)
    assert short == "Worth their forward FLOPs a token: identity and delta."
    assert "identity: 9.00 MFLOPs, loss 5.400 nats." in evidence
    assert "delta is better than identity by 0.400 nats [" in evidence
    assert "Not worth their forward FLOPs a token: " in evidence


def test_how_much_variants_give_up(tmp_path):
    question = GivesUp(text="?", variants=("window", "delta", "gone"))
    short, evidence = answer(tmp_path, question)
    assert "Better than mha: delta (0.100 nats [" in short
    assert "practically equal to mha: window" in short
    assert "gone is not compared: the study has no such variant" in evidence


def test_whether_attention_is_needed(tmp_path):
    short, _ = answer(tmp_path / "a", Needed(text="?"))
    assert short.startswith("Yes: without it the model is worse by 0.300 nats [")
    level = LOSSES | {"identity": steady(5.1001, 5)}
    assert answer(tmp_path / "b", Needed(text="?"), level)[0].startswith("No: ")
    noisy = {"mha": [5.0, 5.3, 5.1], "identity": [5.3, 5.0, 5.2]}
    assert answer(tmp_path / "c", Needed(text="?"), noisy)[0].startswith("Not shown")


def test_a_variant_that_diverged_leaves_its_question_open_with_the_reason(tmp_path):
    losses = LOSSES | {"identity": [5.0, 5.0, "loss is nan", 5.0, 5.0]}
    short, evidence = answer(tmp_path, Needed(text="?"), losses)
    assert short == "Not answered: identity could not be compared."
    assert "loss is nan" in evidence


def test_every_layer_is_answered_from_the_study_beside(tmp_path):
    question = EveryLayer(text="?", study="layers")
    short, _ = answer(tmp_path / "before", question)
    assert short == "Not measured yet: `attnlab run layers` would answer it."
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
        "near_0": ["window", "mha"],  # something else, which is not nothing
        "identity": ["identity", "identity"],
    }
    more = {name: {"attention_type": of_layers} for name, of_layers in kinds.items()}
    write_study(tmp_path / "layers", losses, **more)
    short, evidence = answer(tmp_path / "after", question)
    assert short.startswith("Not shown for every layer: it is needed in layer 1, not so in 0")
    assert "Layer 1: without_1 is worse than mha by 0.200 nats [" in evidence
    assert "identity is" not in evidence
    assert "near_0" not in evidence


def test_what_to_pick_names_every_use_case(tmp_path):
    short, evidence = answer(tmp_path, Pick(text="?"))
    assert short.startswith("Quality first: delta; memory first: no winner")
    assert "delta is separably better than every other variant." in evidence


@pytest.mark.parametrize("question", [BestQuality(text="?"), Needed(text="?"), Pick(text="?")])
def test_one_seed_answers_nothing(tmp_path, question):
    losses = {name: found[:1] for name, found in LOSSES.items()}
    short, evidence = answer(tmp_path, question, losses)
    assert "one seed" in short + evidence


def test_a_question_of_an_unknown_kind_does_not_stop_the_report(tmp_path):
    study = write_study(tmp_path, LOSSES, questions=[{"kind": "newer", "text": "Why?"}])
    (found,) = analyse(study).answers
    assert found.question == "Why?"
    assert "unknown kind 'newer'" in found.short
