"""All kernels of attention, full and windowed, compute one function, or say why they cannot run."""

import math
import warnings

import pytest
import torch
from torch.testing import assert_close

from attnlab.checks import assert_correct
from attnlab.config import ConfigError
from attnlab.kernels import attention as kernels
from attnlab.kernels import flex, windowed_attention
from attnlab.kernels.scores import Scores, alibi_slopes
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_A_CPU = ["plain", "blocked", "sdpa", "math", "flash"]
W = 8  # a window
LENGTHS = [1, 2, W - 1, W, W + 1, 2 * W, 3 * W + 5]
WIDTHS = [(16, 16), (32, 48), (48, 32), (10, 6), (6, 10)]  # of keys and values


def by_hand(q_BHTK, k_BGTK, v_BGTV, window=math.inf, kept=0):
    """Return y by a loop over queries, each with a slice of the keys and no mask."""
    group = q_BHTK.shape[1] // k_BGTK.shape[1]
    heads = []
    for head in range(q_BHTK.shape[1]):
        q_BTK, k_BTK, v_BTV = q_BHTK[:, head], k_BGTK[:, head // group], v_BGTV[:, head // group]
        rows = []
        for t in range(q_BTK.shape[1]):
            seen = [s for s in range(t + 1) if s < kept or s > t - window]
            scores_BS = torch.einsum("bk,bsk->bs", q_BTK[:, t], k_BTK[:, seen])
            weights_BS = (scores_BS / q_BTK.shape[-1] ** 0.5).softmax(-1)
            rows.append(torch.einsum("bs,bsv->bv", weights_BS, v_BTV[:, seen]))
        heads.append(torch.stack(rows, 1))
    return torch.stack(heads, 1)


def inputs(tokens, widths, n_kv_heads=2, dtype=torch.float64, device=CPU):
    generator = torch.Generator().manual_seed(0)
    key, value = widths
    shapes = [(4, key), (n_kv_heads, key), (n_kv_heads, value)]
    drawn = [torch.randn(2, h, tokens, w, generator=generator) for h, w in shapes]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def value_and_gradients(form, qkv):
    y_BHTV = form(*qkv)
    return y_BHTV, torch.autograd.grad((y_BHTV * direction_of(y_BHTV)).sum(), qkv)


def direction_of(y_BHTV):
    """Return the gradient by y."""
    return torch.cos(torch.arange(y_BHTV.numel(), device=y_BHTV.device)).view(y_BHTV.shape)


@pytest.mark.parametrize("kernel", ON_A_CPU)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 130])
def test_each_kernel_is_the_definition_with_gradients(tokens, widths, kernel):
    qkv = inputs(tokens, widths)
    got = value_and_gradients(lambda *qkv: kernels.attention(*qkv, kernel=kernel), qkv)
    assert_close(got, value_and_gradients(by_hand, qkv))


def changes(products, device=CPU, dtype=torch.float64):
    """Return sinks, with a softcap and ALiBi unless scores are to be products."""
    sinks_H = torch.linspace(-2, 3, 4, device=device, dtype=dtype).requires_grad_()
    if products:
        return Scores(sinks_H=sinks_H)
    return Scores(1.5, alibi_slopes(4).to(device), sinks_H)


OF_SCORES = "y", "the gradient of q", "of k", "of v", "of the sinks"


def of_changed_scores(kernel, products, qkv):
    """Return y, and the gradients of q, k, v and the sinks."""
    scores = changes(products, qkv[0].device, qkv[0].dtype)

    def form(q_BHTK, k_BGTK, v_BGTV, _):
        return kernels.attention(q_BHTK, k_BGTK, v_BGTV, kernel=kernel, scores=scores)

    return value_and_gradients(form, [*qkv, scores.sinks_H])


LAYOUTS = ("B H T V", "B T H V", "T V B H")


