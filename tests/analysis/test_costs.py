"""Costs of variants, parts of the loss, and losses at other lengths.

Costs: decoding, time and its noise. What is said of other lengths is what intervals allow.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support import ROOT
from support.reported_study import edit, steady, write_run, write_study
from support.tiny_study import base, study

from attnlab.analysis import numbers
from attnlab.analysis.analysis import analyse
from attnlab.analysis.costs import Cost, Serving
from attnlab.analysis.hypotheses import Evidence, Hypothesis
from attnlab.analysis.hypotheses.pairs import BetterAtLength
from attnlab.analysis.lengths import sentences
from attnlab.analysis.statistics.paired import Estimate, differences_on_text
from attnlab.config import ConfigError, override
from attnlab.data import Places
from attnlab.mechanisms.identity import TokenwiseLinear
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.record import RunFolder, StudyRecord, pack, write_json
from attnlab.reporting.figures import comparison
from attnlab.reporting.figures.comparison import _Panels, panel_pdfs
from attnlab.reporting.figures.page_charts import Charts
from attnlab.reporting.pages import along_lengths, markdown, page
from attnlab.reporting.tables.data_files import csv_table
from attnlab.runner.events import Ended
from attnlab.runner.execute import execute
from attnlab.study.targets import load_study
from attnlab.study.variants import read_data
from attnlab.training.config import EvalConfig, Recipe, Tuning
from attnlab.training.evaluate import HeldOut, score
from attnlab.training.run import Run, RunConfig


def point(variant, context, seconds, *, batch=1, state=None, what="decode", status="ok"):
    return {
        **{"variant": variant, "what": what, "context": context, "batch": batch},
        **{"status": status, "seconds": seconds, "state_bytes": state},
    }


def served(folder, *points):
    write_json(folder / "bench.json", {"points": list(points)})
    return Serving.read(folder)


def test_times_are_taken_where_the_most_variants_were_measured_at_the_longest_context(tmp_path):
    found = served(
        tmp_path,
        *(point(name, context, 0.001 * context) for name in "ab" for context in (1, 4)),
        point("a", 16, 9.0),
        point("b", 16, None, status="out_of_memory"),
        point("a", 4, 7.0, batch=8),
        point("b", 4, 7.0, batch=8),
        point("a", 4, 5.0, what="prefill"),
    )
    assert (found.context, found.batch) == (4, 1)
    assert found.decode_seconds == {"a": 0.004, "b": 0.004}


def test_the_state_of_one_sequence_grows_by_its_slope_over_the_longest_contexts(tmp_path):
    found = served(
        tmp_path,
        *(point("full", context, 1.0, batch=2, state=2 * 10 * context) for context in (4, 8, 16)),
        *(point("window", context, 1.0, state=80) for context in (8, 16)),
        point("once", 8, 1.0, state=80),
    )
    assert found.state_growth == {"full": pytest.approx(10), "window": 0}


@pytest.mark.parametrize(("spread", "cheaper"), [(0.02, True), (0.4, False), (None, True)])
def test_times_to_decode_that_overlap_are_the_same(tmp_path, spread, cheaper):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0, 2)}
    write_study(tmp_path, losses)
    times = {"mha": 1.2, "mla": 1.0}
    points = [point(name, 4, of) | {"spread_seconds": spread} for name, of in times.items()]
    served(tmp_path, *points)
    (front,) = (front for front in analyse(tmp_path).fronts if front.key == "decode_seconds")
    assert (front.front == ("mla",)) is cheaper


def test_without_a_bench_nothing_is_known(tmp_path):
    found = Serving.read(tmp_path)
    assert (found.decode_seconds, found.state_growth) == ({}, {})


def timed(first, second, **more):
    estimates = {"a": Estimate.of(first), "b": Estimate.of(second)}
    return Cost(
        key="step_time",
        label="time",
        unit="seconds",
        resolution=0.05,
        of={name: estimate.mean for name, estimate in estimates.items()},
        over_runs=estimates,
        **more,
    )


@pytest.mark.parametrize(
    ("first", "second", "cheaper"),
    [
        ([1.0, 1.01, 0.99, 1.0], [2.0, 2.01, 1.99, 2.0], True),
        ([1.0, 1.8, 0.9, 1.5], [1.6, 1.2, 2.1, 1.4], False),  # within the noise over runs
        ([1.0], [2.0], False),  # one run shows no noise
        ([1.0, 1.0001], [1.02, 1.0201], False),  # within the resolution
    ],
)
def test_a_time_is_shorter_only_outside_its_noise_and_resolution(first, second, cheaper):
    assert timed(first, second).cheaper("a", "b") == cheaper
    assert not timed(first, second).cheaper("b", "a")


def test_times_of_steps_that_overlap_are_the_same():
    times = [1.0, 1.01, 0.99, 1.0], [1.2, 1.21, 1.19, 1.2]
    assert timed(*times).cheaper("a", "b")
    assert not timed(*times, quartiles={"a": (0.9, 1.15), "b": (1.1, 1.3)}).cheaper("a", "b")


def test_names_of_the_same_work_show_how_far_apart_equal_times_are(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 3)}
    more = {"mha": {"step_time": 0.0109}, "gqa_1": {"step_time": 0.0100}}
    same = {"function": "gqa_1", "step_time": 0.0113}
    found = analyse(write_study(tmp_path, losses, mqa=same, **more))
    pick = next(pick for pick in found.picks if "training speed first" in pick.use_cases)
    assert pick.variant is None
    assert "within its error" in pick.reason


def study_of_parts(folder, seeds=5, variants=("mha", "delta", "twin")):
    """Return an analysis: delta is 0.3 worse on recall tokens, twin is delta again."""
    write_study(folder, {name: [None] * seeds for name in variants})
    for name in variants:
        own = 0.0 if name == "mha" else 0.3
        for seed, noise in enumerate(steady(0.0, 1 + (name != "mha"), seeds=seeds)):
            write_run(
                RunFolder(folder, name, seed),
                5.0 + own / 2 + noise,
                function="mha" if name == "mha" else "delta",
                final_recall_loss=2.0 + own + noise,
                final_other_loss=6.0 + noise,
                final_loss_by_position={
                    "first": [0, 1, 2, 3, 4],
                    "loss": [6.0 + noise] * 4 + [5 + own + noise],
                },
            )
    return analyse(folder)


def test_parts_of_the_loss_have_intervals_against_the_baseline(tmp_path):
    analysis = study_of_parts(tmp_path / "s")
    assert analysis.parts.keys() == {"delta", "twin"}
    delta, twin = analysis.parts["delta"], analysis.parts["twin"]
    assert delta == twin  # one function, which counts once
    assert delta.recall.mean == pytest.approx(0.3, abs=0.01)
    assert delta.recall.separable
    assert not delta.other.separable
    assert delta.recall_more.mean == pytest.approx(0.3)
    assert list(delta.position) == [0, 1, 2, 4]  # octaves: the third and fourth position are one
    assert [of.separable for of in delta.position.values()] == [False, False, False, True]
    # ranges of positions hold at once: wider than one interval of the same noise
    assert delta.position[0].half_width > 1.2 * delta.other.half_width


def test_parts_have_the_error_rate_of_a_look_where_seeds_are_added(tmp_path):
    fixed = study_of_parts(tmp_path / "s").parts["delta"]
    replace(StudyRecord.read(tmp_path / "s"), most_seeds=10).write(tmp_path / "s")
    found = analyse(tmp_path / "s").parts["delta"]
    assert found.recall.half_width > 1.1 * fixed.recall.half_width
    assert found.position[4].half_width > 1.1 * fixed.position[4].half_width


@pytest.mark.parametrize(("seeds", "said"), [(3, "Bars: simultaneous 95 %"), (1, "One seed: no")])
def test_they_are_drawn_on_the_page_and_for_papers(tmp_path, seeds, said, unprinted):
    analysis = study_of_parts(tmp_path / "s", seeds)
    for of in analysis.parts.values():
        assert (of.recall.half_width is None) == (seeds == 1)
    html, text = page(analysis), markdown(analysis, None)
    for title in ("on recall tokens", "on all other tokens"):
        assert f"Difference to mha {title} (nats/token)" in html
    assert "Loss by position minus mha" in html
    assert said in html
    assert "delta, from position 5: +0.3" in html
    assert "| Δ recall tokens (nats/token) |" in text
    assert "| Δ from position 5 (nats/token) |" in text
    late = numbers.comparison(analysis.parts["delta"].position[4])
    assert re.search(rf"\| delta \|.*\| {re.escape(late)} \|", text)
    # the loss by position itself has the standard deviation over seeds
    assert (re.search(r"mha, from position 5: [0-9.]+ ± ", html) is None) == (seeds == 1)
    assert {"recall", "other", "positions"} <= panel_pdfs(analysis).keys()


def test_a_panel_by_itself_says_of_which_tokens_it_is_and_if_bars_are_missing(
    tmp_path, monkeypatch
):
    analysis = study_of_parts(tmp_path / "s")
    for kind in ("recall", "other"):
        axes = Figure().subplots()
        _Panels(analysis).every()[kind].draw(axes)
        assert axes.get_xlabel() == f"difference on {kind} tokens (nats/token)"
    assert "No bars" not in _Panels(analysis).every()["positions"].caption
    monkeypatch.setattr(comparison, "MOST_BARS", 1)
    assert "No bars are drawn" in _Panels(analysis).every()["positions"].caption


def test_nothing_is_claimed_of_what_was_not_recorded(tmp_path, empty_charts):
    analysis = analyse(write_study(tmp_path / "s", {"mha": steady(5.0), "delta": steady(5.1, 2)}))
    assert analysis.parts == {}
    assert "Difference by position" not in page(analysis)
    assert not {"recall", "other", "positions"} & panel_pdfs(analysis).keys()


def test_the_error_of_the_text_is_that_of_drawing_another_text():
    rng, blocks, shown = np.random.default_rng(0), 100, []
    for _ in range(60):
        hard_B = rng.standard_normal(blocks)  # alike for all variants
        loss_VB = 5 + hard_B + 0.1 * rng.standard_normal((2, blocks))
        shown.append(differences_on_text(loss_VB, np.full(blocks, 1024.0), 0)[1])
    spread = np.std([difference.mean for difference in shown], ddof=1)
    assert np.mean([it.half_width for it in shown]) == pytest.approx(1.96 * spread, rel=0.25)
    assert np.mean([abs(it.mean) <= it.half_width for it in shown]) >= 0.85


def test_neighbouring_blocks_that_are_alike_count_for_less():
    rng, blocks = np.random.default_rng(1), 216
    alone = 0.1 * rng.standard_normal(blocks)
    alike = np.repeat(0.1 * rng.standard_normal(blocks // 6), 6)
    tokens = np.full(blocks, 100.0)
    halves = [
        differences_on_text(np.array([np.zeros(blocks), of]), tokens, 0)[1].half_width
        for of in (alone, alike)
    ]
    assert halves[1] > 1.5 * halves[0]


def test_a_block_counts_as_its_tokens():
    loss_VB = np.array([[0.0, 0.0], [1.0, 3.0]])
    assert differences_on_text(loss_VB, np.array([3.0, 1.0]), 0)[1].mean == pytest.approx(1.5)


PUBLISHED = ROOT / "published"
CPU = torch.device("cpu")
LENGTHS = ("eval.lengths=16,32,128",)


def ended(tmp_path, config):
    run = Run(variant="mha", config=config)
    *_, last = execute(run, tmp_path, "x", Places.from_environment(cache=tmp_path / "cache"), CPU)
    assert isinstance(last, Ended)
    return last, run.folder(tmp_path)


def test_a_summary_holds_the_quality_at_each_length_and_that_of_training_is_the_final_one(tmp_path):
    _, folder = ended(tmp_path, override(base, LENGTHS))
    summary = folder.summary()
    assert list(summary["final_by_length"]) == ["16", "32", "128"]
    at_home = summary["final_by_length"]["32"]
    assert at_home["loss"] == summary["final_loss"]
    assert at_home["loss_by_position"] == summary["final_loss_by_position"]
    longest = summary["final_by_length"]["128"]
    assert longest["loss_by_position"]["first"][-1] == 112
    assert longest["recall_fraction"] > at_home["recall_fraction"]
    assert longest["loss"] != at_home["loss"]


def test_measuring_other_lengths_changes_nothing_else(tmp_path):
    said = [
        ended(tmp_path / str(i), override(base, lengths))[1].summary()
        for i, lengths in enumerate([(), LENGTHS])
    ]
    assert "final_by_length" not in said[0]
    assert all(said[0][key] == said[1][key] for key in said[0] if key.startswith("final"))


def test_a_model_that_cannot_run_at_a_length_is_refused_before_it_is_trained(tmp_path, monkeypatch):
    def only_short(self, x_BTD):
        if x_BTD.shape[1] > 32:
            raise ValueError("no further than 32")
        return torch.zeros_like(x_BTD)

    monkeypatch.setattr(TokenwiseLinear, "forward", only_short)
    last, folder = ended(tmp_path, override(study.variants["identity"], LENGTHS))
    assert last.status == "failed"
    assert "eval.lengths: at 128 tokens: no further than 32" in last.reason
    assert folder.metrics() == []


def test_batches_of_long_windows_hold_no_more_tokens_than_those_of_training(tmp_path, monkeypatch):
    sizes = {}
    whole = HeldOut.__init__

    def noted(self, *args, seq_len, batch_size, **more):
        sizes[seq_len] = batch_size
        whole(self, *args, seq_len=seq_len, batch_size=batch_size, **more)

    monkeypatch.setattr(HeldOut, "__init__", noted)
    changes = (*LENGTHS, "train.eval_batch_size=2")
    ended(tmp_path, override(base, changes))
    assert sizes == {16: 4, 32: 2, 128: 1}


@torch.no_grad()
def test_what_lies_beyond_all_windows_does_not_count_however_long_the_sequence():
    mechanism = SlidingWindow(n_heads=2, n_kv_heads=2, window=8)
    model = ModelConfig(mechanisms=(mechanism,), n_layers=2, d_model=16).build(64).eval()
    tokens_1T = torch.randint(64, (1, 257), generator=torch.Generator().manual_seed(0))
    other_1T = torch.cat([(tokens_1T[:, :200] + 1) % 64, tokens_1T[:, 200:]], 1)
    near, far = (score(model, x[:, :-1], x[:, -30:])[0] for x in (tokens_1T, other_1T))
    assert torch.allclose(near, far, atol=1e-5)
    assert not torch.allclose(
        *(score(model, x[:, :-1], x[:, 1:])[0][:, 195:205] for x in (tokens_1T, other_1T))
    )


def test_lengths_are_typed_as_a_bench_has_them():
    assert override(base, ["eval.lengths=512,1k,4K"]).eval.lengths == (512, 1024, 4096)
    assert override(base, ["eval.lengths=512", "eval.lengths=none"]) == base


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("0,4", "must be at least 1, got 0"),
        ("8,4", "must be ascending, got 4 after 8"),
        ("4,4", "must be ascending, got 4 after 4"),
        ("2x", "expected a whole number, got '2x'"),
        ("[]", "give at least one length"),
    ],
)
def test_impossible_lengths_say_why(typed, said):
    with pytest.raises(ConfigError, match=r"eval\.lengths") as caught:
        override(base, [f"eval.lengths={typed}"])
    assert said in str(caught.value)


def test_a_window_longer_than_the_validation_split_is_refused_as_the_data_is_read(tmp_path):
    where = Places.from_environment(cache=tmp_path)
    tokens = len(read_data(study, where)["mha"].valid)
    read_data(study.override([f"eval.lengths={tokens - 1}"]), where)
    with pytest.raises(ConfigError, match=rf"eval\.lengths: a window of {tokens} needs"):
        read_data(study.override([f"eval.lengths=16,{tokens}"]), where)


def test_no_lengths_are_the_run_of_before_and_lengths_another():
    before = RunFolder(PUBLISHED / "mechanisms", "mha", 0)
    recorded, environment = before.config(), before.environment()
    identity, fingerprint = recorded.pop("identity"), environment["data"]["fingerprint"]
    assert recorded.pop("eval") == {"lengths": None}  # older records have no such settings
    del recorded["variant"]
    config = RunConfig.from_dict(recorded)
    assert config.identity(fingerprint) == identity
    measured = replace(config, eval=EvalConfig(lengths=(64,)))
    assert measured.identity(fingerprint) != identity
    tuned = replace(study, tuning=Tuning())
    asked = tuned.override(LENGTHS)
    assert asked.tuning_run("mha", Recipe(1e-3, 2)) == tuned.tuning_run("mha", Recipe(1e-3, 2))


def test_the_study_of_extrapolation_scales_from_the_length_of_its_training():
    asked = load_study("extrapolation")
    lengths = {
        variant: scaling.original_max_position_embeddings
        for variant, config in asked.variants.items()
        if hasattr(
            scaling := getattr(config.model.mechanisms[0], "rope_scaling", None),
            "original_max_position_embeddings",
        )
    }
    assert lengths == dict.fromkeys(("dynamic", "yarn", "llama3"), 1024)
    for config in asked.variants.values():
        assert config.train.seq_len == config.eval.lengths[0] == 1024
        assert config.eval.lengths[-1] == 16 * 1024


def _spread(change, seed):
    return change * (1 + 0.02 * seed)


def measured_study(folder, changes, seeds=5):
    """A study written by hand; its loss changes by these nats, one for all seeds or one each."""
    losses = {name: steady(5.0 + 0.1 * i, i, seeds) for i, name in enumerate(changes)}
    write_study(folder, losses)
    for name, by_length in changes.items():
        for seed, loss in enumerate(losses[name]):
            summary = RunFolder(folder, name, seed).ended / "summary.json"
            said = {
                str(length): {
                    "loss": loss
                    + (change[seed] if isinstance(change, tuple) else _spread(change, seed)),
                    "loss_by_position": {"first": [0, 1], "loss": [loss + 1, loss]},
                }
                for length, change in by_length.items()
            }
            edit(summary, final_by_length=said)
    return analyse(folder)


def test_what_is_said_of_a_length_is_what_its_interval_allows(tmp_path):
    changes = {
        "mha": {512: 0.1, 1024: 0.0, 4096: 0.5},
        "window": {512: 0.1, 1024: 0.0, 4096: -0.2},
        "unsure": {512: 0.1, 1024: 0.0, 4096: (0.03, -0.02, 0.01, -0.02, 0.02)},
    }
    analysis = measured_study(tmp_path / "s", changes)
    rises, falls, unclear = sentences(analysis.lengths)
    assert "4,096 tokens the loss rises, in nats/token: mha +0.520 [" in rises
    assert "falls, in nats/token: window -0.208 [" in falls
    assert "is not distinguishable from 0: unsure +0.004 [-0.0" in unclear
    assert analysis.lengths["mha"].trained == 1024
    assert analysis.means["mha"] == pytest.approx(5.0)  # the verdict stays where it was


def test_intervals_of_several_variants_hold_at_once(tmp_path):
    change = {512: 0.1, 1024: 0.0, 4096: 0.5}
    alone = measured_study(tmp_path / "one", {"mha": change}).lengths["mha"].change[4096]
    several = {"mha": change, "b": change, "c": change}
    among = measured_study(tmp_path / "three", several).lengths["mha"].change[4096]
    assert alone.mean == among.mean
    # Student's t of 4 degrees of freedom at 0.975 and, for three, at 1 - 0.025 / 3
    assert among.half_width / alone.half_width == pytest.approx(3.9608 / 2.7764, rel=1e-4)


def test_a_claim_about_a_length_is_judged_by_the_losses_there(tmp_path):
    changes = {  # at 1,024 tokens, the length of training, each is worse than the one before
        "mha": {1024: 0.0, 4096: 0.5},
        "window": {1024: 0.0, 4096: -0.2},
        "delta": {1024: 0.0, 2048: 0.1},
    }
    verdict = measured_study(tmp_path / "s", changes)

    def judge(first, second, length):
        claim = BetterAtLength(variants=(first,), than=(second,), length=length)
        assert Hypothesis.from_dict(claim.to_dict()) == claim
        return claim.judge(Evidence(verdict=verdict, costs=()))

    assert judge("mha", "window", 1024).ruling == "supported"
    longer = judge("window", "mha", 4096)
    assert longer.ruling == "supported"
    assert "window is better than mha by 0.6" in longer.found[0]
    assert judge("mha", "window", 4096).ruling == "refuted"
    assert judge("delta", "mha", 4096).ruling == "not judged"
    assert BetterAtLength(variants=("a",), than=("b",), length=4096).statement == (
        "In windows of 4K tokens: a is better than b."
    )
    with pytest.raises(ConfigError, match="length: must be at least 1 token, got 0"):
        BetterAtLength(variants=("a",), than=("b",), length=0)


def test_one_seed_claims_nothing(tmp_path):
    changes = {"mha": {1024: 0.0, 4096: 0.5}}
    (said,) = sentences(measured_study(tmp_path / "s", changes, seeds=1).lengths)
    assert "mha +0.500" in said
    assert "no change is shown" in said


def test_a_report_shows_lengths_only_where_they_were_measured(tmp_path):
    measured = measured_study(tmp_path / "s", {"mha": {1024: 0.0, 2048: 0.5}})
    html, text, table = page(measured), markdown(measured, None), csv_table(measured)
    assert 'id="lengths"' in html
    assert "Loss by position in windows of 2K tokens" in html
    assert "| Δ 2K (nats/token) |" in text
    assert "validation_loss_at_2048_tokens_minus_as_trained_low_95" in table

    plain = analyse(write_study(tmp_path / "t", {"mha": steady(5.0)}))
    assert plain.lengths == {}
    assert 'id="lengths"' not in page(plain)
    assert "Beyond the training length" not in markdown(plain, None)
    assert "_tokens_minus" not in csv_table(plain)


@pytest.fixture
def three_lengths(tmp_path):
    """Folders of a study at 4K and 8K tokens/sequence; its third length was not run."""
    names = {"mine": "", "mine_8k": "8k", "mine_16k": "16k"}
    for name, window, behind in (("mine", 4096, 0.02), ("mine_8k", 8192, 0.06)):
        train = {"seq_len": window, "batch_size": 16_384 // window, "steps": 300}
        more = {"train": train, "step_time": window / 1e6, "peak_memory_bytes": window * 2**20}
        losses = {"mha": steady(5.0, 0, 3), "delta": steady(5.0 + behind, 1, 3)}
        folder = write_study(tmp_path / name, losses, mha=dict(more), delta=dict(more))
        for variant, by_seed in losses.items():
            for seed, loss in enumerate(by_seed):
                path = folder / variant / f"seed-{seed}" / "summary.json"
                edit(path, final_recall_loss=loss - 2, final_other_loss=2 * loss)
        replace(StudyRecord.read(folder), lengths=names).write(folder)
    return tmp_path


def test_the_training_lengths_of_a_study_stand_side_by_side(three_lengths, empty_charts):
    pack(three_lengths / "mine_8k")
    for name, other in (("mine", "mine_8k"), ("mine_8k", "mine")):
        found = analyse(three_lengths / name)
        lengths = found.training_lengths
        assert [of.study for of in lengths.found] == ["mine", "mine_8k"]
        assert lengths.missing == {"mine_16k": "16k"}
        text = markdown(found, None)
        assert f"Read beside this study's folder: {other}." in text
        assert "mine_16k (`attnlab run` with --length 16k)" in text
        (row,) = (line for line in text.splitlines() if line.startswith("| delta | 8,192"))
        assert "| 4.92 M | 5.0603 | +0.060 ± 0." in row
        assert "| +0.120 ± 0." in row  # on other tokens
        assert row.endswith("| 8.19 | 8.00 |")
        line = lengths.along(lambda of, name: of.verdict.to_baseline.get(name)).lines["delta"]
        assert [(p.value, round(p.difference.mean, 3)) for p in line] == [
            (4096, 0.02),
            (8192, 0.06),
        ]
    panels = ["lengths_all", "lengths_recall", "lengths_other", "loss"]
    assert [*panel_pdfs(found)][:4] == panels
    shown = page(found)
    assert shown.index("Difference to the baseline by training") < shown.index('id="answer"')
    assert [chart.title.split(",")[0] for chart in along_lengths(found, Charts(found))] == [
        f"Difference to mha on {part} tokens" for part in ("all", "recall", "other")
    ]


def test_a_length_alone_has_no_table_and_a_damaged_one_is_named(three_lengths):
    (three_lengths / "mine_8k").rename(three_lengths / "elsewhere")
    assert analyse(three_lengths / "mine").training_lengths is None
    (three_lengths / "elsewhere").rename(three_lengths / "mine_16k")
    broken = three_lengths / "mine_8k" / "study.json"
    broken.parent.mkdir()
    broken.write_text("{")
    found = analyse(three_lengths / "mine")
    assert list(found.training_lengths.damaged) == ["mine_8k"]
    assert "mine_8k cannot be read:" in markdown(found, None)


def test_a_length_that_was_tuned_is_not_read_beside_one_that_was_not(three_lengths):
    tuned = replace(StudyRecord.read(three_lengths / "mine_8k"), tuning={"multiples": [1, 2]})
    tuned.write(three_lengths / "mine_8k")
    assert analyse(three_lengths / "mine").training_lengths is None


def test_a_study_records_the_names_of_its_lengths():
    long, names = load_study("long_context"), ["long_context", "long_context_4k", "long_context_8k"]
    for study_at in (long, long.at_length("4k"), long.at_length("8k"), long.at_length("16k")):
        assert list(study_at.record(command="", checked=False).lengths) == names
    assert load_study("mechanisms").record(command="", checked=False).lengths == {}
