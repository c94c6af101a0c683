"""DeepSeek sparse attention: selection, losses and gradients, decoding and settings."""

import pytest
import torch
from support.agreement import rotate
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.config import ConfigError
from attnlab.kernels import block_attention, sparse_attention
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow

D, K = 32, 5  # model width, top_k


def made(n_kv_heads=2, top_k=K, warmup=0, dropout=0.0, **settings):
    torch.manual_seed(0)
    config = DeepseekSparse(
        n_kv_heads=n_kv_heads,
        top_k=top_k,
        dense_warmup_steps=warmup,
        **({"index_n_heads": 3, "index_head_dim": 12} | settings),
    )
    return config.build(D, dropout).double()


def tokens(number, batch=2):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(batch, number, D, generator=generator, dtype=torch.float64)


def by_hand(mechanism, x_BTD, top_k):
    """Return output and KL divergence, by a loop over sequences, queries and heads."""
    c, indexer = mechanism.config, mechanism.indexer
    rope = c.index_rope_width

    def part_rotated(x):
        return torch.cat([rotate(x[..., :rope], c.rope_theta), x[..., rope:]], -1)

    outputs, losses = [], []
    for x in x_BTD:
        q, k, v = (
            proj(x).unflatten(-1, (-1, mechanism.head_dim)).transpose(0, 1)
            for proj in (mechanism.q_proj, mechanism.k_proj, mechanism.v_proj)
        )
        q, k, z = rotate(q, c.rope_theta), rotate(k, c.rope_theta), x.detach()
        raw = z @ indexer.k_proj.weight.T
        raw = (raw - raw.mean(-1, keepdim=True)) / (
            raw.var(-1, correction=0)[:, None] + 1e-6
        ).sqrt()
        index_k = part_rotated(raw * indexer.k_norm.weight + indexer.k_norm.bias)
        index_q = part_rotated(
            indexer.q_proj(z).unflatten(-1, (c.index_n_heads, -1)).transpose(0, 1)
        )
        share = indexer.weights_proj(z) * c.index_n_heads**-0.5 * c.index_head_dim**-0.5
        rows = []
        for t in range(len(x)):
            score = sum(
                share[t, j] * (index_k[: t + 1] @ index_q[j, t]).relu()
                for j in range(c.index_n_heads)
            )
            order = sorted(range(t + 1), key=lambda s, score=score: (-score[s].item(), -s))
            seen = torch.tensor(sorted(order[:top_k]))
            heads, total = [], 0
            for h in range(c.n_heads):
                g = h * c.n_kv_heads // c.n_heads
                weights = (k[g, seen] @ q[h, t] / mechanism.head_dim**0.5).softmax(-1)
                heads.append(weights @ v[g, seen])
                total = total + weights.detach()
            rows.append(torch.cat(heads))
            p, log_q = total / total.sum(), score[seen].log_softmax(-1)
            losses.append((p * (p.log() - log_q)).sum())
        outputs.append(mechanism.o_proj(torch.stack(rows)))
    return torch.stack(outputs), torch.stack(losses).mean()


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)


@pytest.mark.parametrize("number", [1, K - 1, K, K + 1, 3 * K + 5])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_it_is_its_definition_with_gradients(number, n_kv_heads):
    mechanism, x_BTD = made(n_kv_heads), tokens(number).requires_grad_()
    (y, loss), (y_hand, loss_hand) = (
        mechanism.forward_with_loss(x_BTD),
        by_hand(mechanism, x_BTD, top_k=K),
    )
    assert_close(y, y_hand)
    assert_close(loss, loss_hand)
    inputs = [x_BTD, *mechanism.parameters()]
    assert_close(
        torch.autograd.grad(y.square().sum() + loss, inputs),
        torch.autograd.grad(y_hand.square().sum() + loss_hand, inputs),
    )


