"""The entries of the contract suite, here with bad inputs; and what has been tried, for the record."""

from collections import Counter

import pytest

from tests.contract.conftest import entry, quick_to_compile

__all__ = ["entry", "quick_to_compile", "tally"]


@pytest.fixture
def tally(request):
    """A counter whose counts go into the test's report: trees tried, faults injected."""
    counts = Counter()
    yield counts
    request.node.user_properties.extend(counts.items())
