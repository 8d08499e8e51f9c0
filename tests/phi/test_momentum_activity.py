"""Activity read from momentum against NumPy's replay of BCOS, and what the chain keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .replay import STEPS, plain, walk

START = {"w": np.random.default_rng(7).normal(size=(2, 3))}


def gradient(weights, step):
    noise = np.random.default_rng(step).normal(size=(2, 3))
    return {"w": weights["w"] * np.array([1.0, 5.0, 0.0]) + noise * np.array([0.1, 1.0, 10.0])}


def replayed(rate, b, alpha, nesterov=False):
    """The path of the equations with the *old* momentum in a variable of its own."""
    weight, momentum = START["w"].copy(), np.zeros((2, 3))
    path = [weight]
    for step in range(1, STEPS + 1):
        g = gradient({"w": weight}, step - 1)["w"]
        old, momentum = momentum, b * momentum + (1 - b) * g
        v = (1 - (1 - b) ** 2) * old**2 + (1 - b) ** 2 * g**2
        corrected = momentum / (1 - b**step)
        if nesterov:
            corrected = b * momentum / (1 - b ** (step + 1)) + (1 - b) * g / (1 - b**step)
        weight = weight - rate * corrected / (1 + alpha * np.sqrt(v) / (1 - b**step))
        path.append(weight)
    return np.stack(path)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("alpha", "rate"), [(3.0, 0.05), (1e6, 1e4)])
def test_the_chain_replays_the_equations(alpha, rate, nesterov):
    with jax.enable_x64(True):
        phi = ro.phi.momentum_activity(decay=0.8)
        path = walk(plain(phi, alpha, rate, ro.momentum_from_phi(nesterov)), START, gradient)
    np.testing.assert_allclose(path["w"], replayed(rate, 0.8, alpha, nesterov), rtol=1e-7)


def test_at_an_infinite_alpha_it_is_bcos_as_published():
    """Without any bias correction: that of the momentum and that of phi cancel."""
    b, rate = 0.9, 0.01
    weight, momentum = START["w"].copy(), np.zeros((2, 3))
    expected = [weight]
    for step in range(STEPS):
        g = gradient({"w": weight}, step)["w"]
        v = (1 - (1 - b) ** 2) * momentum**2 + (1 - b) ** 2 * g**2
        momentum = b * momentum + (1 - b) * g
        weight = weight - rate * momentum / np.sqrt(v)
        expected.append(weight)
    with jax.enable_x64(True):
        tx = plain(ro.phi.momentum_activity(), 1e12, rate * 1e12, ro.momentum_from_phi())
        path = walk(tx, START, gradient)
    np.testing.assert_allclose(path["w"], np.stack(expected), rtol=1e-7)


@pytest.mark.parametrize("over", ["tree", "leaf", "neuron"])
def test_a_conformal_metric_has_the_mean_of_phi_in_its_group(over):
    """Phi hands the means of tree and leaf along, made from another expression than its values."""
    b, alpha = 0.8, 10.0
    rng = np.random.default_rng(3)
    shapes = {"bias": (4,), "kernel": (3, 4)}
    params = {name: np.zeros(shape) for name, shape in shapes.items()}
    momenta = dict(params)
    with jax.enable_x64(True):
        tx = ro.compute_metric(ro.phi.momentum_activity(decay=b), alpha, conformal=over)
        state = tx.init(jax.tree.map(jnp.asarray, params))
        for step in range(1, 4):
            gradients = {name: rng.normal(size=shape) for name, shape in shapes.items()}
            covectors, state = tx.update(jax.tree.map(jnp.asarray, gradients), state)
            phis = {}
            for name, g in gradients.items():
                v = (1 - (1 - b) ** 2) * momenta[name] ** 2 + (1 - b) ** 2 * g**2
                phis[name] = np.sqrt(v) / (1 - b**step)
                momenta[name] = b * momenta[name] + (1 - b) * g
            everything = np.concatenate([phi.ravel() for phi in phis.values()]).mean()
            for name, phi in phis.items():
                mean = {"tree": everything, "leaf": phi.mean(), "neuron": phi.mean(0)}[over]
                expected = (mean + alpha * phi) / (1 + alpha)
                np.testing.assert_allclose(covectors[name].metric, expected, rtol=1e-12)


def chain(phi, *edits, nesterov=False):
    return optax.chain(
        ro.compute_metric(phi, 100.0, conformal="tree"),
        *edits,
        ro.momentum_from_phi(nesterov),
        ro.scale_by_inverse_metric(),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.01),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_whole_chain_keeps_as_many_bytes_as_the_weights_have(dtype):
    params = {"kernel": jnp.ones([8, 5], dtype), "bias": jnp.ones(5, dtype)}
    tx = chain(ro.phi.momentum_activity(state_dtype=dtype), nesterov=True)
    state = tx.init(params)
    _, state = jax.jit(tx.update)(params, state, params)
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.nbytes for leaf in kept) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    description = ro.describe(tx, params)
    assert [leaf.phi for leaf in description.leaves] == ["momentum_activity"] * 2
    assert [leaf.state_bytes for leaf in description.leaves] == [
        leaf.nbytes for leaf in jax.tree.leaves(params)
    ]


def test_momentum_comes_through_a_combination_and_a_wrapper():
    params, gradients = jnp.ones(2), jnp.array([3.0, -4.0])
    energy = ro.phi.weighted_sum(
        ro.phi.momentum_activity(decay=0.5), ro.phi.maintenance_energy(), weights=[1.0, 1.0]
    )
    for phi in (energy, ro.low_precision_state(energy), ro.phi.unit_mean(energy)):
        metric = ro.compute_metric(phi)
        tx = optax.chain(metric, ro.momentum_from_phi())
        state = tx.init(params)
        for scale in (1.0, 2.0):
            covectors, state = tx.update(scale * gradients, state, params)
        # m = (.5 * .5 + .5 * 2) g = 1.25 g, corrected by 1 - .5**2
        np.testing.assert_allclose(covectors.components, 1.25 / 0.75 * gradients, rtol=1e-2)


def test_it_is_the_momentum_of_ema_on_the_gradient():
    params = {"w": jnp.ones([2, 3])}
    phi = ro.phi.momentum_activity(decay=0.8)
    one = optax.chain(ro.compute_metric(phi), ro.momentum_from_phi(True), ro.scale_by_inverse_metric())
    two = optax.chain(
        ro.compute_metric(phi), ro.on_gradient(ro.ema(0.8, nesterov=True)), ro.scale_by_inverse_metric()
    )
    states = one.init(params), two.init(params)
    for step in range(5):
        g = jax.tree.map(jnp.float32, gradient(START, step))
        (found, a), (expected, b) = one.update(g, states[0], params), two.update(g, states[1], params)
        states = a, b
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)


def in_a_branch(phi):
    """A phi that runs inside of ``lax.cond``, where nothing of it may be known outside."""

    def update(updates, state, params=None, **extra_args):
        return jax.lax.cond(True, lambda u, s: phi.update(u, s, params), lambda u, s: (u, s), updates, state)

    return optax.GradientTransformationExtraArgs(phi.init, update)


@pytest.mark.parametrize(
    ("phi", "edits"),
    [
        (ro.phi.activity(), ()),
        (ro.phi.product(ro.phi.momentum_activity(), ro.phi.momentum_activity(decay=0.5)), ()),
        (ro.phi.momentum_activity(), (ro.on_gradient(optax.scale(2.0)),)),
        (in_a_branch(ro.phi.momentum_activity()), ()),
    ],
)
def test_without_one_momentum_the_edit_says_where_and_what_to_do(phi, edits):
    params = {"w": jnp.ones(2)}
    tx = chain(phi, *edits)
    with pytest.raises(ValueError, match=r"leaf \['w'\].*phi.momentum_activity.*directly after"):
        jax.jit(tx.update)(params, tx.init(params), params)


def test_a_decay_of_zero_keeps_no_momentum_and_is_refused():
    with pytest.raises(ValueError, match=r"decay must be a finite number in \(0, 1\)"):
        ro.phi.momentum_activity(decay=0.0)
