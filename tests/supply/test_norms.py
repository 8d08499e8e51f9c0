"""What the scale of each norm of Flax multiplies: what NumPy normalises over the axes of its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import riemann_optax as ro

X = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32) * np.arange(1, 5)

# Each norm with the axes over which it takes mean and variance, of (examples, places, features).
NORMS = {
    "LayerNorm": (-1,),
    "BatchNorm": (0, 1),
    "InstanceNorm": (1,),
    "RMSNorm": (-1,),
    "GroupNorm": None,
}


def normalised(kind):
    if kind == "GroupNorm":  # of two groups of features, each with its places
        groups = X.reshape(5, 3, 2, 2)
        return standard(groups, (1, 3)).reshape(X.shape)
    if kind == "RMSNorm":
        return X / np.sqrt(np.mean(X**2, -1, keepdims=True))
    return standard(X, NORMS[kind])


def standard(x, over):
    return (x - x.mean(over, keepdims=True)) / x.std(over, keepdims=True)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("kind", NORMS)
def test_the_scale_of_a_norm_multiplies_what_is_normalised(library, kind):
    if library == "nnx":
        number = {"num_features": 4} | ({"num_groups": 2} if kind == "GroupNorm" else {})
        model = getattr(nnx, kind)(**number, rngs=nnx.Rngs(0))
        loss = lambda model, x: jnp.mean(model(x) ** 2)  # noqa: E731
    else:
        options = {"BatchNorm": {"use_running_average": False}, "GroupNorm": {"num_groups": 2}}.get(kind, {})
        module = getattr(linen, kind)(**options)
        variables = module.init(jax.random.key(0), X)
        model = variables["params"]

        def loss(params, x):
            return jnp.mean(module.apply({**variables, "params": params}, x, mutable=True)[0] ** 2)

    seen = ro.value_and_grad(loss, needs=("inputs", "activities"))(model, jnp.asarray(X))[2]
    np.testing.assert_allclose(seen["inputs"]["scale"], normalised(kind), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(seen["activities"]["scale"], normalised(kind), rtol=1e-3, atol=1e-3)
