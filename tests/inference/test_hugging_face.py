"""Models go to the transformers library and come from it: equal logits, tokens and text."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import tokenizers
import torch
from support import SOURCE, tiny_study
from typer.testing import CliRunner

import attnlab
from attnlab.benchmarking.targets import Sizes, setups_of
from attnlab.checks.targets import targets
from attnlab.cli import app
from attnlab.data import Places
from attnlab.data.codec import BytesCodec, Codec, IdsCodec
from attnlab.data.tokenizer import BPE
from attnlab.inference.export import export
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model import llama_checkpoint
from attnlab.model.feedforward import SwiGLU
from attnlab.model.llama_checkpoint import difference_from_llama
from attnlab.modules.rope_scaling import Dynamic, Llama3, Yarn
from attnlab.runner.execute import corpus_of, execute
from attnlab.study.targets import named
from attnlab.training.run import Run

transformers = pytest.importorskip("transformers")

TEXT = "def é(x):\n  ré <|endoftext|>"
GREEDY = attnlab.Sampling(temperature=0)
PLAIN = {"n_heads": 4, "n_kv_heads": 2}
MINE = """
from dataclasses import dataclass
from torch import nn
from attnlab.mechanism import Mechanism, MechanismConfig

@dataclass(frozen=True, kw_only=True)
class Sums(MechanismConfig):
    def build(self, d_model, dropout=0.0):
        return Mixer(d_model)

class Mixer(Mechanism):
    def __init__(self, d_model):
        super().__init__()
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BTD):
        return self.o_proj(x_BTD.cumsum(1))
