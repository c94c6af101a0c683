"""Layers of flash-linear-attention as mechanisms: a fake package on the CPU, the real one on CUDA.

The fake package has the interface that attnlab uses: layers, their cache, and their errors.
"""

import logging
import sys
from dataclasses import replace

import pytest
import torch
from support import tiny_study

from attnlab.benchmarking.point import Point
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.work import stated_flops
from attnlab.checks import check_properties, describe
from attnlab.checks import cost as cost_checks
from attnlab.checks.subject import Subject
from attnlab.checks.targets import targets
from attnlab.config import ConfigError, own_classes
from attnlab.config.dotted_paths import override
from attnlab.data.batches import window_starts
from attnlab.inference.generate import Sampling, generate_tokens
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import flash_linear_attention_plain as plain
from attnlab.kernels.flash_linear_attention import Facts
from attnlab.mechanism import MechanismConfig, state_bytes
from attnlab.mechanisms import fla_layer as module
from attnlab.mechanisms.fla_layer import SeenState, fla_layer
from attnlab.model.language_model import ModelConfig
from attnlab.runner import doctor
from attnlab.study.matching import Match
from attnlab.training.step import TrainingStep

LAYERS = '''
from __future__ import annotations
import logging
import warnings
import torch
from torch import nn

__all__ = ["Causal", "Crossed", "Leaky", "Levels", "NeedsFlash", "Stuck", "Sum", "Writing"]
is_fast_path_available = True


class Sum(nn.Module):
    """Layer with y_t = q_t (sum of k_s v_s^T up to t), scaled elementwise by exp(A_log)."""

    def __init__(self, mode: str = "chunk", hidden_size: int = 1024, num_heads: int = 2,
                 num_kv_heads: int = None, expand_v: float = 1,
                 limits: tuple[float, float] = (0, 1), endless: float = float("inf"),
                 layer_idx: int = None, **kwargs) -> Sum:
        super().__init__()
        assert hidden_size % num_heads == 0, f"num_heads {num_heads} must divide {hidden_size}"
        warnings.warn("not what you should do")
        logging.getLogger("fla.layers").warning("nor this")
        self.mode, self.layer_idx, self.num_heads = mode, layer_idx, num_heads
        self.head_v_dim = round(hidden_size * expand_v) // num_heads
        width = num_heads * self.head_v_dim
        self.qk_proj = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, width, bias=False)
        self.A_log = nn.Parameter(torch.rand(width))
        self.o_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False):
        q, k = self.qk_proj(hidden_states).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        v = self.v_proj(hidden_states).unflatten(-1, (self.num_heads, -1))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = (q @ k.mT).tril() @ v
        memory = (k.mT @ v).float()
        if past_key_values is not None and len(past_key_values):
            before = past_key_values[0]["recurrent_state"]
            y, memory = y + q @ before.to(q.dtype), memory + before
        if use_cache:
            past_key_values.update(recurrent_state=memory, layer_idx=0, offset=v.shape[2])
        y = y.transpose(1, 2).flatten(2) * self.A_log.exp().to(y.dtype)
        return self.o_proj(y), None, past_key_values


class Causal(nn.Module):
    """Layer without a cache: the mean of the tokens up to each."""

    def __init__(self, hidden_size: int = 1024, bias: bool = True, num_slots: int | None = None):
        super().__init__()
        self.proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        nn.init.ones_(self.proj.weight)
        self.proj._is_hf_initialized = num_slots is not None

    def forward(self, hidden_states, **kwargs):
        tokens, on = hidden_states.shape[1], hidden_states.device
        count = torch.arange(1, tokens + 1, device=on)[:, None]
        return self.proj((hidden_states.float().cumsum(1) / count).to(hidden_states.dtype))


class Leaky(Causal):
    def forward(self, hidden_states, **kwargs):
        return self.proj(hidden_states + hidden_states.mean(1, keepdim=True))


class Writes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.x.data.copy_(grad)
        return grad


class Writing(Causal):
    """Layer whose backward pass takes its input as a buffer."""

    def forward(self, hidden_states, **kwargs):
        return super().forward(Writes.apply(hidden_states))


class Stuck(Sum):
    """Layer that fills a cache but cannot decode from it."""

    def forward(self, hidden_states, past_key_values=None, **kwargs):
        assert not past_key_values or not len(past_key_values), "q_len must equal kv_len"
        return super().forward(hidden_states, past_key_values=past_key_values, **kwargs)


class NeedsFlash(Sum):
    def __init__(self, **kwargs):
        raise ImportError("Please install Flash Attention first")


class Levels(Causal):
    """Layer whose heads make up its inner width, and whose kernel has one length of chunks."""

    def __init__(self, num_heads: int, head_dim: int = 16, hidden_size: int = 1024,
                 expand: int = 2, chunk_size: int = 64,
                 dt_limit: tuple[float, float] = (0.0, float("inf"))):
        super().__init__(hidden_size)
        self.num_heads, self.head_dim, self.chunk_size = num_heads, head_dim, chunk_size
        self.intermediate_size = expand * hidden_size

    def forward(self, hidden_states, **kwargs):
        if self.chunk_size != 64:
            raise NotImplementedError
        return super().forward(hidden_states)


class Crossed(Causal):
    def forward(self, hidden_states, shared_k, shared_v, attention_mask=None, **kwargs):
        return hidden_states
'''
CACHE = """
class Cache:
    def __init__(self):
        self.states = []

    def __len__(self):
        return len(self.states)

    def __getitem__(self, layer):
        return self.states[layer]

    def update(self, recurrent_state, layer_idx, offset):
        self.states = [{"recurrent_state": recurrent_state, "conv_state": None}]
"""
ON_CPU = """
from torch import nn
from fla.modules.causal_conv1d.ops import causal_conv1d
from fla.modules.norm.fused_norm_gate import rms_norm_gated
from fla.ops.gla import chunk_gla, fused_recurrent_gla

__all__ = ["GatedLinearAttention"]


class GatedLinearAttention(nn.Module):
    def __init__(self, hidden_size: int = 1024, num_heads: int = 2):
        super().__init__()
        self.heads = num_heads
        self.proj, self.norm = nn.Linear(hidden_size, 4 * hidden_size), nn.RMSNorm(hidden_size)
        self.conv = nn.Conv1d(hidden_size, hidden_size, 3, groups=hidden_size)

    def forward(self, x, attention_mask=None, past_key_values=None, use_cache=False):
        past = past_key_values[0] if past_key_values else {"recurrent_state": None, "past": None}
        q, k, v, g = self.proj(x).chunk(4, -1)
        q, seen = causal_conv1d(
            x=q, weight=self.conv.weight[:, 0], bias=self.conv.bias, activation="silu",
            initial_state=past["past"], output_final_state=use_cache,
        )
        run = chunk_gla if x.shape[1] > 1 else fused_recurrent_gla
        q, k, v, gk = (each.unflatten(-1, (self.heads, -1)) for each in (q, k, v, -g.exp()))
        y, memory = run(
            q=q, k=k, v=v, **{"g" if x.shape[1] > 1 else "gk": gk},
            initial_state=past["recurrent_state"], output_final_state=use_cache,
        )
        if use_cache:
            past_key_values.states = [{"recurrent_state": memory, "past": seen}]
        return rms_norm_gated(y.flatten(-2), g, self.norm.weight, None), None, past_key_values
"""
DEFINITION = """
import torch
def {name}(q, k, v, gk, initial_state=None, output_final_state=False):
    memory = torch.zeros(()) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[1]):
        memory = gk[:, t, :, :, None].exp() * memory + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, None] @ memory)[:, :, 0] * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1), memory
"""
KERNEL = "def {name}(*a, **k): raise RuntimeError('0 active drivers')\n"
USABLE = Facts(
    capability=(9, 0), fla="0.6.0", layers="0.6.0", triton="3.6.0", tilelang=False, nvcc=False
)


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
        del sys.modules[name]
    for cached in (fla_layer, module._on_meta, module._cache_works, module._cache_bytes):
        cached.cache_clear()


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Install a fake package `fla`, and make the machine seem to have CUDA."""
    for path, text in (
        ("__init__.py", ""),
        ("layers/__init__.py", LAYERS),
        ("models/__init__.py", ""),
        ("models/utils.py", CACHE),
    ):
        (tmp_path / "fla" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fla" / path).write_text(text)
    real = {name: found for name, found in sys.modules.items() if name.partition(".")[0] == "fla"}
    _forget()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fla, "facts", lambda: USABLE)
    monkeypatch.setattr(fla, "layer_device", lambda: "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    _forget()
    sys.modules.update(real)


@pytest.fixture
def on_cpu(stand_in, tmp_path, monkeypatch):
    """Install a fake package whose functions need a GPU but have definitions; there is no CUDA."""
    files = {"layers": ON_CPU}
    for operation, (names, definition) in plain._DEFINITIONS.items():
        files[f"ops/{operation}"] = "".join(KERNEL.format(name=name) for name in names.split())
        files[f"ops/{operation}/naive"] = DEFINITION.format(name=definition)
    for module_name, *names in (*((m, n) for m, n, _ in plain._OWN), *plain._THEIRS):
        path = module_name.replace(".", "/")
        files[path] = files.get(path, "") + "".join(KERNEL.format(name=name) for name in names)
    for path, text in files.items():
        folder = tmp_path / "fla" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(text)
    monkeypatch.setattr(fla, "facts", lambda: replace(USABLE, capability=None))
    plain.use.cache_clear()
    yield
    plain.use.cache_clear()


@pytest.mark.usefixtures("on_cpu")
class TestOnCPU:
    def test_a_layer_with_plain_definitions_keeps_the_promises(self):
        results = check_properties("fla:GatedLinearAttention", d_model=32, quick=True)
        broken = [describe(result) for result in results if not result.holds]
        assert not broken, "\n".join(broken)
        mixer = fla_layer("GatedLinearAttention")().build(32)
        said = mixer.kernel_on(torch.device("cpu"), torch.float32)
        assert said == "fla plain, decoding by cache"

    def test_another_version_without_these_definitions_is_refused_in_one_line(self, tmp_path):
        (tmp_path / "fla/ops/kda/naive/__init__.py").write_text("")
        why = r"fla:GatedLinearAttention: .* CPU here: .* version 0.6.0: .* no attribute 'naive_rec"
        with pytest.raises(ValueError, match=why):
            fla_layer("GatedLinearAttention")

    def test_definitions_compute_what_the_kernels_compute_beside_the_operation(self):
        given = {name: torch.randn(1, 3, 2, 4) for name in ("q", "k", "v", "g")}
        more = {"beta": torch.randn(1, 3, 2), "A_log": torch.randn(2), "dt_bias": torch.randn(8)}
        flags = dict.fromkeys(
            ("use_qk_l2norm_in_kernel", "use_beta_sigmoid_in_kernel", "use_gate_in_kernel"), True
        )
        of = plain._prepared({**given, **more, **flags, "allow_neg_eigval": True})
        assert torch.allclose(of["q"].norm(dim=-1), torch.ones(1, 3, 2))
        assert torch.equal(of["beta"], 2 * more["beta"].sigmoid())
        bias_HK, rate_H1 = more["dt_bias"].view(2, 4), more["A_log"].exp()[:, None]
        assert torch.allclose(of["g"], -rate_H1 * (given["g"] + bias_HK).exp().log1p())

    def test_a_rotation_keeps_lengths_and_begins_at_the_offset(self):
        x, angles = torch.randn(2, 5, 3, 6), torch.arange(9.0)[:, None] * torch.tensor([1.0, 0.1])
        y = plain._rotary_embedding(x, angles.cos(), angles.sin(), 4)
        first = torch.complex(x[..., :2], x[..., 2:4]) * torch.exp(1j * angles[4:, None])
        assert torch.allclose(y[..., :2], first.real, atol=1e-6)
        assert torch.allclose(y[..., 2:4], first.imag, atol=1e-6)
        assert torch.equal(y[..., 4:], x[..., 4:])


@pytest.mark.usefixtures("stand_in")
class TestSettings:
    def test_they_are_the_arguments_of_the_layer_with_its_defaults(self):
        assert fla_layer("Sum")().to_dict() == {
            "kind": "fla:Sum",
            "decode": "auto",
            "mode": "chunk",
            "num_heads": 2,
            "num_kv_heads": None,
            "expand_v": 1.0,
            "limits": [0.0, 1.0],
        }

    def test_a_kind_is_found_by_its_prefix_wherever_kinds_are_named(self):
        config = ModelConfig.from_dict({"mechanisms": ["fla:Causal"], "d_model": 32})
        changed = override(
            config, ["mechanisms.0=fla:Sum", "mechanisms.0.num_heads=1", "mechanisms.0.expand_v=2"]
        )
        assert changed.mechanisms == (fla_layer("Sum")(num_heads=1, expand_v=2),)
        assert ModelConfig.from_dict(changed.to_dict()) == changed
        assert MechanismConfig.of_kind("fla:Sum") is fla_layer("Sum")
        assert "fla:Sum" not in MechanismConfig.kinds
        assert own_classes(changed) == []

    def test_all_that_is_wrong_is_told_at_once_with_suggestions(self):
        with pytest.raises(ConfigError) as raised:
            fla_layer("Sum").from_dict({"kind": "fla:Sum", "num_haeds": 3, "expand_v": "wide"})
        assert "did you mean 'num_heads'?" in str(raised.value)
        assert "expand_v: expected a number, got 'wide'" in str(raised.value)

    def test_what_json_cannot_say_is_no_setting(self):
        with pytest.raises(ConfigError, match="no field 'endless'"):
            MechanismConfig.from_dict({"kind": "fla:Sum", "endless": 1.0})

    def test_a_layer_that_is_not_there_is_told_with_the_nearest_that_is(self):
        with pytest.raises(ValueError, match=r"has no layer 'Smu'; did you mean 'Sum'\?"):
            fla_layer("Smu")

    def test_a_part_of_another_layer_is_no_mechanism(self):
        with pytest.raises(ValueError, match="it also needs shared_k, shared_v"):
            fla_layer("Crossed")

    def test_a_width_that_the_layer_refuses_is_a_problem_in_its_own_words(self):
        with pytest.raises(ConfigError, match="num_heads 3 must divide 32"):
            ModelConfig(mechanisms=(fla_layer("Sum")(num_heads=3),), d_model=32)

    def test_heads_too_narrow_for_the_kernels_are_a_problem(self):
        with pytest.raises(ConfigError, match="head_v_dim 8; its kernels need at least 16"):
            ModelConfig(mechanisms=(fla_layer("Sum")(num_heads=4),), d_model=32)

    def test_a_layer_of_heads_in_an_inner_width_is_checked_where_they_fit_with_its_own_chunks(self):
        (target,) = targets(["fla:Levels:num_heads=4"])
        assert (target.d_model, target.config.chunk_size) == (32, 64)
        with pytest.raises(ConfigError, match="2 heads of 16 do not make up its inner width of 64"):
            ModelConfig(mechanisms=(fla_layer("Levels")(num_heads=2),), d_model=32)
        with pytest.raises(ConfigError, match="num_heads: required, but not given"):
            targets(["fla:Levels"])

    def test_a_package_that_a_layer_needs_is_named_before_anything_is_built(self):
        with pytest.raises(ConfigError, match="Please install Flash Attention first"):
            ModelConfig(mechanisms=(fla_layer("NeedsFlash")(),), d_model=32)
        with pytest.raises(ConfigError, match="Please install Flash Attention first"):
            targets(["fla:NeedsFlash"])


@pytest.mark.usefixtures("stand_in")
class TestMechanism:
    @pytest.mark.parametrize("name", ["Sum", "Causal", "Stuck"])
    def test_it_keeps_the_promises_of_the_contract(self, name):
        broken = [r for r in check_properties(f"fla:{name}", d_model=32, quick=True) if not r.holds]
        assert not broken

    def test_the_suite_sees_what_is_wrong_with_a_layer(self):
        broken = {
            r.name for r in check_properties("fla:Leaky", d_model=32, quick=True) if not r.holds
        }
        assert {"no position sees the future", "step by step equals all at once"} <= broken

    def test_a_layer_whose_backward_pass_writes_its_input_gets_a_copy(self, monkeypatch):
        found = check_properties("fla:Writing", d_model=32, quick=True)
        (spoiled,) = [result for result in found if not result.holds]
        assert "the backward pass changes it in place, the input" in describe(spoiled)
        monkeypatch.setattr(fla, "_WRITES_ITS_INPUT", ("Writing",))
        found = check_properties("fla:Writing", d_model=32, quick=True)
        assert all(result.holds for result in found)

    def test_its_cost_is_counted_without_a_number_existing(self):
        cost = fla_layer("Sum")(expand_v=2).cost(d_model=32, context=9)
        projections = 2 * 32 * 32 + 2 * 32 * 64
        assert cost.params == projections + 64
        assert cost.flops == 2 * projections
        assert cost.state_bytes == 4 * 2 * 16 * 32  # float32: heads, key and value width
        assert {p.device.type for p in module._on_meta(fla_layer("Sum")(), 32).parameters()} == {
            "meta"
        }

    def test_its_flops_are_unknown_wherever_they_would_be_shown(self):
        config = fla_layer("Sum")()
        for each in (cost_checks.flops, cost_checks.forward_flops):
            result = each.check(Subject(config=config, d_model=32))
            assert (result.verdict, result.how_much) == ("skipped", "its FLOPs are not counted")
        run = override(tiny_study.base, ["model.mechanisms.0=fla:Sum", "model.d_model=32"])
        assert (run.model.states_cost, run.model.states_flops) == (True, False)
        setup = Setup(model=run.model, vocab_size=256, train=run.train)
        assert stated_flops(setup, Point("sum", "decode", 8, 1)) is None
        variants = {**tiny_study.study.variants, "sum": run}
        with pytest.raises(ConfigError, match="FLOPs of a mechanism are not known: match params"):
            replace(tiny_study.study, variants=variants, match=Match(what="flops"))

    def test_it_decodes_by_recomputation_where_there_is_no_cache_or_none_is_wanted(self):
        x_BTD = torch.randn(2, 5, 32)
        never = fla_layer("Causal")(), fla_layer("Sum")(decode="recomputation")
        for config in (*never, fla_layer("Stuck")()):
            mixer = config.build(32)
            _, state = mixer.prefill(x_BTD, capacity=7)
            assert isinstance(state, SeenState)
            assert state.x_BSD.shape == (2, 7, 32)
            assert mixer.decodes_by == "recomputation"
            assert state_bytes(state) == 2 * config.cost(32, 7, itemsize=4).state_bytes

    def test_a_state_is_the_layers_cache_and_what_it_holds(self):
        mixer = fla_layer("Sum")().build(32)
        assert mixer.decodes_by == "cache"
        _, state = mixer.prefill(torch.randn(3, 5, 32), capacity=9)
        assert len(state[0]) == 1
        assert state_bytes(state) == 3 * mixer.config.cost(32, 9).state_bytes

    def test_the_record_says_which_kernel_and_how_it_decodes(self):
        mixer = fla_layer("Sum")().build(32)
        assert (
            mixer.kernel_on(torch.device("cpu"), torch.bfloat16) == "fla chunk, decoding by cache"
        )
        sys.modules["fla.layers"].is_fast_path_available = False
        said = mixer.kernel_on(torch.device("cpu"), torch.bfloat16)
        assert said == "fla without mamba_ssm, decoding by cache"
        with pytest.raises(ValueError, match="runs on CPU here, not on meta"):
            mixer.kernel_on(torch.device("meta"), torch.bfloat16)

    def test_what_it_says_at_each_construction_is_not_repeated(self, monkeypatch):
        handler, said = logging.Handler(), list[logging.LogRecord]()
        handler.emit = said.append
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        fla_layer("Sum")().build(32)
        assert not said

    def test_the_output_is_of_bfloat16_precision_in_the_dtype_of_the_input(self):
        mixer, x_BTD = fla_layer("Sum")().build(32), torch.randn(2, 5, 32)
        y_BTD = mixer(x_BTD)
        assert y_BTD.dtype == torch.float32
        assert torch.equal(y_BTD, y_BTD.bfloat16().float())

    def test_a_layer_begins_with_its_own_values_those_of_torch_included(self):
        def initial(config, seed=7):
            model = ModelConfig(mechanisms=(config,), n_layers=1, d_model=32).build(11, seed)
            return dict(model.blocks[0].mix.named_parameters())

        first, again = initial(fla_layer("Sum")()), initial(fla_layer("Sum")(num_heads=1))
        assert first["layer.o_proj.weight"].abs().max().item() == pytest.approx(32**-0.5, rel=0.01)
        assert 0 < first["layer.A_log"].min() < first["layer.A_log"].max() < 1
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert not torch.equal(first["layer.A_log"], initial(fla_layer("Sum")(), 8)["layer.A_log"])
        begun = initial(fla_layer("Causal")(num_slots=1))
        assert torch.equal(begun["layer.proj.weight"], torch.ones(32, 32))


def test_without_cuda_it_is_an_error_before_anything_is_spent(monkeypatch):
    monkeypatch.setattr(fla, "facts", lambda: replace(USABLE, capability=None))
    fla_layer.cache_clear()
    why = "fla:LogLinearMamba2: flash-linear-attention needs CUDA, and torch sees no CUDA device"
    with pytest.raises(ValueError, match=rf"{why}; on a CPU run DeltaNet, .*, RWKV7Attention"):
        targets(["fla:LogLinearMamba2"])
    with pytest.raises(ConfigError, match=f"mechanisms.0: {why}"):
        ModelConfig.from_dict({"mechanisms": [{"kind": "fla:LogLinearMamba2"}]})
    monkeypatch.setattr(fla, "facts", lambda: replace(USABLE, capability=None, layers=None))
    with pytest.raises(ValueError, match=r"fla:GatedLinearAttention: the layers .* not installed"):
        targets(["fla:GatedLinearAttention"])


def test_what_the_layers_import_and_is_not_there_is_named(stand_in, tmp_path):
    (tmp_path / "fla" / "layers" / "__init__.py").write_text("import no_such_package_anywhere")
    with pytest.raises(
        ValueError, match="cannot be imported: No module named 'no_such_package_anywhere'"
    ):
        fla_layer("Sum")
    assert "no_such_package_anywhere" not in doctor._fla_layers().remedy  # without a device


@pytest.mark.usefixtures("stand_in")
def test_the_doctor_counts_the_layers_that_can_run():
    name, found, remedy, stops = doctor._fla_layers()
    assert (name, stops) == ("fla:NAME", False)
    assert found == "5 of 8 layers usable as mechanisms; not Crossed, Levels, NeedsFlash"
    assert remedy == "run attnlab check fla:Crossed to see the reason"


ON_CUDA = {
    "BasedLinearAttention": {"num_heads": 4, "num_key_value_heads": 4},
    "DeltaNet": {},
    "ForgettingAttention": {"num_heads": 4},
    "GatedDeltaNet": {"head_dim": 32, "num_heads": 4},
    "GatedDeltaProduct": {"head_dim": 32, "num_heads": 4},
    "GatedLinearAttention": {},
    "GatedSlotAttention": {"num_heads": 4, "num_slots": 32},
    "HGRN2Attention": {"expand_ratio": 32},
    "HGRNAttention": {},
    "KimiDeltaAttention": {"head_dim": 32, "num_heads": 4},
    "LinearAttention": {"num_heads": 4},
    "LogLinearMamba2": {"num_heads": 8, "head_dim": 32, "state_size": 32},
    "Mamba2": {"head_dim": 32, "state_size": 32, "chunk_size": 32},
    "MultiScaleRetention": {"num_heads": 4},
    "RWKV7Attention": {"head_dim": 32, "num_hidden_layers": 2},
}


@pytest.fixture
def real():
    """Use the real package, with the fake one removed."""
    if reason := fla.layer_unusable_because(""):
        pytest.skip(reason)
    fla_layer.cache_clear()


@pytest.mark.gpu
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("layer", sorted(ON_CUDA))
def test_on_cuda_a_layer_keeps_the_promises_of_the_contract(layer):
    if reason := fla.layer_unusable_because(layer):
        pytest.skip(reason)
    results = check_properties(fla_layer(layer)(**ON_CUDA[layer]), d_model=128, quick=True)
    broken = [describe(result) for result in results if not result.holds]
    assert not broken, "\n".join(broken)


@pytest.mark.gpu
@pytest.mark.usefixtures("real")
def test_on_cuda_every_layer_fits_some_width_or_says_why_not():
    refused = dict[str, str]()
    for name in fla.layer_names():
        try:
            targets([f"fla:{name}"])
        except ValueError as error:  # also one of settings
            refused[name] = str(error)
    assert refused.keys().isdisjoint({"DeltaNet", "GatedLinearAttention", "KimiDeltaAttention"})
    assert all(len(why) > 20 for why in refused.values())


@pytest.mark.gpu
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("layer", ["DeltaNet", "GatedLinearAttention", "KimiDeltaAttention"])
def test_on_cuda_a_model_of_it_trains_in_a_recorded_step_and_generates(layer):
    model_config = ModelConfig(
        mechanisms=(fla_layer(layer)(**ON_CUDA[layer]),), n_layers=2, d_model=128
    )
    train = replace(tiny_study.base.train, steps=12, seq_len=200, batch_size=4)
    tokens = (torch.arange(50_000) % 97).int().cuda()  # a predictable sequence
    starts = window_starts(50_000, seq_len=200, batch_size=4, steps=12, seed=0)
    model = model_config.build(256).cuda().train()
    step = TrainingStep(train, model, tokens, starts, seed=0, compiled=False)
    while step.step < train.steps:
        step.advance()
    losses = step.measured_SC[:, 0].cpu()
    assert losses.isfinite().all()
    assert losses[-1] < losses[0]
    prompt_BT = tokens[None, :70].long()
    made = list(
        generate_tokens(model, prompt_BT, max_new_tokens=4, sampling=Sampling(temperature=0))
    )
    seen_BT = torch.cat([prompt_BT, torch.stack(made, 1)], 1)
    with torch.inference_mode():
        again_BT = model.logits(seen_BT[:, :-1]).argmax(-1)[:, -4:]
    assert (again_BT == seen_BT[:, -4:]).float().mean() >= 0.75  # bfloat16: two logits may be equal
