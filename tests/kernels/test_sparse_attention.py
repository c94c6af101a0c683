"""Operations of sparse attention: index scores, selection, attention, the indexer's loss."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from attnlab.kernels import sparse_attention as sparse

B, J, WIDTH = 2, 3, 5


def index(tokens, keys=None):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (B, tokens, J, WIDTH), (B, keys or tokens, WIDTH), (B, tokens, J)
    return sparse.Index(
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
    assert_close(sparse.index_scores(given_index), scores_by_hand(given_index))


a_score = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.0, 0.5, 2.0, math.inf])  # many ties


@settings(deadline=None, max_examples=200)
@given(st.data(), st.integers(1, 9), st.integers(0, 4), st.integers(1, 12))
def test_the_best_causal_positions_are_selected_and_the_most_recent_of_equals(
    data, tokens, earlier, top_k
):
    keys = tokens + earlier
    row = st.lists(a_score, min_size=keys, max_size=keys)
    scores = torch.tensor(data.draw(st.lists(row, min_size=tokens, max_size=tokens)))
    selected = sparse.select(scores[None], top_k)[0]
    assert torch.equal(selected, selected_by_hand(scores, top_k))


@pytest.mark.parametrize("fill", [0.0, -math.inf, math.inf, 1.0])
@pytest.mark.parametrize("top_k", [1, 4, 11, 12, 50])
def test_exactly_top_k_causal_positions_even_if_all_scores_are_equal(fill, top_k):
    selected = sparse.select(torch.full((B, 12, 12), fill), top_k)
    position = torch.arange(12)
    age = position[:, None] - position
    assert torch.equal(selected, ((age >= 0) & (age < top_k)).expand(B, 12, 12))


def test_a_future_position_is_not_selected_however_high_it_scores():
    scores = torch.arange(12.0).expand(B, 12, 12)
    assert not sparse.select(scores, 5).triu(1).any()


@pytest.mark.parametrize("top_k", [2, 100])
def test_attention_is_softmax_over_the_selected_and_its_target_the_sum_over_heads(top_k):
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, 3, 9, 4, dtype=torch.float64) for _ in range(3))
    selected = sparse.select(torch.randn(B, 9, 9), top_k)
    y, weights = sparse.attend(q, k, v, selected)
    target = sparse.target(weights)
    for b in range(B):
        for t in range(9):
            seen = selected[b, t].nonzero()[:, 0]
            expected = ((k[b, :, seen] @ q[b, :, t, :, None])[..., 0] / 2).softmax(-1)
            assert_close(y[b, :, t], (expected[..., None] * v[b, :, seen]).sum(1))
            assert_close(weights[b, :, t, seen], expected)
            assert_close(target[b, t, seen], expected.sum(0) / 3)
    assert target.masked_select(~selected).eq(0).all()
    assert_close(target.sum(-1), torch.ones(B, 9, dtype=torch.float64))


def loss_by_hand(index, selected, target):
    scores, losses = scores_by_hand(index), []
    for b in range(B):
        for t in range(scores.shape[1]):
            seen = selected[b, t].nonzero()[:, 0]
            p, log_q = target[b, t, seen], scores[b, t, seen].log_softmax(-1)
            losses.append(sum(a * (a.log() - c) for a, c in zip(p, log_q, strict=True) if a > 0))
    return torch.stack(losses).mean()


def situation(tokens, top_k, dtype=torch.float64):
    given_index = index(tokens)
    scores = sparse.index_scores(given_index).detach()
    selected = sparse.select(scores, top_k)
    weights = torch.rand(B, 4, tokens, tokens, dtype=torch.float64).pow(4) * selected[:, None]
    return given_index, scores, selected, sparse.target(weights)


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_the_loss_is_the_kl_divergence_and_so_is_its_gradient(tokens, top_k):
    torch.manual_seed(0)
    given_index, scores, selected, target = situation(tokens, top_k)
    got = sparse.index_loss(given_index, scores, selected, target, torch.float64)
    expected = loss_by_hand(given_index, selected, target)
    assert_close(got, expected)
    if tokens > 1 and top_k > 1:
        assert expected > 0.01
    assert_close(
        torch.autograd.grad(3 * got, given_index), torch.autograd.grad(3 * expected, given_index)
    )


def test_the_gradient_in_bfloat16_is_close():
    torch.manual_seed(0)
    given_index, scores, selected, target = situation(9, 4)
    exact, narrow = (
        torch.autograd.grad(
            sparse.index_loss(given_index, scores, selected, target, dtype), given_index
        )
        for dtype in (torch.float64, torch.bfloat16)
    )
    for a, b in zip(exact, narrow, strict=True):
        assert b.dtype == torch.float64
        assert (a - b).norm() < 0.02 * a.norm()


def test_the_loss_is_zero_where_the_index_scores_agree_with_the_target():
    torch.manual_seed(0)
    given_index, scores, selected, _ = situation(9, 4)
    target = scores.masked_fill(~selected, -torch.inf).softmax(-1)
    loss = sparse.index_loss(given_index, scores, selected, target, torch.float64)
    assert_close(loss, torch.zeros_like(loss))
