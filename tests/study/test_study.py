"""A study has a question, variants and runs with identities.

A sweep makes a study of another: every combination of the values of some settings.
"""

import gzip
import inspect
import json
from dataclasses import replace

import pytest
from support import ROOT, tiny_study
from support.reported_study import steady, write_study
from support.tiny_study import study as TINY

from attnlab.analysis.analysis import analyse
from attnlab.analysis.fairness import compared_groups, tuned_batch
from attnlab.config import ConfigError, drop_unset
from attnlab.data.text import WikiText2
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.record import RunFolder, StudyRecord, tuning_runs, tuning_seed
from attnlab.reporting.pages import page
from attnlab.runner.request import Request
from attnlab.study.study import Study
from attnlab.study.sweep import sweep, typed_sweep
from attnlab.study.targets import load_study, shipped, shipped_names
from attnlab.training.config import EvalConfig, Recipe, Tuning


def test_the_mechanisms_study_is_as_specified():
    study = load_study("mechanisms")
    assert list(study.variants) == [
        *("mha", "mla", "gqa_2", "gqa_1", "mqa", "sliding_512", "sliding_256"),
        *("sparse_512", "sparse_256", "linear", "identity"),
    ]
    assert study.baseline == "mha"
    for config in study.variants.values():
        model, train = config.model, config.train
        assert (model.n_layers, model.d_model, model.dropout) == (4, 128, 0.1)
        assert model.feedforward.to_dict() == {"kind": "dense", "d_ff": 512}
        assert (train.steps, train.batch_size, train.seq_len) == (1000, 4, 1024)
        assert (train.learning_rate, train.warmup_steps, train.weight_decay) == (3e-4, 100, 0.01)
        assert (train.betas, train.clip_norm, train.final_learning_rate_ratio) == (
            (0.9, 0.95),
            1.0,
            0.1,
        )
        assert (train.log_every, train.eval_every) == (50, 100)
        assert config.data.to_dict()["tokenizer"] == {"kind": "bpe", "vocab_size": 32_000}
    assert study.variants["gqa_1"] == study.variants["mqa"]
    assert study.seeds == 5
    assert study.tuning == Tuning(multiples=(4, 8, 16, 32))
    kinds = [hypothesis.kind() for hypothesis in study.hypotheses]
    orders = ["ordered", "ordered", "ordered_by_cost"]
    assert kinds == ["ranked", *["better"] * 2, "needed_in_every_layer", *orders, "equivalent"]
    quality, speed = study.hypotheses[-3:-1]
    assert set(quality.variants) == set(speed.variants) == set(study.variants) - {"gqa_1"}


def test_attention_is_replaced_layer_by_layer():
    study, full = load_study("attention_needed"), ["grouped_query"] * 4
    layers = {
        name: [mechanism.kind() for mechanism in config.model.per_layer()]
        for name, config in study.variants.items()
    }
    assert layers.pop("mha") == full
    places = {f"at_{i}": [i] for i in range(4)}
    places |= {"first_2": [0, 1], "first_3": [0, 1, 2], "last_2": [2, 3], "last_3": [1, 2, 3]}
    for name, kind in (("identity", "identity"), ("sliding", "sliding_window")):
        assert layers.pop(name) == [kind] * 4
        for where, replaced in places.items():
            expected = [kind if i in replaced else full[i] for i in range(4)]
            assert layers.pop(f"{name}_{where}") == expected
    assert layers == {}
    first = load_study("mechanisms")
    for name, same in (("mha", "mha"), ("identity", "identity"), ("sliding", "sliding_256")):
        assert study.variants[name] == first.variants[same]
    assert (study.seeds, study.tuning) == (first.seeds, first.tuning)


@pytest.mark.parametrize(
    "name", ["mechanisms", "attention_needed", "deepseek", "fair_search", "hybrids"]
)
def test_the_runs_that_ship_are_those_of_the_study(name):
    folder, found = ROOT / "published" / name, 0
    study = load_study(name)
    by_variant = StudyRecord.read(folder).runs(folder)
    for variant in study.variants:
        tuned = tuning_runs(folder, variant)
        for run in [*by_variant.get(variant, ()), *tuned]:
            if (recorded := run.recorded()) is None:
                continue
            written, data = recorded.config, recorded.environment["data"]
            again, searched = study.variants[variant], ["learning_rate", "warmup_steps"]
            if run.recipe is not None:  # an older search had fewer steps
                again = replace(again, eval=EvalConfig())
                searched.append("steps")
            train = {name: written["train"][name] for name in searched}
            again = replace(again, seed=written["seed"], train=replace(again.train, **train))
            assert again.identity(data["fingerprint"]) == written["identity"], run.path
            found += 1
    assert found >= 15


