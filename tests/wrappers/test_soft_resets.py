"""Soft resets replayed in NumPy: the drift of each leaf, its share and the step after it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

STEPS, RATE, SHARE_RATE, RATIO = 200, 0.05, 0.02, 0.8
SHAPES = {"a": (3,), "b": (2, 4)}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def draw(seed):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def minimum(step):
    """Where the data of the moment have their minimum: it jumps every 40 steps."""
    return draw(10 + step // 40)


def loss(params, step):
    goal = minimum(step)
    return sum(jnp.sum((w - goal[name]) ** 2 + 0.1 * (w - goal[name]) ** 4) for name, w in params.items())


def slope(w, goal):
    return 2 * (w - goal) + 0.4 * (w - goal) ** 3


class Momentum:
    def __init__(self):
        self.trace = {name: np.zeros(shape) for name, shape in SHAPES.items()}

    def step(self, name, gradient):
        self.trace[name] = 0.9 * self.trace[name] + gradient
        return -RATE * self.trace[name]


def run(tx):
    params = jax.tree.map(jnp.asarray, draw(0))
    state, path = tx.init(params), []

    @jax.jit
    def update(params, state, goal):
        def own_loss(p):
            return sum(jnp.sum((p[n] - goal[n]) ** 2 + 0.1 * (p[n] - goal[n]) ** 4) for n in p)

        updates, state = tx.update(jax.grad(own_loss)(params), state, params, obj_fn=own_loss)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        params, state = update(params, state, minimum(step))
        path.append((params, state))
    return path


def noises(keys):
    """The noise of each update: the draws are the library's, what is made of them is not."""
    for key in keys:
        _, noise_key = jax.random.split(key)
        of_leaves = jax.random.split(jax.random.fold_in(noise_key, 0), len(SHAPES))
        yield {
            name: np.asarray(jax.random.normal(k, SHAPES[name], jnp.float64))
            for name, k in zip(sorted(SHAPES), of_leaves, strict=True)
        }


@pytest.mark.parametrize("samples", [0, 1])
def test_replays_the_published_rule(samples):
    tx = ro.soft_resets(optax.sgd(RATE, momentum=0.9), SHARE_RATE, ratio=RATIO, samples=samples, key=3)
    path = run(tx)
    keys = [jax.random.key(3), *(state.key for _, state in path)]
    start, weights, inner = draw(0), draw(0), Momentum()
    deviation = {name: np.std(w) for name, w in start.items()}
    smallest = 1.0
    for step, ((params, state), noise) in enumerate(zip(path, noises(keys), strict=False)):
        goal = minimum(step)
        for name, w in weights.items():
            e = deviation[name] * noise[name] * samples
            # d/dg of L(g w + (1-g) w0 + sqrt(g^2 s^2 + 1 - g^2) e) at g = 1
            move = w - start[name] + (RATIO**2 - 1) / RATIO * e
            g = 1 - SHARE_RATE * np.sum(slope(w + RATIO * e, goal[name]) * move)
            g = min(max(g, 0.0), 1.0)
            drifted = g * w + (1 - g) * start[name]
            change = inner.step(name, slope(drifted, goal[name]))
            weights[name] = drifted + (g**2 + (1 - g**2) / RATIO**2) * change
            np.testing.assert_allclose(state.kept[name], g, rtol=1e-9)
            np.testing.assert_allclose(params[name], weights[name], rtol=1e-8, atol=1e-10)
            smallest = min(smallest, g)
    assert smallest < 0.95


def test_the_share_is_the_derivative_of_the_predictive_likelihood():
    """By finite differences in the share, with the noise held fixed."""
    noise, s, deviation = np.array([0.3, -1.2]), 0.7, 0.5
    weights, prior = np.array([1.0, 2.0]), np.array([-0.5, 0.25])

    def predictive(g):
        return np.sum(
            np.cos(g * weights + (1 - g) * prior + np.sqrt(g**2 * s**2 + 1 - g**2) * deviation * noise)
        )

    expected = (predictive(1 + 1e-6) - predictive(1 - 1e-6)) / 2e-6
    at = weights + s * deviation * noise
    found = np.sum(-np.sin(at) * (weights - prior - (1 - s**2) / s * deviation * noise))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_with_a_rate_of_0_it_is_the_inner_optimiser():
    path = run(ro.soft_resets(optax.adam(RATE), 0.0))
    alone = optax.adam(RATE)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = alone.init(params)
    for step in range(20):
        updates, state = alone.update(jax.grad(loss)(params, step), state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), params, path[step][0])


