"""Settings for the programs of this folder."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """What is compared agrees to five digits without XLA's optimisations as well, and compiles sooner."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
