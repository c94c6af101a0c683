"""What the README shows works as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_study

import attnlab
from attnlab.analysis.analysis import analyse
from attnlab.checks import assert_correct
from attnlab.config import ConfigError, load_file
from attnlab.data import Places
from attnlab.mechanism import MechanismConfig
from attnlab.runner.execute import execute
from attnlab.study.study import load_study
from attnlab.training.run import Run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(marker: str) -> str:
    (found,) = [code for code in BLOCKS if marker in code]
    return found


def test_the_study_file_loads(tmp_path):
    path = tmp_path / "my_study.py"
    path.write_text(block("study = Study("))
    study = load_study(str(path))
    assert next(iter(study.variants)) == "mha"
    layers = study.variants["hybrid"].model.per_layer()
    assert [layer.kind() for layer in layers] == ["gated_delta_net"] * 3 + ["grouped_query"]


def test_the_hybrids_of_the_readme_have_attention_where_they_say():
    names: dict[str, Any] = {}
    exec(block("spread_evenly"), names)
    variants, n_layers = names["variants"], names["base"].model.n_layers
    placed = {
        name: [i for i, m in enumerate(c.model.per_layer()) if m == names["attention"]]
        for name, c in variants.items()
    }
    assert placed["at_1"] == [1]
    assert placed["first_n_1"] == [0]
    assert placed["last_n_1"] == placed["spread_evenly_1"] == [n_layers - 1]
    assert len(variants) == 1 + 3 * (n_layers - 1)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # users' snippets do that
def test_the_results_snippet_runs_on_the_results_that_ship(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(block("comprehensive_results.json"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("1. linear: Loss 4.66")


def test_the_table_is_that_of_the_results_that_ship():
    results = json.loads((ROOT / "results/mechanisms/comprehensive_results.json").read_text())
    number = r"([+-]?[\d.]+)"
    rows = re.findall(
        rf"^\| (\d+) \| (\d+) \| (\w+) \| [^|]+ \| {number} ± {number} "
        rf"\| (?:{number} ± {number}|baseline) \| {number} \| [^|]+ \|$",
        README,
        re.MULTILINE,
    )
    assert len(rows) == len(results) == 11
    for rank, tier, name, loss, spread, difference, half_width, step in rows:
        result = results[name]
        assert (int(rank), int(tier)) == (result["rank"], result["tier"])
        assert loss == f"{result['test_loss']:.4f}"
        assert spread == f"{result['spread']['test_loss']:.4f}"
        assert step == f"{1000 * result['step_time']:.2f}"
        if name != "mha":
            to_mha = result["difference_to_baseline"]
            assert difference == f"{to_mha['mean']:+.4f}"
            assert half_width == f"{(to_mha['high_95'] - to_mha['low_95']) / 2:.4f}"


def test_the_verdict_is_that_of_the_results_that_ship():
    quoted = " ".join(re.findall(r"^> (.*)$", README, re.MULTILINE))
    assert quoted == " ".join(analyse(ROOT / "results/mechanisms").headline)


def test_the_times_of_decoding_are_those_that_ship():
    points = json.loads((ROOT / "results/decode/bench.json").read_text())["points"]
    rows = re.findall(r"^\| ([\w ,-]+) ((?:\| [\d.]+ ){4})\| \S+ \w+ \|$", README, re.MULTILINE)
    times = [[f"{float(time):.2f}" for time in cells.split("|")[1:]] for _, cells in rows]
    measured: dict[str, list[str]] = {}
    for point in sorted(points, key=lambda point: point["context"]):
        if point["batch"] == 1:
            measured.setdefault(point["variant"], []).append(f"{1000 * point['seconds']:.2f}")
    assert sorted(times) == sorted(measured.values())
    assert len(times) == 6


def test_the_mechanism_keeps_the_contract(tmp_path, monkeypatch):
    (tmp_path / "moving_average.py").write_text(block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    config = MechanismConfig.from_dict({"kind": "moving_average.py:MovingAverage"})
    assert_correct(config)
    with pytest.raises(ConfigError, match="decay: must be in"):
        load_file(tmp_path / "moving_average.py").MovingAverage(decay=2.0)


def test_the_error_shown_is_the_error_given():
    with pytest.raises(ConfigError) as error:
        load_study("mechanisms").override(["train.stpes=100", "model.d_model=130"])
    said = [str(problem) for problem in error.value.problems]
    assert "train: no field 'stpes'; did you mean 'steps'?" in said
    assert any(
        s.startswith("model.mechanisms.0.n_heads: 4 does not divide d_model 130") for s in said
    )


def test_every_public_name_is_there():
    assert all(getattr(attnlab, name) is not None for name in attnlab.__all__)
    assert {*attnlab.__all__} == {*attnlab._HOME, "__version__"}
    with pytest.raises(AttributeError, match="attnlab has no 'Nothing'"):
        attnlab.Nothing  # noqa: B018


def test_every_link_leads_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), (document, target)


def test_the_results_that_ship_are_those_of_the_study_that_ships():
    study, results = load_study("mechanisms"), ROOT / "results/mechanisms"
    choices = {
        variant: json.loads((results / variant / "tuning/choice.json").read_text())
        for variant in study.variants
    }
    runs = study.runs({variant: choice["learning_rate"] for variant, choice in choices.items()})
    assert len(runs) == 55
    for run in runs:
        folder = results / run.variant / f"seed-{run.seed}"
        fingerprint = json.loads((folder / "environment.json").read_text())["data"]["fingerprint"]
        identity = json.loads((folder / "config.json").read_text())["identity"]
        assert run.config.identity(fingerprint) == identity, folder


def test_an_exported_run_gives_its_model_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(variant="mha", config=tiny_study.base)
    list(execute(run, tmp_path, "x", Places(None, tmp_path / "cache"), torch.device("cpu")))
    attnlab.export("mha/seed-0", "my_model")
    names: dict[str, Any] = {}
    exec(block('load_run("my_model")'), names)
    assert names["logits_BTV"].shape == (1, 4, 256)


def test_the_users_own_test_passes_and_can_fail(tmp_path, monkeypatch):
    path = tmp_path / "moving_average.py"
    path.write_text(block("class MovingAverage("))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("import assert_correct"), names)
    names["test_my_mechanism_keeps_its_promises"]()
    leaky = path.read_text().replace(".tril()", "").replace("MovingAverage", "Leaky")
    (tmp_path / "leaky.py").write_text(leaky)
    with pytest.raises(AssertionError, match="no position sees the future"):
        names["assert_correct"]("leaky.py:Leaky")
