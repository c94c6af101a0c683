"""Held-out quality is over the whole split; runs and benchmarks train with the same step.

A leak raises the alarm instead of winning a study, and so does a kernel with wrong gradients;
nothing else does.
"""

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support import PLANTED_BUGS, tiny_study
from torch import Tensor
from torch.nn.functional import log_softmax

from attnlab.config import load_file
from attnlab.data import Places
from attnlab.data.batches import window_starts
from attnlab.data.text import Text
from attnlab.data.tokenizer import Bytes
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.record import RunFolder
from attnlab.runner.events import Progress
from attnlab.runner.execute import execute
from attnlab.training import plausibility
from attnlab.training import plausibility as plausible
from attnlab.training.assemble import step_of_one_batch, step_of_run
from attnlab.training.config import TrainConfig
from attnlab.training.evaluate import HeldOut, bins
from attnlab.training.plausibility import MAX_CHANGE, PlausibilityMonitor, look_ahead
from attnlab.training.precision import ALLOWED, GradientError, gradient_error
from attnlab.training.run import Run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def all_cuts(one_cut):
    """Trained models are searched for a look ahead from as many cuts as a user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plausible, "CUTS", one_cut)
        yield


@pytest.fixture
def corpus(tmp_path):
    for split, text in (("train", "abcdefg " * 50), ("valid", "the quick brown fox jumps é " * 3)):
        (tmp_path / f"{split}.txt").write_text(text)
    return Text(paths=(str(tmp_path),), tokenizer=Bytes()).load(Places(None, tmp_path / "cache"))


@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("seq_len", [1, 7, 20, 83, 84, 500])
def test_every_token_but_the_first_counts_once(corpus, seq_len, one_shape):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).double()
    tokens = torch.from_numpy(corpus.valid.astype("int64"))
    held_out = HeldOut(
        corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU, one_shape=one_shape
    )
    assert len({batch.tokens_BT1.shape for batch in held_out.batches}) == 1 or not one_shape
    quality = held_out.quality(model, nullcontext())

    # without mixing every token is predicted from the one before, whatever its window
    log_p_NV = log_softmax(model.logits(tokens[None, :-1])[0], -1)
    nats_N = -log_p_NV.gather(1, tokens[1:, None])
    assert quality.loss == pytest.approx(nats_N.mean().item(), rel=1e-6)
    right = (log_p_NV.argmax(-1) == tokens[1:]).double().mean().item()
    assert quality.accuracy == pytest.approx(right)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert quality.bits_per_byte == pytest.approx(quality.loss / math.log(2), rel=1e-6)


@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("seq_len", [1, 20, 30, 500])
@torch.no_grad()
def test_loss_by_position_and_by_recall_are_what_loops_give(corpus, seq_len, one_shape):
    attention = GroupedQuery(n_heads=2, n_kv_heads=2)
    model = ModelConfig(mechanisms=(attention,), n_layers=1, d_model=16).build(256).double().eval()
    held_out = HeldOut(
        corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU, one_shape=one_shape
    )
    assert len({batch.tokens_BT1.shape for batch in held_out.batches}) == 1 or not one_shape
    quality = held_out.quality(model, nullcontext())

    tokens = corpus.valid.tolist()
    length = min(seq_len, len(tokens) - 1)
    at_position = {first: [] for first in bins(length)}
    of_recall = {True: [], False: []}
    for i in range(1, len(tokens)):
        start = min((i - 1) // length * length, len(tokens) - 1 - length)
        context, target = tokens[start:i], tokens[i]
        log_p_V = log_softmax(model.logits(torch.tensor([context]))[0, -1], -1)
        nats = -log_p_V[target].item()
        at_position[max(first for first in at_position if first < len(context))].append(nats)
        earlier = list(pairwise(context))
        of_recall[(context[-1], target) in earlier].append(nats)

    assert quality.by_position.first == tuple(at_position)
    by_position = [sum(nats) / len(nats) for nats in at_position.values()]
    assert quality.by_position.loss == pytest.approx(by_position, rel=1e-6)
    recalled, other = of_recall[True], of_recall[False]
    assert quality.recall_fraction == len(recalled) / (len(tokens) - 1)
    assert bool(recalled) == (seq_len > 20)
    if recalled:
        assert quality.recall_loss == pytest.approx(sum(recalled) / len(recalled), rel=1e-6)
    else:
        assert quality.recall_loss is None
    assert quality.other_loss == pytest.approx(sum(other) / len(other), rel=1e-6)


def test_the_bins_of_positions_are_few_and_fine_at_the_start():
    assert bins(1024)[:12] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
    assert len(bins(1024)) == 36
    assert len(bins(65_536)) == 60


def test_evaluation_leaves_the_model_in_its_mode(corpus):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).train()
    held_out = HeldOut(corpus, "valid", seq_len=8, batch_size=3, device=CPU)
    held_out.quality(model, nullcontext())
    assert model.training


@pytest.mark.parametrize("seq_len", [2, 7, 84])
def test_loss_by_block_of_the_text_makes_up_the_whole(corpus, seq_len, monkeypatch):
    monkeypatch.setattr("attnlab.training.quality._BLOCKS", 5)
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).double()
    held_out = HeldOut(corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU)
    quality = held_out.quality(model, nullcontext())
    tokens, loss = quality.by_block
    assert sum(tokens) == len(corpus.valid) - 1
    assert len(tokens) == len(loss) == min(5, math.ceil((len(corpus.valid) - 1) / seq_len))
    mean = sum(n * x for n, x in zip(tokens, loss, strict=True)) / sum(tokens)
    assert mean == pytest.approx(quality.loss, abs=1e-5)
    assert quality.detailed("test")["test_loss_by_block"] == {"tokens": tokens, "loss": loss}
    assert "loss_by_block" not in quality.without_prefix()


@pytest.fixture(scope="module")
def shared_corpus(places):
    return tiny_study.base.data.load(places)


def batches_of(step, steps):
    """The batches of the next steps."""
    seen, losses = [], step.model.losses
    step.model.losses = lambda batch, **how: (seen.append(batch.clone()), losses(batch, **how))[1]
    for _ in range(steps):
        step.advance()
    return seen


def test_a_run_has_the_model_and_the_windows_of_its_seed(shared_corpus):
    config = replace(tiny_study.base, seed=3)
    step = step_of_run(config, shared_corpus, CPU)
    expected = config.model.build(shared_corpus.vocab_size, 3).state_dict()
    assert all(torch.equal(expected[name], w) for name, w in step.model.state_dict().items())
    starts = window_starts(len(shared_corpus.train), seq_len=32, batch_size=2, steps=12, seed=3)
    tokens = torch.from_numpy(shared_corpus.train.astype("int64"))
    for batch_BT1, starts_B in zip(batches_of(step, 3), starts[:3], strict=True):
        assert torch.equal(batch_BT1, torch.stack([tokens[s : s + 33] for s in starts_B]))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_is_compiled_if_the_settings_say_so(shared_corpus, compiled):
    train = replace(tiny_study.base.train, compile="on" if compiled else "auto")
    assert (
        step_of_run(replace(tiny_study.base, train=train), shared_corpus, CPU).compiled is compiled
    )


def test_a_benchmark_trains_on_one_batch():
    model = tiny_study.base.model.build(256)
    before = model.embed.weight.clone()
    tokens_BT1 = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=3, batch_size=2, seq_len=8, warmup_steps=0)
    batches = batches_of(step_of_one_batch(config, model, tokens_BT1, compiled=False), 3)
    assert all(torch.equal(batch_BT1, tokens_BT1) for batch_BT1 in batches)
    assert not torch.equal(model.embed.weight, before)


def test_the_arithmetic_of_a_run_is_three_forward_passes_over_all_its_tokens():
    config = tiny_study.base
    forward = config.model.forward_flops(256, 16)  # half the sequence, on average
    assert config.petaflops(256) == pytest.approx(3 * forward * 12 * 2 * 32 / 1e15)


LONG = {
    "steps": 200,
    "batch_size": 8,
    "log_every": 25,
    "eval_every": 200,
    "checkpoint_every": 200,
    "learning_rate": 2e-2,
}
SHIPPED = {
    **{name: config.model.mechanisms[0] for name, config in tiny_study.study.variants.items()},
    "sliding": SlidingWindow(n_heads=2, n_kv_heads=2, window=8),
    "mla": MLA(n_heads=2, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8),
    "linear": GatedDeltaNet(n_heads=2, head_dim=8),
}


@pytest.fixture(scope="module")
def tiny_corpus(places):
    return tiny_study.base.data.load(places)


@pytest.fixture(scope="module")
def planted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
        yield load_file(PLANTED_BUGS)


def run(mechanism, folder, places, **train):
    config = tiny_study.base.with_mechanisms(mechanism)
    config = replace(config, train=replace(config.train, **train))
    return execute(Run(variant="x", config=config), folder, "same", places, CPU)


def a_monitor(tiny_corpus, model=None):
    config = tiny_study.base
    model = model or config.model.build(256)
    return PlausibilityMonitor(tiny_corpus, config.train, model, nullcontext())


def test_one_position_of_look_ahead_raises_the_alarm_while_it_trains(tmp_path, places, planted):
    leak = planted.MaskOffByOne(n_heads=2, n_kv_heads=2)
    events = list(run(leak, tmp_path, places, **LONG))
    folder = RunFolder(tmp_path, "x", 0)
    lines = [line for line in folder.metrics() if "alarm" in line]
    assert len(lines) == 1
    assert lines[0]["step"] < 200
    assert "below" in lines[0]["alarm"]
    assert "sees the future" in lines[0]["alarm"]
    assert folder.summary()["alarms"] == [lines[0]["alarm"]]
    alarmed = [event.alarm for event in events if isinstance(event, Progress) and event.alarm]
    assert alarmed == folder.summary()["alarms"]
    assert events[-1].status == "finished"


def test_a_leak_that_gained_little_is_found_at_the_end(tmp_path, places, planted):
    leak = planted.TopKOverMaskedPositions(n_heads=2, n_kv_heads=2)
    *_, last, _ended = run(leak, tmp_path, places, **LONG)
    summary = RunFolder(tmp_path, "x", 0).summary()
    assert summary["final_loss"] > summary["ngram_loss"]
    assert summary["alarms"] == [last.alarm]
    assert last.alarm.startswith("after the last step the model sees the future")


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_mechanism_raises_it(tmp_path, places, name):
    list(run(SHIPPED[name], tmp_path, places, steps=20, learning_rate=3e-2))
    summary = RunFolder(tmp_path, "x", 0).summary()
    assert summary["alarms"] == summary["cleared"] == []


def test_a_leak_in_training_alone_is_a_leak(tiny_corpus):
    model = tiny_study.base.model.build(256)
    mix = model.blocks[0].mix
    mix.forward_with_loss = lambda x_BTD: (100 * x_BTD.roll(-1, 1), None)
    alarm = a_monitor(tiny_corpus, model).final_check()
    assert alarm is not None
    assert "in train mode" in alarm


@pytest.mark.parametrize(
    ("leaks", "where"),
    [
        (lambda x_BTD: len(x_BTD) >= 8, "batch 8"),
        (lambda x_BTD: len(x_BTD) == 2, "batch 2"),  # as in training
        (lambda x_BTD: x_BTD.shape[1] == 32, "batch 2"),
        (lambda x_BTD: x_BTD.dtype == torch.bfloat16, "batch 2"),
    ],
)
def test_a_leak_at_the_batch_length_or_dtype_of_training_is_found(tiny_corpus, leaks, where):
    model = tiny_study.base.model.build(256)
    model.blocks[0].mix.forward = lambda x_BTD: 100 * x_BTD.roll(-leaks(x_BTD), 1)
    context = torch.autocast("cpu", torch.bfloat16)
    alarm = PlausibilityMonitor(tiny_corpus, tiny_study.base.train, model, context).final_check()
    assert alarm is not None
    assert alarm.endswith(f"mode, {where})")


def test_a_loss_that_is_no_number_once_the_future_changes_is_a_leak(tiny_corpus):
    model = tiny_study.base.model.build(256)
    monitor = a_monitor(tiny_corpus, model)
    mix, first_B1D = model.blocks[0].mix, model.embed(monitor.tokens_BT)[:, -1:]
    model.blocks[0].mix_norm = torch.nn.Identity()
    mix.forward = lambda x_BTD: x_BTD / (x_BTD[:, -1:] == first_B1D[: len(x_BTD)]).all()
    assert "nan" in (monitor.final_check() or "")


@pytest.mark.parametrize(("windows", "alarms"), [(1, 0), (4, 1)])
def test_what_moves_in_one_window_alone_is_no_leak(tiny_corpus, windows, alarms):
    model = tiny_study.base.model.build(256)

    def ahead(x_BTD):
        y_BTD = torch.zeros_like(x_BTD)
        y_BTD[:windows, :-1] = 100 * x_BTD[:windows, 1:]
        return y_BTD

    model.blocks[0].mix.forward = ahead
    monitor = a_monitor(tiny_corpus, model)
    monitor.final_check()
    assert len(monitor.alarms) == alarms


def test_good_models_and_good_memories_are_not_suspicious(tiny_corpus):
    monitor = a_monitor(tiny_corpus)
    good = {"train_loss": 0.6 * monitor.ngrams, "eval_loss": 0.6 * monitor.ngrams}
    assert monitor.check(1, good) == {}
    by_heart = {"train_loss": 0.01, "eval_loss": 2 * monitor.ngrams}
    assert (
        monitor.first_epoch * 2 * 33 <= len(tiny_corpus.train) < (monitor.first_epoch + 1) * 2 * 33
    )
    assert monitor.check(monitor.first_epoch + 1, by_heart) == {}
    assert monitor.cleared == monitor.alarms == []


@pytest.mark.parametrize("losses", [{"train_loss": 0.4}, {"eval_loss": 0.4}])
def test_what_does_not_look_ahead_is_cleared_and_not_asked_again(tiny_corpus, losses):
    monitor = a_monitor(tiny_corpus)
    said = monitor.check(monitor.first_epoch, losses)
    assert list(said) == ["cleared"]
    assert "0.400" in said["cleared"]
    assert f"{monitor.ngrams / 2:.3f}" in said["cleared"]
    assert monitor.check(monitor.first_epoch, losses) == {}
    assert monitor.final_check() is None
    assert monitor.summary() == {
        "ngram_loss": monitor.ngrams,
        "alarms": [],
        "cleared": [said["cleared"]],
        "gradient_error": None,
    }


@pytest.fixture(scope="module")
def suspicious_run(tmp_path_factory, places):
    """A run in which every loss is suspicious, and which was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plausible, "FRACTION", 10.0)
        list(run(SHIPPED["sparse"], folder, places))
    return RunFolder(folder, "x", 0)


