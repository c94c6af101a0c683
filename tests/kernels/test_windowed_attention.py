"""Every form of windowed attention equals its definition, in values and gradients."""

import pytest
import torch
from torch.testing import assert_close

from attnlab.kernels import flex
from attnlab.kernels import windowed_attention as kernel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
W = 8
LENGTHS = [1, 2, W - 1, W, W + 1, 2 * W, 3 * W + 5]


def by_hand(q_BHTK, k_BGTK, v_BGTV, window, kept=0):
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


def inputs(tokens, n_heads=4, n_kv_heads=2, *, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (n_heads, tokens, 6), (n_kv_heads, tokens, 6), (n_kv_heads, tokens, 4)
    return [
        torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for shape in shapes
    ]


def value_and_gradients(function, tensors):
    y = function(*tensors)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    return y, *torch.autograd.grad((y * weights).sum(), tensors)


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("window", [1, 3, W, 100])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["plain", "banded"])
def test_each_form_is_the_definition_written_by_hand(tokens, window, n_kv_heads, name):
    qkv = inputs(tokens, n_kv_heads=n_kv_heads)
    expected = value_and_gradients(lambda q, k, v: by_hand(q, k, v, window), qkv)
    got = value_and_gradients(
        lambda q, k, v: kernel.windowed_attention(q, k, v, window=window, kernel=name), qkv
    )
    assert_close(got, expected)


@pytest.mark.parametrize("tokens", [1, W, W + 1, 3 * W + 5])
@pytest.mark.parametrize("window", [1, 3, W])
@pytest.mark.parametrize("kept", [1, 3, 2 * W, 100])
@pytest.mark.parametrize("name", ["plain", "banded"])
def test_kept_tokens_are_seen_by_all_later_ones_and_once(tokens, window, kept, name):
    qkv, settings = inputs(tokens), {"window": window, "kept": kept}
    expected = value_and_gradients(lambda *qkv: by_hand(*qkv, **settings), qkv)
    got = value_and_gradients(
        lambda *qkv: kernel.windowed_attention(*qkv, kernel=name, **settings), qkv
    )
    assert_close(got, expected)


def test_the_banded_form_keeps_its_precision_in_float32():
    wide, narrow = inputs(3 * W + 5), inputs(3 * W + 5, dtype=torch.float32)
    expected = value_and_gradients(lambda q, k, v: by_hand(q, k, v, W), wide)
    got = value_and_gradients(
        lambda q, k, v: kernel.windowed_attention(q, k, v, window=W, kernel="banded"), narrow
    )
    assert_close([x.double() for x in got], list(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "banded"])
@pytest.mark.parametrize("tokens", [W - 1, 3 * W + 5])
def test_dropped_weights_stay_inside_the_window_and_average_to_the_whole(name, tokens):
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in inputs(tokens, n_heads=1, n_kv_heads=1))
    v = torch.ones_like(v)
    many = [x.repeat(2000, 1, 1, 1) for x in (q, k, v)]
    y = kernel.windowed_attention(*many, window=W, kernel=name, dropout=0.5)
    assert_close(y[:, :, 0], (y[:, :, 0] > 0) * 2.0 * v[:1, :, 0])  # one weight: kept twofold, or 0
    assert_close(y.mean(0), v[0], atol=0.06, rtol=0)
    zero_outside = v.clone()
    zero_outside[:, :, -W:] = 0
    y = kernel.windowed_attention(q, k, zero_outside, window=W, kernel=name, dropout=0.5)
    assert y[:, :, -1].abs().max() == 0


def test_the_banded_form_makes_nothing_of_tokens_by_tokens():
    q, k, v = (x.detach() for x in inputs(64 * W, n_heads=1, n_kv_heads=1))
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in torch.utils._pytree.tree_leaves(out) if hasattr(x, "numel")
            )
            return out

    with Sizes():
        kernel.windowed_attention(q, k, v, window=W, kernel="banded", dropout=0.1)
    assert max(sizes) <= 2 * 64 * W * 2 * W  # batch, blocks of W by 2 W; T x T is 16 times that


@pytest.mark.parametrize(
    ("device", "dropout", "expected"),
    [(CPU, 0.0, "banded"), (CPU, 0.1, "banded"), (CUDA, 0.0, "flex"), (CUDA, 0.1, "banded")],
)
def test_auto_follows_its_rule(device, dropout, expected):
    assert kernel.resolve("auto", device, dropout) == expected


def test_a_kernel_is_what_was_named():
    assert [kernel.resolve(name, CUDA, 0.0) for name in ("plain", "banded", "flex")] == [
        "plain",
        "banded",
        "flex",
    ]


def test_flex_says_why_it_cannot_run():
    with pytest.raises(ValueError, match=r"needs CUDA, and the device is cpu: use 'banded'"):
        kernel.resolve("flex", CPU, 0.0)
    with pytest.raises(
        ValueError, match=r"not support dropout of attention weights, and it is 0\.1"
    ):
        kernel.resolve("flex", CUDA, 0.1)


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
    generator = torch.Generator().manual_seed(0)
    qkv = [
        torch.randn(2, heads, tokens, 32, generator=generator).cuda().requires_grad_()
        for heads in (4, n_kv_heads, n_kv_heads)
    ]
    expected, got = (
        value_and_gradients(
            lambda q, k, v, form=form: kernel.windowed_attention(
                q, k, v, window=window, kernel=form, kept=kept
            ),
            qkv,
        )
        for form in ("plain", name)
    )
    assert_close(got, expected, atol=1e-4, rtol=1e-4)