def in_layout(y_BHTV, layout):
    """Return the same tensor, whose gradient comes in this layout."""
    there = [["B", "H", "T", "V"].index(axis) for axis in layout.split()]
    back = [there.index(axis) for axis in range(4)]
    return y_BHTV.permute(there).contiguous().permute(back)


def with_layout(kernel, layout, qkv):
    """Return the gradients where that of the output comes in a layout, and the layouts seen."""
    seen, real = [], kernels.scaled_dot_product_attention

    def spied(*args, **settings):
        y = real(*args, **settings)
        y.register_hook(lambda grad: seen.append((grad.stride(), y.stride())))
        return y

    kernels.scaled_dot_product_attention = spied
    try:
        y_BHTV = (
            windowed_attention.windowed_attention(*qkv, window=W, kernel=kernel)
            if kernel == "banded"
            else kernels.attention(*qkv, kernel=kernel)
        )
        weighted = in_layout(y_BHTV, layout) * in_layout(direction_of(y_BHTV), layout)
        return torch.autograd.grad(weighted.sum(), qkv), seen
    finally:
        kernels.scaled_dot_product_attention = real


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", ["sdpa", "math", "flash", "banded"])
@pytest.mark.parametrize("widths", [(16, 16), (10, 6)], ids=str)
def test_a_kernel_gets_its_gradient_in_the_layout_of_its_output(widths, kernel, layout):
    qkv = inputs(24, widths)
    found, seen = with_layout(kernel, layout, qkv)
    assert seen
    assert all(grad == output for grad, output in seen)
    window = W if kernel == "banded" else math.inf
    _, expected = value_and_gradients(lambda *x: by_hand(*x, window=window), qkv)
    assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["sdpa", "cudnn", "flash", "efficient", "banded"])
def test_layers_of_other_layouts_in_one_process_get_right_gradients(kernel):
    exact = inputs(256, (32, 32), n_kv_heads=4)
    window = W if kernel == "banded" else 256
    _, expected = value_and_gradients(
        lambda *x: windowed_attention.windowed_attention(*x, window=window, kernel="plain"), exact
    )
    qkv = [x.detach().to(CUDA, torch.bfloat16).requires_grad_() for x in exact]
    for layout in (*LAYOUTS, *reversed(LAYOUTS)):
        found, _ = with_layout(kernel, layout, qkv)
        for mine, right in zip(found, expected, strict=True):
            error = (mine.double().cpu() - right).norm() / right.norm()
            assert error < 0.03, f"{layout}: a gradient is off by {error:.2g} of its norm"


@pytest.mark.parametrize("kernel", ON_A_CPU[1:])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 130])
def test_each_kernel_serves_sinks(tokens, widths, kernel):
    qkv = inputs(tokens, widths)
    got, expected = (of_changed_scores(name, True, qkv) for name in (kernel, "plain"))
    assert_close(got, expected)


@pytest.mark.parametrize("tokens", [1, 2, 130, 300])
def test_scores_are_changed_block_by_block(tokens):
    qkv = inputs(tokens, (10, 6))
    got, expected = (of_changed_scores(name, False, qkv) for name in ("blocked", "plain"))
    assert_close(got, expected)


@pytest.mark.parametrize(
    ("device", "dropout", "expected"),
    [(CPU, 0.0, "blocked"), (CPU, 0.1, "blocked"), (CUDA, 0.0, "flex"), (CUDA, 0.1, "blocked")],
)
def test_auto_is_a_kernel_that_serves_changed_scores(device, dropout, expected):
    assert resolved("auto", device, dropout=dropout, products=False) == expected


@pytest.mark.parametrize("kernel", ["sdpa", "math", "flash", "efficient", "cudnn"])
@pytest.mark.parametrize("settings", [{"alibi": True}, {"logit_softcap": 30.0}], ids=str)
def test_changed_scores_are_refused_before_anything_is_built(kernel, settings):
    config = GroupedQuery(kernel=kernel, **settings)
    with pytest.raises(ConfigError, match=f"^kernel: .*{kernel}' supports neither a softcap nor"):
        config.build(32)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("products", [True, False])
