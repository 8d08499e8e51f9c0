"""Every contract test runs once for each entry of the registry that it asks for."""

from collections import Counter

import jax
import pytest

from .registry import ENTRIES


@pytest.fixture(scope="session", params=list(ENTRIES.values()), ids=list(ENTRIES))
def entry(request):
    """Each public transformation in its minimal documented chain."""
    return request.param


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Types, shardings and structure do not depend on XLA's optimisations, and a quarter of the time does.

    What has to hold bit for bit in optimised programs (``test_alpha_zero.py``) is tested elsewhere.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def tally(request):
    """A counter whose counts go into the test's report: trees tried, faults injected."""
    counts = Counter()
    yield counts
    request.node.user_properties.extend(counts.items())
