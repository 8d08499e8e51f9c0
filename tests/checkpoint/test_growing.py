"""State of parameters that have grown: as in a run of the larger model whose new weights had no gradient.

The oracle is that run itself, or NumPy's concatenation of the old state and what begins.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.checkpoint import growing, transplant
from riemann_optax.checkpoint.matching import stations
from riemann_optax.testing._needs import made

from ..contract.problem import loss, params
from ..contract.registry import ENTRIES

SMALL = {"bias": (3,), "kernel": (4, 3)}
LARGE = {"bias": (5,), "kernel": (6, 5)}


def draw(shapes, seed):
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def padded(small, large):
    """The larger arrays with the smaller ones in front."""
    return jax.tree.map(lambda s, x: x.at[tuple(slice(0, n) for n in s.shape)].set(s), small, large)


def silent(small):
    """Gradients of the larger model whose new weights have none."""
    return padded(small, {name: jnp.zeros(shape) for name, shape in LARGE.items()})


def run(tx, weights, gradients_of, needs=()):
    state = tx.init(weights)
    for step in range(3):
        gradients = gradients_of(draw(SMALL, step + 1))
        extra = made(needs, gradients, weights, jnp.asarray(step == 1))
        updates, state = tx.update(gradients, state, weights, **extra)
        del updates  # the weights stay: those of the larger model would move by weight decay
    return state


def assert_same(state, expected):
    for (path, got), wanted in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7, err_msg=jax.tree_util.keystr(path))


GROWN = {
    "activity": lambda: ro.phi.activity(),
    "accumulated_activity": lambda: ro.phi.accumulated_activity(),
    "factored_activity": lambda: ro.phi.factored_activity(decay=0.9),
    "per_neuron": lambda: ro.phi.per_neuron(decay=0.9),
    "surprise": lambda: ro.phi.surprise(),
    "modification_energy": lambda: ro.phi.modification_energy(),
    "secant_curvature": lambda: ro.phi.secant_curvature(),
    "synaptic_intelligence": lambda: ro.phi.synaptic_intelligence(),
    "online_ewc": lambda: ro.phi.online_ewc(),
    "weighted_sum": lambda: ro.phi.weighted_sum(ro.phi.factored_activity(), ro.phi.secant_curvature()),
    "add_anchored_weights": lambda: ro.add_anchored_weights(0.1, ro.anchor.slow_weights()),
    "benna_fusi_chain": lambda: ro.add_anchored_weights(0.1, ro.anchor.benna_fusi_chain()),
    "task_boundary_weights": lambda: ro.add_anchored_weights(0.1, ro.anchor.task_boundary_weights()),
    "riemannian_adamw": lambda: ro.riemannian_adamw(0.01, conformal=None),
    "riemannian_schedule_free": lambda: ro.riemannian_schedule_free(0.01, conformal=None),
    "adam": lambda: optax.adam(0.01),
    "trace": lambda: optax.trace(0.9),
    "low_precision_state": lambda: ro.low_precision_state(optax.scale_by_adam(), "bfloat16"),
}


@pytest.mark.parametrize("name", GROWN)
def test_grown_state_is_that_of_a_run_whose_new_weights_had_no_gradient(name):
    tx = GROWN[name]()
    needs = ("gradients_at_previous_params",) if name in ("secant_curvature", "weighted_sum") else ()
    needs += ("task_boundary",) if name in ("synaptic_intelligence", "online_ewc") else ()
    small = draw(SMALL, 0)
    large = padded(small, draw(LARGE, 9))
    old = run(tx, small, lambda gradients: gradients, needs)
    state, report = transplant(old, tx, large, old_params=small)
    assert not report.begun_anew
    assert not report.dropped
    assert report.grown
    expected = run(tx, large, silent, needs)
    if name == "low_precision_state":  # rounded at random; the values are right to the last place of bfloat16
        state, expected = state.wide(), expected.wide()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-6), state, expected)
    else:
        assert_same(state, expected)


def test_bases_are_block_diagonal():
    tx = ro.in_eigenbasis(optax.scale_by_adam(), sides="both", update_every=1)
    small = draw(SMALL, 0)
    old = run(tx, small, lambda gradients: gradients)
    state, report = transplant(old, tx, draw(LARGE, 9), old_params=small)
    assert not report.begun_anew
    for side, (n, more) in {"left": (4, 2), "right": (3, 2)}.items():
        basis, factor = (getattr(old, f"{side}_{what}")["kernel"][0] for what in ("bases", "factors"))
        expected = np.block([[basis, np.zeros([n, more])], [np.zeros([more, n]), np.eye(more)]])
        np.testing.assert_array_equal(getattr(state, f"{side}_bases")["kernel"][0], expected)
        expected = np.pad(factor, (0, more))
        np.testing.assert_array_equal(getattr(state, f"{side}_factors")["kernel"][0], expected)
    for moment in ("mu", "nu"):
        before, now = (getattr(s.inner, moment)["kernel"] for s in (old, state))
        np.testing.assert_array_equal(now, np.pad(before, [(0, 2), (0, 2)]))


@pytest.mark.parametrize("correlate", ["gradients", "tempered_gradients"])
def test_correlations_are_those_of_a_run_whose_new_weights_had_no_gradient(correlate):
    tx = ro.riemannian_eigenbasis(0.01, sides="both", conformal=None, correlate=correlate, basis_dtype=None)
    small = draw(SMALL, 0)
    old = run(tx, small, lambda gradients: gradients)
    large = padded(small, draw(LARGE, 9))
    state, _ = transplant(old, tx, large, old_params=small)
    expected = run(tx, large, silent)
    for side in ("left", "right"):
        got, wanted = (getattr(s[0], f"{side}_factors")["kernel"] for s in (state, expected))
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7)


def test_a_grown_run_in_an_eigenbasis_gives_the_old_weights_the_same_update():
    tx = ro.riemannian_eigenbasis(0.01, sides="both", conformal=None)
    small = draw(SMALL, 0)
    old = run(tx, small, lambda gradients: gradients)
    large = padded(small, draw(LARGE, 9))
    state, _ = transplant(old, tx, large, old_params=small)
    gradients = draw(SMALL, 7)
    expected, _ = tx.update(gradients, old, small)
    updates, _ = tx.update(silent(gradients), state, large)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[tuple(map(slice, b.shape))], b, rtol=2e-5, atol=1e-8),
        updates,
        expected,
    )


def test_a_vocabulary_grows_and_the_rest_stays():
    """One axis of the embedding and one of the head, as when tokens are added."""
    old_params = {"embedding": jnp.ones([5, 4]), "head": jnp.ones([4, 5]), "body": jnp.ones([4, 4])}
    params = {"embedding": jnp.ones([8, 4]), "head": jnp.ones([4, 8]), "body": jnp.ones([4, 4])}
    tx = ro.riemannian_adamw(0.01, weight_decay=0.0)
    gradients = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(1).normal(size=p.shape)), old_params)
    _, old = tx.update(jax.tree.map(jnp.float32, gradients), tx.init(old_params), old_params)
    state, report = transplant(old, tx, params, old_params=old_params)
    np.testing.assert_array_equal(
        state[3].ema["embedding"], np.pad(old[3].ema["embedding"], [(0, 3), (0, 0)])
    )
    np.testing.assert_array_equal(state[3].ema["head"], np.pad(old[3].ema["head"], [(0, 0), (0, 3)]))
    np.testing.assert_allclose(
        state[0].phi.columns["embedding"], 5 / 8 * np.asarray(old[0].phi.columns["embedding"]), rtol=1e-6
    )
    assert not any("body" in path for path in report.grown)
    assert report.grown["[3].ema['embedding']"] == "(5, 4) -> (8, 4)"


def test_without_the_old_parameters_arrays_of_another_shape_begin_anew():
    tx = optax.adam(0.01)
    state, report = transplant(tx.init(draw(SMALL, 0)), tx, draw(LARGE, 9))
    assert report.begun_anew["[0].mu['kernel']"] == "shape (4, 3) in the old state"
    assert report.begun_anew["[0].count"] == "most of the values of its state do not fit"
    jax.tree.map(np.testing.assert_array_equal, state, tx.init(draw(LARGE, 9)))


def test_a_new_layer_begins_with_its_own_weights():
    tx = ro.phi.secant_curvature()
    small = draw(SMALL, 0)
    extra = made(("gradients_at_previous_params",), small, small, None)
    _, old = tx.update(small, tx.init(small), small, **extra)
    larger = small | {"head": jnp.full([2, 2], 3.0)}
    state, report = transplant(old, tx, larger)
    assert report.begun_anew[".previous_params['head']"] == "new"
    np.testing.assert_array_equal(state.previous_params["head"], larger["head"])
    np.testing.assert_array_equal(state.previous_params["kernel"], small["kernel"])


def turned(**arguments):
    return ro.in_eigenbasis(ro.scale_by_metric(ro.phi.modification_energy()), **arguments)


REFUSED = {
    "blocks": (lambda: ro.in_eigenbasis(optax.trace(0.9), max_size=4, block_size=2), "cut into blocks"),
    "a side that is turned no more": (
        lambda: ro.in_eigenbasis(optax.trace(0.9), sides="both", max_size=5, block_size=None),
        "one of the two only",
    ),
    "weights in a basis": (lambda: turned(sides="both"), "in the coordinates of a basis"),
    "adafactor": (lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=2), "axes that the state"),
    "permuted": (lambda: ro.phi.permuted(ro.phi.activity()), "another permutation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_grown_exactly_is_refused_by_name(name):
    make, message = REFUSED[name]
    tx, small = make(), {"kernel": jnp.ones([4, 3])}
    with pytest.raises(ValueError, match=rf"transplant: .*\['kernel'\] of \w+ cannot .*{message}.*anew=\("):
        transplant(tx.init(small), tx, {"kernel": jnp.ones([6, 5])}, old_params=small)


def test_parameters_that_shrink_are_refused():
    tx = optax.adam(0.01)
    with pytest.raises(ValueError, match=r"leaf \['bias'\] of params has shape \(3,\) and had \(5,\)"):
        transplant(tx.init(draw(LARGE, 0)), tx, draw(SMALL, 0), old_params=draw(LARGE, 0))


def test_every_field_that_holds_weights_is_known():
    """After a first update without a gradient, an array equal to the weights is one that is said to be."""
    later = {"ImportanceWeightedState": "boundary_weights"}  # from the first task boundary on
    weights, seen, holding = jax.tree.map(lambda x: x + 0.123, params()), set(), set()
    for entry in (e for name, e in ENTRIES.items() if "eigenbasis" not in name and "soap" not in name):
        tx = entry.build()
        state = tx.init(weights)
        kinds = {station.kind for station in stations(state)}
        if kinds <= seen:
            continue
        seen |= kinds
        extra = entry.extra_args(loss)
        zeros = jax.tree.map(jnp.zeros_like, weights)
        _, state = jax.jit(functools.partial(tx.update, **extra))(zeros, state, weights)
        for station in stations(state):
            for place, array in station.arrays.items():
                if array.shape != weights["kernel"].shape or station.kind.__name__ in later:
                    continue
                same = np.allclose(array, weights["kernel"])
                assert growing.holds_weights(station, place) == same, (station.name, place)
                holding |= {station.kind.__name__} if same else set()
    assert len(holding) >= 8


def test_what_the_whole_model_shares_is_kept_as_it_was():
    """What rwalk has scaled by the extremes of the whole model stays; new entries are 0."""
    tx, small = ro.phi.rwalk(), draw(SMALL, 0)
    old = run(tx, small, lambda gradients: gradients, ("task_boundary",))
    state, _ = transplant(old, tx, padded(small, draw(LARGE, 9)), old_params=small)
    np.testing.assert_array_equal(state.importance["kernel"], np.pad(old.importance["kernel"], (0, 2)))
    np.testing.assert_array_equal(state.window_params["bias"][3:], draw(LARGE, 9)["bias"][3:])