def test_flex_changes_scores_as_the_definition_does(products, window, monkeypatch):
    """As written, which a CPU can run forwards, in place of compiled."""
    monkeypatch.setattr(flex, "compile_once", lambda function, **_: function)
    qkv, scores = [x.detach() for x in inputs(40, (16, 16))], changes(products)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        got = flex.attention(*qkv, window, scores)
    if window is None:
        expected = kernels.attention(*qkv, kernel="plain", scores=scores)
    else:
        kernel = {"window": window, "kernel": "plain"}
        expected = windowed_attention.windowed_attention(*qkv, **kernel, scores=scores)
    assert_close(got, expected)


@torch.no_grad()
def test_one_compilation_of_flex_serves_all_softcaps(monkeypatch):
    """FlexAttention cannot be compiled with a Python number that varies."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def compiled(function, **_):
        return torch.compile(function, backend=keep, fullgraph=True)

    monkeypatch.setattr(flex, "compile_once", compiled)
    qkv = [x.detach() for x in inputs(12, (16, 16))]
    for softcap in (1.5, 5.0):
        scores = Scores(softcap, alibi_slopes(4))
        expected = kernels.attention(*qkv, kernel="plain", scores=scores)
        assert_close(flex.attention(*qkv, scores=scores), expected)
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("widths", [(64, 64), (8, 6), (32, 48)], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 130, 512])
def test_changed_scores_are_the_definition_on_cuda(tokens, widths, products):
    qkv = inputs(tokens, widths, dtype=torch.bfloat16, device=CUDA)
    wide = [x.detach().double().requires_grad_() for x in qkv]
    y_BHTV, gradients = of_changed_scores("plain", products, wide)
    named = ["sdpa", "math", "flash", "efficient", "cudnn"] if products else ["blocked"]
    exact = [y_BHTV, *gradients]
    scales = [max(x.abs().max(), 1e-3) for x in exact]
    # the sinks' gradient is a sum over queries of terms up to |y dy|, each of which is rounded:
    # of two sequences of one token, they cancel to a tenth
    terms_BHT = (y_BHTV * direction_of(y_BHTV)).sum(-1)
    scales[-1] = max(scales[-1], terms_BHT.abs().max())
    for kernel in ("flex", *named):
        y, of = of_changed_scores(kernel, products, qkv)
        for name, mine, expected, scale in zip(OF_SCORES, [y, *of], exact, scales, strict=True):
            error = (mine.double() - expected).abs().max() / scale
            assert error < 0.03, f"{kernel}: {name} is off by {error:.3g} of the largest"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [GroupedQuery, SlidingWindow])
@pytest.mark.parametrize("sinks", [False, True])
def test_flex_keeps_the_promises_of_changed_scores(kind, sinks):
    bound = {"window": 200} if kind is SlidingWindow else {}
    config = kind(kernel="flex", alibi=True, logit_softcap=5.0, sinks=sinks, **bound)
    assert_correct(config, d_model=64, quick=True)


@pytest.mark.parametrize("config", [GroupedQuery(), GroupedQuery(v_head_dim=24), MLA()], ids=str)
def test_variants_that_differ_in_their_kernel_alone_are_the_same_function(config):
    x_BTD = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0)).double()
    outputs = []
    for kernel in ["auto", *ON_A_CPU]:
        torch.manual_seed(0)
        mechanism = type(config)(**vars(config) | {"kernel": kernel}).build(64).double()
        outputs.append(mechanism(x_BTD))
    for y_BTD in outputs[1:]:
        assert_close(y_BTD, outputs[0])


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_a_mechanism_with_a_kernel_of_its_own_keeps_its_promises(kernel):
    assert_correct(GroupedQuery(kernel=kernel, v_head_dim=10), d_model=32, quick=True)


def resolved(kernel, device=CUDA, dtype=torch.bfloat16, dropout=0.0, width=64, products=True):
    return kernels.resolve(kernel, device, dtype, dropout=dropout, width=width, products=products)


@pytest.mark.parametrize(
    ("device", "dropout", "expected"),
    [(CPU, 0.0, "sdpa"), (CPU, 0.1, "blocked"), (CUDA, 0.0, "sdpa"), (CUDA, 0.1, "sdpa")],
)
def test_auto_follows_its_rule(device, dropout, expected):
    assert resolved("auto", device, dropout=dropout) == expected


@pytest.mark.parametrize("kernel", [*ON_A_CPU, "efficient", "cudnn", "flex"])
def test_a_kernel_is_what_was_named(kernel):
    assert resolved(kernel) == kernel


@pytest.mark.parametrize(
    ("kernel", "where", "reason"),
    [
        ("efficient", {"device": CPU}, "kernel 'efficient' needs CUDA, and the device is cpu: use"),
        ("cudnn", {"device": CPU}, "kernel 'cudnn' needs CUDA, and the device is cpu"),
        ("flex", {"device": CPU}, "kernel 'flex' needs CUDA, and the device is cpu"),
        ("flex", {"dropout": 0.1}, "not support dropout of attention weights, and it is 0.1"),
        (
            "flash",
            {"device": CPU, "dropout": 0.1},
            "not support dropout of attention weights on a CPU",
        ),
        (
            "flash",
            {"dtype": torch.float32},
            "bfloat16 or float16 on CUDA, and the dtype is float32",
        ),
        (
            "cudnn",
            {"dtype": torch.float32},
            "bfloat16 or float16 on CUDA, and the dtype is float32",
        ),
        ("flash", {"width": 264}, "heads of up to 256, and one is 264: use 'efficient'"),
        ("cudnn", {"width": 264}, "heads of up to 256, and one is 264: use 'efficient'"),
    ],
)
def test_a_kernel_that_cannot_run_says_why(kernel, where, reason):
    with pytest.raises(ValueError, match=reason):
        resolved(kernel, **where)


@pytest.mark.parametrize("config", [GroupedQuery(kernel="flex"), MLA(kernel="flex")], ids=str)
def test_flex_with_dropout_is_refused_before_anything_is_built(config):
    config.build(32)
    with pytest.raises(ConfigError, match=r"^kernel: .*not support dropout of attention weights"):
        config.build(32, dropout=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["sdpa", "math", "flash", "efficient", "cudnn", "flex"])
@pytest.mark.parametrize("widths", [*WIDTHS, (64, 64), (128, 192), (192, 128)], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 130, 512])
def test_each_kernel_is_the_definition_on_cuda(tokens, widths, kernel):
    qkv = inputs(tokens, widths, dtype=torch.bfloat16, device=CUDA)
    got = value_and_gradients(lambda *qkv: kernels.attention(*qkv, kernel=kernel), qkv)
    wide = [x.detach().double().requires_grad_() for x in qkv]
    y_BHTV, gradients = value_and_gradients(
        lambda *qkv: kernels.attention(*qkv, kernel="plain"), wide
    )
    # one token attends to itself whatever its scores: their gradients are zero, and have no scale
    largest = max(exact.abs().max() for exact in gradients)
    for mine, exact in zip([got[0], *got[1]], [y_BHTV, *gradients], strict=True):
        scale = exact.abs().max() if tokens > 1 or exact is y_BHTV else largest
        error = (mine.double() - exact).abs().max() / scale
        assert error < 0.02, f"off by {error:.3g} of the largest"


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["math", "flash", "efficient", "cudnn", "flex"])
def test_what_is_named_is_what_runs_in_a_model_that_trains_in_bfloat16(kernel):
    mechanism = GroupedQuery(kernel=kernel, n_heads=4, n_kv_heads=4, head_dim=32, v_head_dim=48)
    mechanism = mechanism.build(128).cuda()
    x_BTD = torch.randn(2, 200, 128, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        y_BTD = mechanism(x_BTD)
    y_BTD.float().square().mean().backward()
    assert y_BTD.isfinite().all()
    assert x_BTD.grad.isfinite().all()
    assert mechanism.kernel_on(x_BTD.device, torch.bfloat16) == kernel


@pytest.mark.gpu
def test_flash_in_float32_on_cuda_is_refused():
    mechanism = GroupedQuery(kernel="flash").build(32).cuda()
    with pytest.raises(ValueError, match="the dtype is float32: use 'efficient'"):
        mechanism(torch.zeros(1, 2, 32, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        *(GroupedQuery(kernel=kernel) for kernel in ("efficient", "cudnn", "flex")),
        GroupedQuery(kernel="flex", n_heads=8, n_kv_heads=2),  # heads of 8, which it pads to 16
        SlidingWindow(kernel="flex", window=200),
    ],
    ids=["efficient", "cudnn", "flex", "flex-padded", "flex-window"],
)
def test_kernels_that_need_cuda_keep_their_promises_there(config):
    assert_correct(config, d_model=64, quick=True)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("window", [1, 3, W, 100])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "banded"])
def test_each_form_is_the_definition_written_by_hand(tokens, window, n_kv_heads, name):
    qkv = inputs(tokens, (6, 4), n_kv_heads)
    expected = value_and_gradients(lambda q, k, v: by_hand(q, k, v, window), qkv)
    got = value_and_gradients(
        lambda q, k, v: windowed_attention.windowed_attention(q, k, v, window=window, kernel=name),
        qkv,
    )
    assert_close(got, expected)


@pytest.mark.parametrize("tokens", [1, W, W + 1, 3 * W + 5])
@pytest.mark.parametrize("window", [1, 3, W])
@pytest.mark.parametrize("kept", [1, 3, 2 * W, 100])
@pytest.mark.parametrize("name", ["plain", "banded"])
def test_kept_tokens_are_seen_by_all_later_ones_and_once(tokens, window, kept, name):
    qkv, settings = inputs(tokens, (6, 4)), {"window": window, "kept": kept}
    expected = value_and_gradients(lambda *qkv: by_hand(*qkv, **settings), qkv)
    got = value_and_gradients(
        lambda *qkv: windowed_attention.windowed_attention(*qkv, kernel=name, **settings), qkv
    )
    assert_close(got, expected)


def test_the_banded_form_keeps_its_precision_in_float32():
    wide, narrow = (
        inputs(3 * W + 5, (6, 4), dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    expected = value_and_gradients(lambda q, k, v: by_hand(q, k, v, W), wide)
    got = value_and_gradients(
        lambda q, k, v: windowed_attention.windowed_attention(q, k, v, window=W, kernel="banded"),
        narrow,
    )
    assert_close(got, expected, atol=1e-5, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", ["plain", "banded"])
@pytest.mark.parametrize("tokens", [W - 1, 3 * W + 5])
def test_dropped_weights_stay_inside_the_window_and_average_to_the_whole(name, tokens):
    torch.manual_seed(0)
    q, k, v = (x[:, :1].detach() for x in inputs(tokens, (6, 4)))
    v = torch.ones_like(v)
    many = [x.repeat(2000, 1, 1, 1) for x in (q, k, v)]
    y = windowed_attention.windowed_attention(*many, window=W, kernel=name, dropout=0.5)
    assert_close(y[:, :, 0], (y[:, :, 0] > 0) * 2.0 * v[:1, :, 0])  # one weight: kept twofold, or 0
    assert_close(y.mean(0), v[0], atol=0.06, rtol=0)
    zero_outside = v.clone()
    zero_outside[:, :, -W:] = 0
    y = windowed_attention.windowed_attention(
        q, k, zero_outside, window=W, kernel=name, dropout=0.5
    )
    assert y[:, :, -1].abs().max() == 0


def test_the_banded_form_makes_nothing_of_tokens_by_tokens():
    q, k, v = (x[:, :1].detach() for x in inputs(64 * W, (6, 4)))
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in torch.utils._pytree.tree_leaves(out) if hasattr(x, "numel")
            )
            return out

    with Sizes():
        windowed_attention.windowed_attention(q, k, v, window=W, kernel="banded", dropout=0.1)
    assert max(sizes) <= 2 * 64 * W * 2 * W  # batch, blocks of W by 2 W; T x T is 16 times that


@pytest.mark.parametrize(
    ("device", "dropout", "expected"),
    [(CPU, 0.0, "banded"), (CPU, 0.1, "banded"), (CUDA, 0.0, "flex"), (CUDA, 0.1, "banded")],
)
def test_auto_follows_its_rule_in_a_window(device, dropout, expected):
    assert windowed_attention.resolve("auto", device, dropout) == expected


def test_a_windowed_kernel_is_what_was_named():
    for name in ("plain", "banded", "flex"):
        assert windowed_attention.resolve(name, CUDA, 0.0) == name


def test_windowed_flex_says_why_it_cannot_run():
    with pytest.raises(ValueError, match=r"needs CUDA, and the device is cpu: use 'banded'"):
        windowed_attention.resolve("flex", CPU, 0.0)
    with pytest.raises(
        ValueError, match=r"not support dropout of attention weights, and it is 0\.1"
    ):
        windowed_attention.resolve("flex", CUDA, 0.1)


@pytest.mark.parametrize("tokens", [1, 128, 129, 640, 1000])
@pytest.mark.parametrize("window", [1, 100, 128, 129, 255, 256, 2000])
@pytest.mark.parametrize("kept", [0, 1, 128, 200])
def test_the_block_mask_holds_every_pair_of_the_window_and_whole_blocks_nothing_else(
    tokens, window, kept
):
    mask = flex._block_mask(tokens, window, CPU, kept)
    position = torch.arange(-(-tokens // 128) * 128)
    age = position[:, None] - position
    seen = (age >= 0) & ((age < window) | (position < kept))
    assert torch.equal(mask.mask_mod(0, 0, position[:, None], position), seen)
    inside = seen.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    count = inside.sum((1, 3))

    def blocks(number, which):
        found = torch.zeros_like(count, dtype=torch.bool)
        for row, (n, columns) in enumerate(zip(number[0, 0], which[0, 0], strict=True)):
            found[row, columns[:n].long()] = True
        return found

    whole = blocks(mask.full_kv_num_blocks, mask.full_kv_indices)
    partial = blocks(mask.kv_num_blocks, mask.kv_indices)
    assert torch.equal(whole, count == 128 * 128)
    assert torch.equal(partial, (count > 0) & ~whole)
    rows = (tokens - torch.arange(len(count)) * 128).clamp(max=128)
    listed = (rows[:, None] * rows * (count > 0)).sum()
    assert flex.pairs(tokens, window, kept) == listed


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "window"), [(1, 4), (300, 128), (1000, 256), (257, 37)])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
@pytest.mark.parametrize("kept", [0, 3, 130])
@pytest.mark.parametrize("name", ["banded", "flex"])
def test_each_form_is_the_definition_on_cuda(tokens, window, n_kv_heads, kept, name):
    qkv = inputs(tokens, (32, 32), n_kv_heads, torch.float32, CUDA)
    expected, got = (
        value_and_gradients(
            lambda q, k, v, form=form: windowed_attention.windowed_attention(
                q, k, v, window=window, kernel=form, kept=kept
            ),
            qkv,
        )
        for form in ("plain", name)
    )
    assert_close(got, expected, atol=1e-4, rtol=1e-4)
