"""Any terminal, encoding, pipe and signal is served; what is shown while a study runs is true."""

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.progress import Progress as Bars
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text
from support import SOURCE, TESTS
from support.fake_workers import TUNED, finish, loss_of, make

from attnlab.cli import progress as showing
from attnlab.cli.console import ActivityStatus, Output, first_line, passage, prose, verbatim
from attnlab.cli.progress import StudyProgress, _announce, run_watched
from attnlab.record import RunFolder
from attnlab.runner.events import Ended, Lost, Progress, RunEvent

NAMES = ["exp[bold]", "[/red]", ":b:", ":smile:", "[link=x]y[/link]", "a\\[b]", "[@click=app.bell]"]


def python(program, *arguments, environment=(), **options):
    path = os.pathsep.join([str(SOURCE), str(TESTS), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": path, **dict(environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are_wherever_they_stand(name):
    out = io.StringIO()
    output = Output(file=out, width=100)
    output.print(name)
    table = Table(name, title=name)
    table.add_row(name)
    output.print(table)
    output.rule(name)
    with ActivityStatus(output, lines=True) as shown:
        shown.start(name)
        shown.note(name)
    assert out.getvalue().count(name) == 7


@pytest.mark.parametrize("columns", ["0", "00", "1", "-5", "x", ""])
def test_a_strange_width_of_the_terminal_hides_nothing(columns):
    out = io.StringIO()
    Output(file=out, _environ={"COLUMNS": columns}).print("a report")
    assert "".join(out.getvalue().split()) == "areport"


def in_a_row(text, output):
    table = Table.grid()
    table.add_row(text)
    output.print_table(table)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "write", [verbatim, prose, in_a_row, lambda text, output: output.print(Text(text))]
)
def test_a_terminal_obeys_no_text(write, terminal):
    output = Output(file=io.StringIO(), force_terminal=terminal, color_system=None)
    write("a\x1b[31mr\u202ed\nb", output)
    shown = [line.rstrip() for line in output.file.getvalue().splitlines()]
    assert shown == ["a\\x1b[31mr\\u202ed", "b"]


def test_what_a_model_wrote_reaches_a_file_as_it_is(capsys):
    passage("a\x1b[31m\r\n")
    assert capsys.readouterr().out == "a\x1b[31m\r\n\n"


def test_a_line_of_a_table_is_broken_in_a_terminal_and_whole_in_a_pipe():
    table = Table("name", "text", box=None)
    table.add_row("a_long_name_of_a_variant" * 3, "some words " * 20)
    for terminal, lines in ((False, 2), (True, 3)):
        output = Output(file=io.StringIO(), width=80, force_terminal=terminal)
        output.print_table(table)
        shown = output.file.getvalue().splitlines()
        assert (len(shown) == lines) if not terminal else (len(shown) >= lines)
        assert terminal or shown == [line.rstrip() for line in shown]


def test_an_activity_on_a_terminal_is_shown_as_it_is():
    out = io.StringIO()
    output = Output(file=out, width=100, force_terminal=True, _environ={"TERM": "xterm"})
    with ActivityStatus(output) as shown:
        shown.start("checking exp[bold]")
        bars = Bars(TextColumn("{task.description}", markup=False), console=output)
        bars.add_task("exp[bold]")
    assert "checking exp[bold]" in out.getvalue()


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("  \n a \r\n b", "a"), ("a\nb", "a"), ("\n\n", "")]
)
def test_the_first_line_of_any_text_is_found(text, line):
    assert first_line(text) == line


ANY_CHARACTER = """
from attnlab.cli.console import console, errors, print_any_character, write
print_any_character()
for text in ("4.5 \\xb1 0.1 \\xd7 2 \\u2265 \\u0394 \\u2013 \\xe9 \\u2603 \\uff41", chr(0xDC80)):
    console.print(text)
    errors.print(text)
    write(text + "\\n")
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "20"},
        {"COLUMNS": "400", "FORCE_COLOR": "1"},
    ],
)
def test_a_character_that_the_encoding_lacks_becomes_a_similar_one(environment):
    process = python(ANY_CHARACTER, environment=environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    if environment.get("PYTHONIOENCODING") == "ascii":
        assert out.decode().splitlines()[0] == "4.5 +- 0.1 x 2 >= delta - e ? a"


PIPED = """
import sys
from pathlib import Path
from attnlab.cli.console import console, errors, verbatim, write
for number in range(3000):
    verbatim(f"line {number}")
    write(f"text {number}\\n")
    verbatim(f"line {number}", errors)
