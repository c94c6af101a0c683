"""Identity: each token is mapped independently."""

import torch

from attnlab.mechanisms.identity import Identity


def test_it_is_one_linear_map_of_each_token():
    mechanism, x_BTD = Identity().build(8, dropout=0.5), torch.randn(2, 5, 8)
    torch.testing.assert_close(mechanism(x_BTD), x_BTD @ mechanism.o_proj.weight.T)


def test_nothing_is_remembered():
    mechanism, x_BTD = Identity().build(8), torch.randn(1, 5, 8)
    _, state = mechanism.prefill(x_BTD, capacity=9)
    y_BD, _ = mechanism.step(x_BTD[:, 2], state)
    torch.testing.assert_close(y_BD, mechanism(x_BTD)[:, 2])
    assert tuple(state) == ()
