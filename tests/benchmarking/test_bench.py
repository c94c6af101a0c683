"""`attnlab bench`: every point is recorded, whatever happens at it, and none is measured twice.

The models of a bench: a study's variants at their sizes, mechanisms at the given sizes.

The measurements of a point: its work, its bytes, its context, and its time.
"""

import gc
import importlib
import json
import re
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import Pipe
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from support import ROOT, tiny_study
from support.fake_workers import draw_nothing
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from attnlab import cli
from attnlab.benchmarking import session, work
from attnlab.benchmarking.point import Conditions, Point, points
from attnlab.benchmarking.results import BenchTable, read
from attnlab.benchmarking.session import measure
from attnlab.benchmarking.targets import Sizes, only_named, setups_of
from attnlab.benchmarking.time_breakdown import with_breakdown, without_breakdown
from attnlab.benchmarking.work import stated_flops
from attnlab.cli.console import console, errors
from attnlab.config import ConfigError
from attnlab.device.flops import Ceilings, measure_ceilings
from attnlab.device.measuring import LEAST, MOST, PATIENCE, time_calls
from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.mechanisms.mla import MLA
from attnlab.model.feedforward import Dense
from attnlab.reporting.figures import bench as figure
from attnlab.reporting.figures.styles import matplotlib_style
from attnlab.study.targets import named

TINY = tiny_study.__file__
QUICK = ("--seconds", "0.01", "--device", "cpu", "--batches", "1")
SIZES = ("--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--vocab-size", "50")
CEILINGS = Ceilings(1e12, "bfloat16", 8192, 4e12, 1 << 30)
OWN = """
import signal
from dataclasses import dataclass
from pathlib import Path
import torch
from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.mechanisms.identity import Identity, TokenwiseLinear

@dataclass(frozen=True, kw_only=True)
class Troubled(Identity):
    trouble: str = "none"
    at: int = 32

    def build(self, d_model, dropout=0.0):
        mixer = TroubledMixer(d_model)
        mixer.config = self
        return mixer

@dataclass(frozen=True, kw_only=True)
class ForwardOnly(MechanismConfig):
    def build(self, d_model, dropout=0.0):
        return OnlyForward(d_model)

class OnlyForward(Mechanism):
    def __init__(self, d_model):
        super().__init__()
        self.mix = torch.nn.Linear(d_model, d_model)

    def forward(self, x_BTD):
        return self.mix(x_BTD)

class TroubledMixer(TokenwiseLinear):
    def forward(self, x_BTD):
        if x_BTD.shape[1] >= self.config.at:
            held_BTD = x_BTD.clone()
            if self.config.trouble == "hunger":
                torch.empty(1 << 60, dtype=torch.int8)
            if self.config.trouble == "refusal":
                raise NotImplementedError("not so many tokens")
            if self.config.trouble == "exit":
                raise SystemExit(3)
            if self.config.trouble == "interrupt" and not Path("interrupted").exists():
                Path("interrupted").touch()
                signal.raise_signal(signal.SIGINT)
        if self.config.trouble == "print":
            print("seen")
        return super().forward(x_BTD)
"""


def measured_before(device, budget):
    return CEILINGS


class Process:
    """A thread in place of a `ChildProcess`."""

    started = 0

    def __init__(self, target):
        assert target == "attnlab.benchmarking.session:serve"
        type(self).started += 1
        self.pipe, theirs = Pipe()
        self.thread = Thread(target=self.run, args=(theirs,))
        self.thread.start()

    def run(self, pipe):
        with suppress(EOFError, SystemExit), pipe:
            session.serve(pipe)

    def wait(self):
        self.thread.join()
        return -11

    def end(self):
        self.pipe.close()
        self.thread.join()


@pytest.fixture
def apart(monkeypatch):
    """Have a bench on a CPU measure in other processes, as one on CUDA does."""
    monkeypatch.setattr(Process, "started", 0)
    monkeypatch.setattr(session, "ChildProcess", Process)
    start = session.Measurer.__init__
    monkeypatch.setattr(
        session.Measurer, "__init__", lambda self, device, *, apart: start(self, device, apart=True)
    )


@pytest.fixture
def attnlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    Path("own.py").write_text(OWN)
    monkeypatch.setattr(session, "own_kind", lambda cls: None)  # measured in this process
    monkeypatch.setattr(session, "measure_ceilings", measured_before)
    monkeypatch.setattr(figure, "bench_png", lambda contents, batch, device: b"")
    for printer in (console, errors):
        monkeypatch.setattr(printer, "width", 140)

    def call(*arguments: str):
        return CliRunner().invoke(cli.app, ["bench", *arguments, *QUICK])

    return call


def statuses(folder: str) -> list[tuple[str, int, str]]:
    return [(p["what"], p["context"], p["status"]) for p in read(Path(folder))["points"]]


