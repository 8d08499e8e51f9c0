"""Fixtures shared by all tests."""

import jax
import pytest


@pytest.fixture
def strict_types():
    """Make an implicit change of dtype or rank an error, so that none hides in the library."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
