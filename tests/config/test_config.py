"""Settings are strict, and say everything that is wrong at once."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_study

import attnlab.mechanisms  # noqa: F401  loads the zoo
from attnlab.config import (
    Choice,
    Config,
    ConfigError,
    drop_unset,
    identity_sources,
    override,
    own_classes,
)
from attnlab.data import DataConfig
from attnlab.data.stdlib import Stdlib
from attnlab.data.text import Text
from attnlab.data.tokenizer import BPE
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Both(Config):
    model: ModelConfig = field(default_factory=lambda: ModelConfig(mechanisms=(Identity(),)))
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Nested(Config):
    data: DataConfig


def messages(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_all_problems_of_a_tree_are_reported_at_once_with_their_paths():
    with pytest.raises(ConfigError) as error:
        Both.from_dict(
            {
                "model": {
                    "mechanisms": [
                        {"kind": "grouped_query", "n_headz": 4},
                        {"kind": "sliding_window", "window": 0},
                        {"kind": "slidin_window"},
                    ],
                    "n_layers": "four",
                },
                "train": {"steps": 1.5, "betas": [0.9], "precision": "float8"},
                "zzz": 1,
            }
        )
    assert messages(error) == [
        "no field 'zzz'; known: model, train",
        "model.mechanisms.0: no field 'n_headz'; did you mean 'n_heads'?",
        "model.mechanisms.1.window: must be at least 1, the token itself, got 0",
        "model.mechanisms.2: unknown kind 'slidin_window'; did you mean 'sliding_window'?",
        "model.n_layers: expected a whole number, got 'four'",
        "train.steps: expected a whole number, got 1.5",
        "train.betas: expected 2 values, got 1",
        "train.precision: expected one of auto, bfloat16, float32; got 'float8'",
    ]


@pytest.mark.parametrize(
    ("d_model", "mechanism", "path"),
    [
        (64, {"kind": "grouped_query", "n_heads": 5, "n_kv_heads": 5}, "n_heads"),
        (64, {"kind": "grouped_query", "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"),
        (12, {"kind": "grouped_query", "n_heads": 4}, "n_heads"),
        (64, {"kind": "sliding_window", "window": 0}, "window"),
        (64, {"kind": "deepseek_sparse", "top_k": 0}, "top_k"),
        (64, {"kind": "mla", "qk_rope_head_dim": 7}, "qk_rope_head_dim"),
        (64, {"kind": "mla", "kv_lora_rank": 0}, "kv_lora_rank"),
        (64, {"kind": "gated_delta_net", "conv_size": 0}, "conv_size"),
    ],
)
def test_impossible_values_are_reported_where_they_stand(d_model, mechanism, path):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict({"mechanisms": [mechanism], "d_model": d_model})
    assert any(problem.path.endswith(path) for problem in error.value.problems)


def test_python_construction_is_as_strict_as_json():
    with pytest.raises(ConfigError, match="n_heads: expected a whole number, got '4'"):
        GroupedQuery(n_heads="4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps: expected a whole number, got True"):
        TrainConfig(steps=True)
    with pytest.raises(ConfigError, match="finite"):
        TrainConfig(learning_rate=float("nan"))


@pytest.mark.parametrize(
    ("typed", "path", "number"),
    [
        ("train.seq_len=16k", "train.seq_len", 16_384),
        ("train.steps=1m", "train.steps", 1_048_576),
        ("train.steps=1_000", "train.steps", 1000),
        ("seed= 2K ", "seed", 2048),
        ("data.max_bytes=1g", "data.max_bytes", 2**30),
        ("train.eval_batch_size=4k", "train.eval_batch_size", 4096),
    ],
)
def test_every_whole_number_may_be_typed_with_k_m_or_g(typed, path, number):
    found = override(tiny_study.base, [typed, "train.warmup_steps=0"])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == number


@pytest.mark.parametrize("typed", ["2x", "1.5k", "k", "", "1__0", "0x10", "9" * 5000, "٣"])
def test_what_is_no_whole_number_is_refused(typed):
    with pytest.raises(ConfigError, match=r"train\.seq_len: expected a whole number"):
        override(tiny_study.base, [f"train.seq_len={typed}"])


def test_a_warm_up_longer_than_the_run_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="100 of 10 steps: the peak is never reached; set it"):
        TrainConfig(steps=10)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (("warmup_steps=801",), "801 steps end after the decay begins, at step 800: lower it"),
        (("schedule.decay_fraction=1",), "100 steps end after the decay begins, at step 0"),
        (("schedule.decay_fraction=0",), r"decay_fraction: must be in \(0, 1\], got 0"),
        (("schedule.shape=cosine",), "expected one of linear, sqrt"),
        (("final_learning_rate_ratio=0.3",), "warmup_stable_decay ends at zero: leave it out"),
    ],
)
def test_a_schedule_fits_the_steps_of_its_run(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        override(TrainConfig(), ["schedule=warmup-stable-decay", *changes])


def test_the_default_schedule_is_unset_by_any_name():
    decays = override(TrainConfig(), ["schedule=warmup-stable-decay", "schedule.shape=sqrt"])
    assert decays.to_dict()["schedule"] == {
        "kind": "warmup_stable_decay",
        "decay_fraction": 0.2,
        "shape": "sqrt",
    }
    assert decays.decay_starts == 800
    assert "schedule" not in drop_unset(TrainConfig().to_dict())
    assert override(decays, ["schedule=cosine"]) == replace(decays, schedule=None) == TrainConfig()


@given(
    st.builds(
        TrainConfig,
        steps=st.integers(200, 10_000),
        learning_rate=st.floats(1e-6, 1.0),
        betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
        compile=st.sampled_from(["auto", "on", "off"]),
    )
)
def test_settings_survive_the_way_to_json_and_back(config):
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_overrides_are_read_by_the_type_of_their_field():
    changed = override(
        Both(),
        [
            "train.learning_rate=3e-4",
            "train.steps=500",
            "train.betas=0.8,0.9",
            "train.compile=on",
            "model.mechanisms.0=sliding_window",
            "model.mechanisms.0.window=64",
            'model.feedforward={"kind": "swiglu", "d_ff": 96}',
        ],
    )
    assert changed.train == TrainConfig(
        learning_rate=3e-4, steps=500, betas=(0.8, 0.9), compile="on"
    )
    assert changed.model.mechanisms == (SlidingWindow(window=64),)
    assert changed.model.feedforward.to_dict() == {"kind": "swiglu", "d_ff": 96}


def test_settings_of_a_kind_chosen_on_the_same_line_start_from_its_defaults():
    base = Nested(data=Stdlib())
    changed = override(
        base, ["data=text", "data.paths=a.txt,b.txt", "data.tokenizer.vocab_size=512"]
    )
    assert changed.data == Text(paths=("a.txt", "b.txt"), tokenizer=BPE(vocab_size=512))
    with pytest.raises(ConfigError) as error:
        override(base, ["data=text", "data.tokenizr.vocab_size=512", "data.tokenizer.size=1"])
    assert messages(error) == [
        "data: no field 'tokenizr'; did you mean 'tokenizer'?",
        "data.paths: required, but not given",
        "data.tokenizer: no field 'size'; known: vocab_size",
    ]


def test_all_wrong_overrides_are_reported_at_once():
    with pytest.raises(ConfigError) as error:
        override(Both(), ["train.stpes=100", "train.steps=many", "modle.d_model=3", "seed"])
    assert messages(error) == [
        "no field 'modle'; did you mean 'model'?",
        "seed: no value is given; write section.key=value",
        "train: no field 'stpes'; did you mean 'steps'?",
        "train.steps: expected a whole number, got 'many'",
    ]


def test_a_class_of_the_users_own_is_a_kind_named_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from attnlab.mechanisms.identity import Identity\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Identity):\n"
        "    gain: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    config = MechanismConfig.from_dict({"kind": "mine.py:Mine", "gain": 2.0})
    assert config.to_dict() == {"kind": "mine.py:Mine", "gain": 2.0}
    assert list(identity_sources(own_classes(Both(model=ModelConfig(mechanisms=(config,)))))) == [
        "mine.py:Mine"
    ]
    with pytest.raises(
        ConfigError, match=r"mine\.py has no MechanismConfig called 'Yours'; known: Mine"
    ):
        MechanismConfig.from_dict({"kind": "mine.py:Yours"})
    with pytest.raises(ConfigError, match=r"no file nowhere\.py"):
        MechanismConfig.from_dict({"kind": "nowhere.py:Mine"})


def test_two_shipped_kinds_cannot_share_a_name():
    class Family(Choice): ...

    first = type("Same", (Family,), {"__module__": "attnlab.one"})
    with pytest.raises(TypeError, match="two configs are called 'same'"):
        type("Same", (Family,), {"__module__": "attnlab.two"})
    assert Family.kinds == {"same": first}


def test_replace_checks_again():
    with pytest.raises(ConfigError, match="window"):
        replace(SlidingWindow(), window=-1)
