"""Every contract test runs once for each entry of the registry that it asks for."""

import pytest

from .registry import ENTRIES


@pytest.fixture(scope="session", params=list(ENTRIES.values()), ids=list(ENTRIES))
def entry(request):
    """Each public transformation in its minimal documented chain."""
    return request.param
