"""The progress of a study in the terminal: one bar for the study, one per active run."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from attnlab.analysis import numbers
from attnlab.analysis.sentences import listed
from attnlab.checks.table import ResultsTable
from attnlab.cli.console import ActivityStatus, Bars, Output, error, first_line, prose, verbatim
from attnlab.reporting.files import PAGE
from attnlab.runner.decisions import RunCount
from attnlab.runner.events import (
    Activity,
    Ended,
    Event,
    Held,
    Lost,
    Notice,
    Progress,
    RunEvent,
    Started,
)
from attnlab.runner.run import ViolatedPropertyError
from attnlab.runner.schedule import StudySchedule
from attnlab.training.recipe import TuningResult
from attnlab.training.run import Run

INDENT = " " * 8
QUIET_SECONDS = 20  # without a line, where there are no bars


class StudyProgress:
    """Bars on a terminal, and a line per finished run; elsewhere more lines in place of the bars.

    The study's bar counts the steps of this call: those done, of those done and still to do. The
    remaining time follows from it, and increases when the search of a recipe is extended.
    """

    def __init__(self, schedule: StudySchedule, console: Output) -> None:
        self.schedule, self.console = schedule, console
        self.bars = _bars(console)
        self.study = self.bars.add_task("study", total=schedule.steps_left(), rate="steps")
        self.steps_done = 0  # of all runs
        self.active = dict[tuple[str, int, str | None], _Active]()

    def show(self, happened: RunEvent) -> None:
        """Update the bars, and print what has ended."""
        run, event = happened.run, happened.event
        if not isinstance(event, Progress):
            ended = self.active.pop(_key(run), None)
            if ended is not None:
                self.bars.remove_task(ended.bar)
            self._line(run, event, ended and ended.node)
            for tuned in happened.tuned:
                self._print(INDENT, _tuning_outcome(tuned))
        elif _key(run) not in self.active:
            bar = self.bars.add_task(
                _name(run, event.node), total=event.steps, completed=event.step, rate="starting"
            )
            self.active[_key(run)] = _Active(bar, event.step, event.node)
            self._resumes(run, event)
        else:
            active = self.active[_key(run)]
            self.steps_done += event.step - active.step
            if event.step < active.step:  # on another node
                self._resumes(run, event)
            active.step, active.node = event.step, event.node
            loss, rate = _measured(event)
            name = _name(run, event.node) + loss
            self.bars.update(active.bar, completed=event.step, description=name, rate=rate)
            quiet = time.monotonic() - self.console.printed
            if not self.console.animated and quiet > QUIET_SECONDS:
                step = f"step {event.step} of {event.steps}{loss}  {rate}{self.bars.left()}"
                self._print(INDENT, f"{_name(run, event.node)}: {step}")
        if isinstance(event, Progress):
            for message, style in _messages(event):
                self._print(INDENT, (f"{_name(run)}: {message}", style))
        left = self.schedule.steps_left() - sum(active.step for active in self.active.values())
        self.bars.update(self.study, completed=self.steps_done, total=self.steps_done + left)

    def _resumes(self, run: Run, event: Progress) -> None:
        if event.step:
            step = f"resumes at step {event.step} of {event.steps}"
            self._print(INDENT, f"{_name(run, event.node)}: {step}")

    def _line(self, run: Run, event: Ended | Held | Lost, node: str | None) -> None:
        if isinstance(event, Lost):
            lost = f"{_name(run)} lost its worker on {event.node}: {event.reason}; another one"
            which = f"attempt {event.losses + 1} of {event.most}"
            self._print(INDENT, (f"{lost} takes the run, {which}", "yellow"))
            return
        if isinstance(event, Held):
            how = "was taken over by" if event.lost else "is trained by"
            self._print(INDENT, f"{_name(run)} {how} {event.by}; waiting for its end")
            return
        if event.status == "finished":
            outcome = Text(f"validation loss {event.final_loss:.4f}")
        else:
            why = first_line(event.reason or "no reason was recorded")
            outcome = Text.assemble((event.status, "bold red"), f": {why}")
        self._print((self._ended(), "dim"), f" {_name(run, node)}: ", outcome)

    def _print(self, *parts: str | tuple[str, str] | Text) -> None:
        self.console.print(Text.assemble(*parts), soft_wrap=not self.console.is_terminal)

    def _ended(self) -> str:
        """Return the number of ended runs, of all runs; "+" while a search may add runs."""
        schedule = self.schedule
        counts = (schedule.tuning_count(), schedule.verdict_count(), schedule.challenge_count())
        total = RunCount.total(counts)
        more = "+" if total.at_most > total.at_least else ""
        return f"{total.done:>3}/{total.at_least}{more}"


class StudyWatch:
    """Shows what `attnlab.run` tells its watcher: activities, notes, and the progress of runs."""

    def __init__(self, shown: ActivityStatus, output: Output) -> None:
        self.shown, self.output = shown, output
        self.progress: StudyProgress | None = None  # None before the first run

    def __call__(self, event: Activity | Started | RunEvent | Notice) -> None:
        match event:
            case Activity(description):
                self.shown.start(description)
            case Started(schedule):
                self.shown.current.close()
                _announce(schedule, self.output)
                self.progress = StudyProgress(schedule, self.output)
                self.shown.current.enter_context(self.progress.bars)
            case RunEvent():
                assert self.progress is not None
                with self.progress.bars.lock:
                    self.progress.show(event)
            case Notice(text):
                with self.progress.bars.lock if self.progress else nullcontext():
                    self.shown.note(text)


@contextmanager
def watched(output: Output, *, remedy: str = "") -> Generator[StudyWatch]:
    """Show what a function of the API tells its watcher, for as long as it takes.

    Violated properties are printed and end the command with code 1; `remedy` is added to the error.
    An interrupt names the report of the runs that have ended.
    """
    watch: StudyWatch | None = None
    try:
        with ActivityStatus(output, lines=True) as shown:
            watch = StudyWatch(shown, output)
            yield watch
    except ViolatedPropertyError as violations:
        output.print(ResultsTable(violations.checked))
        error(f"properties are violated; nothing was trained{remedy}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if watch is not None and watch.progress is not None:
            page = watch.progress.schedule.study_dir / PAGE
            verbatim(f"report of the runs that have ended: {page}", output)
        raise


@contextmanager
def run_watched(name: str, output: Output) -> Generator[Callable[[Event], None]]:
    """Show what a function of the API tells the watcher of its only run, with one bar."""
    bars = _bars(output)
    bar = bars.add_task(name, total=None, rate="reading the data")

    def watch(event: Event) -> None:
        if isinstance(event, Progress):
            loss, rate = _measured(event)
            named, step, steps = name + loss, event.step, event.steps
            with bars.lock:
                bars.update(bar, total=steps, completed=step, description=named, rate=rate)
                for message, style in _messages(event):
                    verbatim(f"{name}: {message}", output, style=style)

    with bars:
        yield watch


def _bars(output: Output) -> Bars:
    return Bars(
        output,
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        transient=True,
        disable=not output.animated,
        expand=True,
        speed_estimate_period=1800,
    )


def _measured(event: Progress) -> tuple[str, str]:
    """Return the loss of a step, empty if it has none, and its speed."""
    speed = event.tokens_per_second
    loss = "" if event.loss is None else f"  loss {event.loss:.3f}"
    return loss, f"{numbers.count(speed)} tokens/s" if speed else "warming up"


def _messages(event: Progress) -> Iterator[tuple[str, str]]:
    """Yield the alarm and the note of a step, if there are some, with their styles."""
    for message, style in ((event.alarm, "bold red"), (event.note, "yellow")):
        if message is not None:
            yield message, style


@dataclass
class _Active:
    """The bar and the step of an active run."""

    bar: TaskID
    step: int
    node: str | None  # of a cluster


def _key(run: Run) -> tuple[str, int, str | None]:
    return run.variant, run.seed, run.recipe


def _name(run: Run, node: str | None = None) -> str:
    """Return the name of a run, with the node of the cluster that executes it."""
    if node is not None:
        return f"{_name(run)} on {node}"
    seed = f"{run.variant} seed {run.seed}"
    if run.recipe is None:
        return seed
    train = run.config.train
    recipe = f"at {train.learning_rate:g}, warm-up {train.warmup_steps}"
    return f"{run.variant} {recipe}" if run.tunes else f"{seed} {recipe}"


def _tuning_outcome(tuned: TuningResult) -> Text:
    """Return the outcome of the search for a variant's recipe, or of its challenge, in words."""
    name, recipe = tuned.variant, tuned.search.recipe
    if tuned.failure is not None or recipe is None:
        return Text(f"{name}: {tuned.failure}", "bold red")
    if tuned.challenge is not None:
        rates = [tried.learning_rate for tried in tuned.challenge.by_seed().values()]
        mean = f"{sum(rates) / len(rates):.3g}"
        beside = f"{name}: challenged at rates beside {recipe.learning_rate:g}"
        return Text(f"{beside}; now {mean} on average")
    found = f"{name}: learning rate {recipe.learning_rate:g}, warm-up {recipe.warmup_steps} steps"
    found += "".join(f", {setting} {value:g}" for setting, value in recipe.settings)
    if tuned.carried_from:
        return Text(f"{found}; carried from {listed(tuned.carried_from)}")
    tried = f"{min(tuned.rates()):g} to {max(tuned.rates()):g}"
    if tuned.search.bracketed:
        return Text(f"{found}; {len(tuned.search.tried)} runs from {tried}")
    beyond = (f"the optimum is not bracketed by {tried}", "yellow")
    return Text.assemble(f"{found}: ", beyond)


def _announce(schedule: StudySchedule, output: Output) -> None:
    """Print the question and the number of runs."""
    study, verdict, tuning = schedule.study, schedule.verdict_count(), schedule.tuning_count()
    done = f", {verdict.done} of them done" if verdict.done else ""
    more = f" (until decided, at most {verdict.at_most})" if study.most_seeds else ""
    prose(first_line(study.question), output, style="bold")
    prose(
        f"{_count(len(study.variants), 'variant')} x {_count(study.seeds, 'seed')} = "
        f"{_count(verdict.at_least, 'run')}{more}{done}; results in {schedule.study_dir}",
        output,
    )
    if tuning.at_most:
        done = f", {tuning.done} of them done" if tuning.done else ""
        bounds = f"{tuning.at_least}"
        if tuning.at_most > tuning.at_least:
            bounds = f"about {tuning.expected} ({tuning.at_least} to {tuning.at_most})"
        prose(f"first, {bounds} runs to search recipes{done}", output)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
