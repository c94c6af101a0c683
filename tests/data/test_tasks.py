"""Tasks: every generated answer is right, by a solver that reads the sequence and nothing else.

Loss and accuracy are those of the answers, in training and in evaluation, in whatever parts.
"""

import itertools
import math
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from attnlab.config import ConfigError
from attnlab.data import DataConfig, Places
from attnlab.data.batches import window_problems, window_starts
from attnlab.data.mad import Compression, InContextRecall, Memorization, SelectiveCopying
from attnlab.data.reasoning import Depo, Mano
from attnlab.data.recall import MQAR, FuzzyRecall, Needle
from attnlab.data.ruler import CommonWords, VariableTracking
from attnlab.data.source import DataError
from attnlab.data.state_tracking import StateTracking
from attnlab.data.task import Draws, Task
from attnlab.data.tokenizer import Ids
from attnlab.device.ranks import Ranks
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.model.feedforward import NoFeedForward
from attnlab.model.language_model import ModelConfig
from attnlab.training.assemble import step_of_run
from attnlab.training.config import TrainConfig
from attnlab.training.evaluate import held_out
from attnlab.training.plausibility import PlausibilityMonitor
from attnlab.training.quality import AnswerTable, HeldOutAnswers
from attnlab.training.run import RunConfig

CPU = torch.device("cpu")
NOWHERE = Places(None, Path("nowhere"))


def mqar(sequence, task):
    """A key before a value defines it, and a key before anything else asks for it."""
    half, known, answers = task.tokenizer.vocab_size // 2, {}, {}
    for t, (token, after) in enumerate(itertools.pairwise([*sequence, 0])):
        if 0 < token < half:
            if after >= half:
                known[token] = after
            else:
                answers[t] = known[token]
    return answers


def selective_copying(sequence, task):
    asked = sequence.index(task.tokenizer.vocab_size - 1)
    tokens = [token for token in sequence if token < task.tokenizer.vocab_size - 2]
    assert len(tokens) == task.tokens_to_copy
    return dict(enumerate(tokens, asked + 1))


def state_tracking(sequence, task):
    if task.group == "parity":
        return {t: sum(sequence[: t + 1]) % 2 for t in range(len(sequence))}
    things = range(int(task.group[1]))
    elements = sorted(itertools.permutations(things))
    if task.group == "a5":  # even: the determinant of the permutation matrix is 1
        elements = [e for e in elements if round(np.linalg.det(np.eye(5)[list(e)])) == 1]
    answers = {}
    for t in range(len(sequence)):
        where = list(things)
        for g in sequence[: t + 1]:
            where = [elements[g][thing] for thing in where]
        answers[t] = elements.index(tuple(where))
    return answers


def in_context_recall(sequence, task):
    known, answers = {}, {}
    for t in range(0, len(sequence), 2):
        key, value = sequence[t : t + 2]
        if key < task.keys:
            assert known.get(key, value) == value
            if key in known:
                answers[t] = value
            known[key] = value
    return answers


def fuzzy_recall(sequence, task):
    """A run of key tokens, then a run of value tokens, is a pair."""
    padding = task.key_vocab + task.value_vocab
    known, answers, begin = {}, {}, next(t for t, x in enumerate(sequence) if x != padding)
    assert begin < 2 * (task.longest_key + task.longest_value)
    runs = itertools.groupby(range(begin, len(sequence)), lambda t: sequence[t] < task.key_vocab)
    places = [list(run) for _, run in runs]
    for key, value in zip(places[::2], places[1::2], strict=True):
        name, tokens = (tuple(sequence[t] for t in run) for run in (key, value))
        assert len(set(name)) == len(name) <= task.longest_key
        assert len(set(tokens)) == len(tokens) <= task.longest_value
        assert known.get(name, tokens) == tokens
        if name in known:
            answers |= {t - 1: sequence[t] for t in value}
        known[name] = tokens
    assert len(sequence) - 1 in places[-1]
    assert value[-1] - 1 in answers
    return answers