Path(sys.argv[1]).write_text("to the end")
"""


FULL = """
import sys
sys.argv[1:] = {arguments}
from attnlab.cli import main
from attnlab.cli.app import app, reports_user_errors
from attnlab.cli.console import verbatim, write

@app.command("list")
@reports_user_errors
def work():
    verbatim("a line")
    write("text")
    open("marker", "w").close()

main()
"""


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["--version"]])
def test_a_full_disk_behind_the_output_is_an_error_after_the_work(tmp_path, arguments):
    """Of a log file. What a command computes, as training, does not end with its log."""
    with Path("/dev/full").open("w") as full:
        script = [sys.executable, "-c", FULL.format(arguments=arguments)]
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src")}
        done = subprocess.run(
            script, stdout=full, stderr=-1, text=True, cwd=tmp_path, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the standard output is incomplete: No space left")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "marker").exists() == (arguments == ["list"])


def test_a_closed_pipe_ends_nothing(tmp_path):
    with python(PIPED, str(tmp_path / "marker")) as process:
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert (tmp_path / "marker").read_text() == "to the end"


SIGNALLED = """
import os, signal, sys
from attnlab.cli import app as commands
from attnlab.cli.app import reports_user_errors
from attnlab.cli.early_end import raise_on_signals
import typer

@reports_user_errors
def command():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        signal.pause()
    finally:
        if sys.argv[2] == "twice":
            os.kill(os.getpid(), int(sys.argv[1]))
        print("cleaned up", flush=True)

raise_on_signals()
try:
    command()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", ["once", "twice"])
def test_a_signal_ends_a_command_cleanly_and_a_second_one_at_once(number, times):
    process = python(SIGNALLED, str(int(number)), times)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert b"Traceback" not in err
    assert (b"cleaned up" in err) == (times == "once")
    assert (b"run the same command again to continue" in err) == (times == "once")


ENDS = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
from {module} import main
sys.argv[1:] = {arguments}
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("attnlab.cli", ["--version"]),
        ("attnlab.device.child_process", [str(os.getpid()), "0", "builtins:id"]),
    ],
)
def test_no_garbage_is_searched_for_at_the_end_of_a_process(module, arguments):
    out, err = python(ENDS.format(module=module, arguments=arguments)).communicate(timeout=60)
    assert out.endswith(b"True\n"), err


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_terminated_study_has_a_report_and_no_orphans(tmp_path):
    """The whole group gets SIGTERM, as from a batch system; the reader of its output has gone."""
    arguments = ["run", str(TESTS / "support" / "tiny_study.py"), "--only", "mha", "--seeds", "1"]
    arguments += ["--no-check", "--device", "cpu", "--out", "out", "train.steps=100k"]
    run = RunFolder(tmp_path / "out", "mha", 0)
    with python(
        f"import sys; sys.argv[1:] = {arguments!r}; from attnlab.cli import main; main()",
        environment={"ATTNLAB_CACHE": str(tmp_path / "cache"), "MPLBACKEND": "module://nonsense"},
        cwd=tmp_path,
        start_new_session=True,
    ) as process:
        process.stdout.close()
        deadline = time.monotonic() + 120
        while not run.metrics():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.stderr.read().decode()
    assert process.wait(60) == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert (tmp_path / "out" / "report.html").is_file()
    assert run.status() == "partial"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_alive(process.pid):
        time.sleep(0.05)
    assert not is_alive(process.pid)


@pytest.fixture
def shown(tmp_path):
    schedule = make(TUNED, tmp_path)
    out = io.StringIO()
    console = Output(file=out, force_terminal=True, width=150, color_system=None)
    progress = StudyProgress(schedule, console)
    with progress.bars:
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


def test_the_most_seeds_that_an_open_verdict_may_take_are_announced(tmp_path):
    out = io.StringIO()
    schedule = make(replace(TUNED, seeds=4, most_seeds=10), tmp_path)
    _announce(schedule, Output(file=out, width=150))
    assert "3 variants x 4 seeds = 12 runs (until decided, at most 30)" in out.getvalue()


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


def test_a_line_of_a_run_is_not_broken_in_a_file(tmp_path):
    schedule, output = make(TUNED, tmp_path), Output(file=io.StringIO(), width=40)
    why = Ended("failed", "for " + "a long reason " * 10, None)
    StudyProgress(schedule, output).show(RunEvent(schedule.next().run, why))
    assert output.file.getvalue().count("\n") == 1


def test_a_resumed_run_says_from_which_step(shown):
    schedule, progress, out = shown
    progress.show(RunEvent(schedule.next().run, Progress(8, 12, None, None)))
    assert ": resumes at step 8 of 12" in out.getvalue()


