"""The remaining runs follow from those that have ended, wherever the study was interrupted."""

import json
import math
import os
import shutil
from dataclasses import replace

import pytest
from support import fake_workers
from support.fake_workers import (
    BASE,
    BEST,
    TUNED,
    TUNING_RUNS,
    finish,
    key,
    ladder,
    loss_of,
    loss_on_ladder,
    make,
    work,
)

from attnlab.analysis.analysis import analyse
from attnlab.analysis.rates import rate_curves
from attnlab.analysis.table import read_table
from attnlab.config import ConfigError
from attnlab.record import (
    SEARCH_NOISE,
    RunFolder,
    Rung,
    WriteError,
    pack,
    recorded_run,
    tuning_runs,
    tuning_seed,
    write_json,
)
from attnlab.record.lease import Holder
from attnlab.runner import workers
from attnlab.runner.events import Ended, Held
from attnlab.runner.schedule import StudySchedule
from attnlab.runner.workers import run_schedule
from attnlab.training.config import Recipe, Tuning

FIRST = "lr-0.01,warmup_steps-2"


def choice(study_dir, variant):
    return json.loads((study_dir / variant / "tuning" / "choice.json").read_text())


def tree(study_dir):
    return {
        str(path.relative_to(study_dir)): path.read_text()
        for path in study_dir.rglob("*")
        if path.is_file()
    }


def test_each_run_is_read_once_by_a_command_that_opens_the_folder_and_at_its_end(
    tmp_path, monkeypatch
):
    work(make(TUNED, tmp_path), runs=7)
    read, read_run_files = [], recorded_run.read_run_files
    monkeypatch.setattr(
        recorded_run, "read_run_files", lambda folder: read_run_files(read.append(folder) or folder)
    )
    schedule = make(TUNED, tmp_path)
    assert len(read) == len({*read}) == 7
    finish(planned := schedule.next(), tmp_path)
    read.clear()
    schedule.finished(planned)
    assert read == [planned.run.folder(tmp_path).path]


def test_each_variant_is_trained_at_the_best_of_its_rates(tmp_path):
    schedule = make(TUNED, tmp_path)
    runs = work(schedule)
    for variant, best in BEST.items():
        tried = {Recipe.parse(run.recipe): run for run in tuning_runs(tmp_path, variant)}
        rates = [recipe.learning_rate for recipe in tried if recipe.warmup_steps == 2]
        assert tried[Recipe(best, 2)].summary()["final_loss"] == 5
        assert min(rates) < best < max(rates)
        for seed in range(TUNED.seeds):
            folder = RunFolder(tmp_path, variant, seed)
            assert folder.config()["train"]["learning_rate"] == best
        found = choice(tmp_path, variant)
        assert (found["learning_rate"], found["warmup_steps"]) == (best, 2)
        assert found["bracketed"]
        assert found["allowance"] == pytest.approx(0.5 / 8, rel=1e-3)  # 0.25 half an octave away
        assert found["losses"].keys() == {recipe.name for recipe in tried}
    different = {(run.variant, run.recipe, run.seed) for run in runs}
    assert len(runs) == len(different) == sum(TUNING_RUNS.values()) + 6
    assert {run.seed for run in runs if run.tunes} == {tuning_seed(name) for name in BEST}
    assert {run.seed for run in runs if not run.tunes} == {0, 1}
    assert schedule.unfinished_variants() == []
    assert schedule.steps_left() == 0


def test_a_packed_study_is_continued_and_its_ended_runs_are_not_trained_again(tmp_path):
    TUNED.record(command="attnlab run tuned", checked=False).write(tmp_path)
    work(make(TUNED, tmp_path))
    pack(tmp_path)
    packed = {"runs.jsonl.gz"}
    assert work(make(TUNED, tmp_path)) == []
    assert {path.name for path in tmp_path.iterdir()} == packed
    with pytest.raises(ValueError, match="different settings"):
        make(TUNED, tmp_path, fingerprint="other")
    more = work(make(replace(TUNED, seeds=3), tmp_path))
    assert [(run.variant, run.seed, run.tunes) for run in more] == [
        (variant, 2, False) for variant in BEST
    ]
    assert RunFolder(tmp_path, "mqa", 2).config()["train"]["learning_rate"] == BEST["mqa"]
    assert {path.name for path in tmp_path.iterdir()} == {*packed, *BEST}
    pack(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == packed


@pytest.mark.parametrize("name", ["summary.json", "config.json"])
def test_a_damaged_run_is_one_that_remains(tmp_path, name):
    work(make(TUNED, tmp_path))
    first, *_ = tuning_runs(tmp_path, "mqa")
    damaged = [RunFolder(tmp_path, "mha", 1).ended / name, first.ended / name]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-9])
    assert make(TUNED, tmp_path).unfinished_variants() == ["mha", "mqa"]


