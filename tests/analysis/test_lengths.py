"""A finished model is measured at other lengths, and what is said of it is what intervals allow."""

from dataclasses import replace

import pytest
import torch
from support import ROOT
from support.reported_study import edit, steady, write_study
from support.tiny_study import base, study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses import Evidence, Hypothesis
from attnlab.analysis.hypotheses.pairs import BetterAtLength
from attnlab.analysis.lengths import sentences
from attnlab.config import ConfigError, override
from attnlab.data import Places
from attnlab.mechanisms.identity import TokenwiseLinear
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig
from attnlab.record import RunFolder, StudyRecord, pack
from attnlab.reporting.figures.comparison import panel_pdfs
from attnlab.reporting.figures.page_charts import Charts
from attnlab.reporting.pages import along_lengths, markdown, page
from attnlab.reporting.tables.data_files import csv_table
from attnlab.runner.events import Ended
from attnlab.runner.execute import execute
from attnlab.runner.study_data import read_data
from attnlab.study.targets import load_study
from attnlab.training.config import EvalConfig, Recipe, Tuning
from attnlab.training.evaluate import HeldOut, score
from attnlab.training.run import Run, RunConfig

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


def test_a_study_records_the_names_of_its_lengths():
    long, names = load_study("long_context"), ["long_context", "long_context_4k", "long_context_8k"]
    for study_at in (long, long.at_length("4k"), long.at_length("8k"), long.at_length("16k")):
        assert list(study_at.record(command="", checked=False).lengths) == names
    assert load_study("mechanisms").record(command="", checked=False).lengths == {}
