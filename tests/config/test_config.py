"""Settings are strict, and say everything that is wrong at once.

The user's own files import what is beside them, from any folder, and are known to the byte.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_study

import attnlab.mechanisms  # noqa: F401  loads the zoo
from attnlab.analysis.hypotheses.hypothesis import _judged
from attnlab.config import (
    Choice,
    Config,
    ConfigError,
    OwnCodeError,
    carried_sources,
    drop_unset,
    identity_sources,
    load_file,
    override,
    own_classes,
    read_from_record,
    without_folders,
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
from attnlab.study.targets import load_study
from attnlab.study.variants import require_buildable
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
                        SlidingWindow,
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
        "model.mechanisms.3: got a class; write SlidingWindow(...), with its settings",
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
    with pytest.raises(ConfigError, match="learning_rate: expected a finite number, got inf"):
        TrainConfig(learning_rate=10**400)


def test_a_number_of_another_library_is_a_plain_one():
    found = TrainConfig(steps=np.int64(500), learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    assert (type(found.steps), type(found.learning_rate)) == (int, float)
    assert (found.steps, found.learning_rate) == (500, 0.5)
    with pytest.raises(ConfigError, match=r"steps: expected a whole number, got np\.float64\(5"):
        TrainConfig(steps=np.float64(5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "data: no kind is given; known: arithmetic"),
        (None, "data: no kind is given; known: arithmetic"),
        (["stdlib"], r"data: expected a kind or its settings, got \['stdlib'\]; known"),
        ({"kind": 5}, "data: expected a kind or its settings, got 5; known"),
    ],
)
def test_what_stands_in_the_place_of_a_kind_is_said(data, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        replace(tiny_study.base, data=data)


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
        "data.tokenizer: no field 'size'; did you mean 'vocab_size'?",
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


MECHANISM = """
from dataclasses import dataclass
from attnlab.mechanisms.identity import Identity
{imports}
@dataclass(frozen=True, kw_only=True)
class {name}(Identity):
    gain: float = 1.0
"""
STUDY = """
from attnlab import RunConfig, Stdlib, ModelConfig, Study, Text
from attnlab.data.tokenizer import Bytes
{imports}
base = RunConfig(data={data}, model=ModelConfig(mechanisms=({mechanism},)))
study = Study(question="?", variants={{"a": base}})
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Work in another folder, and forget kinds and modules of the test afterwards."""
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **files: str) -> Path:
    """Write files, by path without .py, and return the folder."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def mechanism(name: str = "Mine", imports: str = "") -> str:
    return MECHANISM.format(name=name, imports=imports)


def study(mechanism: str = "Mine()", imports: str = "", data: str = "Stdlib()") -> str:
    return STUDY.format(mechanism=mechanism, imports=imports, data=data)


def layer(folder: Path, file: str = "my_study.py") -> MechanismConfig:
    return load_study(str(folder / file)).variants["a"].model.per_layer()[0]


@pytest.mark.parametrize(
    ("imports", "files", "carried"),
    [
        ("from mine import Mine", {"mine": mechanism()}, {"mine.py"}),
        (
            "from mine import Mine",
            {"mine": mechanism(imports="import helper"), "helper": "import deeper", "deeper": ""},
            {"mine.py", "helper.py", "deeper.py"},
        ),
        (
            "from package.mine import Mine",
            {"package/__init__": "", "package/mine": mechanism(imports="from . import other")}
            | {"package/other": "def f():\n    from .lazy import g", "package/lazy": "g = 1"},
            {"package/__init__.py", "package/mine.py", "package/other.py", "package/lazy.py"},
        ),
        (
            "from folder.mine import Mine",
            {"folder/mine": mechanism(imports="from folder.helper import x\nimport beside")}
            | {"folder/helper": "x = 1", "beside": ""},
            {"mine.py", "folder/helper.py", "beside.py"},
        ),
        (
            "from mine import Mine",
            {"mine": mechanism(imports="import importlib\nimportlib.import_module('late')")}
            | {"late": ""},
            {"mine.py", "late.py"},
        ),
    ],
    ids=["beside", "transitive", "package", "folder", "by name"],
)
def test_a_study_imports_its_neighbours_and_they_are_its_source(tmp_path, imports, files, carried):
    folder = write(tmp_path / "mine", my_study=study(imports=imports), unused="", **files)
    config = layer(folder)
    found = carried_sources([type(config)])
    assert set(found) == carried
    recorded, copy = json.dumps(config.to_dict()), tmp_path / "copy"
    for name, source in found.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(source)
    folder.rename(tmp_path / "moved")
    with read_from_record(copy):
        again = MechanismConfig.from_dict(json.loads(recorded))
    assert json.dumps(again.to_dict()) == recorded
    assert carried_sources([type(again)]) == found


