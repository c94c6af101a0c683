"""Scores for lm-evaluation-harness are sums over the model's own logits, each token once."""

import importlib.util
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support import tiny_study
from typer.testing import CliRunner

from attnlab.cli import app
from attnlab.data import Places
from attnlab.inference import lm_harness
from attnlab.inference.lm_harness import Scorer, evaluate_tasks
from attnlab.inference.saved_model import Trained
from attnlab.record import DamagedError, RunFolder, harness_results
from attnlab.runner.execute import corpus_of, execute
from attnlab.training.run import Run

LENGTH = tiny_study.base.train.seq_len


@pytest.fixture(scope="module")
def trained() -> Trained:
    config = tiny_study.base
    codec = config.data.tokenizer.fit([], Places.from_environment())
    return Trained(config, config.model.build(256).eval(), codec, 0, None)


@pytest.fixture
def scorer(trained) -> Scorer:
    return Scorer(trained, batch_size=3)


@torch.no_grad()
def by_hand(trained, before: list[int], after: list[int]) -> float:
    """The sum token by token, each after as much text as fits into a window of this length."""
    logits_TV = trained.model.logits(torch.tensor([before + after]))[0].log_softmax(-1)
    first = len(before)
    return sum(float(logits_TV[first + i - 1, token]) for i, token in enumerate(after))


def test_a_continuation_has_the_sum_of_its_tokens_log_probabilities(trained, scorer):
    pairs = [([65, 66], [67]), ([65], [1, 2, 3, 4]), ([9] * 5, [8] * 12), ([7], [66, 65])]
    for pair, scored in zip(pairs, scorer.score(pairs), strict=True):
        assert scored.log_likelihood == pytest.approx(by_hand(trained, *pair), abs=1e-4)


def test_it_is_greedy_if_every_token_is_the_most_likely(trained, scorer):
    text = [65, 66, 67]
    for _ in range(3):
        text.append(int(trained.model.logits(torch.tensor([text]))[0, -1].argmax()))
    wrong = [*text[3:5], (text[5] + 1) % 256]
    scored = scorer.score([(text[:3], text[3:]), (text[:3], wrong)])
    assert [each.is_greedy for each in scored] == [True, False]


def test_a_context_is_cut_on_the_left_to_the_trained_length(trained, scorer):
    context = list(range(100))
    [scored] = scorer.score([(context, [7, 8])])
    kept = context[100 - (LENGTH - 1) :]
    assert scored.log_likelihood == pytest.approx(by_hand(trained, kept, [7, 8]), abs=1e-4)


@pytest.mark.parametrize("n_tokens", [0, 1, LENGTH, LENGTH + 1, 3 * LENGTH - 1])
def test_windows_of_a_long_text_score_every_token_once(n_tokens):
    text = list(range(1000, 1000 + n_tokens))
    windows = list(lm_harness._windows([5], text, LENGTH))
    assert [t for window in windows for t in window.tokens[-window.scored :]] == text
    assert all(window.scored < len(window.tokens) <= LENGTH + 1 for window in windows)


def test_texts_begin_after_a_line_break_and_spaces_belong_to_the_continuation(scorer):
    assert scorer.pair("", "ab") == ([10], [97, 98])
    assert scorer.pair("a ", "b") == scorer.pair("a", " b") == ([97], [32, 98])
    assert scorer.text("ab") == ([10], [97, 98])


def test_an_answer_ends_before_its_stop_string(scorer):
    whole = scorer.answer("def ", {"max_gen_toks": 12})
    assert scorer.answer("def ", {"max_gen_toks": 12, "until": [whole[4:6]]}) in whole[:6]
    assert len(scorer.answer("x" * 500, {"max_gen_toks": 500, "until": []})) <= LENGTH


def test_without_the_harness_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = CliRunner().invoke(app, ["eval", "anywhere", "--tasks", "lambada_openai"])
    assert done.exit_code == 2
    assert "pip install 'attnlab[eval]'" in " ".join(done.output.split())


def test_results_are_recorded_by_run_and_task_with_standard_errors(tmp_path, monkeypatch, trained):
    folder = RunFolder(tmp_path / "tiny", "a.b", 0)
    folder.open({"identity": "x"}, {})
    run = folder.path

    def simple_evaluate(model, tasks, **_):
        request = SimpleNamespace(args=("a", "b"))
        [(log_likelihood, _)] = model.loglikelihood([request])
        assert model.loglikelihood_rolling([SimpleNamespace(args=("b",))])[0] < 0
        of_task = {"alias": "t", "acc,none": log_likelihood, "acc_stderr,none": 0.5}
        return {"results": {tasks[0]: of_task}, "n-shot": {tasks[0]: 0}, "versions": {}}

    modules = {
        "lm_eval": SimpleNamespace(simple_evaluate=simple_evaluate, __version__="0"),
        "lm_eval.tasks": SimpleNamespace(
            TaskManager=lambda include_path: SimpleNamespace(all_tasks=["one", "two"])
        ),
        "lm_eval.api.model": SimpleNamespace(LM=object),
    }
    monkeypatch.setattr(lm_harness, "import_module", modules.__getitem__)
    monkeypatch.setattr(lm_harness, "load_run", lambda *_, **__: trained)
    expected = {"value": pytest.approx(by_hand(trained, [97], [98])), "standard_error": 0.5}
    for task in ("one", "two"):
        assert evaluate_tasks(run, [task])[task]["metrics"] == {"acc": expected}
    monkeypatch.chdir(run)
    evaluate_tasks(".", ["two"])
    [(key, recorded)] = harness_results(tmp_path / "tiny").items()
    assert key == "a%2Eb/seed-0"
    assert recorded.keys() == {"one", "two"}
    assert recorded["one"]["metrics"] == {"acc": expected}
    assert recorded["one"]["identity"] == "x"
    with pytest.raises(ValueError, match="unknown tasks: three"):
        evaluate_tasks(run, ["three"])
    (tmp_path / "tiny/harness.json").write_text('{"runs": []}')
    with pytest.raises(DamagedError, match=r"harness\.json is damaged \(runs: expected an object"):
        evaluate_tasks(run, ["one"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")
def test_the_harness_itself_scores_a_task_from_a_file(tmp_path):
    places = Places(None, tmp_path / "cache")
    config = replace(tiny_study.base, seed=0)
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    [*_] = execute(
        Run(variant="mha", config=config), tmp_path / "tiny", identity, places, torch.device("cpu")
    )
    rows = [{"q": "def f(", "choices": ["x):", "zz"]}, {"q": "import ", "choices": ["os", "Q"]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    run = tmp_path / "tiny/mha/seed-0"
    found = evaluate_tasks(run, ["mine"], include=tmp_path, device="cpu")
    assert 0 <= found["mine"]["metrics"]["acc"]["value"] <= 1
    assert found["mine"]["metrics"]["acc"]["standard_error"] is not None
