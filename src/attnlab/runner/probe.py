"""`attnlab.probe`: what mechanisms recall, copy and track, as a study that is made on the fly.

    recall    multi-query associative recall                 attnlab.data.recall
    copying   selective copying                              attnlab.data.mad
    parity    whether the number of ones so far is odd       attnlab.data.state_tracking
    s3, s5    the running product of permutations of three and of five things

    needle, variables, common_words    of RULER              attnlab.data.recall, .ruler
    fuzzy     recall of keys and values of several tokens    attnlab.data.recall
    depo      hops in a cycle of nodes                       attnlab.data.reasoning
    mano      expressions modulo a prime                     attnlab.data.reasoning

The first are probed by default, those of the second list by their names.
Each task trains a small model per mechanism and seed, and is measured on longer sequences, too.
Models of kinds have a feed-forward layer for all tasks but recall and copying. The study
has a variant TASK_MECHANISM of each; its runs, checks, report and continuation are those of any
study, and its profile is `attnlab.analysis.profile`.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlab.analysis.analysis import Analysis
from attnlab.benchmarking.targets import Sizes, given_sizes, setups_of
from attnlab.config import names_in, require_once, suggestion, texts_in
from attnlab.config.problem import with_types
from attnlab.data.mad import SelectiveCopying
from attnlab.data.reasoning import Depo, Mano
from attnlab.data.recall import MQAR, FuzzyRecall, Needle
from attnlab.data.ruler import CommonWords, VariableTracking
from attnlab.data.state_tracking import StateTracking
from attnlab.data.task import Task
from attnlab.data.tokenizer import Ids
from attnlab.model.feedforward import NoFeedForward
from attnlab.runner.events import Watch
from attnlab.runner.run import run
from attnlab.study import ignore
from attnlab.study.study import Study
from attnlab.study.targets import Nameable, named
from attnlab.training.config import EvalConfig, TrainConfig
from attnlab.training.run import RunConfig

WITHOUT_FEEDFORWARD = ("recall", "copying")  # as in Zoology: the mechanism has to do it alone
QUESTION = "What does each mechanism recall, copy and track?"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The sizes of a probe: those of the tasks, the model and its training."""

    tasks: dict[str, Task]  # by default
    more: dict[str, Task]  # by their names alone
    d_model: int
    n_heads: int
    train: TrainConfig
    longer: tuple[int, ...]  # multiples of the training length that are measured

    @property
    def known(self) -> dict[str, Task]:
        """All tasks by name."""
        return {**self.tasks, **self.more}


def _tracking(group: str, length: int, examples: int) -> Task:
    return StateTracking.from_dict(
        {
            "kind": "state_tracking",
            "group": group,
            "length": length,
            "train_examples": examples,
            "held_out_examples": examples // 20,
        }
    )


SMALL: dict[str, Any] = {"train_examples": 40_000, "held_out_examples": 400}
FULL = Effort(
    tasks={
        "recall": MQAR(
            length=128,
            pairs=(4, 8, 16, 32),
            held_out_pairs=(4, 8, 16, 32, 64),
            train_examples=100_000,
            held_out_examples=2_000,
            tokenizer=Ids(vocab_size=1024),
        ),
        "copying": SelectiveCopying(length=128, train_examples=100_000, held_out_examples=2_000),
        "parity": _tracking("parity", 64, 100_000),
        "s3": _tracking("s3", 64, 100_000),
        "s5": _tracking("s5", 64, 100_000),
    },
    more={
        "needle": Needle(),
        "variables": VariableTracking(),
        "common_words": CommonWords(),
        "fuzzy": FuzzyRecall(train_examples=100_000),
        "depo": Depo(),
        "mano": Mano(),
    },
    d_model=128,
    n_heads=2,
    train=TrainConfig(
        steps=4000,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=400,
        weight_decay=0.1,
        eval_batch_size=256,
        keep="none",
    ),
    longer=(1, 2, 4),
)
QUICK = Effort(
    tasks={
        "recall": MQAR(
            length=16,
            pairs=(4,),
            held_out_pairs=(2, 4),
            tokenizer=Ids(vocab_size=16),
            **SMALL,
        ),
        "copying": SelectiveCopying(length=16, tokens_to_copy=3, **SMALL),
        "parity": _tracking("parity", 16, 8_000),
        "s3": _tracking("s3", 16, 8_000),
    },
    more={
        "needle": Needle(length=16, tokenizer=Ids(vocab_size=24), **SMALL),
        "variables": VariableTracking(length=20, hops=1, tokenizer=Ids(vocab_size=27), **SMALL),
        "common_words": CommonWords(
            length=20, common=1, times=6, other_times=2, tokenizer=Ids(vocab_size=24), **SMALL
        ),
        "fuzzy": FuzzyRecall(
            length=24, key_vocab=4, value_vocab=4, longest_key=2, longest_value=2, **SMALL
        ),
        "depo": Depo(length=16, hops=(1, 2), questions=2, tokenizer=Ids(vocab_size=24), **SMALL),
        "mano": Mano(length=8, modulus=7, **SMALL),
    },
    d_model=32,
    n_heads=1,
    train=TrainConfig(
        steps=600,
        batch_size=64,
        learning_rate=3e-3,
        warmup_steps=60,
        weight_decay=0.1,
        eval_batch_size=200,
        keep="none",
    ),
    longer=(1, 2),
)


