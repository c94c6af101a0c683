"""A pytest fixture for mechanisms of one's own.

In the `conftest.py` of your tests

    from attnlab.checks.plugin import check_mechanism

and then in any of them

    def test_mine_is_correct(check_mechanism):
        check_mechanism(MyAttention(n_heads=2))

which fails with what is broken, where, by how much, and what is usually behind it. Without the
fixture, `from attnlab import assert_correct` does the same.
"""

from collections.abc import Callable

import pytest

from attnlab.checks.suite import assert_correct


@pytest.fixture
def check_mechanism() -> Callable[..., None]:
    """`attnlab.assert_correct`: takes a config, a class, a kind or a place."""
    return assert_correct