def test_the_warm_up_is_dense_for_output_and_loss():
    mechanism, x_BTD = made(warmup=10), tokens(20)
    y, loss = mechanism.forward_with_loss(x_BTD)
    y_hand, loss_hand = by_hand(mechanism, x_BTD, top_k=20)
    assert_close(y, y_hand)
    assert_close(loss, loss_hand)
    assert_close(gradients(loss, mechanism.indexer), gradients(loss_hand, mechanism.indexer))


@torch.no_grad()
@pytest.mark.parametrize(("step", "top_k"), [(0, 20), (9, 20), (10, K), (11, K)])
def test_the_warm_up_ends_at_its_step_in_training_and_is_never_on_in_evaluation(step, top_k):
    mechanism, x_BTD = made(warmup=10), tokens(20)
    mechanism.at_step(step)
    assert_close(mechanism.train()(x_BTD), by_hand(mechanism, x_BTD, top_k)[0])
    assert_close(mechanism.eval()(x_BTD), by_hand(mechanism, x_BTD, K)[0])


def test_the_schedule_is_written_in_place_and_not_saved():
    mechanism = made(warmup=10)
    flag, where = mechanism.is_dense, mechanism.is_dense.data_ptr()
    assert flag.shape == ()
    assert flag.item() is True
    mechanism.at_step(10)
    assert mechanism.is_dense is flag
    assert (flag.data_ptr(), flag.item()) == (where, False)
    assert "is_dense" not in mechanism.state_dict()


@torch.no_grad()
@pytest.mark.parametrize("top_k", [20, 21, 1000])
def test_selecting_everything_is_dense_attention(top_k):
    mechanism, x_BTD = made(top_k=top_k), tokens(20)
    dense = GroupedQuery(n_kv_heads=2, kernel="plain").build(D).double()
    dense.load_state_dict(mechanism.state_dict(), strict=False)
    assert_close(mechanism(x_BTD), dense(x_BTD), rtol=0, atol=1e-15)


@torch.no_grad()
def test_an_indexer_without_an_opinion_is_a_sliding_window():
    mechanism, x_BTD = made().eval(), tokens(20)
    mechanism.indexer.weights_proj.weight.zero_()
    sliding = SlidingWindow(window=K, n_kv_heads=2).build(D).double()
    sliding.load_state_dict(mechanism.state_dict(), strict=False)
    assert_close(mechanism(x_BTD), sliding(x_BTD))
    _, state = mechanism.prefill(x_BTD[:, :-1], 20)
    assert_close(mechanism.step(x_BTD[:, -1], state)[0], sliding(x_BTD)[:, -1])


@pytest.mark.parametrize("warmup", [0, 10])
def test_each_loss_teaches_its_own_part(warmup):
    mechanism, x_BTD = made(warmup=warmup), tokens(20).requires_grad_()
    y, loss = mechanism.forward_with_loss(x_BTD)
    for name, of_model, of_index in zip(
        dict(mechanism.named_parameters()),
        gradients(y.square().sum(), mechanism),
        gradients(mechanism.forward_with_loss(x_BTD)[1], mechanism),
        strict=True,
    ):
        learns = [g is not None and bool(g.any()) for g in (of_model, of_index)]
        assert learns == [not name.startswith("indexer"), name.startswith("indexer")], name
    assert torch.autograd.grad(loss, x_BTD, allow_unused=True) == (None,)


@pytest.mark.parametrize("cut", [1, K, 12, 19])
def test_the_future_does_not_leak_into_sparse_training(cut):
    mechanism, x_BTD = made(), tokens(20)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, cut:] += 1
    assert_close(mechanism(changed_BTD)[:, :cut], mechanism(x_BTD)[:, :cut])


def test_dropout_touches_the_output_and_not_the_target():
    whole, dropped, x_BTD = made(), made(dropout=0.5), tokens(20)
    (y, loss), (y_dropped, loss_dropped) = (m.forward_with_loss(x_BTD) for m in (whole, dropped))
    assert not torch.allclose(y, y_dropped)
    assert torch.equal(loss, loss_dropped)
    assert torch.equal(dropped.eval()(x_BTD), whole.eval()(x_BTD))