def compression(sequence, task):
    """The token i places before the end is answered among the i-th block of ids."""
    *tokens, asking = sequence
    assert asking == task.tokenizer.vocab_size - 1
    return {t: task.values * (len(tokens) - t) + token for t, token in enumerate(tokens)}


def memorization(sequence, task):
    facts = task.value_of_key().tolist()
    assert sorted(facts) == list(range(task.keys, 2 * task.keys))
    return {t: facts[sequence[t - 1]] for t in range(1, len(sequence), 2)}


def needle(sequence, task):
    third = task.tokenizer.vocab_size // 3
    *before, asked = sequence
    keys = [t for t, token in enumerate(before) if third <= token < 2 * third]
    assert len({sequence[t] for t in keys}) == len(keys) == task.needles
    assert all(sequence[t + 1] >= 2 * third for t in keys)
    return {len(before): sequence[before.index(asked) + 1]}


def variable_tracking(sequence, task):
    """A chain is followed from the value that is asked for, at the end, by its assignments."""
    equals = task.tokenizer.vocab_size - 3
    asked = sequence.index(equals + 1)
    assert set(sequence[asked + 2 :]) <= {equals + 2}
    of_source = {}
    for t, token in enumerate(sequence[:asked]):
        if token == equals:
            of_source[sequence[t + 1]] = sequence[t - 1]
            source = sequence[t + 1]
            assert source >= 2 * (equals // 3) or source in of_source.values()  # in order
    assert len(of_source) == task.chains * (task.hops + 1)
    answers, held = {}, sequence[asked + 1]
    for t in range(asked + 1, len(sequence)):
        answers[t] = held = of_source[held]
    return answers


def common_words(sequence, task):
    asked = sequence.index(task.tokenizer.vocab_size - 2)
    count = Counter(sequence[:asked])  # in the order of first places
    common = [word for word, times in count.items() if times > task.other_times]
    assert [count[word] for word in common] == [task.times] * task.common
    return dict(enumerate(common, asked))


def depo(sequence, task):
    n_edges = len(sequence) - 2 * task.questions
    edges = sequence[:n_edges]
    assert len(edges[::2]) == len(set(edges)) > max(task.hops)
    after = dict(zip(edges[::2], edges[1::2], strict=True))
    answers, first = {}, task.tokenizer.vocab_size - len(task.hops)
    for t in range(n_edges, len(sequence), 2):
        node = sequence[t + 1]
        for _ in range(task.hops[sequence[t] - first]):
            node = after[node]
        answers[t + 1] = node
    return answers


def mano(sequence, task):
    m, tokens = task.modulus, iter(x for x in sequence if x != task.modulus + 4)

    def value():
        token = next(tokens)
        if token < m:
            return token
        first, second = value(), value()
        return ((first + second), (first - second), (first * second))[token - m] % m

    answer = value()
    assert list(tokens) == [m + 3]
    return {len(sequence) - 1: answer}


SMALL = {"train_examples": 40, "held_out_examples": 20}
TASKS = [
    MQAR(length=32, pairs=(2, 5), held_out_pairs=(3, 8), tokenizer=Ids(vocab_size=40), **SMALL),
    MQAR(length=16, pairs=(4,), power=1.0, tokenizer=Ids(vocab_size=32), **SMALL),
    SelectiveCopying(length=20, tokens_to_copy=3, **SMALL),
    SelectiveCopying(length=9, tokens_to_copy=4, **SMALL),
    InContextRecall(length=12, keys=3, train_on="answers", **SMALL),
    InContextRecall(length=16, keys=4, noise=0.5, noise_tokens=5, train_on="answers", **SMALL),
    Memorization(length=9, keys=5, **SMALL),
    Needle(length=12, **SMALL),
    Needle(length=15, needles=7, **SMALL),
    *(StateTracking(group=g, length=20, **SMALL) for g in ("parity", "s3", "a5", "s5")),
    FuzzyRecall(length=24, train_on="answers", **SMALL),
    FuzzyRecall(
        **{"length": 14, "key_vocab": 3, "longest_key": 2, "value_vocab": 2, "longest_value": 1},
        **{"train_on": "answers", **SMALL},
    ),
    Compression(length=7, values=4, tokenizer=Ids(vocab_size=60), **SMALL),
    VariableTracking(length=40, chains=3, hops=1, **SMALL),
    VariableTracking(length=22, chains=2, hops=2, tokenizer=Ids(vocab_size=24), **SMALL),
    CommonWords(length=20, common=2, times=4, other_times=2, **SMALL),
    Depo(length=18, hops=(1, 3), **SMALL),
    Mano(length=8, modulus=23, **SMALL),
]
SOLVERS = {
    of.__name__: of
    for of in (
        *(mqar, selective_copying, state_tracking),
        *(in_context_recall, memorization, needle),
        *(fuzzy_recall, compression, variable_tracking, common_words, depo, mano),
    )
}
each = pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind()}-{task.length}")