def test_what_the_hypotheses_of_a_shipped_study_name_is_there():
    studies = shipped()
    judged = {name for name, study in studies.items() if study.hypotheses}
    assert judged == studies.keys() - {"extrapolation"}
    for study in studies.values():
        for hypothesis in study.hypotheses:
            fields = hypothesis.to_dict()
            named = [*fields.get("variants", []), *fields.get("than", [])]
            named += [name for name, _ in hypothesis.published]
            named += [fields["variant"]] if "variant" in fields else []
            assert set(named) <= study.variants.keys(), (study.name, hypothesis)
            lengths = {f"{study.name}_{length}" for length in study.lengths}
            assert fields.get("study", study.name) in studies.keys() | lengths


def test_the_records_that_ship_hold_hypotheses_that_their_study_has():
    packed = list((ROOT / "published").glob("*/runs.jsonl.gz"))
    assert packed
    of_length = {
        f"{name}_{length}" if length else name: study
        for name, study in shipped().items()
        for length in ("", *study.lengths)
    }
    for path in packed:
        with gzip.open(path) as lines:
            record = json.loads(lines.readline())["study"]
        assert "--out" not in record["command"]
        if record["hypotheses"]:
            of_study = [h.to_dict() for h in of_length[record["name"]].hypotheses]
            assert [h for h in record["hypotheses"] if h not in json_form(of_study)] == []


def json_form(value):
    return json.loads(json.dumps(value))


def test_the_quickstart_has_the_same_variants_but_for_their_sizes():
    first, quick = (
        sorted(
            (name.split("_")[0], config.model.mechanisms[0].kind())
            for name, config in load_study(study).variants.items()
        )
        for study in ("mechanisms", "quickstart")
    )
    assert quick == first
    assert load_study("quickstart").seeds == 3


def test_the_quickstart_ends_with_short_runs_so_that_no_core_is_idle_for_long():
    order = list(load_study("quickstart").variants)
    assert {"linear", "sparse_64", "sparse_32"} == set(order[1:4])
    assert order[-1] == "identity"


def test_every_shipped_study_differs_between_variants_in_the_mechanism_alone():
    for name, study in shipped().items():
        if name == "attention_share":  # it takes from the one what it gives to the other
            continue
        for names, _, _ in compared_groups(study.cells(), study.variants, study.by_design):
            first, *others = (study.variants[variant] for variant in names)
            for config in others:
                model = replace(config.model, mechanisms=first.model.mechanisms)
                same = replace(config, model=model)
                if study.tuning is not None:  # each is tuned from a rate of its own
                    same = same.with_learning_rate(first.train.learning_rate)
                assert same == first


def test_a_study_of_ones_own_is_loaded_by_path(tmp_path, monkeypatch):
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    path = tmp_path / "mine.py"
    path.write_text(
        "from support.tiny_study import base, Study\n"
        "study = Study(question='?', variants={'a': base})"
    )
    study = load_study(str(path))
    assert (study.name, study.baseline, list(study.variants)) == ("mine", "a", ["a"])
    with pytest.raises(ValueError, match=r"no file .*yours\.py"):
        load_study(str(tmp_path / "yours.py"))
    path.with_name("empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty\.py defines no `study = Study"):
        load_study(str(path.with_name("empty.py")))
    path.with_name("other.py").write_text(path.read_text().replace("study =", "mine ="))
    with pytest.raises(ValueError, match=r"Study\(\.\.\.\)` \(rename its `mine` to `study`\)$"):
        load_study(str(path.with_name("other.py")))
    path.with_name("kind.py").write_text(
        "from attnlab.mechanism import MechanismConfig\nclass Own(MechanismConfig): ..."
    )
    with pytest.raises(ValueError, match=r"`; as a mechanism, name .*kind\.py:Own$"):
        load_study(str(path.with_name("kind.py")))
    with pytest.raises(ValueError, match=r"did you mean the file .*mine\.py\?"):
        load_study(str(path.with_suffix("")))
    with pytest.raises(ValueError, match=r"is no study.*attnlab report shows a folder of results"):
        load_study(str(tmp_path))


