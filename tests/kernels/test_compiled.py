"""Compiled models share graphs; the fused loss and the grouped product equal their definitions."""

import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_study

import attnlab.mechanisms  # noqa: F401  registers all mechanisms
from attnlab.config import override
from attnlab.data import Places
from attnlab.device.ranks import Ranks
from attnlab.inference.decoder import tensors
from attnlab.kernels import cross_entropy, gated_delta_rule, sparse_attention
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.compiled import (
    compile_once,
    compiler_is_loaded,
    constant,
    keep_compiled,
    load_compiler,
)
from attnlab.kernels.cross_entropy import definition as of_logits
from attnlab.kernels.cross_entropy import linear_cross_entropy
from attnlab.kernels.grouped_matmul import definition, grouped_matmul, resolve
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.language_model import ModelConfig
from attnlab.modules.rotary import Rope, rotate, rotation
from attnlab.runner.execute import execute_as
from attnlab.runner.execution import Execution
from attnlab.training.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own code
ATTENTION = "grouped_query", "mla", "sliding_window", "deepseek_sparse", "moba", "nsa"
# delta_net has the code of gated_delta_net, and lightning_attention that of gla
OWN_KERNELS = "gated_delta_net", "gated_delta_product", "gla", "kda", "mamba2", "rwkv7", "identity"


@pytest.fixture
def graphs(monkeypatch):
    """Return the list of graphs compiled from now on; each runs uncompiled."""
    import torch._dynamo

    found = list[torch.fx.GraphModule]()

    def keep(graph, _, **options):
        found.append(graph)
        return graph.forward

    compile_as_before = torch.compile

    def compile_and_keep(function=None, **options):
        ours = getattr(function, "__module__", "").startswith("attnlab.")
        return compile_as_before(function, **options, **({"backend": keep} if ours else {}))

    monkeypatch.setattr(torch, "compile", compile_and_keep)
    compile_once.cache_clear()
    torch._dynamo.reset()
    yield found
    compile_once.cache_clear()
    torch._dynamo.reset()


def losses(*mechanisms, seed=0, compiled=True):
    config = ModelConfig(mechanisms=mechanisms, n_layers=2 * len(mechanisms), d_model=32)
    model = config.build(100, seed).train()
    tokens_BT1 = torch.randint(100, (2, 41), generator=torch.Generator().manual_seed(seed))
    loss = model.losses(tokens_BT1, compiled=compiled).language_model
    loss.backward()
    return loss.detach(), model.embed.weight.grad


@pytest.mark.parametrize("kind", [*ATTENTION, *OWN_KERNELS])
def test_a_layer_is_one_graph_and_computes_what_it_computes_as_written(kind, graphs):
    mechanism = MechanismConfig.kinds[kind]()
    torch.testing.assert_close(losses(mechanism), losses(mechanism, compiled=False))
    assert len(graphs) == 1


def test_blocks_of_sparse_attention_that_a_graph_leaves_out_compute_the_same(graphs, monkeypatch):
    monkeypatch.setattr(sparse_attention, "BLOCK", 8)  # five blocks
    sparse = MechanismConfig.kinds["deepseek_sparse"](top_k=8)
    torch.testing.assert_close(losses(sparse), losses(sparse, compiled=False))
    assert len(graphs) > 1


@pytest.mark.parametrize("kind", [*ATTENTION, "gated_delta_net", "mamba2"])
def test_decoding_is_one_graph_per_kind_of_layer_and_one_for_the_logits(kind, graphs):
    mechanisms = (MechanismConfig.kinds[kind](),)
    model = ModelConfig(mechanisms=mechanisms, n_layers=3, d_model=32).build(50).eval()
    tokens_BT = torch.randint(50, (1, 6), generator=torch.Generator().manual_seed(0))
    for compiled in (False, True):
        with torch.inference_mode():
            _, states = model.prefill(tokens_BT[:, :5], 8)
            logits_BV, after = model.step(tokens_BT[:, 5], states, compiled=compiled)
        if not compiled:
            expected = logits_BV.clone(), [part.clone() for part in tensors(after)]
    torch.testing.assert_close((logits_BV, list(tensors(after))), expected)
    assert len(graphs) == 2


