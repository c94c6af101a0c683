"""A trained model on the tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI).

    log p(continuation | context) = sum_t log softmax(logits_t)[token_t]

A window has at most as many tokens as a training sequence, and is cut on the left. A continuation
that is longer is scored in windows: each token once, with as much context as fits. A text begins
after the special token that its tokenizer adds, or else after a line break.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attnlab.config.problem import with_types
from attnlab.inference.generate import Sampling, generate_tokens
from attnlab.inference.saved_model import Trained, Which, load_run
from attnlab.record import (
    HARNESS,
    HarnessMetricForm,
    HarnessTaskForm,
    RunFolder,
    StudyRecord,
    folder_name,
    harness_results,
    is_published,
    write_object,
)

NEW_TOKENS = 256  # of a generated answer, where the task states no number


class Scored(NamedTuple):
    """The log-likelihood of a continuation."""

    log_likelihood: float  # nats
    is_greedy: bool  # True if every token is the most likely one


class Scorer:
    """Log-likelihoods and answers of a trained model, for texts."""

    def __init__(self, trained: Trained, batch_size: int = 16) -> None:
        self.trained, self.batch_size = trained, batch_size
        self.length = trained.config.train.seq_len
        self.special = self._ids("")
        self.before = self.special or self._ids("\n")[-1:]  # what a text follows

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of both. Spaces between them belong to the continuation."""
        stripped = context.rstrip()
        whole, first = self._ids(context + continuation), self._ids(stripped)
        if len(first) == len(self.special):
            return self.before, whole[len(self.special) :]
        return whole[: len(first)], whole[len(first) :]

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """Return what precedes a text, and the tokens of the text."""
        return self.before, self._ids(text)[len(self.special) :]

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        """Return the log-likelihood of each continuation after its context, both as tokens."""
        windows = [
            (number, window)
            for number, (context, continuation) in enumerate(pairs)
            for window in _windows(context, continuation, self.length)
        ]
        windows.sort(key=lambda each: -len(each[1].tokens))
        sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
        for first in range(0, len(windows), self.batch_size):
            batch = windows[first : first + self.batch_size]
            found = self._score_windows([window for _, window in batch])
            for (number, _), scored in zip(batch, found, strict=True):
                sums[number] += scored.log_likelihood
                greedy[number] &= scored.is_greedy
        return [Scored(*each) for each in zip(sums, greedy, strict=True)]

    def answer(self, context: str, settings: Mapping[str, Any]) -> str:
        """Return the text that the model continues a context with, up to a stop string.

        `settings` are those of a task: `until`, `max_gen_toks`, `do_sample`, `temperature`.
        """
        until = settings.get("until") or []
        stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
        most = min(int(settings.get("max_gen_toks", NEW_TOKENS)), max(1, self.length - 1))
        prompt = (self._ids(context) or self.before)[-max(1, self.length - most) :]
        samples = settings.get("do_sample", False)
        temperature = float(settings.get("temperature", 1.0)) if samples else 0.0
        device, ids, text = self.trained.model.embed.weight.device, list[int](), ""
        for tokens_B in generate_tokens(
            self.trained.model,
            torch.tensor([prompt], device=device),
            max_new_tokens=most,
            sampling=Sampling(temperature=temperature),
            autocast=self.trained.autocast,
        ):
            ids.append(int(tokens_B))
            text = self.trained.codec.decode(ids)
            if any(stop in text for stop in stops):
                break
        ends = [place for stop in stops if (place := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))]

    def _score_windows(self, windows: list["_Window"]) -> list[Scored]:
        device = self.trained.model.embed.weight.device
        longest = max(len(window.tokens) for window in windows)
        # padding on the right: a position does not see later ones
        tokens_BT = torch.tensor(
            [window.tokens + [0] * (longest - len(window.tokens)) for window in windows],
            device=device,
        )
        with self.trained.autocast:
            logits_BTV = self.trained.model.logits(tokens_BT[:, :-1])
        found = list[Scored]()
        for row_TV, row_T, window in zip(logits_BTV, tokens_BT, windows, strict=True):
            end, begin = len(window.tokens), len(window.tokens) - window.scored
            logits_TV, targets_T = row_TV[begin - 1 : end - 1].float(), row_T[begin:end]
            each_T = logits_TV.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
            greedy = bool((logits_TV.argmax(-1) == targets_T).all())
            found.append(Scored(float(each_T.double().sum()), greedy))
        return found

    def _ids(self, text: str) -> list[int]:
        return self.trained.codec.encode([text]).tolist()


class _Window(NamedTuple):
    tokens: list[int]  # those that are read, and the last one, which is scored alone
    scored: int  # number of tokens at the end whose likelihood counts


