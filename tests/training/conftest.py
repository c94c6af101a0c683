"""The data cache that all tests of training share, so that the text is read once per process."""

import pytest

from attnlab.data import Places


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> Places:
    return Places(None, tmp_path_factory.mktemp("cache"))
