"""The Python that the documentation shows runs as it stands."""

import json
import re
import shutil
from typing import Any

import pytest
import torch
from support import fake_workers, tiny_study
from support.pages import ROOT, blocks, python_block
from typer.testing import CliRunner

import attnlab
from attnlab import assert_correct, load_study
from attnlab.analysis.analysis import analyse
from attnlab.cli import app
from attnlab.config import ConfigError, load_file
from attnlab.data import Places
from attnlab.mechanism import MechanismConfig
from attnlab.reporting import write_results
from attnlab.runner.execute import corpus_of, execute
from attnlab.training.run import Run

ALL = blocks("python")
RUN_ELSEWHERE = (
    *("attnlab.run(", "def test_", 'load_run("my_model")', "class MovingAverage("),
    *("comprehensive_results.json", "from moving_average import"),
)


@pytest.mark.parametrize("block", ALL, ids=[f"{b.page}:{b.text[:30]!r}" for b in ALL])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # users' snippets do that
def test_every_snippet_runs(block, tmp_path, monkeypatch):
    code = compile(block.text, block.page, "exec")
    if any(marker in block.text for marker in RUN_ELSEWHERE):
        return
    monkeypatch.chdir(ROOT)
    exec(code, {"__name__": "snippet", "__doc__": "A question?"})


def test_the_study_of_the_readme_loads(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text(python_block("SlidingWindow(window=w)"))
    study = load_study(str(path))
    assert next(iter(study.variants)) == "mha"
    layers = study.variants["hybrid"].model.per_layer()
    assert [layer.kind() for layer in layers] == ["gated_delta_net"] * 3 + ["grouped_query"]


def test_the_hybrids_have_attention_where_the_page_says():
    names: dict[str, Any] = {}
    exec(python_block("spread_evenly"), names)
    variants, n_layers = names["variants"], names["base"].model.n_layers
    placed = {
        name: [i for i, m in enumerate(c.model.per_layer()) if m == names["attention"]]
        for name, c in variants.items()
    }
    assert placed["at_1"] == [1]
    assert placed["first_n_1"] == [0]
    assert placed["last_n_1"] == placed["spread_evenly_1"] == [n_layers - 1]
    assert len(variants) == 1 + 3 * (n_layers - 1)


def test_the_sweep_varies_the_width():
    names: dict[str, Any] = {}
    exec(python_block("width_{width}"), names)
    assert [config.model.d_model for config in names["variants"].values()] == [32, 64, 128]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_results_snippet_prints_the_ranking(tmp_path, monkeypatch, capsys):
    study_dir = tmp_path / "results" / "mechanisms"
    shutil.copytree(ROOT / "published" / "mechanisms", study_dir)
    write_results(study_dir)
    monkeypatch.chdir(tmp_path)
    exec(python_block("comprehensive_results.json"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("1. linear: Loss 4.6142")


def test_the_mechanism_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "moving_average.py").write_text(python_block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    config = MechanismConfig.from_dict({"kind": "moving_average.py:MovingAverage"})
    assert_correct(config)
    with pytest.raises(ConfigError, match="decay: must be in"):
        load_file(tmp_path / "moving_average.py").MovingAverage(decay=2.0)


def test_the_mechanism_is_trained(tmp_path, monkeypatch):
    (tmp_path / "moving_average.py").write_text(python_block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    change = ["model.mechanisms.0=moving_average.py:MovingAverage"]
    config = tiny_study.study.only(["mha"]).override(change).variants["mha"]
    run = Run(variant="mine", config=config)
    places = Places(None, tmp_path / "cache")
    list(execute(run, tmp_path, "x", places, torch.device("cpu")))
    assert (tmp_path / "mine/seed-0/summary.json").is_file()


def test_the_study_with_ones_own_mechanism_runs_from_another_folder(tmp_path, monkeypatch):
    """The commands of the page: run, run again, sample, export, from two working directories."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/moving_average.py").write_text(python_block("class MovingAverage("))
    (tmp_path / "mine/my_study.py").write_text(python_block("from moving_average import"))
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    for name in ("write_report", "write_results"):  # which take longer than training
        monkeypatch.setattr(f"attnlab.runner.run.{name}", analyse)
    monkeypatch.chdir(tmp_path)
    short = ["train.steps=2", "train.warmup_steps=1", "data.max_bytes=100000", "model.d_model=16"]
    small = [*short, "train.batch_size=1", "train.seq_len=32", "--seeds", "1", "--device", "cpu"]
    only = ["--only", "moving_average", "--no-check", "--out", str(tmp_path / "out"), *small]
    cli = CliRunner()
    first = cli.invoke(app, ["run", "mine/my_study.py", *only])
    assert first.exit_code == 0, first.output
    run = tmp_path / "out/moving_average/seed-0"
    before = (run / "summary.json").read_bytes()
    monkeypatch.chdir(tmp_path / "mine")
    again = cli.invoke(app, ["run", "my_study.py", *only])
    assert again.exit_code == 0, again.output
    assert (run / "summary.json").read_bytes() == before
    added = cli.invoke(
        app,
        [
            *("run", "quickstart", "--add", "slow=moving_average.py:MovingAverage:decay=0.99"),
            *("--only", "slow", "--no-check", "--out", str(tmp_path / "added"), *small),
        ],
    )
    assert added.exit_code == 0, added.output
    slow = json.loads((tmp_path / "added/slow/seed-0/config.json").read_text())
    assert slow["model"]["mechanisms"] == [
        {"kind": "moving_average.py:MovingAverage", "decay": 0.99}
    ]
    shutil.rmtree(tmp_path / "mine", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    for words in (["export", str(run), "new"], ["generate", "new", "--prompt", "a"]):
        done = cli.invoke(app, words)
        assert done.exit_code == 0, done.output


def test_the_error_shown_is_the_error_given():
    with pytest.raises(ConfigError) as error:
        load_study("mechanisms").override(["train.stpes=100", "model.d_model=130"])
    said = [str(problem) for problem in error.value.problems]
    page = (ROOT / "docs/guides/own-study.md").read_text()
    shown = re.search(r"invalid settings; nothing was run\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    for line in shown[1].splitlines():
        start = line.strip().removesuffix(", ...)")
        assert any(sentence.startswith(start) for sentence in said), line


def test_an_exported_run_gives_its_model_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(variant="mha", config=tiny_study.base)
    places = Places(None, tmp_path / "cache")
    identity = run.config.identity(corpus_of(run.config.data, places).fingerprint)
    list(execute(run, tmp_path, identity, places, torch.device("cpu")))
    attnlab.export("mha/seed-0", "my_model")
    names: dict[str, Any] = {}
    exec(python_block('load_run("my_model")'), names)
    assert names["logits_BTV"].shape == (1, 4, 256)


def test_the_users_own_test_passes_and_can_fail(tmp_path, monkeypatch):
    path = tmp_path / "moving_average.py"
    path.write_text(python_block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_block("import assert_correct"), names)
    names["test_my_mechanism_is_correct"]()
    leaky = path.read_text().replace(".tril()", "").replace("MovingAverage", "Leaky")
    (tmp_path / "leaky.py").write_text(leaky)
    with pytest.raises(AssertionError, match="no position sees the future"):
        names["assert_correct"]("leaky.py:Leaky")