def _windows(context: list[int], continuation: list[int], length: int) -> Iterator[_Window]:
    """Yield windows of at most `length` inputs that score every token of the continuation once."""
    whole, first = context + continuation, len(context)
    for begin in range(first, len(whole), length):
        end = min(begin + length, len(whole))
        yield _Window(whole[max(0, end - length - 1) : end], end - begin)


@with_types
def evaluate_tasks(  # noqa: PLR0913  one parameter per option
    run: Path | str,
    tasks: Sequence[str],
    *,
    include: Path | str | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    which: Which = "last",
    device: str = "auto",
    trust: bool = False,
) -> dict[str, HarnessTaskForm]:
    """Evaluate a trained run on tasks of lm-evaluation-harness.

    Of a run in a study of your own, the results are added to `harness.json` in the study's folder.

    Args:
        run: the run's folder, or what else `attnlab.load_run` loads.
        tasks: names of tasks or of groups, such as lambada_openai.
        include: a folder with task files of your own.
        shots: examples before each question; None: as the task says.
        limit: questions per task; None: all.
        batch_size: windows per forward pass.
        which, device, trust: as for `attnlab.load_run`.

    Returns:
        By task, each metric with its standard error, and the settings of the measurement.

    Raises:
        ValueError: the harness is not installed, a task is unknown, the run cannot be loaded, or
            harness.json is damaged.
    """
    try:
        harness, manager = import_module("lm_eval"), import_module("lm_eval.tasks")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"lm-evaluation-harness is not installed ({error.name} is missing): "
            "pip install 'attnlab[eval]'"
        ) from error
    known = manager.TaskManager(include_path=None if include is None else str(include))
    if unknown := [task for task in tasks if task not in known.all_tasks]:
        raise ValueError(f"unknown tasks: {', '.join(unknown)}; lm-eval ls tasks lists them")
    own = _own_run(Path(run))
    if own is not None:
        harness_results(own.study_dir)  # damage is named before hours of work
    trained = load_run(run, device, which=which, trust=trust)
    found = harness.simple_evaluate(
        model=_adapter(Scorer(trained, batch_size)),
        tasks=list(tasks),
        task_manager=known,
        num_fewshot=shots,
        limit=limit,
        log_samples=False,
        bootstrap_iters=1000,
    )
    identity = own and (own.config() or {}).get("identity")
    results: dict[str, HarnessTaskForm] = {
        name: {
            "metrics": _metrics(of_task),
            "identity": identity,
            "shots": found["n-shot"].get(name),
            "version": found["versions"].get(name),
            "limit": limit,
            "step": trained.step,
            "weights": which,
            "window": trained.config.train.seq_len,
            "harness": harness.__version__,
        }
        for name, of_task in sorted(found["results"].items())
    }
    if own is not None:
        _record(own, results)
    return results


def results_file(run: Path) -> Path | None:
    """Return the file for the results of a run; None for an exported model, or one published."""
    own = _own_run(run)
    return own and own.study_dir / HARNESS


def _own_run(run: Path) -> RunFolder | None:
    try:
        found = RunFolder.at(run)
    except ValueError:
        return None
    return None if is_published(found.study_dir) else found


def _record(run: RunFolder, results: Mapping[str, HarnessTaskForm]) -> None:
    """Add the results of a run to harness.json of its study."""
    study_dir, key = run.study_dir, f"{folder_name(run.variant)}/seed-{run.seed}"
    with StudyRecord.held(study_dir):
        runs = harness_results(study_dir)
        runs[key] = {**runs.get(key, {}), **results}
        write_object(study_dir / HARNESS, {"runs": runs}, within=study_dir)


def _metrics(of_task: Mapping[str, Any]) -> dict[str, HarnessMetricForm]:
    """Return value and standard error of each metric; None for an error that is not known."""
    found = dict[str, HarnessMetricForm]()
    for key, value in of_task.items():
        name, _, filtered = key.partition(",")
        if isinstance(value, bool) or not isinstance(value, int | float) or not filtered:
            continue
        if name.endswith("_stderr"):
            continue
        error = of_task.get(f"{name}_stderr,{filtered}")
        known = isinstance(error, int | float)
        label = name if filtered == "none" else f"{name} ({filtered})"
        found[label] = {"value": float(value), "standard_error": float(error) if known else None}
    return found


def _adapter(scorer: Scorer) -> Any:
    """Return the scorer as a model of the harness."""
    base: Any = import_module("lm_eval.api.model").LM

    class Adapter(base):
        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            scored = scorer.score([scorer.pair(*each.args) for each in requests])
            return [(each.log_likelihood, each.is_greedy) for each in scored]

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            scored = scorer.score([scorer.text(*each.args) for each in requests])
            return [each.log_likelihood for each in scored]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [scorer.answer(*each.args) for each in requests]

    return Adapter()