def test_a_study_is_measured_into_json_figures_and_tables(attnlab):
    done = attnlab(TINY, "--only", "mha,identity", "--contexts", "16,64")
    assert done.exit_code == 0, done.output
    folder = Path("results/tiny_study")
    contents = read(folder)
    assert list(contents["variants"]) == ["mha", "identity"]
    assert contents["ceilings"]["copy_bytes_per_second"] > 0
    assert len(contents["points"]) == 2 * 3 * 2
    for point in contents["points"]:
        assert point["status"] == "ok"
        assert point["reason"] is None
        assert min(point["seconds"], point["spread_seconds"]) > 0
        assert point["tokens_per_second"] > 0
    assert (folder / "bench-batch-1.png").is_file()
    for words in (
        "Decode: time per token, ms",
        "Decode: state per sequence, KiB",
        "Training: time per step, ms",
    ):
        assert words in done.output


def test_contexts_begin_at_the_sequence_length_of_a_study(attnlab):
    done = attnlab(TINY, "--only", "identity", "--what", "decode", "--json")
    assert done.exit_code == 0, done.output
    contents = json.loads(done.stdout)
    assert [p["context"] for p in contents["points"]] == [32, 128, 512, 2048, 8192, 32_768]


def test_what_is_measured_is_not_measured_again(attnlab):
    first = ("identity", *SIZES, "--contexts", "16", "--what", "decode")
    assert attnlab(*first).exit_code == 0
    (before,) = read(Path("results/bench"))["points"]
    done = attnlab("identity", *SIZES, "--contexts", "16,32", "--what", "prefill,decode")
    assert "identity decode 16 x 1" not in done.output
    points = read(Path("results/bench"))["points"]
    assert points[0] == before
    assert [(p["what"], p["context"]) for p in points[1:]] == [
        ("prefill", 16),
        ("prefill", 32),
        ("decode", 32),
    ]


@pytest.mark.parametrize("frozen", [True, False])
def test_collections_are_as_slow_or_quick_after_a_bench_as_before(attnlab, frozen):
    (gc.freeze if frozen else gc.unfreeze)()
    assert attnlab("identity", *SIZES, "--contexts", "16", "--what", "decode").exit_code == 0
    assert (gc.get_freeze_count() > 0) == frozen
    gc.freeze()


def test_an_interrupted_bench_goes_on(attnlab):
    command = ("own.py:Troubled:trouble=interrupt", *SIZES, "--contexts", "16,32,64")
    command = (*command, "--what", "prefill,decode")
    done = attnlab(*command)
    assert done.exit_code == 130
    (before,) = read(Path("results/bench"))["points"]
    assert before["context"] == 16
    assert Path("results/bench/bench-batch-1.png").is_file()
    assert attnlab(*command).exit_code == 0
    points = read(Path("results/bench"))["points"]
    assert len(points) == 6
    assert points[0] == before


def test_out_of_memory_is_a_result_and_larger_points_are_not_tried(attnlab):
    done = attnlab(
        "own.py:Troubled:trouble=hunger",
        *SIZES,
        "--contexts",
        "16,32,64",
        "--what",
        "prefill,decode",
    )
    assert done.exit_code == 0, done.output
    assert statuses("results/bench") == [
        ("prefill", 16, "ok"),
        ("prefill", 32, "out_of_memory"),
        ("prefill", 64, "out_of_memory"),
        ("decode", 16, "ok"),
        ("decode", 32, "ok"),
        ("decode", 64, "ok"),
    ]
    reasons = [p["reason"] for p in read(Path("results/bench"))["points"]]
    assert reasons[1].startswith("RuntimeError")
    assert reasons[2].startswith("not measured: own.py:Troubled")
    assert "out of memory" in done.output


def test_out_of_memory_gives_back_what_it_held(monkeypatch):
    held = list[weakref.ref[torch.Tensor]]()

    def hungry(setup, point, under):
        tensor = torch.ones(10)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(session._MEASURE, "decode", hungry)
    monkeypatch.setattr(gc, "collect", lambda: held.append(held[0]() is None))
    under = session.Conditions(device=torch.device("cpu"), ceilings=None)
    sizes = Sizes(d_model=16, n_layers=1, n_heads=1)
    (setup,) = setups_of(named(["identity"]), sizes).values()
    result = session.measure(setup, session.Point("a", "decode", 8, 1), under)
    assert result["status"] == "out_of_memory"
    assert held[1] is True  # gone by then: nothing is left for the collector to break up


@pytest.mark.parametrize("trouble", ["crash", "kernel"])
def test_a_process_in_which_cuda_has_ended_measures_no_other_point(
    attnlab, apart, monkeypatch, trouble
):
    ended, train, measured = Event(), session._MEASURE["train"], session.measure

    def crashing(setup, point, under):
        if point.context == 32 and trouble == "crash":
            sys.exit()
        return measured(setup, point, under)

    def troubled(setup, point, under):
        if point.context != 32:
            return train(setup, point, under)
        ended.set()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(session, "measure", crashing)
    monkeypatch.setitem(session._MEASURE, "train", troubled)
    monkeypatch.setattr(session, "cuda_is_broken", ended.is_set)
    monkeypatch.setattr(Process, "end", lambda self, end=Process.end: (ended.clear(), end(self)))
    options = (*SIZES, "--contexts", "16,32,64", "--what", "train")
    done = attnlab("own.py:Troubled", *options)
    assert done.exit_code == 1, done.output
    assert statuses("results/bench") == [
        ("train", 16, "ok"), ("train", 32, "failed"), ("train", 64, "ok"),
    ]  # fmt: skip
    reason = read(Path("results/bench"))["points"][1]["reason"]
    assert (
        "was ended by SIGSEGV" if trouble == "crash" else "ended CUDA in its process: Runtime"
    ) in reason
    assert Process.started == 2