def test_runs_go_seed_by_seed():
    runs = [(run.seed, run.variant) for run in tiny_study.study.runs()]
    assert runs[:5] == [(0, "mha"), (0, "mqa"), (0, "sparse"), (0, "identity"), (1, "mha")]
    assert len(runs) == 8
    tuned = replace(tiny_study.study, tuning=Tuning()).runs({"mha": Recipe(0.5, 2)})
    rates = {run.variant: run.config.train.learning_rate for run in tuned}
    assert rates == {"mha": 0.5, "mqa": 0.01, "sparse": 0.01, "identity": 0.01}


def test_the_identity_covers_settings_seed_and_data_and_nothing_else():
    base = tiny_study.base
    same = type(base).from_dict(base.to_dict())
    assert base.identity("data") == same.identity("data")
    others = [
        replace(base, seed=1),
        replace(base, train=replace(base.train, steps=13)),
        base.with_mechanisms(GroupedQuery(n_heads=2, n_kv_heads=1)),
    ]
    identities = {base.identity("data"), base.identity("other data")}
    assert len(identities | {config.identity("data") for config in others}) == 5


def test_an_absent_setting_is_as_if_there_were_no_such_setting():
    settings = {"a": 0, "b": 0.0, "c": "", "d": [{"e": True}]}
    more = {**settings, "bias": False, "scaling": None, "d": [{"e": True, "norm": False}]}
    assert drop_unset(more) == drop_unset(settings) == settings


def test_the_same_data_in_another_place_is_the_same_run():
    here, there = (
        replace(load_study("mechanisms").variants["mha"], data=WikiText2(path=path))
        for path in ("here", None)
    )
    assert here.identity("data") == there.identity("data")
    assert here.identity("data") != here.identity("other data")


def test_a_variant_that_stands_twice_in_a_file_is_an_error(tmp_path):
    path = tmp_path / "twice.py"
    source = inspect.getsource(tiny_study)
    path.write_text(f"{source}\nlosses = {{'a': 1, 'b': 2, **{{'a': 3}}}}\n")
    load_study(str(path))
    path.write_text(f"{source}\nlosses = {{'a': 1, 'b': 2,\n'a': 3}}\n")
    with pytest.raises(ConfigError, match="'a' is a key twice in one dict") as raised:
        load_study(str(path))
    assert str(raised.value).startswith(f"{path}:{len(source.splitlines()) + 3}: ")


def test_an_edited_mechanism_of_ones_own_is_another_run(tmp_path, monkeypatch):
    source = (
        "from dataclasses import dataclass\n"
        "from attnlab.mechanisms.identity import Identity\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Identity):\n    pass\n"
    )
    path = tmp_path / "mine_edited.py"
    path.write_text(source)
    monkeypatch.chdir(tmp_path)
    mine = MechanismConfig.from_dict({"kind": "mine_edited.py:Mine"})
    config = tiny_study.base.with_mechanisms(mine)
    before = config.identity("data")
    path.write_text(source + "# changed\n")
    assert config.identity("data") != before


def test_only_keeps_the_named_variants_and_says_which_there_are():
    assert list(tiny_study.study.only(["identity", "mha"]).variants) == ["mha", "identity"]
    assert tiny_study.study.only(["identity"]).baseline == "mha"
    with pytest.raises(ConfigError, match="no variant 'mhx'; did you mean 'mha'"):
        tiny_study.study.only(["mhx"])


def test_labels_are_recorded_and_are_of_variants_of_the_study():
    base = tiny_study.study
    study = replace(base, labels=dict.fromkeys(base.variants, r"A name\\cite{key}"))
    first = next(iter(base.variants))
    assert study.only([first]).record(command="", checked=True).labels.keys() == {first}
    assert study.runs() == base.runs()
    with pytest.raises(ConfigError, match=r"labels\.gone: no variant 'gone'"):
        replace(base, labels={"gone": "Gone"})