@with_types
def probe(  # noqa: PLR0913  one parameter per option
    *what: Nameable,
    tasks: Iterable[str] | str | None = None,
    overrides: Iterable[str] | str = (),
    quick: bool = False,
    seeds: int = 3,
    steps: int | None = None,
    d_model: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    tune: bool = False,
    out: Path | str | None = None,
    device: str = "auto",
    workers: int | None = None,
    fla_path: Path | str | None = None,
    watch: Watch = ignore,
    command: str | None = None,
) -> Analysis:
    """Train small models on tasks, and tell what each mechanism recalls, copies and tracks.

        analysis = attnlab.probe("grouped_query", "gated_delta_net", quick=True)
        print(*attnlab.profile(analysis), sep="\\n")

    Args:
        what: mechanisms by name as in `attnlab.check`, each in every layer of a model of these
            sizes; or studies, whose variants keep their models.
        tasks: names of tasks, as a list or separated by commas; by default recall, copying,
            parity, s3 and, unless quick, s5.
        overrides: settings of every mechanism (`window=16`), or of every run with their section
            (`train.learning_rate=1e-3`, `data.train_examples=10000`, `model.dropout=0.1`).
        quick: True for shorter sequences, smaller models and fewer steps: minutes on a CPU.
        seeds: seeds per mechanism and task.
        steps: training steps.
        d_model: model width, by default 128, or 32 if quick.
        n_layers: number of layers, by default 2.
        n_heads: number of heads, by default 2, or 1 if quick.
        tune: True to search the learning rate of each mechanism on each task first.
        out: the folder of results, results/probe or results/probe_quick by default.
        device: auto, cpu, cuda or cuda:1.
        workers: runs at the same time, by default one per GPU or CPU core.
        fla_path: a local clone of flash-linear-attention, as of `attnlab.run`.
        watch: called with every event, as by `attnlab.run`.
        command: the command that the study's record names.

    Returns:
        The analysis, one task beside the other in its `texts`.

    Raises:
        ValueError: a mechanism or a task is unknown; and all that `attnlab.run` raises.
    """
    of_steps = [] if steps is None else [f"train.steps={steps}"]
    study = probe_study(
        *what,
        tasks=tasks,
        overrides=[*of_steps, *texts_in(overrides, "overrides")],
        quick=quick,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
    )
    return run(
        study,
        seeds=seeds,
        tune=tune,
        out=out,
        device=device,
        workers=workers,
        fla_path=fla_path,
        watch=watch,
        command=command,
    )


def probe_study(
    *what: Nameable,
    tasks: Iterable[str] | str | None = None,
    overrides: Iterable[str] | str = (),
    quick: bool = False,
    d_model: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
) -> Study:
    """Return the study of a probe; its arguments are those of `probe`, which documents them."""
    effort = QUICK if quick else FULL
    chosen, known = list(effort.tasks if tasks is None else names_in(tasks)), effort.known
    if not chosen:
        raise ValueError(f"tasks: name at least one of {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise ValueError(f"tasks: no task {name!r}{suggestion(name, known)}")
    changes = texts_in(overrides, "overrides")
    require_once(changes)
    of_run = [change for change in changes if re.match(r"(data|train|model|eval)\.", change)]
    targets = named(what, [change for change in changes if change not in of_run])
    default = Sizes(d_model=effort.d_model, n_layers=2, n_heads=effort.n_heads, vocab_size=1)
    given = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads}
    sizes = given_sizes(default, given, targets, changes)
    setups = setups_of(targets, sizes)
    of_studies = setups_of([one for one in targets if isinstance(one, Study)], sizes)
    variants = {
        f"{task}_{name.replace('/', '-')}": RunConfig(
            data=known[task],
            model=setup.model
            if task not in WITHOUT_FEEDFORWARD or name in of_studies
            else dataclasses.replace(setup.model, feedforward=NoFeedForward()),
            train=dataclasses.replace(effort.train, seq_len=known[task].length),
            eval=EvalConfig(lengths=tuple(n * known[task].length for n in effort.longer)),
        )
        for task in chosen
        for name, setup in setups.items()
    }
    study = Study(
        name="probe_quick" if quick else "probe", question=QUESTION, seeds=3, variants=variants
    )
    return study.override(of_run) if of_run else study
