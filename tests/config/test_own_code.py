"""The user's own files import what is beside them, from any folder, and are known to the byte."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import tiny_study

from attnlab.analysis.hypotheses.hypothesis import _judged
from attnlab.config import (
    ConfigError,
    OwnCodeError,
    carried_sources,
    identity_sources,
    load_file,
    own_classes,
    read_from_record,
    without_folders,
)
from attnlab.mechanism import MechanismConfig
from attnlab.study.targets import load_study
from attnlab.study.variants import require_buildable

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
    "\0": "bad.py",
    "# coding: none": "bad.py:",
}


@pytest.mark.parametrize("source", ERRORS, ids=[text[:20].encode() for text in ERRORS])
def test_an_error_in_a_file_is_one_line_with_its_place(tmp_path, source):
    write(tmp_path / "mine", bad=source, broken="x")
    with pytest.raises(OwnCodeError) as error:
        load_file(tmp_path / "mine" / "bad.py")
    assert ERRORS[source] in str(error.value)
    assert "\n" not in str(error.value)


def test_an_interrupt_in_a_file_stays_one_and_invalid_settings_name_the_line(tmp_path):
    write(
        tmp_path / "mine", stop="raise KeyboardInterrupt", bad="from attnlab import *\nMLA(rank=1)"
    )
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
    "def build(self, d_model): pass": r"mine\.py:6: Mine\.build: TypeError: .*takes 2 positional",
    "def build(self, d_model, dropout=0.0): pass": r"mine\.py:6: Mine\.build: returns NoneType",
    "def build(self, d_model, dropout=0.0): return 1 / 0": r"mine\.py:6: ZeroDivisionError",
    "def build(self, d_model, dropout=0.0): raise SystemExit": r"mine\.py:6: it exits with code",
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