"""
LLAMAS = {
    "llama": GroupedQuery(**PLAIN, bias=True),
    "qwen3": GroupedQuery(
        **PLAIN,
        head_dim=8,
        qk_norm=True,
        rope_theta=500.0,
        rope_scaling=Yarn(factor=4.0, original_max_position_embeddings=16),
    ),
}
UNTIED = {"qwen3": True}


def trained(
    home: Path, *mechanisms: MechanismConfig, swiglu: bool = False, untied: bool = False
) -> Path:
    config = tiny_study.base.with_mechanisms(*mechanisms)
    config = replace(config, model=replace(config.model, untied_embeddings=untied))
    config = config.with_feedforward(SwiGLU(d_ff=24)) if swiglu else config
    config = replace(config, train=replace(config.train, steps=3, keep="last"))
    places = Places(None, home / "cache")
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    *_, end = execute(Run(variant="a", config=config), home, identity, places, torch.device("cpu"))
    assert end.status == "finished", end
    return home / "a" / "seed-0"


@pytest.fixture(autouse=True)
def modules_are_cached_here(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.syspath_prepend(tmp_path / "hf")
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))


def loaded(folder: Path, *, trust: bool):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trust, output_loading_info=True
    )
    assert not any(report.values()), report
    return model, transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)


@torch.no_grad()
def assert_same(run: Path, model, tokenizer) -> None:
    """Logits in float32 within 1e-5, tokens and greedy text equal, with the cache and without."""
    ours = attnlab.load_run(run, trust=True)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.codec.encode([TEXT]).tolist()
    assert tokenizer.decode(ids[0]) == TEXT
    torch.testing.assert_close(model(ids).logits, ours.model.logits(ids), atol=1e-5, rtol=1e-5)
    (text,) = attnlab.generate(ours, TEXT, max_new_tokens=12, sampling=GREEDY)
    for use_cache in (True, False):
        said = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use_cache)
        assert tokenizer.decode(said[0]) == text


@pytest.mark.parametrize("name", LLAMAS)
def test_a_model_that_is_llamas_or_qwens_is_exported_without_code_and_read_again(name, tmp_path):
    run = trained(tmp_path, LLAMAS[name], swiglu=True, untied=name in UNTIED)
    done = CliRunner().invoke(
        app, ["export", str(run), "--out", str(tmp_path / "out"), "--to", "hf"]
    )
    assert done.exit_code == 0, done.output
    assert f"a {name} checkpoint, without code" in done.output
    assert not list((tmp_path / "out").glob("*.py"))
    model, tokenizer = loaded(tmp_path / "out", trust=False)
    assert type(model).__name__ == f"{name.capitalize()}ForCausalLM"
    assert_same(run, model, tokenizer)
    again = attnlab.load_run(tmp_path / "out")
    assert again.config.model.untied_embeddings == (name in UNTIED)
    assert again.config.model.per_layer()[0] == replace(
        LLAMAS[name], head_dim=LLAMAS[name].head_widths(16)[0]
    )
    texts = attnlab.generate(again, TEXT, max_new_tokens=9, sampling=GREEDY)
    assert texts == attnlab.generate(run, TEXT, max_new_tokens=9, sampling=GREEDY)


def test_any_other_model_is_exported_with_code_and_is_padded_searched_and_saved(tmp_path):
    buffers = GroupedQuery(n_heads=2, n_kv_heads=2, alibi=True, rope_head_dim=0, sinks=True)
    run = trained(tmp_path, GatedDeltaNet(n_heads=2, head_dim=8), buffers, untied=True)
    exported = export(run, tmp_path / "out", to="hf")
    assert exported.form.endswith("since its layers have different mechanisms")
    model, tokenizer = loaded(tmp_path / "out", trust=True)
    assert_same(run, model, tokenizer)

    prompts = ["a", TEXT, "de"]
    tokenizer.pad_token = "!"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    how = {"do_sample": False, "max_new_tokens": 50, "pad_token_id": 0}  # longer than the state
    together = model.generate(**batch, **how)
    for row, prompt in enumerate(prompts):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0]
        assert torch.equal(together[row, -len(alone) :], alone)
    beams = {**how, "max_new_tokens": 4, "num_beams": 3}
    assert torch.equal(
        model.generate(**batch, **beams),
        model.generate(**batch, **beams, use_cache=False),
    )
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(batch.input_ids, attention_mask=batch.attention_mask.flip(1), **how)

    ids = batch.input_ids[1:2]
    loss = model(ids, labels=ids).loss
    torch.testing.assert_close(loss, attnlab.load_run(run).model.losses(ids).language_model)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = loaded(tmp_path / "again", trust=True)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_mechanism_of_ones_own_goes_along_and_needs_no_step(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    run = trained(tmp_path, MechanismConfig.of_kind(f"{tmp_path}/mine.py:Sums")())
    export(run, tmp_path / "out", to="hf", trust=True)
    (tmp_path / "mine.py").unlink()
    assert_same(run, *loaded(tmp_path / "out", trust=True))


def test_without_attnlab_the_code_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install attnlab"):
        runpy.run_path(str(SOURCE / "attnlab/inference/modeling_attnlab.py"))


GROWING = Dynamic(factor=2.0, original_max_position_embeddings=8)
SMALL = {"n_layers": 2, "d_model": 16, "feedforward": SwiGLU(d_ff=24)}


@pytest.mark.parametrize(
    ("mechanism", "why"),
    [
        (SlidingWindow(window=8), "its mechanism is sliding_window"),
        (MLA(), "its mechanism is mla"),
        (GroupedQuery(sinks=True), "sinks is True"),
        (GroupedQuery(output_gate="head"), "output_gate is head"),
        (GroupedQuery(rope_head_dim=2), "rope_head_dim is 2"),
        (GroupedQuery(v_head_dim=6), "v_head_dim is 6"),
        (GroupedQuery(softmax_scale=0.5), "softmax_scale is 0.5"),
        (GroupedQuery(rope_scaling=GROWING), "rope_scaling has no equal in decoding"),
        (GroupedQuery(v_head_dim=4, rope_head_dim=4, kernel="math"), None),
    ],
    ids=str,
)
def test_what_llama_lacks_is_named(mechanism, why):
    found = difference_from_llama(attnlab.ModelConfig(mechanisms=(mechanism,), **SMALL))
    assert found is None if why is None else found.startswith(why)


class Secret(IdsCodec):
    to_hugging_face = Codec.to_hugging_face


def test_tokenizers_have_the_form_of_hugging_face_or_say_that_they_have_none(places):
    bpe = BPE(vocab_size=300).fit(["a text, a text in été"] * 5, places)
    for codec, text in ((bpe, TEXT), (BytesCodec(), TEXT + "\x00\x7f"), (IdsCodec(70), "3 69 0")):
        theirs = tokenizers.Tokenizer.from_str(codec.to_hugging_face())
        ids = theirs.encode(text).ids
        assert ids == codec.encode([text]).tolist()
        assert theirs.decode(ids) == codec.decode(ids) == text
    with pytest.raises(ValueError, match="Secret has no equal in the form of Hugging Face"):
        Secret(5).to_hugging_face()


SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama", {"rms_norm_eps": 1e-2, "rope_parameters": LLAMA3, "attention_bias": True}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {"tie_word_embeddings": False}),
        ("Qwen3", {"head_dim": 16}),
    ],
)
def test_a_checkpoint_is_read_with_equal_logits_checked_and_measured(name, settings, tmp_path):
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**SIZES | settings)
    ).eval()
    for parameter in model.parameters():  # norms and biases, too
        parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "small", max_shard_size="20KB")
    assert (tmp_path / "small/model.safetensors.index.json").is_file()
    with mock.patch.object(
        llama_checkpoint, "read_foreign_object", wraps=llama_checkpoint.read_foreign_object
    ) as read:
        ours = attnlab.load_run(tmp_path / "small")
    names = [call.args[0].name for call in read.call_args_list]
    assert names == ["config.json", "model.safetensors.index.json"]
    ids = torch.randint(90, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits
    torch.testing.assert_close(ours.model.logits(ids), expected, atol=2e-5, rtol=2e-5)
    prompt = " ".join(map(str, ids[0].tolist()))  # without tokenizer.json text is numbers
    (text,) = attnlab.generate(ours, prompt, max_new_tokens=3, sampling=GREEDY)
    said = model.generate(ids[:1], max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert text == " ".join(map(str, said[0].tolist()))

    folder = str(tmp_path / "small")
    (target,) = targets([folder])
    assert (target.name, target.d_model) == ("small", 32)
    setup = setups_of(named([f"{folder}:train.seq_len=8"]), Sizes())["small"]
    assert (setup.model, setup.vocab_size, setup.train.seq_len) == (ours.config.model, 90, 8)


def test_a_tokenizer_of_any_kind_reads_and_writes_the_text_of_a_checkpoint(tmp_path):
    config = transformers.LlamaConfig(**SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    words = {"<s>": 0, "a": 1, "b": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = attnlab.load_run(tmp_path).codec
    assert codec.encode(["b a"]).tolist() == [0, 2, 1]
    assert codec.decode([0, 2, 1]) == "b a"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json"):
        attnlab.load_run(tmp_path)


WRITTEN = {**SIZES, "model_type": "llama", "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gemma3"}, "model_type is gemma3, and llama, mistral, qwen2, qwen3 are"),
        ({"model_type": "attnlab"}, "attnlab export without --to hf writes what attnlab reads"),
        ({"tie_word_embeddings": "no"}, 'no equal of tie_word_embeddings="no"'),
        ({"hidden_act": "gelu"}, 'no equal of hidden_act="gelu"'),
        ({"mlp_bias": True}, "no equal of mlp_bias=true"),
        ({"model_type": "mistral", "sliding_window": 4}, "no equal of sliding_window=4"),
        ({"layer_types": ["sliding_attention"]}, "no equal of layer_types=sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "no equal of quantization_config"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "rope_type: longrope is none of"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "odd": 1}}, "no field 'odd'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"num_key_value_heads": 3}, "3 does not divide"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
        ({"hidden_size": "wide"}, "is no config of llama"),
    ],
    ids=str,
)
def test_a_setting_that_attnlab_lacks_is_one_line_that_names_it(change, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**WRITTEN, **change}))
    for command in (["generate", "--prompt", "a"], ["check"], ["bench"]):
        done = CliRunner().invoke(app, [*command, str(tmp_path)])
        assert done.exit_code == 2, done.output
        assert said in " ".join(done.output.split())


def test_a_weight_that_is_missing_cut_or_unknown_is_named(tmp_path):
    original = Llama3(factor=8.0, original_max_position_embeddings=16)
    assert LLAMA3["rope_type"] == original.kind()
    untied = transformers.LlamaConfig(**SIZES | {"tie_word_embeddings": False})
    model = transformers.LlamaForCausalLM(untied)
    weights = model.state_dict()
    lacking = [(name, f"no weight {name}") for name in ("model.norm.weight", "lm_head.weight")]
    for name, said in (*lacking, ("", "of the weight")):
        kept = {key: value for key, value in weights.items() if key != name}
        kept |= {} if name else {"model.layers.0.extra": torch.ones(1)}
        model.save_pretrained(tmp_path / f"of{name}", state_dict=kept)
        with pytest.raises(ValueError, match=said):
            attnlab.load_run(tmp_path / f"of{name}")
    file = tmp_path / "of" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or damaged"):
        attnlab.load_run(tmp_path / "of")


def test_nothing_waits_for_a_pipe_or_reads_beside_the_folder_of_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(WRITTEN | {"tie_word_embeddings": True}))
    weights = tmp_path / "model.safetensors"
    os.mkfifo(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors is .*a pipe, not a file"):
        attnlab.load_run(tmp_path)
    weights.unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}')
    with pytest.raises(ValueError, match="which is no file of its folder"):
        attnlab.load_run(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    done = CliRunner().invoke(app, ["generate", str(tmp_path), "--prompt", "a"])
    assert (done.exit_code, "it has no config.json" in " ".join(done.output.split())) == (2, True)
