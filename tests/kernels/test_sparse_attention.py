"""Sparse attention: index scores, selection, attention in blocks, the indexer's loss, memory."""

import math
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch._subclasses import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.kernels import block_attention, flex
from attnlab.kernels import lightning_indexer as indexer
from attnlab.kernels import selected_attention as by_bits
from attnlab.kernels import sparse_attention as sparse

B, J, WIDTH, K, V = 2, 3, 5, 4, 6


def index(tokens, keys=None):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (B, tokens, J, WIDTH), (B, keys or tokens, WIDTH), (B, tokens, J)
    return indexer.Index(
        *(
            torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in shapes
        )
    )


def scores_by_hand(index):
    return sum(
        index.weights_BTJ[:, :, j, None]
        * torch.einsum("bti,bsi->bts", index.q_BTJI[:, :, j], index.k_BSI).clamp(min=0)
        for j in range(J)
    )


def selected_of(scores_BTS, top_k):
    return indexer.select(scores_BTS, indexer.cutoff(scores_BTS, top_k))


def selected_by_hand(scores, top_k):
    """Return the selection of one sequence by sorting: (T, S), the last query at the last key."""
    tokens, keys = scores.shape
    selected = torch.zeros(tokens, keys, dtype=torch.bool)
    for t, row in enumerate(scores.tolist()):
        visible = range(keys - tokens + t + 1)
        best_first = sorted(visible, key=lambda s: (-row[s], -s))
        selected[t, best_first[:top_k]] = True
    return selected


@pytest.mark.parametrize(("tokens", "keys"), [(1, 1), (7, 7), (1, 9)])
def test_index_scores_are_their_definition(tokens, keys):
    given_index = index(tokens, keys)
    assert_close(indexer.index_scores(given_index), scores_by_hand(given_index))


a_score = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.0, 0.5, 2.0, math.inf])  # many ties


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 9), st.integers(0, 4), st.integers(1, 12))
def test_the_best_causal_positions_are_selected_and_the_most_recent_of_equals(
    data, tokens, earlier, top_k
):
    keys = tokens + earlier
    row = st.lists(a_score, min_size=keys, max_size=keys)
    scores = torch.tensor(data.draw(st.lists(row, min_size=tokens, max_size=tokens)))
    selected = selected_of(scores[None], top_k)[0]
    assert torch.equal(selected, selected_by_hand(scores, top_k))
    of_last = scores[-1:]  # which sees all
    best = block_attention.best(of_last, torch.ones(keys, dtype=torch.bool), top_k)
    assert sorted(best.block_Xn[0].tolist()) == selected[-1].nonzero()[:, 0].tolist()
    if top_k <= earlier + 1:  # all queries have as many causal positions
        causal_TS = indexer.causal(scores)
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            late = scores[None].to(dtype).masked_fill(~causal_TS, -torch.inf)
            both = (
                indexer.bisected(late, causal_TS, top_k),
                indexer.by_sorting(late, causal_TS, top_k),
            )
            assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_the_end_of_a_selection_is_the_same_by_counting_as_by_sorting():
    scores = torch.randn(2, 40, 200, generator=torch.Generator().manual_seed(0)).exp()
    causal_TS = indexer.causal(scores)
    late = (scores - 1).masked_fill(~causal_TS, -torch.inf)
    for top_k in (1, 50, 161):
        both = indexer.bisected(late, causal_TS, top_k), indexer.by_sorting(late, causal_TS, top_k)
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("fill", [0.0, -math.inf, math.inf, 1.0])
@pytest.mark.parametrize("top_k", [1, 4, 11, 12, 50])
def test_exactly_top_k_causal_positions_even_if_all_scores_are_equal(fill, top_k):
    selected = selected_of(torch.full((B, 12, 12), fill), top_k)
    position = torch.arange(12)
    age = position[:, None] - position
    assert torch.equal(selected, ((age >= 0) & (age < top_k)).expand(B, 12, 12))


def test_a_future_position_is_not_selected_however_high_it_scores():
    scores = torch.arange(12.0).expand(B, 12, 12)
    assert not selected_of(scores, 5).triu(1).any()


