"""Every contract test runs once for each entry of the registry that it asks for."""

from collections import Counter

import pytest

from .registry import ENTRIES


@pytest.fixture(scope="session", params=list(ENTRIES.values()), ids=list(ENTRIES))
def entry(request):
    """Each public transformation in its minimal documented chain."""
    return request.param


@pytest.fixture
def tally(request):
    """A counter whose counts go into the test's report: trees tried, faults injected."""
    counts = Counter()
    yield counts
    request.node.user_properties.extend(counts.items())