def test_tuning_runs_have_their_own_folder_and_keep_no_checkpoints(tmp_path):
    schedule = make(TUNED, tmp_path)
    planned = schedule.next()
    run = planned.run.folder(tmp_path)
    assert run.path == tmp_path / "mha" / "tuning" / FIRST / f"seed-{tuning_seed('mha')}.partial"
    run.open({**planned.run.config.to_dict(), "identity": planned.identity}, {})
    (run.checkpoints / "weights").write_text("not needed once the loss is known")
    run.finish({"status": "finished", "final_loss": 5.0})
    assert run.path == tmp_path / "mha" / "tuning" / FIRST / f"seed-{tuning_seed('mha')}"
    assert {path.name for path in run.path.iterdir()} == {
        *("config.json", "environment.json", "metrics.jsonl", "summary.json")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the study that was never cut."""
    folder = tmp_path_factory.mktemp("whole")
    work(make(TUNED, folder))
    return tree(folder)


@pytest.mark.parametrize(
    ("cut", "at_a_time"), [(0, 3), (4, 1), (8, 3), (12, 1), (16, 3), (20, 3), (24, 1)]
)
def test_a_schedule_cut_anywhere_goes_on_to_the_same_end(tmp_path, whole, cut, at_a_time):
    pieces = tmp_path
    first = work(make(TUNED, pieces), runs=cut, at_a_time=at_a_time)
    second = work(make(TUNED, pieces), at_a_time=at_a_time)
    assert tree(pieces) == whole
    assert len(second) == 28 - cut
    ended_before = {(run.variant, run.recipe, run.seed) for run in first[:cut]}
    assert not ended_before & {(run.variant, run.recipe, run.seed) for run in second}


def test_a_kill_before_the_choice_is_written_loses_nothing(tmp_path):
    work(make(TUNED, tmp_path))
    before = tree(tmp_path)
    for path in tmp_path.glob("*/tuning/choice.json"):
        path.unlink()
    assert work(make(TUNED, tmp_path)) == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize("renamed", [False, True])
def test_a_kill_while_a_tuning_run_is_put_away_loses_nothing(tmp_path, renamed):
    schedule = make(TUNED, tmp_path)
    planned = schedule.next()
    run = planned.run.folder(tmp_path)
    run.open({**planned.run.config.to_dict(), "identity": planned.identity}, {})
    (run.checkpoints / "weights").write_text("not needed once the loss is known")
    write_json(run.partial / "summary.json", {"status": "finished", "final_loss": 5.0})
    if renamed:
        run.partial.rename(run.ended)
    assert make(TUNED, tmp_path).tuning_count().done == 1
    assert run.ended.is_dir()
    assert not run.checkpoints.exists()


def test_no_device_is_idle_while_the_warm_up_is_undecided(tmp_path):
    decays = Tuning(**vars(TUNED.tuning) | {"settings": {"train.weight_decay": (0.0, 0.01, 0.1)}})
    schedule, held = make(replace(TUNED, tuning=decays), tmp_path), []
    while "weight_decay-0," not in f"{(planned := schedule.next()).run.recipe},":
        if planned.run.variant == "mqa" and planned.run.config.train.warmup_steps > 2:
            held.append(planned)  # on another device
        else:
            finish(planned, tmp_path)
            assert schedule.finished(planned) == ()
    assert (planned.run.variant, len(held)) == ("mha", 1)
    ahead = [planned, *(schedule.next() for _ in range(3))]  # needed unless mqa gains much
    assert [one.run.variant for one in ahead] == ["mha", "mha", "identity", "identity"]
    assert schedule.next() is None
    for one in ahead:
        finish(one, tmp_path)
        assert schedule.finished(one) == ()
    for one in held:
        finish(one, tmp_path)
        ended = schedule.finished(one)
    assert [result.variant for result in ended] == ["mha", "identity"]
    assert key(schedule.next().run)[:2] == ("mqa", True)  # the verdict waits for the search


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_all_variants_take_the_longer_warm_up_that_one_needs(tmp_path, at_a_time):
    def loss(run):
        gain = 0.05 if run.variant == "mqa" and run.config.train.warmup_steps == 6 else 0.0
        return loss_of(run) - gain

    schedule = make(TUNED, tmp_path)
    runs = work(schedule, loss, at_a_time=at_a_time)
    assert {run.config.train.warmup_steps for run in runs if not run.tunes} == {6}
    for variant, best in BEST.items():
        found = choice(tmp_path, variant)
        assert (found["learning_rate"], found["warmup_steps"]) == (best, 6)
        assert found["warmup_level"] == 1
    assert work(make(TUNED, tmp_path), loss) == []
    # a part of the study keeps what the whole has decided
    part = replace(TUNED.only(["mha"]), seeds=3)
    assert [key(run)[1:] for run in work(make(part, tmp_path), loss)] == [(False, 2, BEST["mha"])]
    # and counts on two more runs where recipes are still searched
    shutil.rmtree(tmp_path / "identity")
    assert make(TUNED, tmp_path).tuning_count(["identity"]) == (0, 6, 9, 30)


def test_a_gain_that_is_not_taken_is_allowed_for(tmp_path):
    def loss(run):  # flat near the best rate, so that half an octave up is no worse
        far = not 1 / 5 < run.config.train.learning_rate / BEST[run.variant] < 5
        return 5 + loss_of(run) / 1e4 - 0.009 * (run.config.train.warmup_steps == 6) + far

    work(make(TUNED, tmp_path), loss)
    assert choice(tmp_path, "mha")["allowance"] == pytest.approx(0.009, abs=1e-4)


def test_the_counts_bound_what_is_run(tmp_path):
    schedule = make(TUNED, tmp_path)
    assert schedule.verdict_count() == (0, 6, 6, 6)
    assert schedule.tuning_count() == (0, 18, 21, 90)
    assert schedule.tuning_count(["mha"]) == (0, 6, 7, 30)
    assert schedule.challenge_count() == (0, 0, 0, 0)
    assert schedule.steps_left() == 12 * (9 + 6)
    work(schedule, runs=5)
    assert schedule.tuning_count().done == 5
    work(schedule)
    assert schedule.tuning_count() == (22, 22, 22, 22)
    assert schedule.verdict_count() == (6, 6, 6, 6)
    again = make(TUNED, tmp_path)
    assert (again.tuning_count(), again.verdict_count()) == ((22,) * 4, (6,) * 4)


def test_other_seeds_tune_nothing_anew(tmp_path):
    work(make(TUNED, tmp_path))
    runs = work(make(replace(TUNED, seeds=4), tmp_path))
    assert [key(run)[1:3] for run in runs] == [(False, 2)] * 3 + [(False, 3)] * 3
    assert work(make(replace(TUNED, seeds=1), tmp_path)) == []


def test_some_variants_can_be_tuned_before_the_others(tmp_path):
    work(make(TUNED.only(["mqa"]), tmp_path / "parts"))
    runs = work(make(TUNED, tmp_path / "parts"))
    assert {run.variant for run in runs} == {"mha", "identity"}
    work(make(TUNED, tmp_path / "whole"))
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_the_same_function_twice_is_tuned_with_seeds_of_its_own(tmp_path):
    twins = replace(TUNED, variants={"a": BASE, "b": BASE}, baseline="a")
    runs = work(make(twins, tmp_path), at_a_time=2)
    seeds = {name: {run.seed for run in runs if run.tunes and run.variant == name} for name in "ab"}
    assert seeds == {"a": {tuning_seed("a")}, "b": {tuning_seed("b")}}
    assert len(seeds["a"] | seeds["b"] | {0, 1}) == 4


CHALLENGED = replace(TUNED, tuning=replace(TUNED.tuning, challenge=True), seeds=4)


def near(run):
    """mha is best beside the rate that its search finds, and loses by less than its allowance."""
    rate, sign = run.config.train.learning_rate, (-1) ** run.seed
    if run.tunes:
        return loss_of(run)
    beside = run.recipe is not None and rate > BEST["mha"]
    worse = {"mha": 0.05, "mqa": 0.0, "identity": 1.0}[run.variant]
    return 5 + worse - 0.02 * beside + 0.001 * sign


@pytest.mark.parametrize("cut", [23, 37, 42])
def test_a_variant_that_may_lose_by_its_tuning_is_tried_at_rates_beside(tmp_path, cut):
    first = work(make(CHALLENGED, tmp_path), near, runs=cut, at_a_time=2)[:cut]
    second = work(make(CHALLENGED, tmp_path), near, at_a_time=2)
    runs = [run for run in (*first, *second) if run.recipe is not None and not run.tunes]
    assert {run.variant for run in runs} == {"mha"}
    assert sorted({run.config.train.learning_rate for run in runs}) == [0.0141421, 0.0282843]
    assert len(runs) == 2 * 4
    found = choice(tmp_path, "mha")
    better = "lr-0.0282843,warmup_steps-2"
    assert found["challenge"]["recipe_by_seed"] == {str(seed): better for seed in range(4)}
    assert found["allowance"] == pytest.approx(0.5 / 8, rel=1e-3)
    assert choice(tmp_path, "identity")["challenge"] is None
    assert choice(tmp_path, "identity")["allowance"] == pytest.approx(0.5 / 8, rel=1e-3)
    CHALLENGED.record(command="attnlab run tuned", checked=False).write(tmp_path)
    (mha, *_) = read_table(tmp_path).variants
    assert mha.numbers["final_loss"].mean == pytest.approx(5.03)
    assert work(make(CHALLENGED, tmp_path), near) == []


def test_a_challenge_that_confirms_the_rate_halves_the_allowance(tmp_path):
    work(make(CHALLENGED, tmp_path), lambda run: near(run) + 0.04 * (run.seed < 4 and not own(run)))
    found = choice(tmp_path, "mha")
    assert set(found["challenge"]["recipe_by_seed"].values()) == {"lr-0.02,warmup_steps-2"}
    assert found["allowance"] == pytest.approx(0.5 / 8 / 2, rel=1e-3)
    assert found["search_noise"] == SEARCH_NOISE / 2


def own(run):
    return run.recipe is None


def test_a_challenge_that_is_not_complete_changes_nothing(tmp_path):
    def loss(run):
        last = run.recipe is not None and not run.tunes and run.seed == 3
        return "out of memory" if last else near(run)

    schedule = make(CHALLENGED, tmp_path)
    work(schedule, loss)
    assert schedule.challenge_count() == (6, 6, 6, 6)
    CHALLENGED.record(command="attnlab run tuned", checked=False).write(tmp_path)
    found = {name: curve.challenged for name, curve in rate_curves(read_table(tmp_path)).items()}
    assert found == {"mqa": "no", "mha": "unfinished", "identity": "no"}
    assert choice(tmp_path, "mha")["challenge"] is None
    assert choice(tmp_path, "mha")["allowance"] == pytest.approx(0.5 / 8, rel=1e-3)
    again = work(make(CHALLENGED, tmp_path), near)
    assert [key(run)[:3] for run in again] == [("mha", False, 3)] * 2
    assert choice(tmp_path, "mha")["challenge"] is not None
    assert rate_curves(read_table(tmp_path))["mha"].challenged == "yes"


UNDECIDED = replace(TUNED, seeds=4, most_seeds=10)


def close(run):
    """mqa is hardly worse than mha; identity is far behind."""
    if run.tunes:
        return loss_of(run)
    noise = 0.07 * math.sin(7 * run.seed + ord(run.variant[1]) ** 2)
    return 5 + {"mha": 0.0, "mqa": 0.08, "identity": 1.0}[run.variant] + noise


def on_two_texts(study):
    """The study, and its variants on another text, called `NAME_b`."""
    other = {
        f"{name}_b": replace(config, data=replace(config.data, max_bytes=200_000))
        for name, config in study.variants.items()
    }
    return replace(study, variants={**study.variants, **other})


def easier(loss):
    """Return the losses, which are lower by 3 nats on the other text."""

    def on_its_text(run):
        name, _, other = run.variant.partition("_")
        found = loss(replace(run, variant=name))
        return found - 3 if other else found

    return on_its_text


def test_a_variant_is_challenged_by_those_on_its_text_alone(tmp_path):
    runs = work(make(on_two_texts(CHALLENGED), tmp_path), easier(near), at_a_time=2)
    challenged = {run.variant for run in runs if run.recipe is not None and not run.tunes}
    assert challenged == {"mha", "mha_b"}


def test_seeds_are_added_where_the_verdict_on_a_text_is_open(tmp_path):
    runs = work(make(on_two_texts(replace(UNDECIDED, tuning=None)), tmp_path), easier(close))
    seeds = {
        name: sum(run.variant == name for run in runs) for name in on_two_texts(TUNED).variants
    }
    assert seeds["identity"] == seeds["identity_b"] == 4
    assert seeds["mha"] == seeds["mha_b"] == seeds["mqa_b"] > 4


@pytest.mark.parametrize(
    ("cut", "tuning"),
    [(3, None), (14, TUNED.tuning), (36, TUNED.tuning)],
    ids=["own recipes", "early", "late"],
)
def test_seeds_are_added_where_the_verdict_is_open_and_nowhere_else(tmp_path, cut, tuning):
    study, whole, pieces = (
        replace(UNDECIDED, tuning=tuning),
        tmp_path / "whole",
        tmp_path / "pieces",
    )
    schedule = make(study, whole)
    assert schedule.verdict_count() == (0, 12, 12, 30)
    assert schedule.verdict_count(["mha"]) == (0, 4, 4, 10)
    runs = work(schedule, close)
    seeds = {name: {run.seed for run in runs if run.variant == name} for name in BEST}
    seeds = {name: len(of - {tuning_seed(name)}) for name, of in seeds.items()}
    assert seeds == {"mha": 7, "mqa": 7, "identity": 4}
    assert schedule.verdict_count() == (18,) * 4
    first = work(make(study, pieces), close, runs=cut, at_a_time=3)[:cut]
    second = work(make(study, pieces), close, at_a_time=3)
    assert tree(whole) == tree(pieces)
    assert len(second) == len(runs) - len(first)
    study.record(command="attnlab run tuned", checked=False).write(whole)
    assert work(make(study, whole), close) == []
    found = analyse(whole)
    assert found.runs == seeds
    assert "looks at 4, 7, 10 seeds, 2 of 3 taken, each with error rate 0.0167" in found.why


def test_seeds_are_not_added_where_all_is_decided(tmp_path):
    runs = work(make(UNDECIDED, tmp_path), lambda run: close(run) + (run.variant == "mqa"))
    assert {run.seed for run in runs if not run.tunes} == set(range(4))


def test_a_variant_that_fails_does_not_hold_up_the_looks(tmp_path):
    def loss(run):
        if run.variant == "identity":
            return None if run.seed % 2 else "out of memory"
        return close(run) - 0.13 * (run.variant == "mqa")

    runs = work(make(replace(UNDECIDED, tuning=None), tmp_path), loss)
    assert {run.seed for run in runs if run.variant == "mha"} == set(range(10))
    assert {run.seed for run in runs if run.variant == "identity"} == set(range(4))


def test_without_tuning_the_variants_train_at_their_own_rates(tmp_path):
    runs = work(make(replace(TUNED, tuning=None), tmp_path))
    assert {run.config.train.learning_rate for run in runs} == {0.01}
    assert not list(tmp_path.glob("*/tuning"))


def test_a_rate_that_is_best_at_the_edge_of_the_bound_is_trained_and_recorded_as_such(tmp_path):
    schedule = make(TUNED.only(["mha"]), tmp_path)
    work(schedule, loss=lambda run: 5 - run.config.train.learning_rate)
    found = choice(tmp_path, "mha")
    assert found["learning_rate"] > 0.32
    assert (found["bracketed"], found["allowance"]) == (False, None)
    assert RunFolder(tmp_path, "mha", 0).status() == "finished"


def test_a_variant_that_diverges_at_every_rate_fails_with_its_reason(tmp_path):
    def loss(run):
        return None if run.variant == "mqa" else loss_of(run)

    schedule = make(TUNED, tmp_path)
    work(schedule, loss)
    assert schedule.unfinished_variants() == []
    assert schedule.verdict_count() == (6, 6, 6, 6)
    summary = RunFolder(tmp_path, "mqa", 1).summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("it diverged at every learning rate that was tried: 0.0012")
    assert choice(tmp_path, "mqa")["learning_rate"] is None
    assert RunFolder(tmp_path, "mha", 1).status() == "finished"
    assert work(make(TUNED, tmp_path), loss) == []  # it would diverge again


def test_a_tuning_run_that_fails_holds_its_variant_up_and_is_tried_again(tmp_path):
    def loss(run):
        seed = tuning_seed("mha")
        return "out of memory" if key(run) == ("mha", True, seed, 0.02) else loss_of(run)

    schedule = make(TUNED, tmp_path)
    runs = work(schedule, loss)
    assert [key(run)[3] for run in runs if run.variant == "mha"] == [0.01, 0.02]
    for seed in (0, 1):
        summary = RunFolder(tmp_path, "mha", seed).summary()
        assert summary["status"] == "failed"
        assert "no recipe was found for it: at 0.02: out of memory" in summary["reason"]
    assert RunFolder(tmp_path, "mqa", 1).status() == "finished"
    again = work(make(TUNED, tmp_path))
    assert [key(run)[3] for run in again[:2]] == [0.02, 0.04]
    assert {run.variant for run in again} == {"mha"}
    assert choice(tmp_path, "mha")["failure"] is None
    assert RunFolder(tmp_path, "mha", 1).status() == "finished"


def test_a_diverged_and_a_nan_loss_are_worse_than_any(tmp_path):
    def loss(run):
        return {0.01: 5.0, 0.02: 4.0, 0.04: math.nan, 0.0141421: 4.2}.get(
            run.config.train.learning_rate
        )

    work(make(TUNED.only(["mha"]), tmp_path), loss)
    losses = choice(tmp_path, "mha")["losses"]
    assert {name.partition(",")[0]: loss for name, loss in losses.items() if "-2" in name} == {
        **{"lr-0.01": 5.0, "lr-0.0141421": 4.2, "lr-0.02": 4.0},
        **{"lr-0.0282843": None, "lr-0.04": None},
    }
    assert 0.018 < choice(tmp_path, "mha")["learning_rate"] < 0.02  # away from what diverged
    assert choice(tmp_path, "mha")["allowance"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (TUNED.override(["train.steps=13"]), r"train\.steps is 12 there, 13 requested"),
        (
            replace(TUNED, tuning=None),
            r"train\.learning_rate is 0\.02 there, 0\.01 requested",
        ),
    ],
)
def test_a_folder_that_was_tuned_otherwise_is_refused_before_any_run(tmp_path, study, message):
    work(make(TUNED, tmp_path))
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        make(study, tmp_path)
    with pytest.raises(ValueError, match="identity"):
        make(TUNED, tmp_path, fingerprint="other data")
    assert tree(tmp_path) == before


def test_runs_that_were_trained_untuned_are_no_runs_of_a_tuned_study(tmp_path):
    work(make(replace(TUNED, tuning=None), tmp_path))
    with pytest.raises(ValueError, match="trained before its recipe was searched"):
        make(TUNED, tmp_path)
    work(make(TUNED, tmp_path / "tuned"))
    shutil.rmtree(tmp_path / "tuned" / "mha" / "tuning")
    with pytest.raises(ValueError, match="trained before its recipe was searched"):
        make(TUNED, tmp_path / "tuned")


def test_making_a_schedule_writes_nothing(tmp_path):
    work(make(TUNED, tmp_path), runs=12)
    for path in tmp_path.glob("*/tuning/choice.json"):
        path.unlink()
    before = tree(tmp_path)
    StudySchedule(TUNED, tmp_path, dict.fromkeys(TUNED.variants, "data"))
    make(TUNED, tmp_path)
    assert tree(tmp_path) == before


class FullDisk:
    """Workers whose disk refuses every file: a run ends, and nothing of it is written."""

    def __init__(self):
        self.planned, self.started, self.stopped = None, 0, False

    def idle(self):
        return self.planned is None

    def busy(self):
        return self.planned is not None

    def prepare(self, runs):
        pass

    def start(self, planned):
        self.planned, self.started = planned, self.started + 1
        assert self.started < 5, "a failure is retried without bound"

    def events(self, seconds):
        planned, self.planned = self.planned, None
        yield (
            planned,
            Ended("failed", "a.json could not be written", None, disk_refused=True),
        )

    def stop(self):
        self.stopped = True


def test_two_schedules_of_one_folder_share_the_runs_and_decide_alike(tmp_path):
    whole = make(TUNED, tmp_path / "whole")
    alone = [key(run) for run in work(whole)]
    schedules, shared = [make(TUNED, tmp_path / "shared") for _ in range(2)], []
    under_way = [None]
    while under_way:
        under_way = []
        for schedule in schedules:
            if (planned := schedule.next()) is not None:
                held = planned.run.folder(schedule.study_dir).hold()
                held.__enter__()
                under_way.append((schedule, planned, held))
        for schedule, planned, held in under_way:
            shared.append(key(planned.run))
            finish(planned, schedule.study_dir)
            held.__exit__(None, None, None)
            schedule.finished(planned)
    assert sorted(map(str, shared)) == sorted(map(str, alone))
    assert schedules[0].tuned == schedules[1].tuned == whole.tuned


def test_a_run_that_another_process_holds_is_skipped_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)
    study = replace(TUNED, tuning=None, seeds=1)
    schedule, other = make(study, tmp_path), make(study, tmp_path)
    held, events = other.next(), []
    with held.run.folder(tmp_path).hold():
        happening = run_schedule(schedule, fake_workers.AtOnce(tmp_path))
        for event in happening:
            events.append(event)
            if len(events) == 3:
                break
        by = f"process {os.getpid()} on "
        assert [(e.run.variant, type(e.event)) for e in events] == [
            ("mha", Held),
            ("mqa", Ended),
            ("identity", Ended),
        ]
        assert events[0].event.by.startswith(by)
        finish(held, tmp_path)
    (last,) = happening
    assert (last.run, last.event.status) == (held.run, "finished")


def test_a_run_that_another_process_has_just_taken_is_named_once(tmp_path, monkeypatch):
    by, taken = str(Holder.of_this_process()), []

    class Taken(fake_workers.AtOnce):
        def events(self, seconds):
            planned, self.planned = self.planned, None
            taken.append((planned, planned.run.folder(tmp_path).hold()))
            taken[0][1].__enter__()
            yield planned, Held(by)

    def meanwhile(seconds):
        finish(taken[0][0], tmp_path)
        taken[0][1].__exit__(None, None, None)

    monkeypatch.setattr(workers.time, "sleep", meanwhile)
    schedule = make(replace(TUNED.only(["mha"]), tuning=None, seeds=1), tmp_path)
    events = [event for _, event, _ in run_schedule(schedule, Taken(tmp_path))]
    assert [type(event) for event in events] == [Held, Ended]


def test_a_failure_in_another_process_counts_unless_it_was_there_before(tmp_path):
    study = replace(TUNED, tuning=None, seeds=1)
    first = make(study, tmp_path)
    before = first.next()
    finish(before, tmp_path, lambda _: "failed in an earlier command")
    schedule, other = make(study, tmp_path), make(study, tmp_path)
    assert schedule.next() == before
    now = other.next()
    now = other.next() if now == before else now
    finish(now, tmp_path, lambda _: "failed now")
    assert schedule.next() not in (before, now)
    assert [planned for planned, _ in schedule.ended_elsewhere()] == [now]
    assert (now.run.variant, None, 0) in schedule._outcomes.failed


def test_a_run_that_another_command_makes_with_other_settings_is_an_error(tmp_path):
    study = replace(TUNED, tuning=None, seeds=1)
    schedule = make(study, tmp_path)
    finish(make(study.override(["train.steps=20"]), tmp_path).next(), tmp_path)
    with pytest.raises(ValueError, match=r"by another command with different settings: train\.st"):
        schedule.next()


@pytest.mark.parametrize("study", [fake_workers.TUNED, replace(fake_workers.TUNED, tuning=None)])
def test_a_study_stops_at_once_where_the_disk_refuses_its_files(tmp_path, study):
    workers, seen = FullDisk(), []
    with pytest.raises(WriteError, match="could not be written; the study has stopped"):
        seen.extend(run_schedule(fake_workers.make(study, tmp_path), workers))
    assert (workers.started, workers.stopped) == (1, True)


@pytest.mark.parametrize("cut", [3, 14])
def test_recipes_are_carried_along_a_ladder_wherever_it_was_cut(tmp_path, cut):
    study = ladder("mha")
    work(make(study, tmp_path), loss_on_ladder, runs=cut)
    runs = work(make(study, tmp_path), loss_on_ladder)
    verdict = [run for run in runs if not run.tunes]
    rates = {
        n: RunFolder(tmp_path, n, 1).config()["train"]["learning_rate"] for n in study.variants
    }
    assert rates == pytest.approx(dict.fromkeys(study.variants, 0.02), rel=1e-5)
    assert {run.variant for run in runs if run.tunes} <= {"mha_16_short", "mha_32_short"}
    assert len(verdict) <= 12
    carried, source = choice(tmp_path, "mha_64_long"), choice(tmp_path, "mha_16_short")
    assert carried["carried_from"] == ["mha_16_short", "mha_32_short"]
    assert carried["allowance"] == pytest.approx(4 * source["allowance"], rel=1e-3)
    assert carried["losses"] == {}
    assert (carried["exponent"], carried["own_learning_rate"]) == (pytest.approx(0.5), 0.0025)
    assert source["own_learning_rate"] == 0.01
    assert not {"carried_from", "exponent"} & source.keys()
    assert not make(study, tmp_path).unfinished_variants()
    assert make(study, tmp_path).tuning_count(["mha_64_long"]) == (0, 0, 0, 0)


def test_a_family_without_a_recipe_fails_at_all_sizes_and_no_other_does(tmp_path):
    study = ladder("mha", "bad")
    work(make(study, tmp_path), lambda run: None if "bad" in run.variant else loss_on_ladder(run))
    states = {name: RunFolder(tmp_path, name, 0).status() for name in study.variants}
    failed = {name for name, status in states.items() if status == "failed"}
    assert failed == {name for name in study.variants if "bad" in name}
    assert (
        "bad_16_short and bad_32_short" in RunFolder(tmp_path, "bad_64_long", 0).summary()["reason"]
    )


def test_without_tuning_the_rates_of_a_ladder_are_those_of_the_settings(tmp_path):
    study = ladder("mha", tuning=None)
    runs = work(make(study, tmp_path), loss_on_ladder)
    assert {run.config.train.learning_rate * run.config.model.d_model for run in runs} == {0.16}
    assert not list(tmp_path.rglob("choice.json"))


def test_one_cell_of_a_ladder_is_made_again_without_the_others(tmp_path):
    study, cell = ladder("mha", "delta"), ("mha_64_short", "delta_64_short")
    work(make(study, tmp_path), loss_on_ladder)
    for name in cell:
        shutil.rmtree(tmp_path / name)
    runs = work(make(study, tmp_path), loss_on_ladder)
    assert [run.variant for run in runs] == [*cell, *cell]
    shutil.rmtree(tmp_path / "mha_32_short")  # searched, for both other sizes
    with pytest.raises(ValueError, match="carried from mha_16_short and mha_32_short, whose searc"):
        make(study, tmp_path)


def test_seeds_are_added_within_the_cells_of_a_ladder_that_are_open(tmp_path):
    study = ladder("mha", "delta", seeds=4, most_seeds=6, tuning=None)
    clear = {f"delta_{width}_{of}": 1.0 for width in (16, 32, 64) for of in ("short", "long")}
    clear["delta_32_long"] = 0.004  # within the noise

    def loss(run):
        own = 0.01 * math.sin(7 * run.seed + len(run.variant))
        size = 1000 / run.config.model.d_model  # far apart between cells
        return size + clear.get(run.variant, 0.0) + own

    runs = work(make(study, tmp_path), loss)
    more = {run.variant for run in runs if run.seed >= 4}
    assert more == {"mha_32_long", "delta_32_long"}


def test_variants_of_a_ladder_are_challenged_within_their_cell(tmp_path):
    tuned = replace(ladder("mha").tuning, challenge=True)
    study = ladder("mha", "delta", tuning=tuned, seeds=3)

    def loss(run):
        own = 0.0005 * math.sin(5 * run.seed + len(run.variant)) * (run.seed < 3)
        beside = 0.05 if run.variant == "mha_64_long" else float("mha" in run.variant)
        rate = math.log2(run.config.train.learning_rate / 0.02)
        return 1000 / run.config.model.d_model + beside + 0.3 * rate**2 + own

    runs = work(make(study, tmp_path), loss)
    challenged = {run.variant for run in runs if not run.tunes and run.recipe is not None}
    assert challenged == {"mha_64_long"}


def test_a_part_of_a_ladder_without_searched_variants_is_searched_itself(tmp_path):
    part = ladder("mha").only(["mha_64_long"])
    runs = work(make(part, tmp_path), loss_on_ladder)
    assert sum(run.tunes for run in runs) > 3
    one = ladder("mha").only(["mha_64_long", "mha_16_short"])
    assert one.sources() == {"mha_64_long": ("mha_16_short",)}


def test_fewer_steps_of_a_ladder_keep_the_ratios_of_its_lengths():
    shorter = ladder("mha").override(["train.steps=8"]).variants
    assert {name: config.train.steps for name, config in shorter.items()} == {
        name: 8 if "long" in name else 4 for name in shorter
    }


@pytest.mark.parametrize("change", ["model.size=8x256", "model.scale=2", "model.n_layers=4"])
def test_the_variants_of_a_ladder_keep_the_sizes_after_which_they_are_named(change):
    with pytest.raises(ConfigError, match="have sizes of their own; choose some with --only"):
        ladder("mha").override([change])


def test_a_ladder_names_known_variants_in_places_of_their_own():
    study = ladder("mha")
    with pytest.raises(ConfigError, match="mha_16_short has the same family, size and budget"):
        replace(study, ladder=dict.fromkeys(study.variants, Rung("mha", "2x16", "short")))
    with pytest.raises(ConfigError, match=r"tuning.only: no variant 'mha_16_shrot'"):
        replace(study, tuning=replace(study.tuning, only=("mha_16_shrot",)))