def test_a_class_keeps_its_kind_in_every_folder_and_through_settings(tmp_path, monkeypatch):
    folder = write(
        tmp_path / "mine", my_study=study(imports="from mine import Mine"), mine=mechanism()
    )
    write(Path.cwd(), mine=mechanism("Other"))
    config = load_study(str(folder / "my_study.py")).variants["a"]
    assert config.model.per_layer()[0].kind() == "mine.py:Mine"
    monkeypatch.chdir(tmp_path)
    assert config.model.per_layer()[0].kind() == "mine.py:Mine"
    assert type(config).from_dict(config.to_dict()) == config


def test_two_folders_may_have_modules_of_one_name(tmp_path):
    for name, value in (("first", 1), ("second", 2)):
        write(
            tmp_path / name,
            my_study=study("Mine(gain=gain)", "from mine import Mine\nfrom helper import gain"),
            mine=mechanism(),
            helper=f"gain = {value}\n",
        )
    found = [layer(tmp_path / name) for name in ("first", "second", "first")]
    assert [config.gain for config in found] == [1, 2, 1]
    own = [identity_sources([type(config)]) for config in found[:2]]
    assert all(set(sources) == {"mine.py:Mine"} for sources in own)


def test_an_edit_of_a_neighbour_is_seen_in_the_same_process(tmp_path):
    folder = write(
        tmp_path / "mine",
        my_study=study(imports="from mine import Mine"),
        mine=mechanism(imports="from helper import gain"),
        helper="gain = 1",
    )
    before = identity_sources([type(layer(folder))])
    write(folder, helper="gain = 2")  # equal size, and perhaps within the clock's resolution
    after = identity_sources([type(layer(folder))])
    assert {name for name in before if before[name] != after[name]} == {"helper.py"}


def test_files_that_share_a_name_are_told_apart_in_the_identity(tmp_path):
    kinds = []
    for name in ("first", "second"):
        folder = write(tmp_path / name, mine=mechanism() + f"# {name}\n")
        kinds.append(MechanismConfig.of_kind(str(folder / "mine.py:Mine")))
    one, two = (kind().kind() for kind in kinds)
    assert one != two
    assert without_folders([kinds[0]().to_dict(), kinds[1]().to_dict()]) != without_folders(
        [kinds[1]().to_dict(), kinds[0]().to_dict()]
    )
    assert len(identity_sources(kinds)) == 2
    assert set(carried_sources(kinds)) == {one.partition(":")[0], two.partition(":")[0]}


def test_paths_in_a_study_are_relative_to_it(tmp_path):
    data = 'Text(paths=("novel.txt", "absent.txt"), tokenizer=Bytes())'
    folder = write(
        tmp_path / "mine",
        my_study=study(
            'MechanismConfig.from_dict({"kind": "sub/mine.py:Mine"})', data=data
        ).replace("import RunConfig", "import MechanismConfig, RunConfig"),
        **{"sub/mine": mechanism()},
    )
    (folder / "novel.txt").write_text("Once.")
    config = load_study("../mine/my_study.py").variants["a"]
    assert config.data.paths == (str(folder / "novel.txt"), "absent.txt")
    assert config.model.per_layer()[0].kind() == "mine.py:Mine"


ERRORS = {
    "x = 1\n1 / 0": "bad.py:2: ZeroDivisionError: division by zero",
    "def f(:": "bad.py:1: SyntaxError: invalid syntax",
    "import sys\nsys.exit(3)": "bad.py:2: it exits with code 3",
    "import os\nos._exit(0)": "bad.py:2: it exits with code 0",
    "exit()": "bad.py:1: it exits with code None",
    "raise BaseException('x')": "bad.py:1: BaseException: x",
    "import absent_module": "bad.py:1: ModuleNotFoundError: No module named 'absent_module'",
    "from .sibling import x": "bad.py:1: ImportError: attempted relative import",
    "import broken": "broken.py:1: NameError: name 'x' is not defined",
    "raise ValueError('two\\n  lines')": "bad.py:1: ValueError: two lines",
    "def f(): f()\nf()": "bad.py:1: RecursionError",
    "from attnlab import MLA\nMLA(n_head=2)": "argument 'n_head'; did you mean 'n_heads'?",
    "import attnlab as a\na.Study(basline=1)": "argument 'basline'; did you mean 'baseline'?",
    "def f(x): x(y=1)\nf(lambda z: 0)": "bad.py:1: TypeError",
    "from attnlab import Text\nText('novel.txt')": "; name its arguments: tokenizer=..., paths=...",
    "\0": "bad.py",
    "# coding: none": "bad.py:",
}


def test_a_file_that_changes_the_working_directory_changes_it_for_itself_alone(tmp_path):
    write(tmp_path / "mine", moves="import os\nos.chdir('/')\nhere = os.getcwd()")
    before = Path.cwd()
    assert (load_file(tmp_path / "mine" / "moves.py").here, Path.cwd()) == ("/", before)


@pytest.mark.parametrize("source", ERRORS, ids=[text[:20].encode() for text in ERRORS])
def test_an_error_in_a_file_is_one_line_with_its_place(tmp_path, source):
    write(tmp_path / "mine", bad=source, broken="x")
    with pytest.raises(OwnCodeError) as error:
        load_file(tmp_path / "mine" / "bad.py")
    assert ERRORS[source] in str(error.value)
    assert "\n" not in str(error.value)


