"""What a person sees while a study runs: one bar for the study, one for each run under way."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from attnlab.analysis import numbers
from attnlab.runner.events import Ended, RunEvent
from attnlab.runner.schedule import StudySchedule
from attnlab.training.recipe import TuningResult
from attnlab.training.run import Run


class StudyProgress:
    """Bars on a terminal, with a line for each run that ends; elsewhere those lines alone.

    The study's bar counts steps: those made here, of them and all that are still to be made. The
    time left follows from it, and grows where a learning rate has to be looked for further out.
    """

    def __init__(self, schedule: StudySchedule, console: Console) -> None:
        self.schedule, self.console = schedule, console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            expand=True,
            speed_estimate_period=120,
        )
        self.study = self.bars.add_task("study", total=schedule.steps_left(), rate="steps")
        self.made = 0  # steps, by all runs together
        self.under_way = dict[tuple[str, int, float], _UnderWay]()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def show(self, happened: RunEvent) -> None:
        run, event = happened.run, happened.event
        if isinstance(event, Ended):
            if ended := self.under_way.pop(_key(run), None):
                self.bars.remove_task(ended.bar)
            self._line(run, event)
            if happened.tuned is not None:
                self.console.print(f"        {_choice(happened.tuned)}", highlight=False)
        elif _key(run) not in self.under_way:
            bar = self.bars.add_task(
                _name(run), total=event.steps, completed=event.step, rate="starting"
            )
            self.under_way[_key(run)] = _UnderWay(bar, event.step)
        else:
            at = self.under_way[_key(run)]
            self.made += event.step - at.step
            at.step = event.step
            loss = "" if event.loss is None else f"  loss {event.loss:.3f}"
            speed = event.tokens_per_second
            rate = f"{numbers.count(speed)} tokens/s" if speed else "warming up"
            self.bars.update(at.bar, completed=event.step, description=_name(run) + loss, rate=rate)
        if not isinstance(event, Ended):
            for style, said in (("bold red", event.alarm), ("yellow", event.note)):
                if said is not None:
                    text = f"        {_name(run)}: {said}"
                    self.console.print(text, style=style, markup=False, highlight=False)
        left = self.schedule.steps_left() - sum(at.step for at in self.under_way.values())
        self.bars.update(self.study, completed=self.made, total=self.made + left)

    def _line(self, run: Run, event: Ended) -> None:
        count = f"[dim]{self._ended()}[/dim]"
        if event.status == "finished":
            said = f"validation loss {event.final_loss:.4f}"
        else:
            reason = (event.reason or "").splitlines()[0]
            said = f"[bold red]{event.status}[/bold red]: {escape(reason)}"
        self.console.print(f"{count} {escape(_name(run))}: {said}")

    def _ended(self) -> str:
        """Runs that are over, of all: of those known so far, while there may be more."""
        tuning, verdict = self.schedule.tuning_count(), self.schedule.verdict_count()
        more = "+" if tuning.at_most > tuning.at_least else ""
        ended, known = tuning.done + verdict.done, tuning.at_least + verdict.at_least
        return f"{ended:>3}/{known}{more}"


@dataclass
class _UnderWay:
    """A run's bar, and its step."""

    bar: TaskID
    step: int


def _key(run: Run) -> tuple[str, int, float]:
    return run.variant, run.seed, run.config.train.learning_rate


def _name(run: Run) -> str:
    if run.tunes:
        return f"{run.variant} at {run.config.train.learning_rate:g}"
    return f"{run.variant} seed {run.seed}"


def _choice(tuned: TuningResult) -> str:
    """What came of the search for a variant's learning rate, in a sentence."""
    if tuned.failure is not None:
        return f"[bold red]{escape(tuned.variant)}: {escape(tuned.failure)}[/bold red]"
    lowest, *_, highest = tuned.losses
    found = f"{escape(tuned.variant)}: learning rate {tuned.rate:g}"
    if tuned.bracketed:
        return f"{found}, the best of {len(tuned.losses)} from {lowest:g} to {highest:g}"
    edge = "highest" if tuned.rate == highest else "lowest"
    beyond = "[yellow]the best may lie beyond[/yellow]"
    return f"{found}, the {edge} of {len(tuned.losses)} tried: {beyond}"