def test_a_file_of_the_users_is_measured_in_another_process(attnlab, monkeypatch):
    cpu, sizes = torch.device("cpu"), Sizes(d_model=8, n_layers=1, n_heads=2)
    setups = [*setups_of(named(["identity", "own.py:Troubled"], []), sizes).values()]
    with session.measurer(cpu, setups) as by:
        assert not by.apart  # as those of a notebook, which have no file
    monkeypatch.undo()
    for some, apart in ((setups[:1], False), (setups, True)):
        with session.measurer(cpu, some) as by:
            assert by.apart == apart


def test_what_a_mechanism_prints_is_said_once_beside_the_table(attnlab, apart):
    done = attnlab("own.py:Troubled:trouble=print", *SIZES, "--contexts", "16,32")
    assert done.exit_code == 0, done.output
    name = "own.py:Troubled:trouble=print"
    assert done.output.count(f"{name} prints: seen\n") == done.output.count("seen") == 1
    assert f"{name}: its times include what it prints; remove that" in done.output


def test_an_exit_of_a_mechanism_is_the_result_of_its_point(attnlab):
    done = attnlab("own.py:Troubled:trouble=exit", *SIZES, "--contexts", "16,32", "--what", "train")
    assert done.exit_code == 1
    assert statuses("results/bench") == [("train", 16, "ok"), ("train", 32, "failed")]
    assert "it exits with code 3, which would end attnlab" in done.output


def test_a_breakdown_that_fails_in_its_process_says_why(apart, monkeypatch):
    def no_kernels(result, setup, under):
        raise RuntimeError("the profiler sees no kernels")

    monkeypatch.setattr(session, "with_breakdown", no_kernels)
    (setup,) = setups_of(named(["identity"], []), Sizes(d_model=8, n_layers=1, n_heads=2)).values()
    with session.measurer(torch.device("cpu")) as by:
        with pytest.raises(RuntimeError, match="sees no kernels"):
            by.breakdown({}, setup, None)
        assert Process.started == 1


def test_what_cannot_fit_is_not_tried(attnlab, monkeypatch):
    monkeypatch.setattr(work, "available_bytes", lambda device: 20_000)
    done = attnlab("grouped_query", *SIZES, "--contexts", "16,128", "--what", "decode")
    assert done.exit_code == 0
    assert statuses("results/bench")[-1] == ("decode", 128, "out_of_memory")
    assert "not measured: needs at least" in read(Path("results/bench"))["points"][-1]["reason"]


def test_a_device_says_what_memory_there_is():
    assert work.available_bytes(torch.device("meta")) is None
    there = work.available_bytes(torch.device("cpu"))
    assert there is None or there > 1 << 20


def test_a_mechanism_that_refuses_has_failed_and_is_tried_again(attnlab):
    command = ("own.py:Troubled:trouble=refusal", "identity", *SIZES, "--contexts", "16,32")
    command = (*command, "--what", "prefill")
    for _ in range(2):
        done = attnlab(*command)
        assert done.exit_code == 1
        assert "failed: NotImplementedError: not so many tokens" in " ".join(done.output.split())
        assert [status for *_, status in statuses("results/bench")].count("ok") == 3


def test_a_mechanism_without_step_has_empty_columns_and_no_failure(attnlab):
    what = ("own.py:ForwardOnly", "identity", *SIZES, "--contexts", "16,32")
    done = attnlab(*what)
    assert done.exit_code == 0, done.output
    of_mine = [status for *_, status in statuses("results/bench")[:6]]
    assert of_mine == ["ok", "ok", "no_step", "no_step", "no_step", "no_step"]
    assert {status for *_, status in statuses("results/bench")[6:]} == {"ok"}
    table = done.stdout.partition("Decode: time per token")[2]
    rows = re.findall(r"^own\.py:ForwardOnly +1( +[\d.]+)*\s*$", table, re.MULTILINE)
    assert [bool(times) for times in rows] == [False, False, False, True, True]
    said = "own.py:ForwardOnly: OnlyForward has no `step`: only training is measured"
    assert table.count(said) == 1
    assert done.output.count("has no `step`") == 1
    alone = attnlab(*what[:1], *what[2:], "--what", "decode", "--out", "alone")
    assert alone.exit_code == 0, alone.output