def inputs(tokens, heads=4, kv_heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (heads, tokens, K), (kv_heads, tokens, K), (kv_heads, tokens, V)
    return [
        torch.randn(B, *shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
    ]


def by_hand(q, k, v, index, top_k):
    """Return output and loss by a loop over sequences and queries; selection by sorting."""
    scores, outputs, losses = scores_by_hand(index), [], []
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for b, t in product(range(B), range(q.shape[2])):
        seen = selected_by_hand(scores[b], top_k)[t].nonzero()[:, 0]
        weights = (k[b, :, seen] @ q[b, :, t, :, None])[..., 0].div(K**0.5).softmax(-1)
        outputs.append((weights[..., None] * v[b, :, seen]).sum(1))
        p, log_q = weights.detach().mean(0), scores[b, t, seen].log_softmax(-1)
        losses.append((p * (p.log() - log_q)).sum())
    return torch.stack(outputs).unflatten(0, (B, -1)).transpose(1, 2), torch.stack(losses).mean()


@pytest.mark.parametrize("block", [1, 4, 256])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (2, 3), (9, 1), (9, 3), (9, 100)])
def test_output_and_loss_and_their_gradients_are_their_definitions(
    monkeypatch, block, tokens, top_k
):
    monkeypatch.setattr(sparse, "BLOCK", block)
    of_heads, of_index = inputs(tokens), index(tokens)
    y, loss = sparse.attend_with_loss(*of_heads, of_index, top_k=top_k)
    y_hand, loss_hand = by_hand(*of_heads, of_index, top_k)
    assert_close(y, y_hand)
    assert_close(loss, loss_hand)
    assert torch.equal(sparse.attend(*of_heads, of_index, top_k=top_k), y)
    weight = torch.randn(y.shape, dtype=y.dtype)
    assert_close(
        torch.autograd.grad((weight * y).sum(), of_heads),
        torch.autograd.grad((weight * y_hand).sum(), of_heads),
    )
    assert_close(
        torch.autograd.grad(3 * loss, of_index), torch.autograd.grad(3 * loss_hand, of_index)
    )
    if tokens > 2 and top_k > 1:
        assert loss > 0.01


@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_blocks_change_nothing(monkeypatch, dropout, is_dense):
    def everything(block):
        torch.manual_seed(0)
        monkeypatch.setattr(sparse, "BLOCK", block)
        of_heads, of_index = inputs(23), index(23)
        y, loss = sparse.attend_with_loss(
            *of_heads, of_index, top_k=5, is_dense=torch.tensor(is_dense), dropout=dropout
        )
        return y, loss, *torch.autograd.grad(y.square().sum() + loss, [*of_heads, *of_index])

    for block in (1, 7):
        assert_close(everything(block), everything(256))


def test_dropout_keeps_the_expected_output_and_draws_a_mask_per_sequence_head_and_query():
    torch.manual_seed(0)
    k = inputs(64)[1].detach()
    q, v = torch.zeros(B, 4, 64, K).double(), torch.eye(64).double().expand(B, 2, 64, 64)
    y = sparse.attend(q, k, v, index(64), top_k=64, dropout=0.3)  # the weights themselves
    kept = (y * torch.arange(1, 65)[:, None] * 0.7).round()
    assert set(kept.unique().tolist()) == {0, 1}
    seen = torch.ones(64, 64).tril().bool()
    assert kept[..., seen].mean() == pytest.approx(0.7, abs=0.01)
    last = kept[:, :, 32:, :32].flatten(0, 2)  # queries that see all 32 keys
    both_kept = (last.T @ last) / len(last)
    assert both_kept.fill_diagonal_(0.49).sub(0.49).abs().max() < 0.15
    assert len(last.unique(dim=0)) == len(last)


def test_the_gradient_of_the_loss_in_bfloat16_is_close():
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        of_index = index(9)
        _, loss = sparse.attend_with_loss(*inputs(9, dtype=dtype), of_index, top_k=4)
        found.append(torch.autograd.grad(loss, of_index))
    for a, b in zip(*found, strict=True):
        assert b.dtype == torch.float64
        assert (a - b).norm() < 0.05 * a.norm()


def test_the_loss_is_zero_where_the_index_scores_agree_with_attention():
    q, k, v = (x.detach().abs() for x in inputs(9, heads=1, kv_heads=1))  # ReLU changes nothing
    weights = torch.full((B, 9, 1), K**-0.5, dtype=torch.float64)
    same = indexer.Index(q.transpose(1, 2), k[:, 0], weights)
    _, loss = sparse.attend_with_loss(q, k, v, same, top_k=4)
    assert_close(loss, torch.zeros_like(loss))


class Largest(TorchDispatchMode):
    """Note the bytes of the largest tensor that any operation returns."""

    n_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = function(*args, **(kwargs or {}))
        for each in returned if isinstance(returned, tuple | list) else [returned]:
            if isinstance(each, torch.Tensor):
                self.n_bytes = max(self.n_bytes, each.untyped_storage().nbytes())
        return returned


