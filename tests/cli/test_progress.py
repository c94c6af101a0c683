"""What a person sees while a study runs: an honest count, an honest estimate, what was found."""

import io

import pytest
from support.fake_workers import TUNED, finish, loss_of, make

from attnlab.cli import progress as showing
from attnlab.cli.console import Output
from attnlab.cli.progress import StudyProgress
from attnlab.runner.events import Ended, Progress, RunEvent


@pytest.fixture
def shown(tmp_path):
    schedule = make(TUNED, tmp_path)
    out = io.StringIO()
    console = Output(file=out, force_terminal=True, width=150, color_system=None)
    with StudyProgress(schedule, console) as progress:
        yield schedule, progress, out


def study_bar(progress):
    (task,) = [task for task in progress.bars.tasks if task.id == progress.study]
    return task.completed, task.total


def end(schedule, progress, planned, loss=loss_of):
    finish(planned, schedule.study_dir, loss)
    found = loss(planned.run)
    event = (
        Ended("failed", found, None) if isinstance(found, str) else Ended("finished", None, found)
    )
    progress.show(RunEvent(planned.run, event, schedule.finished(planned)))


def test_the_bar_counts_the_steps_that_are_made_here(shown):
    schedule, progress, _ = shown
    assert study_bar(progress) == (0, 15 * 12)
    first = schedule.next()
    progress.show(RunEvent(first.run, Progress(8, 12, None, None)))  # it was cut off at 8
    assert study_bar(progress) == (0, 15 * 12 - 8)
    progress.show(RunEvent(first.run, Progress(12, 12, 5.0, 1e3)))
    assert study_bar(progress) == (4, 15 * 12 - 8)
    end(schedule, progress, first)
    assert study_bar(progress) == (4, 15 * 12 - 8)
    assert len(progress.bars.tasks) == 1


def test_a_search_that_goes_on_makes_the_study_longer(shown):
    schedule, progress, out = shown
    for _ in range(6):  # mha's grid, its half octaves and a longer warm-up
        end(schedule, progress, schedule.next())
    left = 3 + 3 + 6  # the grids of mqa and identity, the verdict
    assert study_bar(progress) == (0, 12 * left)
    while "learning rate" not in out.getvalue():
        end(schedule, progress, schedule.next())
    said = " ".join(out.getvalue().split())
    assert "7/24+ mqa at 0.01, warm-up 2: validation loss 14.0000" in said
    assert "mha: learning rate 0.02, warm-up 2 steps; 6 runs from 0.01 to 0.04" in said


def test_what_was_not_found_is_said(shown):
    schedule, progress, out = shown
    end(schedule, progress, schedule.next(), loss=lambda _: "it [never] worked")
    said = " ".join(out.getvalue().split())
    assert "mha at 0.01, warm-up 2: failed: it [never] worked" in said
    assert "mha: no recipe was found for it: at 0.01: it [never] worked" in said


def test_a_choice_at_the_edge_is_said_to_be_one(shown):
    schedule, progress, out = shown
    while "the optimum is not bracketed" not in out.getvalue():
        end(schedule, progress, schedule.next(), lambda run: 5 - run.config.train.learning_rate)
    said = " ".join(out.getvalue().split())
    assert "mha: learning rate 10.24, warm-up 6 steps: the optimum is not bracketed by" in said


def test_a_resumed_run_says_from_which_step(shown):
    schedule, progress, out = shown
    progress.show(RunEvent(schedule.next().run, Progress(8, 12, None, None)))
    assert ": resumes at step 8 of 12" in out.getvalue()


def test_where_there_are_no_bars_a_long_run_prints_its_step_now_and_then(tmp_path, monkeypatch):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    schedule = make(TUNED, tmp_path)
    with StudyProgress(schedule, Output(file=out, width=100)) as progress:
        run = schedule.next().run
        for step in range(12):
            now[0] += 9
            progress.show(RunEvent(run, Progress(step, 12, 5.0, 1e3)))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("        mha at 0.01")
    assert lines[0].endswith(": step 2 of 12  loss 5.000  1.00 K tokens/s")
    assert len(lines) == 4


def test_an_alarm_is_shown(shown):
    schedule, progress, out = shown
    run = schedule.next().run
    progress.show(RunEvent(run, Progress(3, 12, None, None)))
    progress.show(RunEvent(run, Progress(6, 12, 0.1, None, alarm="too good to be true")))
    assert "mha at 0.01, warm-up 2: too good to be true" in out.getvalue()
    assert study_bar(progress)[0] == 3


def test_a_note_is_shown_with_the_first_event_too(shown):
    schedule, progress, out = shown
    note = "checkpoint step-000008: [damaged]; that of step 4 is used instead"
    progress.show(RunEvent(schedule.next().run, Progress(4, 12, None, None, note=note)))
    assert f"mha at 0.01, warm-up 2: {note}" in out.getvalue()