@pytest.mark.parametrize("events", [2, 3, 4])
def test_an_interrupted_run_has_the_same_messages(
    tmp_path, places, suspicious_run, events, monkeypatch
):
    monkeypatch.setattr(plausible, "FRACTION", 10.0)  # every loss is suspicious
    cut = run(SHIPPED["sparse"], tmp_path, places)
    for _ in range(events):
        next(cut)
    cut.close()
    list(run(SHIPPED["sparse"], tmp_path, places))
    whole, resumed = suspicious_run, RunFolder(tmp_path, "x", 0)
    asked, again = (
        [(line["step"], line["train_loss"], line.get("cleared")) for line in folder.metrics()]
        for folder in (whole, resumed)
    )
    assert asked == again
    assert asked[0][2] is not None
    assert resumed.summary()["cleared"] == whole.summary()["cleared"] == [asked[0][2]]


@pytest.mark.parametrize("training", [True, False])
def test_the_test_leaves_the_model_as_it_was(tiny_corpus, training):
    model = tiny_study.base.model.build(256).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monitor = a_monitor(tiny_corpus, model)
    found = look_ahead(model, monitor.tokens_BT, monitor.target_BT, nullcontext(), 8)
    assert found.nats <= MAX_CHANGE
    assert model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_sequence_of_one_token_has_no_future(tiny_corpus):
    model, token_11 = tiny_study.base.model.build(256), torch.tensor([[7]])
    assert not look_ahead(model, token_11, token_11, nullcontext(), 1).sees_the_future