def test_every_task_has_a_solver():
    kinds = {kind for kind, of in DataConfig.kinds.items() if issubclass(of, Task)}
    assert {task.kind() for task in TASKS} == kinds == SOLVERS.keys()


@each
def test_every_answer_is_right_in_every_split_and_at_other_lengths(task):
    corpus = task.load(NOWHERE)
    for examples in (*corpus.examples.values(), corpus.at_length(2 * task.length)):
        assert examples.tokens_NT.min() >= 0
        assert examples.tokens_NT.max() < task.tokenizer.vocab_size
        assert examples.answers_NT.max() < task.tokenizer.vocab_size
        for tokens, answers in zip(
            examples.tokens_NT.tolist(), examples.answers_NT.tolist(), strict=True
        ):
            given = {t: answer for t, answer in enumerate(answers) if answer >= 0}
            assert given == SOLVERS[task.kind()](tokens, task)


@pytest.mark.parametrize(
    "task",
    [*TASKS, Mano(), Mano(length=20, modulus=12)],
    ids=lambda task: f"{task.kind()}-{task.length}",
)
def test_the_stated_chance_is_that_of_the_best_constant_answer(task):
    """Guess the most frequent answer of other sequences: of all, or of those at the same place."""
    seen, asked = (task.generate(Draws(i), 6000, training=False).answers_NT for i in (11, 12))
    of_place_T = [np.bincount(of[of >= 0], minlength=1).argmax() for of in seen.T]
    guesses = [of_place_T] if task.kind() == "compression" else [of_place_T, most_frequent(seen)]
    n = (asked >= 0).sum()  # choices of compression differ by place
    for guess in guesses:
        accuracy = (asked == guess)[asked >= 0].mean()
        assert abs(accuracy - task.chance) < 4 * math.sqrt(task.chance / n), (accuracy, task.chance)


def most_frequent(answers):
    return np.bincount(answers[answers >= 0]).argmax()


def test_recall_of_mad_trains_on_every_next_token_as_the_original_does():
    for place in (4, 13):
        examples = replace(TASKS[place], train_on="next_tokens").load(NOWHERE).examples
        train = examples["train"]
        np.testing.assert_array_equal(train.answers_NT[:, :-1], train.tokens_NT[:, 1:])
        assert (train.answers_NT[:, -1] < 0).all()
        assert (examples["valid"].answers_NT < 0).any()
    own = replace(TASKS[5], seed=9).load(NOWHERE).examples["train"]
    noisy = (own.tokens_NT[:, 0:-2:2] >= 8).mean()
    assert 0.3 < noisy < 0.55  # half, but for the pair that each sequence has


@each
def test_no_held_out_sequence_is_also_for_training(task):
    examples = task.load(NOWHERE).examples
    if not task.disjoint:
        assert isinstance(task, Memorization)
        return
    train, valid, test = (set(map(bytes, examples[split].tokens_NT)) for split in examples)
    assert len(valid) == len(test) == 20
    assert not train & valid
    assert not train & test
    assert not valid & test


