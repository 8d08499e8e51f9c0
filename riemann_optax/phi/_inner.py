"""The real product of two leaves, for rules about the sign and size of ``g * w``."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from riemann_optax import _tree


def inner(a: Any, b: Any) -> jax.Array:
    """Return ``real(conj(a) * b)`` in the working dtype: for complex leaves the product of two vectors."""
    dtype = np.promote_types(_tree.working_dtype(a), _tree.working_dtype(b))
    a, b = jnp.asarray(a), jnp.asarray(b)
    product = jnp.real(a).astype(dtype) * jnp.real(b).astype(dtype)
    if jnp.iscomplexobj(a) and jnp.iscomplexobj(b):
        product = product + jnp.imag(a).astype(dtype) * jnp.imag(b).astype(dtype)
    return product