@pytest.mark.gpu
@pytest.mark.parametrize("kind", sorted(MechanismConfig.kinds))
def test_no_kernel_on_cuda_looks_ahead_in_bfloat16(kind):
    config = ModelConfig(
        mechanisms=(MechanismConfig.kinds[kind](),), n_layers=2, d_model=128, dropout=0.1
    )
    model = config.build(256).cuda()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # as far from the start as training comes
    tokens_BT1 = torch.randint(256, (4, 1025), generator=torch.Generator().manual_seed(0)).cuda()
    context = torch.autocast("cuda", torch.bfloat16)
    found = look_ahead(model, tokens_BT1[:, :-1], tokens_BT1[:, 1:], context, 4)
    assert not found.sees_the_future, str(found)


KINDS = [kind for kind in MechanismConfig.kinds if not kind.startswith("fla:")]
QUERIES = "blocks.1.mix.q_proj.weight"


def in_bfloat16(kind="grouped_query", dropout=0.0, **train):
    config = tiny_study.base
    mechanism = MechanismConfig.from_dict({"kind": kind, **fields(kind)})
    config = config.in_every_layer(mechanism)
    model = replace(config.model, dropout=dropout)
    return replace(config, model=model, train=replace(config.train, precision="bfloat16", **train))


def fields(kind):
    if kind == "nsa":
        return {"n_heads": 2, "n_kv_heads": 1, "compression_size": 4, "compression_stride": 2} | {
            "block_size": 4,
            "top_k": 2,
            "window": 3,
        }
    of_kind = MechanismConfig.kinds[kind].__dataclass_fields__
    small = {"n_heads": 2, "n_kv_heads": 2, "top_k": 8, "window": 8, "block_size": 4}
    small |= {"index_head_dim": 8, "head_dim": 8, "kv_lora_rank": 8}
    return {name: value for name, value in small.items() if name in of_kind}