def test_value_and_grad_supplies_the_loss():
    tx = ro.soft_resets(optax.sgd(0.1), 0.1)
    params = jnp.ones(2)
    step = ro.value_and_grad(lambda w, batch: jnp.sum(batch * w**2), needs=tx)
    _, gradients, extra = step(params, jnp.ones(2), state=tx.init(params))
    assert set(extra) == {"obj_fn"}
    tx.update(gradients, tx.init(params), params, **extra)
    with pytest.raises(ValueError, match=r"^soft_resets needs the extra argument obj_fn"):
        tx.update(gradients, tx.init(params), params)


def test_a_leaf_that_comes_later_has_its_weights_then_as_its_prior():
    tx = ro.soft_resets(optax.sgd(0.1), 0.1)

    def loss(tree):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))

    small = {"a": jnp.array([1.0, 3.0])}
    large = {"a": jnp.array([1.0, 3.0, 2.0]), "b": jnp.array([5.0, 9.0])}
    _, state = tx.update(small, tx.init(small), small, obj_fn=loss)
    state, _ = ro.checkpoint.transplant(state, tx, large, old_params=small)
    _, state = tx.update(large, state, large, obj_fn=loss)
    jax.tree.map(np.testing.assert_array_equal, state.prior_mean, large)
    np.testing.assert_allclose(state.prior_deviation["a"], 1.0)  # of the weights that were there first
    np.testing.assert_allclose(state.prior_deviation["b"], 2.0)


def _resets(inner):
    return ro.reset_units(inner, ro.dormant_units(0.1))


def _restarts(inner):
    return ro.restart_at_boundary(inner, ro.anchor.initial_weights())


@pytest.mark.parametrize("places", [_resets, _restarts], ids=["reset_units", "restart_at_boundary"])
@pytest.mark.parametrize(
    "scales",
    [
        lambda inner: ro.soft_resets(inner, 0.1),
        lambda inner: ro.norm_matched_base(inner, ro.riemannian_sgd(0.1)),
    ],
    ids=["soft_resets", "norm_matched_base"],
)
def test_what_puts_weights_in_a_place_is_not_scaled(scales, places):
    """A reset of a step that is multiplied afterwards ends elsewhere: outside of it is its place."""
    params = {"a": {"kernel": jnp.ones([2, 3])}, "b": {"kernel": jnp.ones([3, 4])}}
    wrong = scales(optax.chain(optax.clip(1.0), places(optax.sgd(0.1))))
    with pytest.raises(
        ValueError, match=r"^(soft_resets|norm_matched_base): .*(reset_units|restart_at_boundary)\("
    ):
        wrong.init(params)
    places(scales(optax.sgd(0.1))).init(params)


def test_a_deviation_of_the_prior_can_be_changed_in_a_run():
    make = optax.inject_hyperparams(
        lambda prior_deviation: ro.soft_resets(
            optax.sgd(0.01), 0.001, ratio=0.5, samples=1, prior_deviation=prior_deviation
        )
    )

    def loss(w):
        return jnp.sum(w**4)

    w, moved = jnp.array([1.0, 2.0]), jnp.array([1.5, 1.0])
    state = make(prior_deviation=0.1).init(w)  # the first update finds the prior
    _, state = make(prior_deviation=0.1).update(w, state, w, obj_fn=loss)
    state.hyperparams["prior_deviation"] = jnp.asarray(1.0)
    found, _ = make(prior_deviation=0.1).update(w, state, moved, obj_fn=loss)
    plain = ro.soft_resets(optax.sgd(0.01), 0.001, ratio=0.5, samples=1, prior_deviation=1.0)
    _, state = plain.update(w, plain.init(w), w, obj_fn=loss)
    expected, _ = plain.update(w, state, moved, obj_fn=loss)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found).max() > 0.01