def test_an_override_reaches_every_variant_and_errors_say_whom_they_concern():
    changed = tiny_study.study.override(["train.steps=20", "seed=4"])
    assert {config.train.steps for config in changed.variants.values()} == {20}
    with pytest.raises(ConfigError) as error:
        tiny_study.study.override(["model.mechanisms.0.n_kv_heads=2", "train.stepz=1"])
    assert [str(problem) for problem in error.value.problems] == [
        "train: no field 'stepz'; did you mean 'steps'?",
        "model.mechanisms.0: no field 'n_kv_heads'; none are known (in identity)",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": {}}, "variants: give at least one"),
        ({"seeds": 0}, "seeds: must be at least 1"),
        ({"seeds": 1001}, "seeds: must be at least 1, and at most 1000; got 1001"),
        ({"seeds": 4, "most_seeds": 3}, "most_seeds: must be at least the 4 seeds at the start"),
        ({"seeds": 1, "most_seeds": 9}, "seeds: an open verdict needs 2 seeds or more"),
        ({"margin": -0.1}, "margin: must not be negative"),
        ({"baseline": "x"}, "baseline: no variant 'x'"),
        ({"variants": {}}, "give at least one$"),
        ({"seeds": [0, 1]}, r"^seeds: expected a whole number, got \[0, 1\]$"),
        ({"margin": "0.1"}, "^margin: expected a number, got '0.1'$"),
        ({"families": {"a": "mha"}}, "^families.a: expected a tuple, got 'mha'$"),
        ({"variants": {"a": GroupedQuery()}}, r"^variants.a: expected a RunConfig, got GroupedQ"),
        ({"variants": {3: tiny_study.base}}, "^a name in variants: expected text, got 3$"),
        ({"variants": [tiny_study.base]}, r"^variants: expected a dict, got \[RunConfig"),
    ],
)
def test_a_study_that_cannot_be_run_says_why(fields, message):
    whole = {"question": "?", "variants": {"mha": tiny_study.base}}
    with pytest.raises(ConfigError, match=message):
        Study(**{**whole, **fields})


def test_a_recipe_changes_what_was_searched_and_nothing_else():
    tuning = Tuning(settings={"train.weight_decay": (0.0, 0.1), "model.dropout": (0.0, 0.1)})
    study = Study(question="q", variants={"mha": tiny_study.base}, tuning=tuning)
    recipe = Recipe(0.02, 6, (("weight_decay", 0.1), ("dropout", 0.0)))
    run = study.tuning_run("mha", recipe)
    train = replace(
        tiny_study.base.train, learning_rate=0.02, warmup_steps=6, weight_decay=0.1, keep="none"
    )
    model = replace(tiny_study.base.model, dropout=0.0)
    seed = tuning_seed("mha")
    assert run.config == replace(tiny_study.base, model=model, train=train, seed=seed)
    assert run.recipe == "lr-0.02,warmup_steps-6,weight_decay-0.1,dropout-0"
    assert Recipe.parse(run.recipe) == recipe
    assert study.verdict_run("mha", 1, recipe).config == replace(
        run.config, seed=1, train=replace(train, keep=tiny_study.base.train.keep)
    )


def test_another_batch_size_reads_the_same_number_of_tokens():
    tuning = Tuning(settings={"train.batch_size": (2, 4)})
    study = Study(question="q", variants={"mha": tiny_study.base}, tuning=tuning)
    train = study.tuning_run("mha", Recipe(0.01, 6, (("batch_size", 4),))).config.train
    assert (train.batch_size, train.steps, train.warmup_steps) == (4, 6, 3)
    assert (train.log_every, train.eval_every, train.checkpoint_every) == (2, 3, 2)
    assert tuned_batch(study.record(command="", checked=False)) == (
        "training steps",
        "sequences/step",
    )
    assert tuned_batch(replace(study, tuning=None).record(command="", checked=False)) == ()


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"settings": {"train.weight_dekay": (0, 1)}}, "is not a number among the settings"),
        ({"settings": {"train.compile": (0, 1)}}, "is not a number among the settings"),
        ({"settings": {"model.dropout": (0, 2)}}, r"tuning.settings.model.dropout: 2: .*\[0, 1\)"),
        ({"settings": {"train.batch_size": (2, 2.5)}}, "tuning.settings.train.batch_size: 2.5: "),
    ],
)
def test_settings_that_cannot_be_tuned_are_refused_before_any_run(tuning, message):
    with pytest.raises(ConfigError, match=message):
        replace(tiny_study.study, tuning=Tuning(**tuning))


