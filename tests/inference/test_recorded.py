"""A run's folder and an export are data: verified, complete, and no code runs unasked.

Scores for lm-evaluation-harness are sums over the model's own logits, each token once.
"""

import importlib.util
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import tiny_study
from typer.testing import CliRunner

import attnlab
from attnlab.cli import app
from attnlab.config import forget_names
from attnlab.data import Places
from attnlab.inference import lm_harness
from attnlab.inference.lm_harness import Scorer, evaluate_tasks
from attnlab.inference.recorded import remember_code
from attnlab.inference.saved_model import Trained
from attnlab.mechanism import MechanismConfig
from attnlab.record import DamagedError, RunFolder, harness_results
from attnlab.runner.comparable import conflict
from attnlab.runner.execute import corpus_of, execute
from attnlab.training.run import Run, RunConfig

CPU = torch.device("cpu")
MECHANISM = """
from dataclasses import dataclass
from torch import nn
from attnlab.mechanism import Mechanism, MechanismConfig
from helper import causal_mean

@dataclass(frozen=True, kw_only=True)
class Mine(MechanismConfig):
    def build(self, d_model, dropout=0.0):
        return Mixer(d_model)

class Mixer(Mechanism):
    def __init__(self, d_model):
        super().__init__()
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD):
        return self.o_proj(causal_mean(x_BTD))
"""
HELPER = """
import torch

def causal_mean(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
"""