def test_torchs_compiler_takes_the_constants_of_two_rotations_in_one_graph():
    def rotated(x_TK, start):
        ropes = Rope(10_000.0, 8), Rope(500.0, 4)
        return [rotate(x_TK, rotation(rope, start, 1, like=x_TK)) for rope in ropes]

    x_TK, start = torch.ones(1, 8), torch.tensor(70_001)
    compiled = torch.compile(rotated, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_TK, start), rotated(x_TK, start))


def test_a_prompt_is_read_by_one_graph_per_kind_of_layer(graphs):
    model = ModelConfig(mechanisms=(GroupedQuery(),), n_layers=3, d_model=32).build(50).eval()
    tokens_BT = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, (found, _) = (
            model.prefill(tokens_BT, 8)[0],
            model.prefill(tokens_BT, 8, compiled=True),
        )
    torch.testing.assert_close(found, expected)
    assert len(graphs) == 1


def test_the_compiler_is_loaded_before_it_is_needed(monkeypatch):
    for name in ("torch._dynamo", "torch._inductor.compile_fx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        "attnlab.kernels.compiled.import_module",
        lambda name: monkeypatch.setitem(sys.modules, name, torch),
    )
    assert not compiler_is_loaded()
    load_compiler()
    assert compiler_is_loaded()


def test_a_kind_of_layer_is_compiled_once_for_all_models(graphs):
    attention, delta = GroupedQuery(n_heads=4), GatedDeltaNet(n_heads=2, head_dim=16)
    losses(attention)
    losses(attention, delta)
    losses(delta, attention, delta, seed=1)
    assert len(graphs) == 2


def twice(x):
    return 2 * x


twice.__module__ = "attnlab.of_a_test"


def test_more_kinds_than_torch_compiles_by_itself_are_all_compiled(graphs):
    for width in range(2, 14):
        compile_once(twice, dynamic=False)(torch.ones(width))
    assert len(graphs) == 12


def test_a_kernel_that_cannot_be_compiled_parts_its_own_layers_alone(graphs, monkeypatch):
    """As flash-linear-attention's kernels, which the chunked form replaces here."""

    def function(_):
        def run(q, k, v, g, beta, **_):
            unit = gated_delta_rule.unit
            return gated_delta_rule.chunked(unit(q), unit(k), v, g, beta)

        return run

    monkeypatch.setattr(fla, "function", function)
    monkeypatch.setattr(fla, "unusable_because", constant(lambda *_: None))
    delta = GatedDeltaNet(n_heads=2, head_dim=16, kernel="fla")
    compiled = losses(delta, GroupedQuery(n_heads=4), delta)
    torch.testing.assert_close(
        compiled, losses(delta, GroupedQuery(n_heads=4), delta, compiled=False)
    )
    # before the norm, norm to kernel, kernel to projection, the rest of the block; attention whole
    assert len(graphs) == 4 + 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [*ATTENTION, "gated_delta_net"])
