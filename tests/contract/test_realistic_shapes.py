"""Values, not only their finiteness, for sides from 17 to 520, compiled as users compile them.

XLA's CPU backend (jax 0.10.2) once returned uninitialised memory for a mean over a product with a broadcast
operand at sides such as 100 x 50, never at powers of two, and no small tree had shown it. So every
transformation is compared at such sides with float64: with its own code run operation by operation, and where
it reduces over axes with the equations in NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .. import as_users
from . import problem
from .realistic import (
    DECAY,
    RATE,
    STEPS,
    assert_near,
    biases_of,
    gradients_of,
    run,
    some_shapes,
)
from .registry import ENTRIES

TREE = {"bias": (131,), "kernel": (100, 50), "stack": (3, 33, 20), "wide": (48, 257)}


# --- every transformation against its own code in float64 ---

# Their samples are other numbers in float64, and so are their values.
SAMPLED = {"phi.bayesian_gradient_descent", "phi.mesu"}
# What float32 stores in fewer bits, and float64 does not: (relative, of the largest value).
ROUNDED = {"low_precision_state:bfloat16": 2e-2, "low_precision_state:int8": 0.3}
# A basis is known to the precision over the distance of its eigenvalues, and a secant to the precision over
# the size of a step, which is 1e-5 of a weight at first.
SENSITIVE = {"in_eigenbasis": 2e-3, "riemannian_eigenbasis": 2e-3, "soap": 2e-3, "phi.secant_curvature": 2e-2}


def host_params():
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape) for name, shape in TREE.items()}


def replayed(name, dtype, jit):
    """Return the updates of a few steps on the common problem, from the same numbers in either dtype.

    Of what averages weights, the weights: an update is a difference of two, and known to their rounding.
    """
    entry = ENTRIES[name]
    tx = entry.build()
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), host_params())
    update = problem.updater(entry, tx, jit=jit)
    state = tx.init(params)
    history = []
    for step in range(STEPS):
        updates, state = update(problem.gradients(params, step), state, params)
        params = jax.tree.map(jnp.add, params, updates)
        kept = params if entry.averages_weights else updates
        history.append(jax.tree.map(lambda u: np.asarray(u, np.float64), kept))
    return history


def resolved(gradient):
    """Return which lines of a matrix have no component at the limit of what its first basis resolves.

    Below four epsilons of bfloat16 of the largest a component is set to 0, which is a jump.
    """
    wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
    lines = wide / np.mean(wide**2, axis=0) ** 0.25
    stored = jnp.asarray(0.05 * lines @ lines.T, jnp.bfloat16)
    basis = jnp.asarray(np.linalg.eigh(np.asarray(stored, np.float64))[1], jnp.bfloat16)
    components = np.abs(np.asarray(basis, np.float64).T @ wide)
    limit = 4 * float(jnp.finfo(jnp.bfloat16).eps) * components.max()
    kept = np.all(np.abs(components / limit - 1) > SENSITIVE["riemannian_eigenbasis"] / 4, axis=0)
    assert np.sum(~kept) <= 3
    return kept if wide is gradient else kept[:, None]


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in SAMPLED])
def test_compiled_float32_is_eager_float64(name):
    found = replayed(name, jnp.float32, as_users.jit)
    with jax.enable_x64(True), jax.disable_jit():
        expected = replayed(name, jnp.float64, lambda update: update)
    tolerance = {**ROUNDED, **SENSITIVE}.get(name, 1e-4)
    first = problem.gradients(host_params(), 0) if name == "riemannian_eigenbasis" else {}
    shown = {leaf: resolved(np.asarray(first[leaf])) for leaf in ("kernel", "wide") if first}
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        for leaf in TREE:
            mask = shown.get(leaf, True)
            assert_near(mask * a[leaf], mask * b[leaf], tolerance, f"{leaf}, step {step}")


# --- what reduces over axes against NumPy ---


def averages(values, decay=DECAY):
    """Yield the bias-corrected running means of an array at each step."""
    mean = 0.0
    for t, value in enumerate(values):
        mean = decay * mean + (1 - decay) * value
        yield mean / (1 - decay ** (t + 1))


def activity(shape):
    """Return phi of the kernel and of the bias at each step, from the definition."""
    pairs = zip(gradients_of(shape), biases_of(shape), strict=True)
    squares = [(kernel**2, bias**2) for kernel, bias in pairs]
    return zip(
        (np.sqrt(v) for v in averages([kernel for kernel, _ in squares])),
        (np.sqrt(v) for v in averages([bias for _, bias in squares])),
        strict=True,
    )


def factored(shape):
    squares = [g**2 for g in gradients_of(shape)]
    rows = averages([s.mean(axis=1, keepdims=True) for s in squares])
    columns = averages([s.mean(axis=0, keepdims=True) for s in squares])
    biases = (np.sqrt(v) for v in averages([b**2 for b in biases_of(shape)]))
    for r, c, bias in zip(rows, columns, biases, strict=True):
        yield np.sqrt(r * c / r.mean()), bias


def per_neuron(shape):
    kernels = averages([(g**2).mean(axis=0, keepdims=True) for g in gradients_of(shape)])
    biases = averages([(b**2).mean() for b in biases_of(shape)])
    for kernel, bias in zip(kernels, biases, strict=True):
        yield np.broadcast_to(np.sqrt(kernel), shape), np.full(shape[1], np.sqrt(bias))


def mean_over(group, kernel, bias):
    if group == "tree":
        mean = (kernel.sum() + bias.sum()) / (kernel.size + bias.size)
        return mean, mean
    if group == "leaf":
        return kernel.mean(), bias.mean()
    return kernel.mean(axis=0, keepdims=True), bias.mean()


def unit_mean(group):
    def replay(shape):
        for phi in activity(shape):
            yield tuple(p / m for p, m in zip(phi, mean_over(group, *phi), strict=True))

    return replay


def leaf_mean(shape):
    for kernel, bias in activity(shape):
        yield np.full(shape, kernel.mean()), np.full(shape[1], bias.mean())


def unedited(phi, alpha=3.0):
    return tuple(1 + alpha * p for p in phi)


def conformal(group):
    def edit(phi, alpha=3.0):
        return tuple((m + alpha * p) / (1 + alpha) for p, m in zip(phi, mean_over(group, *phi), strict=True))

    return edit


def normalized(group):
    def edit(phi):
        metric = unedited(phi)
        return tuple(e / m for e, m in zip(metric, mean_over(group, *metric), strict=True))

    return edit


def largest(fraction):
    """Only the weights with the largest steps ``|g| / E`` of a leaf move."""

    def edit(phi, gradients):
        metric = unedited(phi)
        edited = []
        for e, g in zip(metric, gradients, strict=True):
            steps = np.abs(g) / e
            threshold = np.sort(steps, axis=None)[-max(round(fraction * g.size), 1)]
            edited.append(np.where(steps >= threshold, e, np.inf))
        return tuple(edited)

    return edit


REDUCING = {
    "factored_activity": (lambda: ro.phi.factored_activity(decay=DECAY), factored, unedited, ()),
    "per_neuron": (lambda: ro.phi.per_neuron(decay=DECAY), per_neuron, unedited, ()),
    "leaf_mean": (lambda: ro.phi.leaf_mean(ro.phi.activity(decay=DECAY)), leaf_mean, unedited, ()),
    **{
        f"unit_mean:{group}": (
            lambda group=group: ro.phi.unit_mean(ro.phi.activity(decay=DECAY), over=group),
            unit_mean(group),
            unedited,
            (),
        )
        for group in ("tree", "leaf", "neuron")
    },
    **{
        f"conformal:{group}": (
            lambda: ro.phi.activity(decay=DECAY),
            activity,
            conformal(group),
            group,
        )
        for group in ("tree", "leaf", "neuron")
    },
    "conformal factored": (
        lambda: ro.phi.factored_activity(decay=DECAY),
        factored,
        conformal("tree"),
        "tree",
    ),
    **{
        f"normalize_metric:{group}": (
            lambda: ro.phi.activity(decay=DECAY),
            activity,
            normalized(group),
            (lambda group=group: ro.normalize_metric(group),),
        )
        for group in ("tree", "leaf", "neuron")
    },
}


def two_stages(phi, edits):
    """Return both stages with the edits between them, or with the group of a conformal factor."""
    conformal, edits = (edits, ()) if isinstance(edits, str) else (None, edits)
    return optax.chain(
        ro.compute_metric(phi, 3.0, conformal=conformal),
        *(edit() for edit in edits),
        ro.scale_by_inverse_metric(),
        optax.scale(-RATE),
    )


@pytest.mark.parametrize("name", REDUCING)
@some_shapes
def test_reductions_are_those_of_numpy(shape, name):
    phi, replay, edit, edits = REDUCING[name]
    history = run(two_stages(phi(), edits), shape)
    gradients = zip(gradients_of(shape), biases_of(shape), strict=True)
    for (updates, _), values, (kernel, bias) in zip(history, replay(shape), gradients, strict=True):
        e_kernel, e_bias = edit(values)
        np.testing.assert_allclose(updates["kernel"], -RATE * kernel / e_kernel, rtol=1e-4)
        np.testing.assert_allclose(updates["bias"], -RATE * bias / e_bias, rtol=1e-4)


@some_shapes
def test_permuted_values_are_the_same_values(shape):
    """Each leaf has the same values of E in other places, at every step."""
    history = run(two_stages(ro.phi.permuted(ro.phi.activity(decay=DECAY)), ()), shape)
    for (updates, _), (phi, _), gradient in zip(history, activity(shape), gradients_of(shape), strict=True):
        metric = -RATE * gradient / updates["kernel"]
        np.testing.assert_allclose(np.sort(metric, axis=None), np.sort(1 + 3 * phi, axis=None), rtol=1e-3)
        assert np.mean(np.abs(metric / (1 + 3 * phi) - 1) > 0.01) > 0.5


@some_shapes
def test_competition_lets_the_largest_steps_win(shape):
    history = run(
        two_stages(ro.phi.activity(decay=DECAY), (lambda: ro.competitive_plasticity(0.1, "leaf"),)), shape
    )
    for (updates, _), (phi, _), gradient in zip(history, activity(shape), gradients_of(shape), strict=True):
        winners = np.isfinite(largest(0.1)((phi,), (gradient,))[0])
        assert np.sum(updates["kernel"] != 0) == winners.sum() == round(0.1 * gradient.size)


@some_shapes
def test_recorded_statistics_and_energies(shape):
    tx = optax.chain(
        two_stages(ro.phi.activity(decay=DECAY), (lambda: ro.record_metric(quantiles=(0.25,)),)),
        ro.track_energy(),
    )
    history = run(tx, shape)
    params = {"bias": np.zeros(shape[1]), "kernel": np.ones(shape)}
    spent = 0.0
    for (updates, state), (phi, _) in zip(history, activity(shape), strict=True):
        metric = 1 + 3 * phi
        found = ro.metric_statistics(state, params)["['kernel']"]
        for key, value in (("min", metric.min()), ("mean", metric.mean()), ("max", metric.max())):
            np.testing.assert_allclose(found[f"metric_{key}"], value, rtol=1e-4)
        np.testing.assert_allclose(found["rate_mean"], (1 / metric).mean(), rtol=1e-4)
        np.testing.assert_allclose(found["metric_quantiles"], [np.quantile(metric, 0.25)], rtol=1e-4)
        spent += sum(np.abs(leaf.astype(np.float64)).sum() for leaf in updates.values())
        energy = optax.tree.get(state, "TrackEnergyState")
        np.testing.assert_allclose(energy.modification, spent, rtol=1e-5)
        np.testing.assert_allclose(energy.maintenance, params["kernel"].size, rtol=1e-6)
