"""A sweep makes a study of another: every combination of the values of some settings."""

from dataclasses import replace

import pytest
from support.reported_study import steady, write_study
from support.tiny_study import study as TINY

from attnlab.analysis.analysis import analyse
from attnlab.config import ConfigError
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.record import RunFolder, StudyRecord
from attnlab.reporting.pages import page
from attnlab.runner.request import Request
from attnlab.study.load import load_study
from attnlab.study.sweep import sweep, typed_sweep

WINDOW = "model.mechanisms.0.window"


def test_one_variant_is_swept_over_one_setting():
    request = Request(
        study="mechanisms", only="sliding_256", sweep=[f"{WINDOW}=128, 256,1k"], steps=200
    )
    swept = request.apply_options()
    assert swept.name == "mechanisms_sliding_256_window"
    assert list(swept.variants) == ["window_128", "window_256", "window_1k"]
    windows = [config.model.mechanisms[0].window for config in swept.variants.values()]
    assert windows == [128, 256, 1024]
    assert {config.train.steps for config in swept.variants.values()} == {200}
    assert swept.swept == (WINDOW,)
    assert (swept.baseline, swept.hypotheses, swept.families) == ("window_256", (), {})
    assert swept.tuning == load_study("mechanisms").tuning
    assert "sweep={'model.mechanisms.0.window': ['128', '256', '1k']}" in request.call()


def test_several_settings_are_combined_and_several_variants_are_families(tmp_path):
    plain = replace(TINY, name="tiny", hypotheses=())
    both = sweep(plain, {"model.n_layers": [1, 2], "train.weight_decay": ["0", "0.1"]})
    assert both.name == "tiny_n_layers_weight_decay"
    assert len(both.variants) == 4 * len(TINY.variants)
    config = both.variants["mha_n_layers_1_weight_decay_0.1"]
    assert (config.model.n_layers, config.train.weight_decay) == (1, 0.1)
    assert both.families["mha"][0] == "mha_n_layers_1_weight_decay_0"
    both.record(command="c", checked=True).write(tmp_path)
    assert StudyRecord.read(tmp_path).swept == ("model.n_layers", "train.weight_decay")


def test_names_are_told_apart_by_more_of_their_path():
    near = SlidingWindow(n_heads=2, n_kv_heads=2, window=4)
    mixed = TINY.variants["mha"].with_mechanisms(near, layers={0: replace(near, window=8)})
    study = replace(TINY, variants={"mixed": mixed}, baseline="mixed", hypotheses=(), labels={})
    paths = [f"model.mechanisms.{place}.window" for place in ("default", "layers.0")]
    assert list(sweep(study, {path: ["2", "3"] for path in paths}).variants) == [
        "default_window_2_0_window_2",
        "default_window_2_0_window_3",
        "default_window_3_0_window_2",
        "default_window_3_0_window_3",
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model.n_layers", "write PATH=VALUE,VALUE"),
        ("model.n_layers=", "write PATH=VALUE,VALUE"),
        ("=1,2", "write PATH=VALUE,VALUE"),
        ("model.n_layers=2", "two values or more, each once; got 2"),
        ("model.n_layers=2,2", "two values or more, each once; got 2, 2"),
        ("model.n_layers=1024,1k", "n_layers_1024 and n_layers_1k are the same run"),
        ("model.n_layer=1,2", "did you mean 'n_layers'"),
        ("model.n_layers=one,2", "n_layers"),
    ],
)
def test_impossible_sweeps_say_why(typed, said):
    with pytest.raises(ConfigError, match=said):
        sweep(TINY.only(["mha"]), typed_sweep([typed]))


def test_a_path_is_given_once():
    with pytest.raises(ConfigError, match=r"sweep: a\.b is given twice"):
        typed_sweep(["a.b=1,2", "a.b=3,4"])


def test_the_report_shows_the_loss_along_each_swept_setting(tmp_path):
    chosen = replace(TINY.only(["mha"]), name="tiny", seeds=3, tuning=None)
    swept = sweep(chosen, {"model.n_layers": [1, 2], "train.weight_decay": ["0", "0.1"]})
    swept.record(command="c", checked=True).write(tmp_path)
    gains = {name: 0.2 * name.startswith("n_layers_2") for name in swept.variants}
    for place, run in enumerate(swept.runs()):
        folder = RunFolder(tmp_path, run.variant, run.seed)
        folder.open({**run.config.to_dict(), "identity": "x"}, {"device": "cpu"})
        loss = 5.0 - gains[run.variant] + 0.001 * (7 * place % 5)
        folder.finish({"status": "finished", "final_loss": loss, "alarms": []})
    analysis = analyse(tmp_path)
    depth, decay = analysis.swept
    assert (depth.path, depth.values, depth.numeric) == ("model.n_layers", (1, 2), True)
    assert (decay.values, decay.numeric) == ((0.0, 0.1), False)  # 0 has no place on a log axis
    assert list(depth.lines) == ["weight_decay 0.0", "weight_decay 0.1"]
    first, second = depth.lines["weight_decay 0.1"]
    assert second.difference.mean - first.difference.mean == pytest.approx(-0.2, abs=0.01)
    html = page(analysis)
    assert "Along the swept settings" in html
    assert html.count("against model.n_layers (nats/token)") >= 1
    assert analyse(write_study(tmp_path / "plain", {"mha": steady(5.0)})).swept == ()


def test_a_study_declares_what_it_sweeps_and_a_variant_without_the_setting_has_no_place(tmp_path):
    study = replace(load_study("top_k"), name="top_k", hypotheses=())
    study.record(command="c", checked=True).write(tmp_path)
    for run in study.runs():
        folder = RunFolder(tmp_path, run.variant, run.seed)
        folder.open({**run.config.to_dict(), "identity": "x"}, {"device": "cpu"})
        loss = 5.0 + 0.1 * (run.variant == "top_k_128") + 0.001 * (7 * run.seed % 5)
        folder.finish({"status": "finished", "final_loss": loss, "alarms": []})
    (setting,) = analyse(tmp_path).swept
    (line,) = setting.lines.values()
    assert [point.value for point in line] == [128, 256, 512]
    assert line[0].difference.mean == pytest.approx(0.1)
    with pytest.raises(ConfigError, match=r"swept: no variant has a setting 'model\.top_k'"):
        replace(study, swept=("model.top_k",))