def test_on_cuda_attention_has_no_break_and_the_delta_rule_those_of_its_kernels(kind, graphs):
    mechanism = MechanismConfig.kinds[kind]()
    model = ModelConfig(mechanisms=(mechanism,), n_layers=2, d_model=128).build(100).cuda().train()
    tokens_BT1 = torch.randint(100, (2, 257), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        model.losses(tokens_BT1, compiled=True).language_model.backward()
    through_fla = "fla" in model.kernels_on(tokens_BT1.device, torch.bfloat16)
    of_block = len(graphs) - 1  # the loss is compiled separately
    assert of_block > 1 if through_fla else of_block == 1


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 8), (7, 3), (24, 8), (24, 100)])
def test_it_equals_the_definition_in_chunks_of_any_size(tokens, chunk):
    generator = torch.Generator().manual_seed(tokens)
    x_ND = torch.randn(tokens, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    w_VD = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(11, (tokens,), generator=generator)

    loss = linear_cross_entropy(x_ND, w_VD, target_N, chunk)
    (3 * loss).backward()
    gradients = x_ND.grad, w_VD.grad
    x_ND.grad = w_VD.grad = None
    expected = torch.nn.functional.cross_entropy(x_ND @ w_VD.mT, target_N)
    (3 * expected).backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients[0], x_ND.grad)
    torch.testing.assert_close(gradients[1], w_VD.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_of_the_loss_that_is_compiled_is_the_one_as_written(dtype):
    generator = torch.Generator().manual_seed(0)
    logits_CV = (5 * torch.randn(7, 11, generator=generator)).to(dtype)
    target_C, compiled_CV = torch.randint(11, (7,), generator=generator), logits_CV.clone()
    loss_C, compiled_C = (
        cross_entropy._as_written(logits_CV, target_C),
        cross_entropy._fusible(compiled_CV, target_C),
    )
    torch.testing.assert_close(compiled_C, loss_C)
    torch.testing.assert_close(compiled_CV, logits_CV)


def test_under_autocast_products_are_bfloat16_and_the_loss_float32():
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(64, 32, generator=generator, requires_grad=True)
    w_VD = torch.randn(100, 32, generator=generator, requires_grad=True)
    target_N = torch.randint(100, (64,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x_ND, w_VD, target_N, 16)
        expected = of_logits(x_ND, w_VD, target_N)
    loss.backward()
    assert loss.dtype == w_VD.grad.dtype == x_ND.grad.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


CPU = torch.device("cpu")


def arguments(sizes, dtype=torch.float32, device="cpu", width=8, hidden=12):
    generator = torch.Generator().manual_seed(0)
    x_MD = torch.randn(sum(sizes), width, generator=generator)
    weight_GFD = torch.randn(len(sizes), hidden, width, generator=generator)
    ends_G = torch.tensor(sizes).cumsum(0).int().to(device)
    x_MD, weight_GFD = (x.to(device, dtype).requires_grad_() for x in (x_MD, weight_GFD))
    return x_MD, weight_GFD, ends_G


def value_and_gradients(form, x_MD, weight_GFD, *rest):
    y_MF = form(x_MD, weight_GFD, *rest)
    slope_MF = torch.linspace(-1, 1, y_MF.numel(), device=y_MF.device).view_as(y_MF).to(y_MF.dtype)
    return y_MF, *torch.autograd.grad(y_MF, (x_MD, weight_GFD), slope_MF)


def test_the_definition_is_a_product_of_each_row_with_its_groups_matrix():
    x_MD, weight_GFD, ends_G = arguments([2, 0, 3])
    expected = torch.cat([x_MD[:2] @ weight_GFD[0].mT, x_MD[2:] @ weight_GFD[2].mT])
    torch.testing.assert_close(definition(x_MD, weight_GFD, ends_G), expected)


@pytest.mark.parametrize(("kernel", "dtype"), [("grouped", "float32"), ("blocked", "float64")])
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_a_kernel_gives_the_defined_products_and_gradients(kernel, dtype, sizes):
    case = arguments(sizes, getattr(torch, dtype))
    found = value_and_gradients(grouped_matmul, *case, kernel)
    for ours, theirs in zip(found, value_and_gradients(definition, *case), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_blocks_pad_by_no_more_than_half():
    for sizes in ([512] * 8, [4096] + [0] * 7, [4089] + [1] * 7):
        x_MD, weight_GFD, ends_G = arguments(sizes)
        products = []
        with torch.profiler.profile(record_shapes=True) as profiled:
            grouped_matmul(x_MD, weight_GFD, ends_G, "blocked")
        for event in profiled.events():
            if event.name == "aten::bmm":
                products.append(event.input_shapes[0])
        ((blocks, rows, _),) = products
        assert blocks * rows <= 1.5 * len(x_MD)
        assert blocks <= 3 * len(sizes)


def test_auto_is_torchs_grouped_product_where_it_runs():
    assert resolve("auto", CPU, torch.float32, 8, 12) == "grouped"
    assert resolve("auto", CPU, torch.float64, 8, 12) == "blocked"
    assert resolve("auto", CPU, torch.bfloat16, 8, 12) == "blocked"  # a row is 24 bytes
    assert resolve("plain", CPU, torch.float64, 8) == "plain"


def test_a_kernel_that_cannot_run_says_why():
    with pytest.raises(
        ValueError, match=r"does not support torch\.float64.*'blocked' runs anywhere"
    ):
        resolve("grouped", CPU, torch.float64, 8)
    with pytest.raises(ValueError, match="multiples of 16 bytes, and their widths are 8 and 9"):
        resolve("grouped", CPU, torch.float32, 8, 9)


SIZES = [3000, 0, 17, 1, 1078]


@pytest.mark.gpu
def test_on_cuda_the_grouped_product_is_the_defined_one():
    case = arguments(SIZES, torch.bfloat16, "cuda", width=64, hidden=128)
    assert resolve("auto", torch.device("cuda"), torch.bfloat16, 64, 128) == "grouped"
    found = value_and_gradients(grouped_matmul, *case, "auto")
    exact = [x.detach().double().requires_grad_() for x in case[:2]]
    expected = value_and_gradients(definition, *exact, case[2])
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-2 * scale)
    assert found[2][1].eq(0).all()  # no row, no gradient


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["grouped", "blocked"])
def test_a_recorded_product_follows_the_groups(kernel):
    x_MD, weight_GFD, ends_G = arguments(SIZES, torch.bfloat16, "cuda", width=64, hidden=128)
    x_MD, weight_GFD = x_MD.detach(), weight_GFD.detach()
    grouped_matmul(x_MD, weight_GFD, ends_G, kernel)  # imports what it needs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_MF = grouped_matmul(x_MD, weight_GFD, ends_G, kernel)
    for sizes in ([4096, 0, 0, 0, 0], [0, 96, 1000, 1500, 1500]):
        ends_G.copy_(torch.tensor(sizes).cumsum(0))
        graph.replay()
        expected = definition(x_MD.float(), weight_GFD.float(), ends_G)
        torch.testing.assert_close(y_MF.float(), expected, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("compiles", [True, False])
def test_what_a_run_compiles_is_kept_in_the_cache_unless_the_user_names_a_folder(
    compiles, tmp_path, monkeypatch
):
    names = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
    for name in names:
        monkeypatch.setenv(name, "")  # is restored
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    keep_compiled(tmp_path / "file")  # where no folder can be made, torch has its own place
    assert not any(name in os.environ for name in names)
    config = override(tiny_study.base, [f"train.compile={'on' if compiles else 'off'}"])
    run, seen = Run(variant="mha", config=config), list[object]()
    monkeypatch.setattr(Execution, "__init__", lambda *_: seen.extend(map(os.environ.get, names)))
    monkeypatch.setattr(Execution, "events", lambda _: iter(()))
    places, ranks = Places(None, tmp_path / "cache"), Ranks.alone(torch.device("cpu"))
    [*_] = execute_as(run, run.folder(tmp_path), "x", places, ranks)
    kept = [str(tmp_path / "cache" / "compiled" / name) for name in ("inductor", "triton")]
    assert seen == (kept if compiles else [None, None])
    monkeypatch.setenv(names[0], "mine")
    keep_compiled(tmp_path / "other")
    assert os.environ[names[0]] == "mine"
