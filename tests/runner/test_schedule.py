"""The remaining runs follow from those that have ended, wherever the study was interrupted."""

import json
import math
import shutil
from dataclasses import replace

import pytest
from support.fake_workers import BASE, BEST, TUNED, finish, key, loss_of, make, work

from attnlab.record import TUNING_SEED, RunFolder, pack, rate_of, tuning_runs, write_json
from attnlab.runner.schedule import StudySchedule


def choice(study_dir, variant):
    return json.loads((study_dir / variant / "tuning" / "choice.json").read_text())


def tree(study_dir):
    return {
        str(path.relative_to(study_dir)): path.read_text()
        for path in study_dir.rglob("*")
        if path.is_file()
    }


def test_each_variant_is_trained_at_the_best_of_its_rates(tmp_path):
    schedule = make(TUNED, tmp_path)
    runs = work(schedule)
    for variant, best in BEST.items():
        tried = {rate_of(run.recipe): run for run in tuning_runs(tmp_path, variant)}
        assert tried[best].summary()["final_loss"] == 5
        assert min(tried) < best < max(tried)
        for seed in range(TUNED.seeds):
            folder = RunFolder(tmp_path, variant, seed)
            assert folder.config()["train"]["learning_rate"] == best
        assert choice(tmp_path, variant)["learning_rate"] == best
        assert choice(tmp_path, variant)["interior"]
        assert choice(tmp_path, variant)["losses"].keys() == {f"{rate:g}" for rate in tried}
    assert len(runs) == len({key(run) for run in runs}) == (3 + 5 + 5) + 6
    assert {run.seed for run in runs if run.tunes} == {TUNING_SEED}
    assert {run.seed for run in runs if not run.tunes} == {0, 1}
    assert schedule.unfinished_variants() == []
    assert schedule.steps_left() == 0


def test_a_packed_study_is_continued_and_its_ended_runs_are_not_trained_again(tmp_path):
    TUNED.record(command="attnlab run tuned", checked=False).write(tmp_path)
    work(make(TUNED, tmp_path))
    pack(tmp_path)
    packed = {"study.json", "runs.jsonl.gz"}
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


def test_tuning_runs_have_their_own_folder_and_keep_no_checkpoints(tmp_path):
    schedule = make(TUNED, tmp_path)
    planned = schedule.next()
    run = planned.run.folder(tmp_path)
    assert run.path == tmp_path / "mha" / "tuning" / "lr-0.01" / f"seed-{TUNING_SEED}.partial"
    run.open({**planned.run.config.to_dict(), "identity": planned.identity}, {})
    (run.checkpoints / "weights").write_text("not needed once the loss is known")
    run.finish({"status": "finished", "final_loss": 5.0})
    assert run.path == tmp_path / "mha" / "tuning" / "lr-0.01" / f"seed-{TUNING_SEED}"
    assert {path.name for path in run.path.iterdir()} == {
        *("config.json", "environment.json", "metrics.jsonl", "summary.json")
    }


@pytest.mark.parametrize("at_a_time", [1, 3])
@pytest.mark.parametrize("cut", range(0, 19, 3))
def test_a_schedule_cut_anywhere_goes_on_to_the_same_end(tmp_path, cut, at_a_time):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    work(make(TUNED, whole))
    first = work(make(TUNED, pieces), runs=cut, at_a_time=at_a_time)
    second = work(make(TUNED, pieces), at_a_time=at_a_time)
    assert tree(whole) == tree(pieces)
    assert len(second) == 19 - cut
    ended_before = {key(run) for run in first[:cut]}
    assert not ended_before & {key(run) for run in second}


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


def test_the_verdict_of_a_variant_starts_as_soon_as_its_rate_is_known(tmp_path):
    schedule = make(TUNED, tmp_path)
    tuning = [schedule.next() for _ in range(9)]
    assert schedule.next() is None  # no run is left for another device
    for planned in tuning[:3]:
        assert planned.run.variant == "mha"
        finish(planned, tmp_path)
        assert schedule.next() is None
        tuned = schedule.finished(planned)
    assert (tuned.variant, tuned.rate, tuned.bracketed) == ("mha", 0.02, True)
    assert key(schedule.next().run) == ("mha", False, 0, 0.02)
    for planned in tuning[3:6]:
        finish(planned, tmp_path)
        assert schedule.finished(planned) is None
    # tuning runs come first, since the verdict waits for them
    assert key(schedule.next().run) == ("mqa", True, TUNING_SEED, 0.08)
    assert key(schedule.next().run) == ("mha", False, 1, 0.02)


