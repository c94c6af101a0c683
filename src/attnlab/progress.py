"""What a person sees while a study runs: one bar for the study, one for each run under way."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from attnlab.launch import Happened, Planned
from attnlab.run import Ended


class StudyProgress:
    """Bars on a terminal, with a line for each run that ends; elsewhere those lines alone."""

    def __init__(self, planned: list[Planned], console: Console) -> None:
        self.planned, self.console = planned, console
        self.ended = sum(p.ended for p in planned)
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
        steps = sum(p.run.config.train.steps for p in planned if not p.ended)
        self.study = self.bars.add_task("study", total=steps, rate="steps")
        self.tasks = dict[tuple[str, int], tuple[TaskID, int]]()  # a run's bar and its first step

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

    def show(self, happened: Happened) -> None:
        run, event = happened.planned.run, happened.event
        name = f"{run.variant} seed {run.seed}"
        key = (run.variant, run.seed)
        if isinstance(event, Ended):
            self._end(key, run.config.train.steps)
            self.ended += 1
            self._line(name, event)
            return
        if key not in self.tasks:
            task = self.bars.add_task(
                name, total=event.steps, completed=event.step, rate="starting"
            )
            self.tasks[key] = (task, event.step)
            self.bars.advance(self.study, event.step)
            return
        task = self.tasks[key][0]
        before = self.bars.tasks[self.bars.task_ids.index(task)].completed
        loss = "" if event.loss is None else f"  loss {event.loss:.3f}"
        rate = (
            f"{event.tokens_per_second:,.0f} tokens/s" if event.tokens_per_second else "warming up"
        )
        self.bars.update(task, completed=event.step, description=name + loss, rate=rate)
        self.bars.advance(self.study, event.step - before)

    def _end(self, key: tuple[str, int], steps: int) -> None:
        """Take the run's bar away; the study's counts steps not done as done."""
        done = 0.0
        if key in self.tasks:
            task = self.tasks.pop(key)[0]
            done = self.bars.tasks[self.bars.task_ids.index(task)].completed
            self.bars.remove_task(task)
        self.bars.advance(self.study, steps - done)

    def _line(self, name: str, event: Ended) -> None:
        count = f"[dim]{self.ended:>3}/{len(self.planned)}[/dim]"
        if event.status == "finished":
            self.console.print(f"{count} {name}: validation loss {event.final_loss:.4f}")
        else:
            reason = (event.reason or "").splitlines()[0]
            self.console.print(f"{count} {name}: [bold red]{event.status}[/bold red]: {reason}")
