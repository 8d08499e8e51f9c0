"""What tempered and whitened correlations have in common: units, zeros, and a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .. import as_users
from .correlated import turned, walk

each_kind = pytest.mark.parametrize("correlate", ["tempered_gradients", "whitened_gradients"])


@pytest.fixture(scope="module")
def gradients():
    random = np.random.default_rng(0)
    left, right = random.standard_normal((5, 5)), np.diag(3.0 ** np.arange(4))
    return np.stack([left @ random.standard_normal((5, 4)) @ right for _ in range(14)])


@each_kind
def test_bases_do_not_depend_on_units(correlate, gradients):
    found = []
    with jax.enable_x64(True):
        for scale in (1.0, 1e-6):
            _, state = walk(turned(correlate), jnp.asarray(scale * gradients), jnp.zeros([5, 4]))
            found.append((state.left_bases, state.right_bases))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), *found)


@each_kind
def test_gradients_of_zero_come_first_and_nothing_breaks(correlate, gradients):
    """Bases found later are those of the gradients alone, whatever the number of zeros before them."""
    with_zeros = np.concatenate([np.zeros([2, 5, 4]), gradients, np.zeros([1, 5, 4])])
    with_zeros[5, :, 1] = 0  # a silent column
    tx = turned(correlate, state_dtype=jnp.bfloat16, update_every=1)
    path, state = walk(tx, jnp.asarray(with_zeros, jnp.float32), jnp.zeros([5, 4]))
    assert np.all(np.isfinite(path))
    assert state.kept_bases == 0
    q = np.asarray(state.left_bases[0], np.float64)
    np.testing.assert_allclose(q.T @ q, np.eye(5), atol=0.02)
    np.testing.assert_array_equal(path[:2], 0)


@each_kind
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("rows", "columns"), (("rows", "columns"), None)])
def test_on_a_mesh_it_is_what_it_is_on_one_device(correlate, kind, spec):
    tx = turned(correlate, update_every=2)
    gradients = np.random.default_rng(0).standard_normal((5, 16, 16))

    def train(put):
        state, update = as_users.jit(tx.init)(put(jnp.ones([16, 16]))), as_users.jit(tx.update)
        for gradient in gradients:
            updates, state = update(put(jnp.asarray(gradient)), state)
        return np.asarray(updates)

    with jax.enable_x64(True):
        alone = train(lambda array: array)
        mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            spread = train(lambda array: jax.device_put(array, sharding))
    np.testing.assert_allclose(spread, alone, rtol=1e-9, atol=1e-11)
