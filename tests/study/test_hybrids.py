"""Study 4 is as specified, and runs where its text is; so is the study of single layers."""

import gzip
import json

import pytest
from support import fake_workers
from typer.testing import CliRunner

from attnlab.cli import app
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.runner import plan
from attnlab.study.load import load_study
from attnlab.training.search import Recipe

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