def test_after_an_edit_the_files_of_the_users_modules_alone_are_looked_up(tmp_path, monkeypatch):
    path = tmp_path / "edited.py"
    path.write_text("value = 1")
    assert load_file(path).value == 1
    path.write_text("value = 2")
    looked_up, resolve = list[Path](), Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: (looked_up.append(path), resolve(path))[1])
    assert load_file(path).value == 2
    assert len(looked_up) < 50 < len(sys.modules) / 10


def test_an_interrupt_in_a_file_stays_one_and_invalid_settings_name_the_line(tmp_path):
    write(
        tmp_path / "mine",
        stop="import signal\nsignal.raise_signal(signal.SIGINT)",
        own="raise KeyboardInterrupt",
    )
    with pytest.raises(OwnCodeError, match=r"own\.py:1: KeyboardInterrupt$"):
        load_file(tmp_path / "mine" / "own.py")
    with pytest.raises(KeyboardInterrupt):
        load_file(tmp_path / "mine" / "stop.py")
    write(tmp_path / "mine", bad="from attnlab import TrainConfig\nTrainConfig(steps=0)")
    with pytest.raises(ConfigError, match=r"bad\.py:2.*steps: must be at least 1"):
        load_file(tmp_path / "mine" / "bad.py")


@pytest.mark.parametrize("path", ["../mine.py", "/etc/mine.py", "absent.py", "link.py"])
def test_a_record_names_files_of_its_own_folder_only(tmp_path, path):
    folder = write(tmp_path / "sources", own=mechanism())
    write(tmp_path, mine=mechanism())
    (folder / "link.py").symlink_to(tmp_path / "mine.py")
    with read_from_record(folder):
        assert MechanismConfig.of_kind("own.py:Mine").__name__ == "Mine"
        with pytest.raises(ValueError, match=r"\.py"):
            MechanismConfig.of_kind(f"{path}:Mine")
    with read_from_record(None), pytest.raises(ValueError, match="code of its own"):
        MechanismConfig.of_kind(f"{folder}/own.py:Mine")
    assert own_classes(MechanismConfig.of_kind("identity")()) == []


def test_a_hypothesis_in_a_record_executes_no_file(tmp_path):
    write(tmp_path / "mine", bad="raise SystemExit(7)")
    recorded = {"kind": f"{tmp_path}/mine/bad.py:Mine"}
    study = SimpleNamespace(judgements=())
    evidence = SimpleNamespace(verdict=SimpleNamespace(table=SimpleNamespace(study=study)))
    judged = _judged(recorded, evidence)
    assert judged.ruling == "not judged"
    assert "code of its own" in judged.found[0]


def test_what_a_mechanism_lacks_is_said(tmp_path):
    source = """
from dataclasses import dataclass
from attnlab.mechanism import Mechanism, MechanismConfig
@dataclass(frozen=True, kw_only=True)
class Mine(MechanismConfig):
    def build(self, d_model, dropout=0.0): return Mixer()
class Mixer(Mechanism):
    def forward(self, x_BTD): return x_BTD
"""
    folder = write(tmp_path / "mine", mine=source, my_study=study(imports="from mine import Mine"))
    cost, step = require_buildable(load_study(str(folder / "my_study.py")))
    assert cost.startswith("Mine has no `cost`")
    assert step.startswith("Mixer has no `init_state` and `step`")
    assert require_buildable(tiny_study.study) == ()


UNBUILDABLE = {
    "def build(self, d_model): pass": r"mine\.py:6: .*takes 2 .*; its arguments are self, d_m",
    "build = lambda self: None": r"mine\.py:6: Mine\.<lambda>: TypeError: .*takes 1 positional",
    "def build(self, d_model, dropout=0.0): pass": r"mine\.py:6: Mine\.build: returns NoneType",
    "def build(self, d_model, dropout=0.0): return 1 / 0": r"mine\.py:6: ZeroDivisionError",
    "def build(self, d_model, dropout=0.0): raise SystemExit": r"mine\.py:6: it exits with code",
    "def build(self, d_model, dropout=0.0): raise GeneratorExit": r"mine\.py:6: GeneratorExit",
    "def cost(self, d_model): pass": r"mine\.py:6: Mine\.cost: TypeError: .*takes 2 positional",
    "def cost(self, d_model, context, itemsize=2): return 5": r"Mine\.cost: returns int, not Cost",
    "def forward_flops(self, *a): return 1.5": r"Mine\.forward_flops: returns float, not int",
}


@pytest.mark.parametrize("method", UNBUILDABLE, ids=[text[4:40] for text in UNBUILDABLE])
def test_a_mechanism_that_cannot_be_built_is_one_line_before_any_run(tmp_path, method):
    source = mechanism().lstrip().replace("gain: float = 1.0", method)
    folder = write(tmp_path / "mine", mine=source, my_study=study(imports="from mine import Mine"))
    with pytest.raises(OwnCodeError, match=UNBUILDABLE[method]) as error:
        require_buildable(load_study(str(folder / "my_study.py")))
    assert "\n" not in str(error.value)