def step_of(config, corpus):
    return step_of_run(config, corpus, CPU)


def with_gradient(step, change):
    """Change the gradient of a layer's output in bfloat16, as a wrong kernel does."""
    mix = step.model.blocks[1].mix
    attend = mix.forward_with_loss

    def forward(x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        y_BTD, loss = attend(x_BTD)
        if torch.is_autocast_enabled("cpu"):
            y_BTD.register_hook(change)
        return y_BTD, loss

    mix.forward_with_loss = forward


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_no_error(tiny_corpus, kind):
    found = gradient_error(step_of(in_bfloat16(kind), tiny_corpus))
    assert 0 < found.share < 0.5
    assert 0 < found.rounded < 0.1


def test_choices_that_rounding_changes_are_no_error(tiny_corpus):
    config = in_bfloat16()
    experts = MixtureOfExperts(d_ff=16, n_experts=8, top_k=2)
    step = step_of(config.with_feedforward(experts), tiny_corpus)
    assert not gradient_error(step).is_wrong


@pytest.mark.parametrize(
    "change",
    [torch.zeros_like, torch.neg, lambda g: 1.5 * g, lambda g: g.flip(1), lambda g: g * torch.nan],
)
def test_a_kernel_with_wrong_gradients_is_found(tiny_corpus, change):
    step = step_of(in_bfloat16(), tiny_corpus)
    with_gradient(step, change)
    found = gradient_error(step)
    assert found.is_wrong
    assert "a kernel computes wrong gradients on this device" in str(found)


def test_the_allowance_grows_with_what_rounding_does():
    assert not GradientError(QUERIES, ALLOWED, 0.0).is_wrong
    assert GradientError(QUERIES, 2 * ALLOWED, 0.01).is_wrong
    assert not GradientError(QUERIES, 2 * ALLOWED, 0.1).is_wrong
    assert GradientError(QUERIES, math.nan, 0.1).is_wrong
    assert QUERIES in str(GradientError(QUERIES, 1.0, 0.1))


def test_a_run_says_so_at_once_and_has_no_part_in_the_verdict(tmp_path, places, monkeypatch):
    wrong = GradientError(QUERIES, 1.2, 0.004)
    monkeypatch.setattr(plausibility, "gradient_error", lambda step: wrong)
    run = Run(variant="x", config=in_bfloat16(steps=2, warmup_steps=1))
    events = list(execute(run, tmp_path, "id", places, CPU))
    alarms = [event.alarm for event in events if isinstance(event, Progress) and event.alarm]
    summary = RunFolder(tmp_path, "x", 0).summary()
    assert alarms == summary["alarms"] == [f"at step 0 {wrong}"]
    assert summary["gradient_error"] == {
        "parameter": QUERIES,
        "error": 1.2,
        "allowed": wrong.allowed,
    }
    assert summary["status"] == "finished"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["grouped_query", "deepseek_sparse"])