def test_what_takes_far_too_long_is_not_tried_longer(attnlab, monkeypatch):
    def slow(setup, point, under):
        times = {"seconds": 60.0, "spread_seconds": None}
        return times | {"tokens_per_second": 1.0, "peak_memory_bytes": 1}

    monkeypatch.setitem(session._MEASURE, "train", slow)
    done = attnlab("identity", *SIZES, "--contexts", "16,32", "--what", "train")
    assert done.exit_code == 0
    points = read(Path("results/bench"))["points"]
    assert [p["status"] for p in points] == ["ok", "too_long"]
    assert points[1]["reason"].startswith(
        "not measured: one call of identity train 16 x 1 took 1 min 0 s"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mla", "--d-model", "32", "model.d_model=64"), "model.d_model: is given twice, as 32"),
        ((TINY, "--n-heads", "2"), "a study has its own sizes: n_heads is only for mechanisms"),
        ((TINY, "--only", "mah"), "no variant 'mah'; did you mean 'mqa'?"),
        (("identity", "--contexts", "1x"), "contexts: '1x' is not a positive whole number"),
        (
            ("identity", "--what", "training"),
            "what: 'training' is not one of train, prefill, decode",
        ),
        (("mlaa",), "did you mean 'mla'?"),
        ((TINY, "train.stpes=1"), "did you mean 'steps'?"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(attnlab, arguments, message):
    done = attnlab(*arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert not Path("results").exists()


def test_measurements_under_other_conditions_are_not_mixed(attnlab):
    command = ("identity", "--contexts", "16", "--what", "decode")
    assert attnlab(*command, *SIZES).exit_code == 0
    before = Path("results/bench/bench.json").read_bytes()
    other = [size for size in SIZES if size not in ("--n-layers", "1")]
    done = attnlab(*command, *other, "--n-layers", "2")
    assert done.exit_code == 2
    words = " ".join(done.stderr.split())
    assert "identity.model.n_layers: 1 in the file, 2 now" in words
    assert "choose another --out" in words
    assert Path("results/bench/bench.json").read_bytes() == before
    assert attnlab(*command, *other, "--n-layers", "2", "--out", "elsewhere").exit_code == 0


def test_a_figure_has_a_panel_for_what_was_measured_and_says_what_ran_out_of_memory():
    points = [
        {"variant": name, "what": what, "context": context, "batch": 8, "status": "ok"}
        | {"seconds": 1e-3 * context, "state_bytes": context if name == "mha" else 0}
        for name in ("mha", "identity")
        for what in ("decode", "train")
        for context in (1024, 4096)
    ]
    points[-1]["status"] = "out_of_memory"
    contents = {"variants": {"mha": {}, "identity": {}}, "points": points}
    with matplotlib_style():
        drawn = figure.bench_figure(contents, 8, "Z80")
        drawn.draw_without_rendering()
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.axison]
    assert titles == [
        "Time to decode one token",
        "Decode state per sequence",
        "Time of a training step",
    ]
    assert [len(axes.lines) for axes in drawn.axes if axes.axison] == [2, 1, 2]
    assert drawn.axes[2].texts[0].get_text() == "out of memory: identity from 4K"
    for axes in drawn.axes[:3]:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [axes.get_ylabel() for axes in drawn.axes[:3]] == ["ms", "B", "ms"]
    for axes in drawn.axes[:3]:  # the label has the unit of every tick
        texts = [label.get_text() for label in axes.get_yticklabels()]
        assert all(float(text.replace(",", "")) > 0 for text in texts), texts
    assert figure.bench_png(contents, 8, "") == figure.bench_png(contents, 8, "")


def test_a_column_has_one_unit():
    points = [
        {"variant": "mha", "what": "decode", "context": at, "batch": 2, "status": "ok"}
        | {"seconds": 1e-5 * at, "state_bytes": 2048 * at}
        for at in (1, 1024, 65536)
    ]
    contents = {"ceilings": CEILINGS._asdict(), "device": {"name": "Z80"}, "points": points}
    with console.capture() as shown:
        console.print(BenchTable(contents))
    lines = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert lines[lines.index("Decode: time per token, ms") + 2] == "mha 2 0.0100 10.2 655"
    state = lines.index("Decode: state per sequence, MiB")
    assert lines[state + 2] == "mha 2 0.000977 1.00 64.0"


def test_the_breakdown_adds_up():
    point = {"variant": "mha", "what": "decode", "context": 1024, "batch": 1, "status": "ok"}
    point |= {"seconds": 9e-4, "bound_seconds": 1e-4, "times_bound": 9.0, "state_bytes": 1024}
    breakdown = {"kernels": 400, "empty_kernel_seconds": 1.5e-6, "unexplained_seconds": 2e-4}
    contents = {"ceilings": CEILINGS._asdict(), "device": {"name": "Z80"}}
    with console.capture() as shown:
        console.print(BenchTable(contents | {"points": [point | {"time_breakdown": breakdown}]}))
    (row,) = [line for line in shown.get().splitlines() if "mha 1K" in line]
    assert " ".join(row.split()) == "mha 1K x 1 9.0 0.900 0.100 400 1.50 0.600 0.200"


SMALL = Sizes(d_model=32, n_layers=2, n_heads=4, vocab_size=50)


def found(words, assignments=()):
    return setups_of(named(words, assignments), SMALL)


def test_a_study_has_its_own_sizes():
    variants = found([tiny_study.__file__], ["model.n_layers=3"])
    assert list(variants) == list(tiny_study.study.variants)
    for name, setup in variants.items():
        run = tiny_study.study.variants[name]
        assert setup.model.mechanisms == run.model.mechanisms
        assert (setup.model.d_model, setup.model.n_layers) == (16, 3)
        assert (setup.vocab_size, setup.train) == (256, run.train)


def test_a_kind_takes_the_heads_of_the_model_and_keeps_its_other_settings():
    words = ["grouped_query", "mla", "gated_delta_net", "deepseek_sparse"]
    mha, mla, delta, sparse = found(words).values()
    (heads,) = mha.model.mechanisms
    assert (heads.n_heads, heads.n_kv_heads) == (4, 4)
    (latent,) = mla.model.mechanisms
    assert (latent.n_heads, latent.qk_nope_head_dim, latent.v_head_dim) == (4, 8, 8)
    assert latent.kv_lora_rank == type(latent)().kv_lora_rank
    assert delta.model.mechanisms[0].head_dim == 8
    assert sparse.model.mechanisms[0].index_head_dim == 64
    assert (mha.model.n_layers, mha.model.feedforward, mha.vocab_size) == (2, Dense(d_ff=128), 50)


def test_settings_are_of_all_of_one_target_or_of_a_section():
    words = ["sliding_window:window=8,n_kv_heads=2", "sliding_window"]
    assignments = ["window=32", "train.precision=float32"]
    setups_by_name = found(words, assignments)
    assert list(setups_by_name) == words
    narrow, wide = setups_by_name.values()
    assert narrow.model.mechanisms[0].window == 8
    assert narrow.model.mechanisms[0].n_kv_heads == 2
    assert wide.model.mechanisms[0].window == 32
    assert {setup.train.precision for setup in (narrow, wide)} == {"float32"}
    of_setting = ["rope_scaling=linear", "rope_scaling.factor=4", "model.n_layers=1"]
    (setup,) = found(["grouped_query"], of_setting).values()
    assert (setup.model.mechanisms[0].rope_scaling.factor, setup.model.n_layers) == (4.0, 1)


def test_a_config_is_measured_as_given_except_for_the_assignments():
    config = MLA(n_heads=2, kv_lora_rank=8)
    (setup,) = found([config], ["q_lora_rank=4", "train.precision=float32"]).values()
    (mechanism,) = setup.model.mechanisms
    assert (mechanism.n_heads, mechanism.kv_lora_rank, mechanism.q_lora_rank) == (2, 8, 4)
    assert (setup.model.d_model, setup.train.precision) == (32, "float32")


def test_only_some_of_the_models_are_kept():
    all_of_them = found(["mla", "identity", "grouped_query"])
    assert list(only_named(all_of_them, "identity, mla")) == ["mla", "identity"]
    assert list(only_named(all_of_them, ["mla"])) == ["mla"]
    assert only_named(all_of_them, None) == all_of_them
    with pytest.raises(ConfigError, match="no variant 'mlb'; did you mean 'mla'"):
        only_named(all_of_them, "mlb")


@pytest.mark.parametrize(
    ("words", "assignments", "message"),
    [
        (["mla", "mla"], [], "two models are called 'mla'"),
        (["mla"], ["n_haeds=2"], "no field 'n_haeds'; did you mean 'n_heads'?"),
        (["mla"], ["train.stpes=2"], "no field 'stpes'; did you mean 'steps'?"),
        (["grouped_query:n_kv_heads=3"], [], "3 does not divide n_heads 4"),
    ],
)
def test_a_mistake_is_said(words, assignments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        found(words, assignments)


def test_sizes_that_settings_of_the_model_give_are_those_of_the_mechanism():
    setup = setup_of("mla", ["model.d_model=64", "model.n_layers=3"], SMALL)
    assert setup == setup_of("mla", sizes=replace(SMALL, d_model=64, n_layers=3))
    with pytest.raises(ConfigError, match="n_heads: 4 heads do not divide d_model 30; give both"):
        setup_of("mla", ["model.d_model=30"], SMALL)


def test_heads_must_divide_the_model_width():
    with pytest.raises(ConfigError, match="5 heads do not divide d_model 32"):
        Sizes(d_model=32, n_heads=5)


def test_contexts_grow_from_the_sequence_length_where_none_are_named():
    grown = list(points([("a", 1024), ("b", 20_000)], ["decode"], None, [8, 1]))
    assert [point.context for point in grown if point.variant == "a"][::2] == [
        1024,
        4096,
        16_384,
        65_536,
    ]
    assert [point for point in grown if point.variant == "b"] == [
        Point("b", "decode", 20_000, 1),
        Point("b", "decode", 20_000, 8),
    ]
    named = list(points([("a", 1024)], ["train", "decode"], [64, 16], [1]))
    assert [(point.what, point.context) for point in named] == [
        ("train", 16),
        ("train", 64),
        ("decode", 16),
        ("decode", 64),
    ]


def speed_table(monkeypatch, out, *options):
    """Return the module of the table; its `main` has these options."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    options = ("--tiny", "--seconds", "0.001", "--out", str(out), *options)
    monkeypatch.setattr(sys, "argv", ["speed_table.py", *options])
    return importlib.import_module("speed_table")


def test_the_table_of_speed_has_each_line_beside_its_reference(tmp_path, monkeypatch, capsys):
    draw_nothing(monkeypatch)
    rows = "step,variants,decoding,prefill,report,driver"
    table, threads = (
        speed_table(monkeypatch, tmp_path, "--here", "--rows", rows),
        torch.get_num_threads(),
    )
    table.main()
    torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert (tmp_path / "speed.md").read_text() == shown
    messages = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [message["end"] for message in messages if "end" in message] == rows.split(",")
    lines = [message["line"] for message in messages if "line" in message]
    assert len(lines) == 2 + 2 + 4 + 4 + 2 + 1
    assert "skipped" not in shown
    for line in lines:
        assert f"| {line['work']} | " in shown
        assert line["value"] > 0
        assert line["reference"] is None or line["reference"] > 0


def test_a_row_of_the_table_that_fails_or_ends_its_process_leaves_the_others(
    tmp_path, monkeypatch, capsys
):
    table = speed_table(monkeypatch, tmp_path, "--rows", "step,sparse,layers,report,driver")
    goal = ["value", 2.0, False]
    line = asdict(table.Line(work="w", value=1.0, unit="s")) | {"goal": goal}
    says = [{"facts": {"card": "C"}}, {"begin": "step"}, {"row": "step", "line": line}]
    says += [{"end": "step"}, {"begin": "sparse"}]
    again = [{"facts": {"card": "C"}}, {"begin": "layers"}]
    last = [{"begin": "report"}, {"row": "report", "skipped": "E: x"}, {"end": "report"}]
    last += [{"begin": "driver"}, {"end": "driver"}]
    program = f"""
import json, sys, time
rows = sys.argv[1].split(",")
for message in {says} if "step" in rows else {again} if "layers" in rows else {last}:
    print("of a library"), print(json.dumps(message), flush=True)
if "step" in rows:
    sys.exit(7)
if "layers" in rows:
    time.sleep(60)
"""
    monkeypatch.setitem(table.ROWS, "layers", table.ROWS["layers"]._replace(limit=0.5))
    command = [sys.executable, "-c", program]
    found = table.Table(tmp_path)
    for message in table.measured_there(["step", "sparse", "layers", "report", "driver"], command,
                                        tmp_path / "log"):  # fmt: skip
        found.add(message)
    text = (tmp_path / "speed.md").read_text()
    assert text == capsys.readouterr().out
    assert text.count("card C") == 1
    assert "| w | 1 s |  |  |  | at most 2 | yes |" in text
    assert "| sparse | skipped | exit code 7" in text
    assert "| layers | skipped | given up after " in text
    assert "| report | skipped | E: x |" in text


def test_a_row_that_needs_a_gpu_says_so(monkeypatch, tmp_path):
    table = speed_table(monkeypatch, tmp_path)
    monkeypatch.setattr(table.speed_rows, "CUDA", False)
    messages = list(table.measured_here(["decoding"], table.Effort(0.001, False)))
    assert {"row": "decoding", "skipped": "RuntimeError: it needs a GPU"} in messages


@pytest.mark.parametrize(
    ("goal", "value", "reference", "reached"),
    [
        (("ratio", 1.5), 3.0, 2.0, True),
        (("ratio", 1.5), 3.1, 2.0, False),
        (("ratio", 1.1, True), 1.2, 1.0, True),
        (("ratio", 1.1, True), 1.0, 1.0, False),
        (("ratio", 1.1), 1.0, None, None),
        (("value", 2.0), 1.0, None, True),
        (None, 1.0, 1.0, None),
    ],
)
def test_a_goal_of_speed_is_reached_or_not(monkeypatch, tmp_path, goal, value, reference, reached):
    table = speed_table(monkeypatch, tmp_path)
    goal = goal and table.Goal(*goal)
    line = table.Line(work="w", value=value, unit="ms", goal=goal, reference=reference)
    assert line.reached is reached


def test_kernel_times_say_what_a_step_does_and_how_long_it_waits(monkeypatch, tmp_path, capsys):
    speed_table(monkeypatch, tmp_path)
    times = importlib.import_module("kernel_times")
    out = tmp_path / "times.json"
    options = ["--tiny", "--seconds", "0.001", "--only", "decoding,nothing", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["kernel_times.py", *options])
    times.main()
    (found,) = json.loads(out.read_text())["rows"]
    shown = capsys.readouterr().out
    assert "decoding: " in shown
    assert "nothing: KeyError" in shown
    assert {"softmax and loss", "normalisation and elementwise"} <= set(found["kinds"])
    assert found["kernels"] == sum(kind["calls"] for kind in found["kinds"].values()) > 10
    assert 0 < found["busy_ms"] < 1000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_red_fused__softmax_3", "softmax and loss"),
        ("triton_poi_fused_add_expand_mul_2", "normalisation and elementwise"),
        ("triton_red_fused__to_copy_exp_gather_0", "softmax and loss"),
        ("nvjet_sm90_tst_128x256_64x4", "matrix products"),
        ("triton_tem_fused_flex_attention_backward_1", "attention"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer and clipping"),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("some_kernel", "other"),
    ],
)
def test_the_kind_of_a_kernel_follows_from_its_name(monkeypatch, tmp_path, name, kind):
    speed_table(monkeypatch, tmp_path)
    assert importlib.import_module("kernel_times").kind_of(name) == kind


def test_time_in_which_kernels_overlap_counts_once(monkeypatch, tmp_path):
    speed_table(monkeypatch, tmp_path)
    kernels = [("a", 0.0, 2.0), ("b", 1.0, 3.0), ("c", 5.0, 6.0), ("d", 5.5, 5.7)]
    assert importlib.import_module("kernel_times").busy(kernels) == 4.0


CPU = torch.device("cpu")
SLOW = Ceilings(1e9, "float32", 64, 1e9, 1024)
UNDER = Conditions(device=CPU, ceilings=SLOW, seconds=1e-4)
KINDS = [
    "grouped_query:n_kv_heads=1",
    "sliding_window:window=8",
    "deepseek_sparse:top_k=8,index_head_dim=8",
    "mla:kv_lora_rank=8",
    "gated_delta_net",
    "identity",
]
TWO_LAYERS = Sizes(d_model=16, n_layers=2, n_heads=2, vocab_size=64)  # which the loss need not pad


def setup_of(word, assignments=(), sizes=TWO_LAYERS):
    (setup,) = setups_of(named([word], assignments), sizes).values()
    return setup


def measured(word, what, context, batch, under=UNDER):
    result = measure(setup_of(word), Point(word, what, context, batch), under)
    assert result["status"] == "ok", result["reason"]
    return result


@pytest.mark.parametrize("word", KINDS)
def test_a_decoded_token_costs_the_flops_and_bytes_that_its_cost_states(word):
    result = measured(word, "decode", 24, 3)
    assert result["flops_counted"] == result["flops_stated"] > 0
    assert result["state_bytes"] == result["state_bytes_stated"]
    assert result["tokens_per_second"] == pytest.approx(3 / result["seconds"])
    assert result["weight_bytes"] == 4 * setup_of(word).model.cost(64, 1).params
    bound = 2 * (result["weight_bytes"] + result["state_bytes"]) / 1e9
    assert result["bound_seconds"] == pytest.approx(bound)
    assert result["times_bound"] == pytest.approx(result["seconds"] / bound)
    assert result["bandwidth_fraction"] == pytest.approx(0.5 / result["times_bound"])


@pytest.mark.parametrize("word", KINDS)
def test_a_prompt_leaves_the_state_that_is_stated(word):
    result = measured(word, "prefill", 24, 3)
    assert result["state_bytes"] == result["state_bytes_stated"]
    assert result["state_bytes_per_token"] == result["state_bytes"] / 72
    assert result["tokens_per_second"] == pytest.approx(72 / result["seconds"])


@pytest.mark.parametrize("word", KINDS)
def test_a_training_step_is_that_of_the_trainer(word):
    result = measured(word, "train", 24, 3)
    assert result["tokens_per_second"] == pytest.approx(72 / result["seconds"])
    assert result["matrix_fraction"] == pytest.approx(
        result["flops_stated"] / result["seconds"] / 1e9
    )
    assert result["dtype"] == "float32"


def test_stated_work_is_counted_work_where_nothing_is_computed_that_is_masked():
    for what in ("train", "prefill"):
        result = measured("identity", what, 5, 2)
        assert result["flops_counted"] == result["flops_stated"]
    of_experts = ["model.feedforward=mixture_of_experts", "model.feedforward.balance_loss=0"]
    routed = setup_of("identity", of_experts)
    for what in ("train", "prefill", "decode"):
        result = measure(routed, Point("identity", what, 5, 2), UNDER)
        assert result["flops_counted"] == result["flops_stated"], what
    square = measured("grouped_query", "prefill", 5, 2)  # the counter sees T x T, not half of it
    masked = 2 * 2 * 2 * 2 * 16 * (5 * 5 - 15)  # batch, layers, products, FLOPs, D, positions
    assert square["flops_counted"] - square["flops_stated"] == masked


def test_a_prompt_is_as_much_work_as_its_tokens_but_for_the_projection():
    setup = setup_of("sliding_window:window=3")
    tokens = [setup.model.forward_flops(64, context) for context in range(1, 8)]
    projection = 2 * 64 * 16
    assert stated_flops(setup, Point("", "prefill", 7, 2)) == 2 * (sum(tokens) - 6 * projection)
    assert stated_flops(setup, Point("", "train", 7, 2)) == 3 * 2 * sum(tokens)
    of_step = setup.model.cost(64, 7).flops
    assert stated_flops(setup, Point("", "decode", 7, 2)) == 2 * of_step < 2 * tokens[-1]


def test_every_timed_token_is_the_last_of_its_context(monkeypatch):
    setup, seen = setup_of("grouped_query"), list[int]()
    kind = type(setup.model.mechanisms[0].build(16))
    step = kind.step

    def watched(self, x_BD, state):
        seen.append(state.seen.item())
        assert state.k_BGSK.shape[2] == 24
        return step(self, x_BD, state)

    monkeypatch.setattr(kind, "step", watched)
    measured("grouped_query", "decode", 24, 1)
    assert set(seen) == {23}
    assert len(seen) > 2 * LEAST


def test_a_state_that_counts_in_python_is_that_of_a_prompt(monkeypatch):
    setup, seen = setup_of("identity"), list[int]()
    kind = type(setup.model.mechanisms[0].build(16))
    monkeypatch.setattr(kind, "init_state", lambda self, batch, capacity: (0,))

    def step(self, x_BD, state):
        seen.append(state[0])
        return self(x_BD), (state[0] + 1,)

    monkeypatch.setattr(kind, "step", step)
    monkeypatch.setattr(kind, "prefill", Mechanism.prefill)
    result = measured("identity", "decode", 24, 1)
    assert "contains int" in result["graph_problem"]
    assert max(seen) >= 23 + LEAST
    assert seen[:46] == [*range(23), *range(23)]  # two layers


def test_a_clock_stops_after_its_budget_and_not_before_five_calls():
    calls = list[float]()

    def call(seconds):
        calls.append(seconds)
        time.sleep(seconds)

    times = time_calls(lambda: call(0.002), CPU, 0.001)
    assert times.repeats == LEAST
    assert times.seconds >= 0.002
    assert times.spread_seconds is not None
    assert len(calls) <= LEAST + 4
    assert time_calls(lambda: None, CPU, 1.0).repeats == MOST


def test_what_takes_far_too_long_is_not_repeated():
    calls = list[float]()

    def call():
        calls.append(0.0)
        time.sleep(0.02)

    times = time_calls(call, CPU, 0.02 / PATIENCE / 2)
    assert (times.repeats, times.spread_seconds, len(calls)) == (1, None, 2)


def test_a_device_has_a_matrix_rate_and_a_bandwidth():
    ceilings = measure_ceilings(CPU, 1e-4)
    assert ceilings.matrix_dtype == "float32"
    assert 1e8 < ceilings.matrix_flops_per_second < 1e14
    assert 1e8 < ceilings.copy_bytes_per_second < 1e13


@pytest.mark.parametrize("what", ["train", "prefill", "decode"])
def test_a_compiled_model_is_measured_compiled(what, monkeypatch):
    compiled = list[object]()
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
    monkeypatch.setattr(
        "attnlab.model.language_model.compile_once", lambda f, **_: compiled.append(f) or f
    )
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # loads the whole compiler
    under = Conditions(device=CPU, ceilings=SLOW, seconds=1e-4, compiled=True)
    assert measured("identity", what, 8, 1, under)["compiled"] is True
    assert len(set(compiled)) == (2 if what == "decode" else 1)  # the logits, too
    compiled.clear()
    assert measured("identity", what, 8, 1)["compiled"] is False
    assert not compiled


def test_the_farthest_point_of_each_variant_gets_a_breakdown():
    def decoded(variant, times):
        return {"variant": variant, "times_bound": times}

    far, farther = decoded("a", 2.0), decoded("a", 3.0)
    points = [far, farther, decoded("b", 1.4), {"variant": "c"}]
    assert without_breakdown(points) == [farther]
    assert without_breakdown([far, farther | {"time_breakdown": {}}]) == []


def test_what_cannot_be_counted_has_no_count_and_is_measured(monkeypatch):
    def refuses(self):
        raise torch.OutOfMemoryError("of the counter's own doing")

    monkeypatch.setattr(FlopCounterMode, "__enter__", refuses)
    for what in ("train", "prefill", "decode"):
        assert measured("identity", what, 8, 1)["flops_counted"] is None


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["train", "prefill", "decode"])
@pytest.mark.parametrize("word", KINDS)
def test_on_cuda_everything_is_measured_in_graphs_and_bfloat16(word, what):
    cuda = torch.device("cuda")
    under = Conditions(device=cuda, ceilings=measure_ceilings(cuda, 0.01), seconds=0.01)
    setup = setup_of(word, sizes=Sizes(d_model=128, n_layers=2, n_heads=2))
    result = measure(setup, Point(word, what, 256, 2), under)
    assert result["status"] == "ok", result["reason"]
    assert result["dtype"] == "bfloat16"
    assert result["cuda_graph"] is (what != "prefill")
    assert result["peak_memory_bytes"] > 0
    if what != "train":
        assert result["state_bytes"] == result["state_bytes_stated"]
    assert torch.cuda.memory_allocated() < 2**30


@pytest.mark.gpu
def test_on_cuda_the_breakdown_counts_kernels():
    cuda = torch.device("cuda")
    under = Conditions(device=cuda, ceilings=measure_ceilings(cuda, 0.01), seconds=0.1)
    setup = setup_of("grouped_query", sizes=Sizes(d_model=128, n_layers=2, n_heads=2))
    result = measure(setup, Point("grouped_query", "decode", 256, 1), under)
    assert without_breakdown([result]) == [result]
    found = with_breakdown(result, setup, under)["time_breakdown"]
    assert 20 < found["kernels"] < 500
    assert 1e-7 < found["empty_kernel_seconds"] < 1e-4
    assert 0 < found["kernel_seconds"] < 2 * result["seconds"]


@pytest.mark.gpu
def test_on_cuda_what_does_not_fit_is_recorded_and_given_back():
    cuda = torch.device("cuda")
    under = Conditions(device=cuda, ceilings=SLOW, seconds=0.01)
    setup = setup_of("grouped_query:kernel=plain", sizes=Sizes(d_model=128, n_layers=2, n_heads=2))
    result = measure(setup, Point("plain", "train", 1 << 19, 1), under)
    assert result["status"] == "out_of_memory", result["reason"]
    assert torch.cuda.memory_allocated() < 2**30