@pytest.mark.parametrize(
    ("changes", "warmup_steps"),
    [
        (["train.steps=6"], 1),
        (["train.steps=1"], 0),
        (["train.steps=24"], 2),
        (["train.steps=6", "train.warmup_steps=2"], 2),
        (["train.warmup_steps=3", "train.steps=6"], 3),
        (["train.batch_size=3"], 2),
    ],
)
def test_a_shorter_run_has_a_warm_up_shorter_in_proportion_unless_it_is_set(changes, warmup_steps):
    assert tiny_study.base.train.warmup_steps == 2
    study = tiny_study.study.override(changes)
    assert {run.train.warmup_steps for run in study.variants.values()} == {warmup_steps}
    shortened = warmup_steps < 2
    assert len(study.notes) == shortened
    assert all("from 2 of 12 steps" in note for note in study.notes)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_study_can_be_shortened(name):
    study = load_study(name).override(["train.steps=100"])
    assert all(run.train.warmup_steps < 100 for run in study.variants.values())


BAD_NAMES = ["../../esc", "a/b", "a\\b", "tab\tbed", "new\nline", "\x1b[1m", "x" * 300, "é" * 60]
BAD_NAMES += [" ", " a", "a ", "..", ".hidden", "nul", "COM1.txt", "\u202eabc", "\ud800", ":" * 90]


@pytest.mark.parametrize("name", BAD_NAMES, ids=[repr(name)[:20] for name in BAD_NAMES])
def test_names_that_are_no_names_of_folders_are_refused_at_construction(name):
    base = tiny_study.base
    with pytest.raises(ConfigError, match=r"^name: .*rename the study"):
        Study(question="?", variants={"a": base}, name=name)
    with pytest.raises(ConfigError, match=r"^variants: .*rename the variant"):
        Study(question="?", variants={"a": base, name: base})


@pytest.mark.parametrize("name", ["", "seed-0", "seed-3.partial", "tensorboard"])
def test_a_variant_needs_a_name_that_attnlab_does_not_use(name):
    with pytest.raises(ConfigError, match="rename the variant"):
        Study(question="?", variants={name: tiny_study.base})


@pytest.mark.parametrize(("name", "other"), [("mha", "Mha"), ("\u00e9", "e\u0301")])
def test_names_that_differ_in_case_or_coding_alone_are_one_folder_on_some_systems(name, other):
    message = f"'{other}' and '{name}' are one folder.*; rename the variant"
    with pytest.raises(ConfigError, match=message):
        Study(question="?", variants={name: tiny_study.base, other: tiny_study.base})


@pytest.mark.parametrize("name", ["hybrid 3:1", "top_k 0.5", "mit ß", "1,2", "50 %"])
def test_other_names_stay_possible(name):
    assert Study(question="?", variants={name: tiny_study.base}, name=name).name == name


def test_a_mechanism_is_added_to_the_baseline():
    study = tiny_study.study.add({"mine": Identity()})
    assert [*study.variants] == [*tiny_study.study.variants, "mine"]
    assert study.variants["mine"] == tiny_study.base.with_mechanisms(Identity())
    with pytest.raises(ConfigError, match=r"add: the study has a variant 'mqa'"):
        study.add({"mqa": Identity()})
    with pytest.raises(ConfigError, match=r"add\.x\..*n_heads: 3 does not divide"):
        study.add({"x": GroupedQuery(n_heads=3, n_kv_heads=3)})


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


def test_a_warm_up_that_is_given_does_not_follow_from_swept_steps():
    options = {
        "study": "mechanisms",
        "only": "mha",
        "sweep": ["train.steps=200,400"],
        "tune": False,
    }
    free, given = Request(**options), Request(**options, overrides=["train.warmup_steps=15"])
    warm_ups = [config.train.warmup_steps for config in free.apply_options().variants.values()]
    assert warm_ups[0] < warm_ups[1]
    study = given.apply_options()
    assert {config.train.warmup_steps for config in study.variants.values()} == {15}
    assert study.notes == ()


