"""The measurements of a point: its work, its bytes, its context, and its time."""

import gc
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnlab.benchmarking.point import Conditions, Point
from attnlab.benchmarking.session import measure
from attnlab.benchmarking.targets import Sizes, setups_of
from attnlab.benchmarking.time_breakdown import with_breakdown, without_breakdown
from attnlab.benchmarking.work import stated_flops
from attnlab.device.flops import Ceilings, measure_ceilings
from attnlab.device.measuring import LEAST, MOST, PATIENCE, time_calls
from attnlab.mechanism import Mechanism
from attnlab.study.targets import named

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e9, "float32", 64, 1e9, 1024)
UNDER = Conditions(device=CPU, ceilings=CEILINGS, seconds=1e-4)
KINDS = [
    "grouped_query:n_kv_heads=1",
    "sliding_window:window=8",
    "deepseek_sparse:top_k=8,index_head_dim=8",
    "mla:kv_lora_rank=8",
    "gated_delta_net",
    "identity",
]
SIZES = Sizes(d_model=16, n_layers=2, n_heads=2, vocab_size=64)  # which the loss need not pad


@pytest.fixture(autouse=True, scope="module")
def quick_collections():
    """As a session of many points has them."""
    gc.freeze()
    yield
    gc.unfreeze()


def setup_of(word, assignments=(), sizes=SIZES):
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
    under = Conditions(device=CPU, ceilings=CEILINGS, seconds=1e-4, compiled=True)
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
    under = Conditions(device=cuda, ceilings=CEILINGS, seconds=0.01)
    setup = setup_of("grouped_query:kernel=plain", sizes=Sizes(d_model=128, n_layers=2, n_heads=2))
    result = measure(setup, Point("plain", "train", 1 << 19, 1), under)
    assert result["status"] == "out_of_memory", result["reason"]
    assert torch.cuda.memory_allocated() < 2**30
