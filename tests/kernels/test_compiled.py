"""A compiled model has one graph per kind of layer, shared by all models, without a break."""

import pytest
import torch

import attnlab.mechanisms  # noqa: F401  registers all mechanisms
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import gated_delta_rule
from attnlab.kernels.compiled import compile_once, constant
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.language_model import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own code
ATTENTION = "grouped_query", "mla", "sliding_window", "deepseek_sparse"
OWN_KERNELS = "delta_net", "gated_delta_net", "gla", "kda", "mamba2", "identity"


@pytest.fixture
def graphs(monkeypatch):
    """Return the list of graphs compiled from now on; each runs uncompiled."""
    import torch._dynamo

    found = list[torch.fx.GraphModule]()

    def keep(graph, _):
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