def test_the_counts_bound_what_is_run(tmp_path):
    schedule = make(TUNED, tmp_path)
    assert schedule.verdict_count() == (0, 6, 6)
    assert schedule.tuning_count() == (0, 9, 18)
    assert schedule.tuning_count(["mha"]) == (0, 3, 6)
    assert schedule.steps_left() == 12 * (9 + 6)
    work(schedule, runs=5)
    assert schedule.tuning_count().done == 5
    work(schedule)
    assert schedule.tuning_count() == (13, 13, 13)
    assert schedule.verdict_count() == (6, 6, 6)
    again = make(TUNED, tmp_path)
    assert (again.tuning_count(), again.verdict_count()) == ((13, 13, 13), (6, 6, 6))


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


def test_the_same_function_twice_tunes_alike(tmp_path):
    twins = replace(TUNED, variants={"a": BASE, "b": BASE}, baseline="a")
    work(make(twins, tmp_path), at_a_time=2)
    assert choice(tmp_path, "a") == choice(tmp_path, "b")


def test_without_tuning_the_variants_train_at_their_own_rates(tmp_path):
    runs = work(make(replace(TUNED, learning_rates=None), tmp_path))
    assert {run.config.train.learning_rate for run in runs} == {0.01}
    assert not list(tmp_path.glob("*/tuning"))


def test_a_rate_that_is_best_at_the_edge_of_the_bound_is_trained_and_recorded_as_such(tmp_path):
    schedule = make(TUNED.only(["mha"]), tmp_path)
    work(schedule, loss=lambda run: 5 - run.config.train.learning_rate)
    assert choice(tmp_path, "mha")["learning_rate"] == 0.32
    assert not choice(tmp_path, "mha")["interior"]
    assert RunFolder(tmp_path, "mha", 0).status() == "finished"


def test_a_variant_that_diverges_at_every_rate_fails_with_its_reason(tmp_path):
    def loss(run):
        return None if run.variant == "mqa" else loss_of(run)

    schedule = make(TUNED, tmp_path)
    work(schedule, loss)
    assert schedule.unfinished_variants() == []
    assert schedule.verdict_count() == (6, 6, 6)
    summary = RunFolder(tmp_path, "mqa", 1).summary()
    assert summary["status"] == "failed"
    assert summary["reason"].startswith("it diverged at every learning rate that was tried: 0.0012")
    assert choice(tmp_path, "mqa")["learning_rate"] is None
    assert RunFolder(tmp_path, "mha", 1).status() == "finished"
    assert work(make(TUNED, tmp_path), loss) == []  # it would diverge again


def test_a_tuning_run_that_fails_holds_its_variant_up_and_is_tried_again(tmp_path):
    def loss(run):
        return "out of memory" if key(run) == ("mha", True, TUNING_SEED, 0.02) else loss_of(run)

    schedule = make(TUNED, tmp_path)
    runs = work(schedule, loss)
    assert [key(run)[3] for run in runs if run.variant == "mha"] == [0.01, 0.02]
    for seed in (0, 1):
        summary = RunFolder(tmp_path, "mha", seed).summary()
        assert summary["status"] == "failed"
        assert "no learning rate was found for it: at 0.02: out of memory" in summary["reason"]
    assert RunFolder(tmp_path, "mqa", 1).status() == "finished"
    again = work(make(TUNED, tmp_path))
    assert [key(run)[3] for run in again] == [0.02, 0.04, 0.02, 0.02]
    assert choice(tmp_path, "mha")["failure"] is None
    assert RunFolder(tmp_path, "mha", 1).status() == "finished"


def test_a_diverged_and_a_nan_loss_are_worse_than_any(tmp_path):
    def loss(run):
        return {0.01: 5.0, 0.02: 4.0, 0.04: math.nan}.get(run.config.train.learning_rate)

    work(make(TUNED.only(["mha"]), tmp_path), loss)
    assert choice(tmp_path, "mha")["losses"] == {"0.01": 5.0, "0.02": 4.0, "0.04": None}
    assert choice(tmp_path, "mha")["learning_rate"] == 0.02


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (TUNED.override(["train.steps=13"]), r"train\.steps is 12 there, 13 requested"),
        (
            replace(TUNED, learning_rates=None),
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
    work(make(replace(TUNED, learning_rates=None), tmp_path))
    with pytest.raises(ValueError, match="trained before its learning rate was tuned"):
        make(TUNED, tmp_path)
    work(make(TUNED, tmp_path / "tuned"))
    shutil.rmtree(tmp_path / "tuned" / "mha" / "tuning")
    with pytest.raises(ValueError, match="trained before its learning rate was tuned"):
        make(TUNED, tmp_path / "tuned")


def test_making_a_schedule_writes_nothing(tmp_path):
    work(make(TUNED, tmp_path), runs=12)
    for path in tmp_path.glob("*/tuning/choice.json"):
        path.unlink()
    before = tree(tmp_path)
    StudySchedule(TUNED, tmp_path, dict.fromkeys(TUNED.variants, "data"))
    make(TUNED, tmp_path)
    assert tree(tmp_path) == before
