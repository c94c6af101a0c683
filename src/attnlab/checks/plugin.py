"""A pytest fixture for tests of mechanisms.

In the `conftest.py` of your tests

    from attnlab.checks.plugin import check_mechanism

and then in a test

    def test_mine_is_correct(check_mechanism):
        check_mechanism(MyAttention(n_heads=2))

The test fails with every violated property: where, by how much, and the usual cause. Without the
fixture, `from attnlab import assert_correct` does the same.
"""

from collections.abc import Callable

import pytest

from attnlab.checks.suite import assert_correct


@pytest.fixture
def check_mechanism() -> Callable[..., None]:
    """Return `attnlab.assert_correct`, which takes a config, a class, a kind or a place."""
    return assert_correct