@pytest.mark.parametrize("options", [{"overrides": ["seed=5"]}, {"sweep": ["seed=0,1"]}])
def test_the_seed_of_a_study_is_no_setting(options):
    with pytest.raises(ConfigError, match="seed: a study has the seeds 0 to N - 1, by --seeds N"):
        Request(study="quickstart", **options).apply_options()


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


def test_a_mistake_that_all_variants_of_a_sweep_share_is_said_once():
    for of, path, said in (
        (TINY.only(["mha", "identity"]), "model.n_layer", ["sweep.model"]),
        (mixed(), "model.mechanisms.0.window", ["sweep.mha.model.mechanisms.0"]),
    ):
        with pytest.raises(ConfigError) as wrong:
            sweep(of, {path: [4, 8]})
        assert [problem.path for problem in wrong.value.problems] == said


def mixed():
    """Return a study of a variant without windows, and of one with them."""
    mha = TINY.variants["mha"]
    return replace(
        TINY.only(["mha"]),
        variants={
            "mha": mha,
            "sliding": mha.with_mechanisms(SlidingWindow(n_heads=2, n_kv_heads=2)),
        },
    )


def test_what_a_search_changes_is_swept_without_it_alone():
    tuned = replace(TINY.only(["mha"]), tuning=Tuning(settings={"train.weight_decay": (0.0, 0.1)}))
    for path, values in (("train.learning_rate", "1e-3,2e-3"), ("train.weight_decay", "0,0.1")):
        with pytest.raises(ConfigError, match=f"sweep.{path}: is searched .*; use --no-tune"):
            sweep(tuned, typed_sweep([f"{path}={values}"]))
        assert len(sweep(replace(tuned, tuning=None), {path: values.split(",")}).variants) == 2


def test_a_control_under_two_names_is_swept_as_two():
    twice = replace(TINY, variants={"mha": TINY.variants["mha"]} | {"twin": TINY.variants["mha"]})
    swept = sweep(replace(twice, hypotheses=()), typed_sweep(["model.n_layers=1,2"]))
    assert list(swept.families) == ["mha", "twin"]
    assert swept.variants["mha_n_layers_1"] == swept.variants["twin_n_layers_1"]
    with pytest.raises(ConfigError, match="n_layers_2 and twin_n_layers_02 are the same run"):
        sweep(replace(twice, hypotheses=()), typed_sweep(["model.n_layers=2,02"]))


def test_a_place_in_a_list_is_named_with_the_list():
    swept = sweep(TINY.only(["mha"]), typed_sweep(["model.mechanisms.0=mla,identity"]))
    assert list(swept.variants) == ["mechanisms_0_mla", "mechanisms_0_identity"]


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


def test_texts_can_be_swept_and_each_has_its_comparison(tmp_path):
    chosen = replace(TINY.only(["mha", "mqa"]), seeds=3, tuning=None)
    texts = {"data": ["stdlib", "arithmetic"], "model.feedforward": ["dense", "swiglu"]}
    swept = sweep(chosen, texts)
    swept.record(command="c", checked=True).write(tmp_path)
    for place, run in enumerate(swept.runs()):
        folder = RunFolder(tmp_path, run.variant, run.seed)
        data = {"fingerprint": run.config.data.kind()}
        folder.open({**run.config.to_dict(), "identity": "x"}, {"device": "cpu", "data": data})
        loss = 5.0 + run.variant.startswith("mqa") + 0.001 * (7 * place % 5)
        folder.finish({"status": "finished", "final_loss": loss, "alarms": []})
    analysis = analyse(tmp_path)
    assert [analysis.text, *analysis.texts] == ["stdlib", "arithmetic"]
    assert analysis.agreements[0].texts == ("stdlib", "arithmetic")
    assert len(analysis.agreements[0].mechanisms) == 4
    assert [setting.path for setting in analysis.swept] == ["model.feedforward"]
    assert all(isinstance(value, str) for value in analysis.swept[0].values)
    text = chosen.override(["data=text", "data.paths=x"])
    named = sweep(text, {"data.paths": ["lang/de", "/lang/fr"]})
    assert list(named.variants)[:2] == ["mha_paths_lang_de", "mha_paths_lang_fr"]


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