def test_the_loss_comes_beside_the_same_output():
    mechanism, x_BTD = made(), tokens(20)
    assert torch.equal(mechanism(x_BTD), mechanism.forward_with_loss(x_BTD)[0])


def test_the_indexer_learns_what_the_heads_look_at():
    mechanism, x_BTD = made(top_k=12), tokens(40, batch=4)
    with torch.no_grad():
        mechanism.q_proj.weight.mul_(5)  # so that attention is not uniform
    optimizer = torch.optim.Adam(mechanism.indexer.parameters(), lr=0.01)
    losses = []
    for _ in range(200):
        _, loss = mechanism.forward_with_loss(x_BTD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@torch.no_grad()
def test_decoding_selects_what_training_selected_under_autocast(monkeypatch):
    mechanism, x_BTD = made(index_head_dim=16).float().eval(), tokens(60).float()
    selections, chosen = [], []

    def recorded(function, to):
        return lambda *given: to.append(function(*given)) or to[-1]

    monkeypatch.setattr(sparse_attention, "select", recorded(sparse_attention.select, selections))
    monkeypatch.setattr(block_attention, "best", recorded(block_attention.best, chosen))
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD, state = mechanism(x_BTD), mechanism.init_state(2, 60)
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            y_BD, state = mechanism.step(x_BD, state)
            is_chosen_BS = chosen[-1].among(60)
            assert torch.equal(is_chosen_BS[:, : t + 1], selections[0][:, t, : t + 1])
            assert_close(y_BD, y_BTD[:, t], atol=0.02, rtol=0.02)


class LooksAtNumbers(TorchDispatchMode):
    """Collect operations that would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_training_step_can_be_recorded():
    mechanism, x_BTD = made(warmup=3, dropout=0.1), tokens(20)
    with LooksAtNumbers() as looks:
        y_BTD, loss = mechanism.forward_with_loss(x_BTD)
        (y_BTD.sum() + loss).backward()
        mechanism.at_step(3)
    assert not looks.found
    with LooksAtNumbers() as looks:
        x_BTD[x_BTD > loss.item()]
    assert len(looks.found) > 1


def test_the_indexers_rotary_part_is_half_unless_given():
    assert DeepseekSparse(index_head_dim=64).index_rope_width == 32
    assert DeepseekSparse(index_rope_head_dim=0).index_rope_width == 0
    x_BTD = tokens(9)
    for width in (0, 6, 12):
        mechanism = made(index_rope_head_dim=width)
        assert_close(mechanism(x_BTD), by_hand(mechanism, x_BTD, K)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 0}, "n_heads: must be at least 1"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
        ({"top_k": 0}, "top_k: must be at least 1"),
        ({"index_n_heads": 0}, "index_n_heads: must be at least 1"),
        ({"index_head_dim": 0}, "index_head_dim: must be at least 1"),
        ({"index_head_dim": 6}, "index_head_dim: half of 6 is odd"),
        ({"index_rope_head_dim": 3}, "index_rope_head_dim: must be even"),
        ({"index_rope_head_dim": -2}, "index_rope_head_dim: must be even, from 0"),
        ({"index_rope_head_dim": 66}, "to index_head_dim 64, got 66"),
        ({"rope_theta": 0.0}, "rope_theta: must be positive"),
        ({"dense_warmup_steps": -1}, "dense_warmup_steps: must not be negative"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeepseekSparse(**settings)


@pytest.mark.parametrize(("width", "message"), [(30, "4 does not divide"), (12, "3 is odd")])
def test_a_width_that_does_not_fit_is_named(width, message):
    (problem,) = DeepseekSparse().problems_at(width)
    assert problem.path == "n_heads"
    assert message in problem.message
    assert not list(DeepseekSparse().problems_at(32))