def train(config: RunConfig, study_dir: Path, cache: Path) -> Path:
    places = Places(None, cache)
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    *_, end = execute(Run(variant="mine", config=config), study_dir, identity, places, CPU)
    assert end.status == "finished", end
    return study_dir / "mine" / "seed-0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with own/mine.py and own/helper.py, run/, trained with them, and its export/."""
    home, kinds = tmp_path_factory.mktemp("made"), dict(MechanismConfig.kinds)
    (home / "own").mkdir()
    (home / "own/mine.py").write_text(MECHANISM)
    (home / "own/helper.py").write_text(HELPER)
    own = MechanismConfig.of_kind(f"{home}/own/mine.py:Mine")()
    config = tiny_study.base.with_mechanisms(own)
    config = replace(config, train=replace(config.train, steps=4, keep="last"))
    shutil.copytree(train(config, home / "study", home / "cache"), home / "run")
    attnlab.export(home / "run", home / "export", trust=True)
    MechanismConfig.kinds.clear()
    MechanismConfig.kinds.update(kinds)
    return home, config


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy without the original code, and a machine that has not executed it."""
    for name in ("run", "export"):
        shutil.copytree(made[0] / name, tmp_path / name)
        record = tmp_path / name / ("environment.json" if name == "run" else "state.json")
        assert str(made[0] / "own/mine.py") in record.read_text()
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_forward_alone_is_trained_sampled_and_left_without_cost(made, home):
    summary = json.loads((home / "run/summary.json").read_text())
    assert summary["flops_per_token"] is None
    assert summary["state_bytes"] is None
    assert summary["parameters"]["attention"] == 2 * 16 * 16
    assert len(attnlab.generate("run", "def", max_new_tokens=3, device="cpu", trust=True)) == 1


@pytest.mark.parametrize("folder", ["run", "export"])
def test_code_in_a_folder_is_executed_only_when_it_is_trusted(made, home, folder):
    assert {path.name for path in (home / folder / "sources").iterdir()} == {"mine.py", "helper.py"}
    with pytest.raises(ValueError, match=r"runs code of its own.*mine\.py.*--trust"):
        attnlab.load_run(folder)
    trusted = attnlab.load_run(folder, trust=True)
    forget_names()
    remember_code(made[1])  # as attnlab.run does with code that the user names
    known = attnlab.load_run(folder)
    assert all(map(torch.equal, trusted.model.parameters(), known.model.parameters()))
    (home / folder / "sources" / "more.py").write_text("")  # any other byte is other code
    with pytest.raises(ValueError, match="was added"):
        attnlab.load_run(folder)


@pytest.mark.parametrize("command", ["generate", "export", "extend"])
def test_each_command_asks_for_trust_and_takes_it(made, home, command, monkeypatch):
    monkeypatch.setattr("attnlab.runner.extend.write_report", Path.is_dir)
    words = {
        "generate": ["run", "--prompt", "def", "--max-new-tokens", "2", "--device", "cpu"],
        "export": ["run", "--out", "again"],
        "extend": ["run", "--by", "2", "--device", "cpu"],
    }
    if command == "extend":
        (home / "study/mine").mkdir(parents=True)
        (home / "run").rename(home / "study/mine/seed-0")
        words["extend"][0] = "study/mine/seed-0"
    refused = CliRunner().invoke(app, [command, *words[command]])
    assert refused.exit_code == 2
    assert refused.output.count("\n") == 1
    assert "--trust" in refused.output
    done = CliRunner().invoke(app, [command, *words[command], "--trust"])
    assert done.exit_code == 0, done.output


def test_an_edited_original_is_named_and_the_runs_own_copy_is_offered(made, home, monkeypatch):
    forget_names()
    remember_code(made[1])
    path = made[0] / "own/helper.py"
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    path.write_text(HELPER.replace("+ 1", "+ 2"))
    try:
        with pytest.raises(ValueError, match=r"own/helper\.py was edited after .*--trust"):
            attnlab.load_run("run")
        attnlab.load_run("run", trust=True)
    finally:
        path.write_text(HELPER)
    attnlab.load_run("run")


def test_a_conflict_says_which_setting_file_or_data_changed(made, home, monkeypatch):
    config, path = made[1], made[0] / "own/helper.py"
    (home / "study/mine").mkdir(parents=True)
    (home / "run").rename(home / "study/mine/seed-0")
    run, folder = Run(variant="mine", config=config), RunFolder(home / "study", "mine", 0)
    forget_names()
    data = folder.environment()["data"]["fingerprint"]
    assert conflict(run, folder, data) == ""
    assert conflict(run, folder, "other") == (
        f"the data has changed (stdlib: {data} there, other now)"
    )
    longer = replace(run, config=replace(config, train=replace(config.train, steps=5)))
    assert conflict(longer, folder, data) == "train.steps is 4 there, 5 requested"
    path.write_text(HELPER + "# edited")
    try:
        assert conflict(run, folder, data) == "helper.py was edited"
    finally:
        path.write_text(HELPER)


EDITS = {
    "config.json": lambda text: text.replace('"d_ff": 32', '"d_ff": 40'),
    "sources/helper.py": lambda text: text.replace("+ 1", "+ 2"),
    "tokenizer.json": lambda text: text[:-20],
}


@pytest.mark.parametrize("folder", ["run", "export"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_named_and_nothing_is_exported(home, folder, name):
    path = home / folder / name
    path.write_text(EDITS[name](path.read_text()))
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        attnlab.export(folder, "new", trust=True)
    assert not (home / "new").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("absent")


MUTATIONS = {
    "cut": cut,
    "flipped": flip,
    "absent": Path.unlink,
    "folder": a_folder,
    "pipe": a_pipe,
    "link": a_link,
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "latin": lambda path: path.write_bytes(b"\xff\xfe{}"),
    "huge": lambda path: path.write_text('{"seed": 1e999, "step": 1' + "0" * 5000 + "}"),
}


def loaded_or_said(folder: str) -> Trained | str:
    try:
        return attnlab.load_run(folder, trust=True)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("folder", ["run", "export"])
def test_whatever_happens_to_a_file_is_one_line_or_changes_nothing(made, home, folder, mutation):
    expected = list(attnlab.load_run(made[0] / folder, trust=True).model.parameters())
    files = sorted(path.relative_to(home) for path in (home / folder).rglob("*") if path.is_file())
    unread = ("metrics.jsonl", "summary.json", "optimizer.safetensors")
    for name in (name for name in files if name.name not in unread):
        shutil.rmtree(home / folder)
        shutil.copytree(made[0] / folder, home / folder)
        MUTATIONS[mutation](home / name)
        found = loaded_or_said(folder)
        if isinstance(found, str):
            assert found.strip(), name
            assert "\n" not in found, name
        else:
            assert all(map(torch.equal, expected, found.model.parameters())), name
            assert found.note is not None or mutation == "flipped", name


def test_the_weights_alone_are_a_sixth_and_can_be_sampled_but_not_extended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(tiny_study.base, train=replace(tiny_study.base.train, steps=4))
    sizes, models = {}, {}
    for keep in ("last", "weights"):
        kept = replace(config, train=replace(config.train, keep=keep))
        run = train(kept, Path("results") / keep, tmp_path / "cache")
        files = list((run / "checkpoints").rglob("*.safetensors"))
        sizes[keep] = sum(path.stat().st_size for path in files)
        models[keep] = attnlab.load_run(run).model.state_dict()
    assert sizes["weights"] < sizes["last"] / 4
    for name, full in models["last"].items():
        torch.testing.assert_close(models["weights"][name], full, rtol=2**-8, atol=0)
    shown = CliRunner().invoke(app, ["generate", "--prompt", "def", "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert "run: results/weights/mine/seed-0" in shown.output
    with pytest.raises(ValueError, match=r"weights alone were kept.*train\.keep=last"):
        attnlab.extend("results/weights/mine/seed-0", by=2, cache=tmp_path / "cache", device="cpu")


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