@each
def test_the_sequences_are_the_windows_of_the_split(task):
    corpus = task.load(NOWHERE)
    stream = corpus.train.reshape(-1, task.length + 1)
    np.testing.assert_array_equal(stream[:, :-1], corpus.examples["train"].tokens_NT)
    assert not list(window_problems(corpus, task.length, (2 * task.length,)))
    [problem] = window_problems(corpus, task.length + 1, ())
    assert f"set train.seq_len={task.length}, or data.length={task.length + 1}" in str(problem)


def test_the_same_settings_give_the_same_sequences_everywhere():
    found = [task.load(NOWHERE).fingerprint for task in TASKS]
    assert found == FINGERPRINTS
    for task in TASKS:
        assert replace(task, seed=1).load(NOWHERE).fingerprint not in found


FINGERPRINTS = [
    "d80aa516f3e3dde8",
    "e9218f5689cc391b",
    "736431ec5bbbcca2",
    "343e69fda40b108e",
    "b8a6fdaba2a43d38",
    "781c5b765d085e1a",
    "1e3c4e0164d43252",
    "d724ebcefd89ab2c",
    "d63f380b4bf43c63",
    "eb908244e3401d3f",
    "d428b9bb87f2d989",
    "412aecc55c6964fa",
    "3b4ca2ca33d1e260",
    "5f671b8bad121c73",
    "79d715a8310fad2e",
    "43165146c62fc7fa",
    "fac0baa3cc1b0839",
    "8e47c165676d0177",
    "8809d91a5f0ff6bf",
    "852f5463703bc3aa",
    "a236987778f949f7",
]