def test_it_changes_nothing_of_the_run(tiny_corpus, kind, dropout):
    trained = []
    for compares in (False, True):
        step = step_of(in_bfloat16(kind, dropout), tiny_corpus)
        step.model.train()
        if compares:
            assert gradient_error(step) is not None
            assert all(p.grad is None for p in step.model.parameters())
            assert step.model.training
        for _ in range(3):
            step.advance()
        trained.append(step.weights())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_where_there_is_nothing_to_compare_there_is_no_error(tiny_corpus):
    assert gradient_error(step_of(tiny_study.base, tiny_corpus)) is None  # in float32
    assert gradient_error(step_of(in_bfloat16(micro_batch_size=1), tiny_corpus)) is None
    done = step_of(in_bfloat16(steps=2, warmup_steps=1), tiny_corpus)
    done.advance(), done.advance()
    assert gradient_error(done) is None
    only_low = step_of(in_bfloat16(), tiny_corpus)
    attend = only_low.model.blocks[0].mix.forward_with_loss

    def forward(x_BTD):
        if not torch.is_autocast_enabled("cpu"):
            raise ValueError("kernel 'flash' computes in bfloat16")
        return attend(x_BTD)

    only_low.model.blocks[0].mix.forward_with_loss = forward
    before = {name: p.clone() for name, p in only_low.model.named_parameters()}
    assert gradient_error(only_low) is None
    assert all(torch.equal(before[n], p) for n, p in only_low.model.named_parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_a_gpu_have_right_gradients(tiny_corpus, kind):
    step = step_of_run(in_bfloat16(kind), tiny_corpus, torch.device("cuda"))
    assert gradient_error(step).share < 0.5
