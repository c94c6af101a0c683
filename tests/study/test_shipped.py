"""The shipped studies are as specified: `hybrids`, `fair_search`, `deepseek` and the sweeps."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from support import fake_workers
from typer.testing import CliRunner

from attnlab.analysis.fairness import comparable_groups
from attnlab.cli import app
from attnlab.config import ConfigError, differences, setting_at
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.modules.rope_scaling import Dynamic, Linear
from attnlab.runner import plan
from attnlab.study.catalog import catalog
from attnlab.study.targets import load_study
from attnlab.training.config import Recipe

ATTENTION_LAYERS = {
    "deltanet": [],
    "hybrid_8": [11],
    "hybrid_sparse": [5, 11],
    "hybrid_25": [4, 8, 11],
    "hybrid_late": [8, 9, 10, 11],
    "hybrid_42": [2, 4, 6, 8, 11],
    "hybrid_alternating": [1, 3, 5, 7, 9, 11],
    "hybrid_58": [1, 3, 5, 7, 8, 9, 11],
    "hybrid_67": [1, 2, 4, 5, 7, 8, 10, 11],
    "hybrid_75": [1, 2, 3, 5, 6, 7, 9, 10, 11],
    "hybrid_83": [1, 2, 3, 4, 5, 6, 7, 8, 10, 11],
    "hybrid_92": [*range(1, 12)],
    "transformer": [*range(12)],
}
SMALL = [
    "model.d_model=24",
    "model.feedforward.d_ff=16",
    "train.seq_len=16",
    "train.batch_size=2",
    "train.steps=2",
    "train.warmup_steps=1",
    "data.tokenizer.vocab_size=256",
]
VOCAB = 49_152
MILLIONS = {  # of parameters; published: 162.6 to 177.8
    "baseline": 167.814,
    "lora_small": 162.572,
    "lora_medium": 163.621,
    "lora_large": 165.720,
    "lora_xl": 169.917,
    "enhanced_small": 161.797,
    "enhanced_medium": 164.952,
    "enhanced_large": 173.620,
    "enhanced_xl": 181.490,
    "rope_only": 169.911,
    "rope_small": 164.668,
    "rope_large": 180.397,
    "bias_only": 167.830,
}


def test_the_hybrids_are_as_specified():
    study = load_study("hybrids")
    found = {
        name: [i for i, m in enumerate(config.model.per_layer()) if isinstance(m, GroupedQuery)]
        for name, config in study.variants.items()
    }
    assert found == ATTENTION_LAYERS
    assert list(found) == list(ATTENTION_LAYERS)
    assert study.baseline == "transformer"
    for name, config in study.variants.items():
        model, train = config.model, config.train
        assert (model.d_model, model.n_layers, model.dropout) == (768, 12, 0)
        assert model.feedforward.to_dict() == {"kind": "swiglu", "d_ff": 3072}
        assert set(model.per_layer()) <= {
            GroupedQuery(n_heads=12, n_kv_heads=12),
            GatedDeltaNet(n_heads=12, head_dim=64, expand_v=1.0),
        }
        assert (train.steps, train.batch_size, train.seq_len) == (300, 48, 1024)
        assert train.weight_decay == 0.1
        assert train.learning_rate == (1e-3 if name == "deltanet" else 2e-3)
        assert config.data.tokenizer.to_dict() == {
            "kind": "gpt2",
            "path": None,
            "vocab_size": 50257,
        }


def test_the_first_rates_are_those_of_the_published_search_at_full_length():
    study = load_study("hybrids")
    assert study.tuning.multiples == (1, 2)
    run = study.tuning_run("transformer", Recipe(4e-3, 90))
    assert (run.config.train.steps, run.config.train.warmup_steps) == (300, 90)
    assert run.config.train.learning_rate == 4e-3


def test_the_sizes_of_the_hybrids():
    variants = load_study("hybrids").variants
    attention = 4 * 768**2
    delta = 4 * 768**2 + 768 * (2 * 12 + 768) + 4 * 3 * 768 + 2 * 12 + 64
    rest = 50_257 * 768 + 12 * 3 * 768 * 3072 + 25 * 768
    for name, layers in ATTENTION_LAYERS.items():
        n = len(layers)
        assert variants[name].model.parts(50_257).total == (
            rest + n * attention + (12 - n) * delta
        ), name
    assert variants["transformer"].model.parts(50_257).total == 151_862_784
    assert variants["deltanet"].model.parts(50_257).total == 159_273_504


@pytest.mark.parametrize(("length", "steps"), [("fast", 200), ("medium", 300), ("thorough", 700)])
def test_the_lengths_of_the_hybrids(length, steps):
    study = load_study("hybrids").at_length(length)
    for config in study.variants.values():
        assert config.train.steps == steps == 10 * config.train.warmup_steps


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A folder of data with a little text for books, and the bytes for GPT-2's tokenizer."""
    from tokenizers import pre_tokenizers

    (tmp_path / "books").mkdir()
    for split in ("train", "valid", "test"):
        text = f"The {split} of books, chapter by chapter. " * 20
        (tmp_path / "books" / f"{split}.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "gpt2-tokenizer").mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = json.dumps({token: i for i, token in enumerate(alphabet)})
    (tmp_path / "gpt2-tokenizer" / "vocab.json").write_text(vocab)
    (tmp_path / "gpt2-tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    monkeypatch.setenv("ATTNLAB_DATA", str(tmp_path))
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_hybrids_find_their_books_and_are_planned(books, monkeypatch):
    monkeypatch.setattr(plan, "TrialProcess", fake_workers.trial_here)
    asked = ["run", "hybrids", "--plan", "--no-check", "--json", "--device", "cpu"]
    asked += ["--only", "hybrid_sparse"]
    done = CliRunner().invoke(app, [*asked, *SMALL])
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout)["variants"]["hybrid_sparse"]
    assert planned["not_timed"] is None
    assert planned["run_seconds"] > 0


def test_without_the_books_the_error_says_what_to_do(books):
    for file in (books / "books").iterdir():
        file.unlink()
    (books / "books").rmdir()
    done = CliRunner().invoke(app, ["run", "hybrids", "--device", "cpu", *SMALL])
    assert done.exit_code == 2
    assert "text 'books' not found" in done.output
    assert "set ATTNLAB_DATA to their folder" in done.output


def described(config):
    (attention,) = config.model.mechanisms
    scaling = attention.rope_scaling
    return (
        attention.q_lora_rank,
        attention.kv_lora_rank,
        attention.head_dim,
        attention.v_head_dim,
        attention.bias,
        scaling and (type(scaling), scaling.factor),
    )


def test_fair_search_is_as_specified():
    study = load_study("fair_search")
    assert {name: described(config) for name, config in study.variants.items()} == {
        "baseline": (None, None, None, None, False, None),
        "lora_small": (32, 64, None, None, False, None),
        "lora_medium": (64, 128, None, None, False, None),
        "lora_large": (128, 256, None, None, False, None),
        "lora_xl": (256, 512, None, None, False, None),
        "enhanced_small": (32, 64, 32, 48, True, (Linear, 1.5)),
        "enhanced_medium": (64, 128, 64, 96, True, (Linear, 2.0)),
        "enhanced_large": (128, 256, 128, 192, True, (Linear, 2.5)),
        "enhanced_xl": (256, 512, 128, 192, True, (Linear, 3.0)),
        "rope_only": (None, None, 64, 96, False, (Linear, 2.0)),
        "rope_small": (None, None, 32, 48, False, (Linear, 1.5)),
        "rope_large": (None, None, 128, 192, False, (Linear, 2.5)),
        "bias_only": (None, None, None, None, True, None),
    }
    assert (study.baseline, study.seeds, study.tuning) == ("baseline", 4, None)
    for config in study.variants.values():
        model, train = config.model, config.train
        assert (model.d_model, model.n_layers, model.mechanisms[0].n_heads) == (512, 8, 8)
        assert (train.seq_len, train.learning_rate, train.weight_decay) == (512, 1e-4, 0.01)
        assert config.data.tokenizer.to_dict() == {"kind": "bpe", "vocab_size": VOCAB}
        experts = model.feedforward
        assert (experts.n_experts, experts.top_k, experts.d_ff) == (8, 2, 2048)


def test_the_sizes_of_fair_search():
    parts = {n: c.model.parts(VOCAB) for n, c in load_study("fair_search").variants.items()}
    found = {name: round(part.total / 1e6, 3) for name, part in parts.items()}
    assert found == MILLIONS
    outside = {name for name, million in found.items() if not 162.0 <= million <= 178.0}
    assert outside == {"enhanced_small", "rope_large", "enhanced_xl"}
    assert all(name in (load_study("fair_search").question) for name in outside)
    assert {part.idle for part in parts.values()} == {8 * 6 * 2 * 512 * 2048}


@pytest.mark.parametrize(
    ("length", "steps", "batch_size"),
    [("fast", 50, 16), ("medium", 200, 32), ("thorough", 500, 64)],
)
def test_the_lengths_of_fair_search(length, steps, batch_size):
    study = load_study("fair_search").at_length(length)
    for config in study.variants.values():
        assert (config.train.steps, config.train.batch_size) == (steps, batch_size)
        assert 10 * config.train.warmup_steps == steps
    assert study.name == ("fair_search" if length == "fast" else f"fair_search_{length}")


def test_a_length_that_a_study_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no length 'thorogh'; did you mean 'thorough'"):
        load_study("fair_search").at_length("thorogh")
    with pytest.raises(ConfigError, match="no length 'fast'; none are known"):
        load_study("deepseek").at_length("fast")


def test_deepseek_is_as_specified():
    study = load_study("deepseek")
    kernels = {name: c.model.mechanisms[0].kernel for name, c in study.variants.items()}
    assert kernels == {
        "baseline": "math",
        "lora": "math",
        "flash": "flash",
        "rope": "flash",
        "full": "flash",
    }
    assert {name: described(config) for name, config in study.variants.items()} == {
        "baseline": (None, None, None, None, False, None),
        "lora": (32, 64, None, None, False, None),
        "flash": (32, 64, None, None, False, None),
        "rope": (32, 64, None, None, False, (Linear, 2.0)),
        "full": (32, 64, 32, 48, True, (Dynamic, 1.5)),
    }
    for config in study.variants.values():
        model = config.model
        assert (model.d_model, model.n_layers, model.mechanisms[0].n_heads) == (384, 6, 8)
        assert config.train.seq_len == 512
        assert config.eval.lengths == (512, 1024, 2048)
        experts = model.feedforward
        assert (experts.n_experts, experts.top_k, experts.d_ff) == (8, 2, 1536)
        assert experts.balance_loss == 0.01


def test_lora_and_flash_are_one_function_on_two_kernels():
    study, x_BTD = load_study("deepseek"), torch.randn(2, 33, 384)
    lora, flash = (
        study.variants[name].model.mechanisms[0].build(384) for name in ("lora", "flash")
    )
    flash.load_state_dict(lora.state_dict())
    torch.testing.assert_close(flash(x_BTD), lora(x_BTD))
    cpu = torch.device("cpu")
    assert lora.kernel_on(cpu, torch.float32) != flash.kernel_on(cpu, torch.float32)


N_KV, WINDOW, TOP_K, N_HEADS = (
    f"model.mechanisms.0.{name}" for name in ("n_kv_heads", "window", "top_k", "n_heads")
)
SWEEPS = {  # the setting and its values by variant; None: the variant has no such setting
    "kv_heads": (N_KV, {"kv_heads_4": 4, "kv_heads_2": 2, "kv_heads_1": 1}),
    "windows": (WINDOW, {f"window_{n}": n for n in (1024, 512, 256, 128)}),
    "top_k": (TOP_K, {"mha": None, **{f"top_k_{n}": n for n in (512, 256, 128)}}),
    "attention_share": (
        N_HEADS,
        {
            "no_attention": None,
            **{f"heads_{n}": n for n in (1, 2, 4, 8)},
            "no_feed_forward": 12,
        },
    ),
}
BY_DEPTH = {
    "mha": ["grouped_query 4"] * 4,
    "mla": ["mla"] * 4,
    "gqa_2": ["grouped_query 2"] * 4,
    "sliding_256": ["sliding_window 4"] * 4,
    "local_gqa_mha": ["sliding_window 4", *["grouped_query 2"] * 2, "grouped_query 4"],
    "local_gqa_mla": ["sliding_window 4", *["grouped_query 2"] * 2, "mla"],
    "mha_gqa_local": ["grouped_query 4", *["grouped_query 2"] * 2, "sliding_window 4"],
    "mla_gqa_local": ["mla", *["grouped_query 2"] * 2, "sliding_window 4"],
}


@pytest.mark.parametrize("name", [*SWEEPS, "early_middle_late"])
def test_the_sweeps_are_at_the_size_and_on_the_data_of_study_1(name):
    study, first = load_study(name), load_study("mechanisms")
    mha = first.variants["mha"]
    assert all((c.train, c.data) == (mha.train, mha.data) for c in study.variants.values())
    sizes = [config.model.parts(32_000).total for config in study.variants.values()]
    assert max(sizes) / min(sizes) < 1.06
    assert (study.seeds, study.tuning, study.margin) == (5, first.tuning, first.margin)
    recorded = [hypothesis.to_dict() for hypothesis in study.hypotheses]
    named = [name for h in recorded for name in [*h.get("variants", ()), *h.get("than", ())]]
    assert named
    assert set(named) <= set(study.variants)


def test_the_zoo_has_every_kind_at_the_size_and_on_the_data_of_study_1():
    study, first = load_study("zoo"), load_study("mechanisms")
    kinds = {kind.name for kind in catalog().families["mechanisms"] if ":" not in kind.name}
    assert set(study.variants) == kinds
    for name, config in study.variants.items():
        assert {mechanism.kind() for mechanism in config.model.per_layer()} == {name}
    mha = first.variants["mha"]
    assert study.variants["grouped_query"] == mha
    assert all((c.train, c.data) == (mha.train, mha.data) for c in study.variants.values())
    assert (study.seeds, study.tuning, study.margin) == (5, first.tuning, first.margin)


HANDING = ("value_residual", "shared_kv")


def test_gates_and_sinks_change_one_setting_of_study_1_at_a_time():
    study, first = load_study("gates_and_sinks"), load_study("mechanisms")
    mha = first.variants["mha"]
    assert study.variants["mha"] == mha
    assert (study.seeds, study.tuning, study.margin) == (5, first.tuning, first.margin)
    handing = {name: study.variants[name].model.per_layer() for name in HANDING}
    (plain,) = mha.model.mechanisms
    assert handing["value_residual"] == [plain, *[replace(plain, value_residual=True)] * 3]
    assert handing["shared_kv"] == [plain, replace(plain, shared_kv=True)] * 2
    changed = {
        name: [path.rpartition(".")[2] for path in differences(mha.to_dict(), config.to_dict())]
        for name, config in study.variants.items()
        if name not in HANDING
    }
    assert {name: len(paths) for name, paths in changed.items() if len(paths) != 1} == {
        **{"mha": 0, "alibi": 2, "gate_and_qk_norm": 2}
    }
    assert {name for paths in changed.values() for name in paths} == {
        *("output_gate", "sinks", "logit_softcap", "qk_norm", "exclusive", "alibi"),
        *("differential", "rope_head_dim"),
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweeps_have_the_values_of_their_setting(name):
    study, (path, values) = load_study(name), SWEEPS[name]
    found = {n: setting_at(c.to_dict(), path) for n, c in study.variants.items()}
    assert (study.swept, found) == ((path,), values)


def test_attention_and_feed_forward_share_one_number_of_parameters():
    variants = load_study("attention_share").variants
    shares = {n: c.model.parts(32_000) for n, c in variants.items()}
    assert {part.attention + part.feed_forward for part in shares.values()} == {4 * 196_608}
    assert variants["heads_4"].model.parts(32_000) == load_study("mechanisms").variants[
        "mha"
    ].model.parts(32_000)
    assert shares["no_feed_forward"].feed_forward == 0
    assert variants["no_attention"].model.per_layer() == [Identity()] * 4


def test_early_middle_and_late_layers_and_each_alone():
    found = {
        name: [f"{m.kind()} {getattr(m, 'n_kv_heads', '')}".strip() for m in c.model.per_layer()]
        for name, c in load_study("early_middle_late").variants.items()
    }
    assert found == BY_DEPTH


def test_long_contexts_read_as_many_tokens_in_each_length():
    study = load_study("long_context")
    windows = {"4k": 4096, "8k": 8192, "16k": 16_384}
    assert list(study.lengths) == list(windows)
    assert study.seeds >= 4
    kinds = {tuple(m.kind() for m in of.model.per_layer()) for of in study.variants.values()}
    assert len(kinds) == 6
    for length, window in windows.items():
        at_length = study.at_length(length)
        assert list(at_length.variants) == list(study.variants)
        for config in at_length.variants.values():
            train = config.train
            assert train.seq_len == window
            assert train.seq_len * train.batch_size == 16_384
            assert train.seq_len * train.eval_batch_size == 65_536


def test_the_ladder_has_every_mechanism_at_every_size_and_length():
    study = load_study("ladder")
    assert {len(cell.variants) for cell in study.cells()} == {6}
    assert len(study.cells()) == 12
    assert study.cells()[0].baseline == study.baseline == "transformer_12x320_long"
    millions = [
        sum(study.variants[f"transformer_{size}_short"].model.parts(8_192)[1:4]) / 1e6
        for size in ("4x160", "8x160", "8x256", "12x320")
    ]
    assert millions == pytest.approx([1.18, 2.36, 6.03, 14.14], abs=0.01)
    tokens = {c.train.steps * c.train.batch_size * c.train.seq_len for c in study.variants.values()}
    assert sorted(tokens) == pytest.approx([17_608_257 * n for n in (0.25, 1, 4)], rel=0.005)
    assert len(study.sources()) == 60
    assert len(study.tuning.only) == 12


def test_the_ladder_costs_an_hour_of_an_h100_at_a_fifth_of_its_peak():
    study, rate, per_run = load_study("ladder"), 0.2 * 989e12, 4.0
    runs = {n: 3 + 7 * (n in study.tuning.only) for n in study.variants}  # 7: a usual search
    seconds = sum(
        n * (study.variants[name].petaflops(8_192) * 1e15 / rate + per_run)
        for name, n in runs.items()
    )
    assert seconds < 60 * 60


def test_the_texts_read_the_same_mechanisms_on_four_texts_of_which_one_is_study_1s():
    study, first = load_study("texts"), load_study("mechanisms")
    mechanisms = ("mha", "mqa", "mla", "sliding_256", "linear")
    texts = {
        "wikitext2": "wikitext2",
        "books": "text",
        "code": "stdlib",
        "arithmetic": "arithmetic",
    }
    assert list(study.variants) == [f"{name}_{text}" for text in texts for name in mechanisms]
    for text, kind in texts.items():
        for name in mechanisms:
            config, known = study.variants[f"{name}_{text}"], first.variants[name]
            assert (config.model, config.train) == (known.model, known.train)
            assert config.data.kind() == kind
            assert (config == known) == (text == "wikitext2")
    assert (study.seeds, study.tuning) == (5, first.tuning)
    record = study.record(command="", checked=False)
    groups = comparable_groups(record.variants, record.by_design, record.baseline)
    assert [len(group) for group in groups] == [5, 5, 5, 5]
    assert groups[0][0] == study.baseline == "mha_wikitext2"