def test_the_order_of_training_tells_nothing_of_the_sequences():
    task = replace(TASKS[0], train_examples=2000)
    examples = task.load(NOWHERE).examples["train"]
    starts = window_starts(2000 * 33, seq_len=32, batch_size=200, steps=10, seed=task.seed)
    answers = (examples.answers_NT >= 0).sum(1)[starts // 33].mean(1)  # 2 or 5 of a sequence
    assert abs(answers - 3.5).max() < 0.5


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("mqar", {"pairs": [17]}, "pairs: 17 pairs and their queries need a length of 68, got 64"),
        ("mqar", {"held_out_pairs": [32, 20]}, "held_out_pairs: 20 pairs and their queries need"),
        ("mqar", {"pairs": []}, "pairs: name at least one number of pairs"),
        ("mqar", {"pairs": [0]}, "pairs: name at least one number of pairs, from 1"),
        ("mqar", {"pairs": [4, 4]}, "each once"),
        ("mqar", {"power": 0}, "power: must be positive, got 0"),
        ("mqar", {"tokenizer": {"kind": "ids", "vocab_size": 8}}, "must be at least 10 with these"),
        ("mqar", {"tokenizer": "bytes"}, "tokenizer: a task has ids and no text: use ids"),
        ("mqar", {"seed": -1}, "seed: must not be negative"),
        ("mqar", {"length": 0}, "length: must be at least 1, got 0"),
        ("mqar", {"train_examples": 10**8}, "train_examples: more than 500000000 tokens in all"),
        ("selective_copying", {"length": 32}, "length: 16 tokens need at least 33, got 32"),
        ("selective_copying", {"tokens_to_copy": 0}, "tokens_to_copy: must be at least 1"),
        ("in_context_recall", {"noise": 0.2}, "noise_tokens: must be at least 1, got 0"),
        ("in_context_recall", {"noise": 1}, "noise: must be in [0, 1)"),
        ("in_context_recall", {"length": 7}, "length: must be even and at least 4, got 7"),
        ("in_context_recall", {"keys": 20}, "must be at least 40 with these settings, got 32"),
        ("memorization", {"keys": 0}, "keys: must be at least 1"),
        ("memorization", {"length": 1}, "length: must be at least 2"),
        ("needle", {"needles": 0}, "needles: must be at least 1"),
        ("needle", {"length": 6, "needles": 3}, "length: 3 needles need at least 7, got 6"),
        ("fuzzy_recall", {"longest_key": 0}, "longest_key: must be at least 1, got 0"),
        ("fuzzy_recall", {"value_vocab": 2}, "value_vocab: must be at least 3, got 2: the tokens"),
        ("fuzzy_recall", {"length": 11}, "length: two pairs of 3 and 3 tokens need at least 12"),
        ("fuzzy_recall", {"key_vocab": 8}, "tokenizer.vocab_size: must be at least 17"),
        ("compression", {"values": 1}, "values: must be at least 2, got 1"),
        ("compression", {"length": 1}, "length: must be at least 2, got 1"),
        ("compression", {"length": 64}, "tokenizer.vocab_size: must be at least 961"),
        ("variable_tracking", {"chains": 0}, "chains: must be at least 1, got 0"),
        ("variable_tracking", {"hops": -1}, "hops: must be from 0 to 99, got -1"),
        ("variable_tracking", {"length": 21}, "length: 2 chains of 2 hops need at least 22"),
        ("variable_tracking", {"chains": 11}, "tokenizer.vocab_size: must be at least 102"),
        ("common_words", {"common": 0}, "common: must be at least 1, got 0"),
        ("common_words", {"times": 3}, "times: must be above other_times=3"),
        ("common_words", {"length": 26}, "length: 2 words, 12 times each, with others and"),
        ("common_words", {"length": 1024}, "tokenizer.vocab_size: must be at least 337"),
        ("depo", {"hops": [1, 1]}, "hops: name at least one number of hops, from 1, each once"),
        ("depo", {"questions": 0}, "questions: must be at least 1, got 0"),
        ("depo", {"length": 16}, "more than 4 nodes and 4 questions need an even number from 18"),
        ("mano", {"modulus": 1}, "modulus: must be at least 2, got 1"),
        ("mano", {"length": 7}, "length: must be an even number from 4 to 202, got 7"),
        ("state_tracking", {"group": "s4"}, "group"),
        (
            "state_tracking",
            {"group": "s5", "tokenizer": {"kind": "ids", "vocab_size": 60}},
            "tokenizer.vocab_size: must be at least 120 with these settings, got 60",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(kind, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        DataConfig.from_dict({"kind": kind, **settings})


def test_too_few_different_sequences_are_refused():
    with pytest.raises(DataError, match="state_tracking has too few different sequences of 4 tok"):
        StateTracking(length=4, train_examples=50, held_out_examples=10).load(NOWHERE)
    with pytest.raises(DataError, match="a task has no text"):
        TASKS[0].texts(NOWHERE)


def test_held_out_accuracy_is_kept_apart_by_pairs_and_by_position():
    assert TASKS[0].load(NOWHERE).examples["train"].groups == ("2 pairs", "5 pairs")
    assert TASKS[0].load(NOWHERE).examples["valid"].groups == ("3 pairs", "8 pairs")
    short = replace(TASKS[0], length=24, held_out_pairs=(3, 8))
    assert short.load(NOWHERE).examples["test"].groups == ("3 pairs",)
    tracked = StateTracking(length=20, **SMALL).load(NOWHERE).examples["valid"]
    assert tracked.groups == ("positions 1 to 8", "positions 9 to 16", "positions 17 to 20")
    assert tracked.groups_NT[0].tolist() == [0] * 8 + [1] * 8 + [2] * 4


def test_draws_without_repetition_are_uniform_or_follow_their_weights():
    draws = Draws(7)
    drawn = draws.distinct(5, 6000, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    of_pair = np.bincount(5 * drawn[:, 0] + drawn[:, 1], minlength=25)
    assert of_pair[of_pair > 0].size == 20
    assert abs(of_pair[of_pair > 0] / 6000 - 1 / 20).max() < 0.012
    first, second = draws.weighted(np.array([4.0, 2.0, 1.0, 1.0]), 8000, 2).T
    assert abs(np.bincount(first) / 8000 - np.array([0.5, 0.25, 0.125, 0.125])).max() < 0.02
    after_0 = np.bincount(second[first == 0], minlength=4) / (first == 0).sum()
    assert draws.weighted(np.ones(3), 0, 2).shape == draws.distinct(3, 0, 2).shape == (0, 2)
    assert abs(after_0 - np.array([0, 0.5, 0.25, 0.25])).max() < 0.03


def model_of(task, mechanism=None, n_layers=1):
    mechanism = mechanism or GroupedQuery(n_heads=2, n_kv_heads=2)
    return ModelConfig(
        mechanisms=(mechanism,), n_layers=n_layers, d_model=16, feedforward=NoFeedForward()
    )


def by_hand(model, examples):
    """Loss and correctness of every answer, by group, one position at a time."""
    found = {}
    logits_NTV = model.logits(torch.from_numpy(examples.tokens_NT).long())
    for n, t in np.argwhere(examples.answers_NT >= 0).tolist():
        answer, logits_V = int(examples.answers_NT[n, t]), logits_NTV[n, t]
        if (size := examples.choices) is not None:
            first = answer - answer % size
            answer, logits_V = answer - first, logits_NTV[n, -1, first : first + size]
        nats = -log_softmax(logits_V, -1)[answer].item()
        right = logits_V.argmax().item() == answer
        group = examples.groups[examples.groups_NT[n, t]]
        found.setdefault(group, []).append((n, nats, right))
    return found


@torch.no_grad()
@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("task", [TASKS[i] for i in (0, 2, 8, 9, 15)], ids=lambda task: task.kind())
def test_quality_is_that_of_the_answers_alone(task, one_shape, monkeypatch):
    monkeypatch.setattr("attnlab.training.quality._LOGITS", 200)
    examples = task.load(NOWHERE).examples["valid"]
    model = model_of(task).build(task.tokenizer.vocab_size).double().eval()
    measured = HeldOutAnswers(
        examples, batch_size=7, device=CPU, one_shape=one_shape, ranks=Ranks.alone(CPU)
    )
    assert len({tokens.shape for tokens in measured.tokens}) == 1 or not one_shape
    quality = measured.quality(model, nullcontext())
    expected = by_hand(model, examples)
    every = [one for group in expected.values() for one in group]
    assert quality.loss == pytest.approx(np.mean([nats for _, nats, _ in every]), rel=1e-6)
    assert quality.accuracy == pytest.approx(np.mean([right for *_, right in every]))
    assert quality.by_group.keys() == expected.keys()
    for name, group in quality.by_group.items():
        assert group["answers"] == len(expected[name])
        assert group["loss"] == pytest.approx(np.mean([nats for _, nats, _ in expected[name]]))
        assert group["accuracy"] == pytest.approx(np.mean([r for *_, r in expected[name]]))
    of_each = [sum(nats for n, nats, _ in every if n == i) for i in range(20)]
    counts = [sum(n == i for n, *_ in every) for i in range(20)]
    assert quality.by_block.tokens == tuple(counts)
    means = [nats / count for nats, count in zip(of_each, counts, strict=True)]
    assert quality.by_block.loss == pytest.approx(means, abs=1e-5)
    recorded = quality.detailed("final")
    assert "final_recall_loss" not in recorded
    assert "final_loss_by_position" not in recorded


def run_of(task, mechanism=None, n_layers=1, **train):
    train = {"steps": 2, "batch_size": 6, "warmup_steps": 0, "seq_len": task.length, **train}
    return RunConfig(
        data=task, model=model_of(task, mechanism, n_layers), train=TrainConfig(**train)
    )


@pytest.mark.parametrize("task", [TASKS[i] for i in (0, 9, 15)], ids=lambda task: task.kind())
def test_training_minimises_the_loss_of_the_answers_in_whatever_parts(task):
    corpus = task.load(NOWHERE)
    whole = step_of_run(run_of(task), corpus, CPU)
    parts = step_of_run(run_of(task, micro_batch_size=4), corpus, CPU)
    examples = corpus.examples["train"]
    rows_B = whole.starts_SB[0].numpy() // (task.length + 1)
    with torch.no_grad():
        expected = by_hand(whole.model, examples.rows(rows_B))
    nats = sum(nats for group in expected.values() for _, nats, _ in group)
    mean_answers = (examples.answers_NT >= 0).sum() / len(examples.answers_NT)
    for step in (whole, parts):
        step.advance()
        assert step.means(0, 1)["train_loss"] == pytest.approx(nats / (6 * mean_answers), rel=1e-5)
    for name, weight in whole.model.named_parameters():
        other = dict(parts.model.named_parameters())[name]
        torch.testing.assert_close(other.grad, weight.grad, rtol=1e-4, atol=1e-6)


def test_sequences_of_another_length_are_refused_in_training_too():
    task = TASKS[0]
    with pytest.raises(ValueError, match=r"sequences of 32 tokens: set train.seq_len=32, or data"):
        step_of_run(run_of(task, seq_len=16), task.load(NOWHERE), CPU)
    table = AnswerTable(task.load(NOWHERE).examples["train"], CPU, seq_len=32)
    assert not table.uniform
    assert table.of(torch.arange(40)).weight_BA.mean().item() == pytest.approx(1)


def test_a_validation_split_of_another_length_is_made_for_it():
    corpus = TASKS[0].load(NOWHERE)
    model = model_of(TASKS[0]).build(40)
    longer = held_out(corpus, "valid", seq_len=64, batch_size=4, device=CPU)
    assert longer.quality(model, nullcontext()).by_group.keys() == {"3 pairs", "8 pairs"}
    own = held_out(corpus, "test", seq_len=32, batch_size=4, device=CPU)
    assert own.examples is corpus.examples["test"]


def test_a_leak_is_found_in_a_task_and_no_low_loss_is_suspicious():
    task = TASKS[1]
    corpus = task.load(NOWHERE)
    config = run_of(task)
    model = config.model.build(32)
    monitor = PlausibilityMonitor(corpus, config.train, model, nullcontext())
    assert monitor.check(1, {"eval_loss": 1e-6}) == {}
    assert monitor.final_check() is None
    assert monitor.summary()["ngram_loss"] is None
    assert monitor.alarms == monitor.cleared == []
    windows = corpus.examples["train"].tokens_NT.tolist()
    for tokens, targets in zip(monitor.tokens_BT.tolist(), monitor.target_BT.tolist(), strict=True):
        assert tokens in windows
        assert all(targets[t] == answer for t, answer in mqar(tokens, task).items())
    leaky = PlausibilityMonitor(corpus, config.train, Leaky(model), nullcontext())
    assert "sees the future" in (leaky.final_check() or "")


class Leaky(torch.nn.Module):
    """A model whose features hold those of all later tokens."""

    def __init__(self, model):
        super().__init__()
        self.model, self.embed, self.head_VD = model, model.embed, model.head_VD

    def features(self, tokens_BT):
        x_BTD = self.model.features(tokens_BT)
        return x_BTD + 9 * x_BTD.flip(1).cumsum(1).flip(1)


def best_accuracy(mechanism, steps):
    """The best held-out accuracy in training, which ends when the task is solved."""
    task = MQAR(
        length=16,
        pairs=(4,),
        train_examples=25_600,
        held_out_examples=200,
        tokenizer=Ids(vocab_size=16),
    )
    config = run_of(task, mechanism, 2, steps=600, warmup_steps=40, learning_rate=3e-3)
    config = replace(
        config,
        model=replace(config.model, d_model=32),
        train=replace(config.train, batch_size=64, weight_decay=0.1),
    )
    corpus = task.load(NOWHERE)
    step = step_of_run(config, corpus, CPU)
    measured = held_out(corpus, "valid", seq_len=16, batch_size=200, device=CPU)
    best = 0.0
    while step.step < steps and best < 0.95:
        for _ in range(50):
            step.advance()
        best = max(best, measured.quality(step.model, nullcontext()).accuracy)
    return best


def test_two_layers_of_attention_solve_recall_and_none_do_not():
    assert best_accuracy(GroupedQuery(n_heads=1, n_kv_heads=1), steps=600) > 0.95
    assert best_accuracy(Identity(), steps=150) < 0.25  # 1 of 4 pairs is 0.25; 1 of 8 values 0.125