def memory(tokens):
    """Return the bytes of the largest tensor of a training step, and of all that it saves."""
    shapes = (B, 4, tokens, K), (B, 2, tokens, K), (B, 2, tokens, V)
    shapes_of_index = (B, tokens, J, WIDTH), (B, tokens, WIDTH), (B, tokens, J)
    saved = []

    def keep(tensor):
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with (
        FakeTensorMode(),  # shapes alone
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        of_heads = [torch.empty(shape, requires_grad=True) for shape in shapes]
        of_index = (torch.empty(shape, requires_grad=True) for shape in shapes_of_index)
        y, loss = sparse.attend_with_loss(
            *of_heads,
            indexer.Index(*of_index),
            top_k=64,
            is_dense=torch.tensor(False),
            dropout=0.1,
        )
        (y.sum() + loss).backward()
    return largest.n_bytes, sum(saved)


def test_memory_grows_linearly_to_16k_tokens(monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 2048)  # few operations to follow, in over 2 blocks
    (largest, saved), (twice_largest, twice_saved) = map(memory, (8192, 16_384))
    assert 1.9 * largest < twice_largest < 2.1 * largest
    assert 1.9 * saved < twice_saved < 2.1 * saved
    assert twice_largest < 4 * B * 4 * 16_384**2  # bytes of one score per pair and head


@pytest.mark.parametrize(("blocks", "computed"), [(1, 1), (2, 2), (3, 3 + 2)])
def test_weights_of_up_to_two_blocks_are_computed_once(monkeypatch, blocks, computed):
    monkeypatch.setattr(sparse, "BLOCK", 4)
    weights, calls = sparse._Heads.weights, []
    monkeypatch.setattr(
        sparse._Heads, "weights", lambda *given: (calls.append(1), weights(*given))[1]
    )
    memory(4 * blocks)
    assert len(calls) == computed


@pytest.mark.parametrize("keys", [1, 31, 32, 33, 100])
def test_selections_are_kept_as_bits(keys):
    selected = torch.rand(B, 7, keys, generator=torch.Generator().manual_seed(keys)) < 0.5
    words = by_bits.packed(selected)
    assert words.shape == (B, 7, -(-keys // 32))
    assert torch.equal(by_bits.unpacked(words, keys), selected)
    all_causal = by_bits.unpacked(by_bits.causal_words(by_bits.packed(selected[:, :1])), keys)
    assert torch.equal(all_causal, torch.arange(keys).expand(B, 1, keys) < 1)


def everything(run, tokens, top_k, is_dense, device="cpu", dtype=torch.float32):
    """Return output and loss of float32 inputs on a device, and all their gradients."""
    of_heads = [x.detach().to(device, dtype) for x in inputs(tokens)]
    of_heads = [torch.cat([x, -x.flip(-1)], -1)[..., :8].requires_grad_() for x in of_heads]
    of_index = indexer.Index(*(x.detach().to(device).float() for x in index(tokens)))
    of_index = indexer.Index(*(x.requires_grad_() for x in of_index))
    y, loss = run(*of_heads, of_index, top_k=top_k, is_dense=torch.tensor(is_dense, device=device))
    given = [*of_index] if device == "cpu" else [*of_heads, *of_index]
    total = 3 * loss if device == "cpu" else y.float().square().sum() + 3 * loss
    return y, loss, *torch.autograd.grad(total, given)


@pytest.mark.parametrize(("tokens", "top_k"), [(1, 1), (37, 40), (131, 20)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("is_dense", [False, True])
def test_attention_by_bits_is_that_by_blocks(monkeypatch, tokens, top_k, is_dense):
    expected = everything(sparse.attend_with_loss, tokens, top_k, is_dense)
    monkeypatch.setattr(sparse, "_by_bits", lambda *_: True)
    monkeypatch.setattr(by_bits, "ROWS", 16)
    for module in (by_bits, flex):
        monkeypatch.setattr(module, "compile_once", lambda function, **_: function)
    got = everything(
        lambda *heads, **given: sparse.attend_with_loss(
            *(x.detach() for x in heads[:3]), *heads[3:], **given
        ),
        *(tokens, top_k, is_dense),
    )
    assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("keys", [1, 33, 500, 5000])
@pytest.mark.parametrize("top_k", [1, 7, 400])
def test_a_kernel_marks_what_the_definition_selects(keys, top_k):
    generator = torch.Generator().manual_seed(keys)
    tokens = min(keys, 40)
    scores = torch.randn(B, 2 * tokens, keys, generator=generator)
    scores[:, ::2] = scores[:, ::2].mul(2).round()  # every second query has ties, and +0 and -0
    scores[:, ::3, ::5] = -math.inf
    scores[:, ::4, ::7] = math.inf
    for scores_of_block in scores.cuda().split(tokens, 1):
        marked, defined = torch.zeros(
            2, B, tokens + 3, -(-keys // 32) + 2, dtype=torch.int32
        ).cuda()
        by_bits._mark(scores_of_block.contiguous(), marked[:, 3:], top_k)
        by_bits._mark_as_defined(scores_of_block, defined[:, 3:], top_k)
        assert defined.any()
        assert torch.equal(marked, defined)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "top_k"), [(37, 3), (700, 40), (700, 1000)])
@pytest.mark.parametrize("is_dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_by_bits_and_its_gradients_on_cuda(monkeypatch, tokens, top_k, is_dense, dtype):
    arguments = tokens, top_k, is_dense, "cuda", dtype
    expected = everything(sparse.attend_with_loss, *arguments)
    monkeypatch.setattr(sparse, "_by_bits", lambda *_: True)
    got = everything(sparse.attend_with_loss, *arguments)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= (1e-4 if dtype == torch.float32 else 2e-2) * b.norm()