def test_bars_are_not_drawn_while_a_line_is_printed_above_them(tmp_path):
    output = Output(file=io.StringIO(), width=60, force_terminal=True, _environ={"TERM": "xterm"})
    progress = StudyProgress(make(TUNED, tmp_path), output)
    with progress.bars:
        with progress.bars.lock:
            drawn = len(output.file.getvalue())
            time.sleep(0.6)
            assert len(output.file.getvalue()) == drawn
        time.sleep(0.6)
        assert len(output.file.getvalue()) > drawn  # the clock goes on without an event


def test_a_bar_leaves_room_for_the_echo_of_an_interrupt(tmp_path):
    output = Output(file=io.StringIO(), width=60, force_terminal=True, _environ={"TERM": "xterm"})
    progress = StudyProgress(make(TUNED, tmp_path), output)
    lines = output.render_lines(progress.bars.get_renderable(), pad=False)
    assert max(sum(segment.cell_length for segment in line) for line in lines) <= 57


def test_where_there_are_no_bars_a_long_run_prints_its_step_now_and_then(tmp_path, monkeypatch):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    schedule = make(TUNED, tmp_path)
    progress = StudyProgress(schedule, Output(file=out, width=100))
    with progress.bars:
        run = schedule.next().run
        for step in range(12):
            now[0] += 9
            progress.show(RunEvent(run, Progress(step, 12, 5.0, 1e3)))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("        mha at 0.01")
    assert lines[0].endswith(": step 2 of 12  loss 5.000  1.00 K tokens/s")
    assert len(lines) == 4


def test_where_there_are_no_bars_a_line_breaks_a_long_silence(tmp_path, monkeypatch):
    now, out = [0.0], io.StringIO()
    monkeypatch.setattr(showing.time, "monotonic", lambda: now[0])
    schedule = make(TUNED, tmp_path)
    progress = StudyProgress(schedule, Output(file=out, width=20))
    progress.bars.get_time = lambda: now[0]
    with progress.bars:
        run = schedule.next().run
        for step in (0, 1, 2):
            now[0] += 6
            progress.show(RunEvent(run, Progress(step, 12, 5.0, 1e3)))
        time.sleep(0.4)
        assert out.getvalue() == ""
        now[0] = 61
        time.sleep(0.6)
    run = "mha at 0.01, warm-up 2  loss 5.000 2/12 1.00 K tokens/s"
    assert out.getvalue() == f"study 2/180 steps; {run}; about 17 min 48 s left\n"


def test_an_alarm_is_shown(shown):
    schedule, progress, out = shown
    run = schedule.next().run
    progress.show(RunEvent(run, Progress(3, 12, None, None)))
    progress.show(RunEvent(run, Progress(6, 12, 0.1, None, alarm="too good to be true")))
    assert "mha at 0.01, warm-up 2: too good to be true" in out.getvalue()
    assert study_bar(progress)[0] == 3


def test_the_bar_of_a_single_run_is_that_of_a_study():
    output = Output(file=io.StringIO(), width=99, force_terminal=True, color_system=None)
    with run_watched("mha seed 0", output) as watch:
        for step in (6, 12):
            watch(Progress(step, 12, 5.0, 1e3, alarm="too good to be true" if step > 6 else None))
        time.sleep(0.4)  # the bars are drawn by their own thread
    shown = output.file.getvalue()
    assert "mha seed 0: too good to be true" in shown
    assert "mha seed 0  loss 5.000" in shown
    assert "12/12 1.00 K tokens/s" in shown


def test_a_note_is_shown_with_the_first_event_too(shown):
    schedule, progress, out = shown
    note = "checkpoint step-000008: [damaged]; that of step 4 is used instead"
    progress.show(RunEvent(schedule.next().run, Progress(4, 12, None, None, note=note)))
    assert f"mha at 0.01, warm-up 2: {note}" in out.getvalue()


def test_a_lost_worker_is_shown_with_its_node_its_reason_and_the_attempt(shown):
    schedule, progress, out = shown
    run = schedule.next().run
    progress.show(RunEvent(run, Progress(8, 12, None, None, node="node-2")))
    progress.show(RunEvent(run, Lost("node-2", "its node was preempted", 1, 3)))
    said = " ".join(out.getvalue().split())
    lost = "mha at 0.01, warm-up 2 lost its worker on node-2: its node was preempted; another one"
    assert f"{lost} takes the run, attempt 2 of 3" in said
    assert len(progress.bars.tasks) == 1
    progress.show(RunEvent(run, Progress(4, 12, None, None, node="node-3")))
    assert "on node-3: resumes at step 4 of 12" in " ".join(out.getvalue().split())
