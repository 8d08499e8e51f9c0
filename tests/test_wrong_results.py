"""What a phi returns, and what it and other parts are given, is checked where it first matters, by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import riemannian_sgd

from .small_chain import PARAMS, STAGE_1, update


def phi_of(function):
    return optax.stateless(lambda updates, params: function(updates))


WRONG_PHIS = {
    "a leaf too few": (
        lambda g: {"kernel": abs(g["kernel"])},
        r"the result of phi lacks leaf \['bias'\] of the gradients: phi must return one value per weight",
    ),
    "a leaf too many": (
        lambda g: {**g, "extra": g["bias"]},
        r"the result of phi has leaf \['extra'\], which the gradients lacks?: phi must return",
    ),
    "a scalar per leaf": (
        lambda g: jax.tree.map(jnp.sum, g),
        r"the result of phi has shape \(\) where leaf \['bias'\] of the gradients has shape \(3,\): phi must",
    ),
    "the wrong shape": (
        lambda g: {"bias": g["bias"], "kernel": g["kernel"].T},
        r"the result of phi has shape \(3, 2\) where leaf \['kernel'\] of the gradients has shape \(2, 3\)",
    ),
    "integers": (
        lambda g: jax.tree.map(lambda x: x.astype(jnp.int32), g),
        r"the result of phi has dtype int32 at leaf \['bias'\]: phi must be real and floating point",
    ),
    "complex numbers": (
        lambda g: jax.tree.map(lambda x: x.astype(jnp.complex64), g),
        r"the result of phi has dtype complex64 at leaf \['bias'\]: phi must be real and floating point",
    ),
}


@pytest.mark.parametrize("case", WRONG_PHIS)
def test_wrong_result_of_phi(case):
    function, message = WRONG_PHIS[case]
    with pytest.raises(ValueError, match=f"^{message}"):
        update(optax.chain(ro.compute_metric(phi_of(function)), ro.scale_by_inverse_metric()))
    with pytest.raises(ValueError, match=f"^{message}"):
        update(optax.chain(STAGE_1, ro.multiply_metric(phi_of(function)), ro.scale_by_inverse_metric()))


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.array([True, False]), np.zeros(2, jax.dtypes.float0)])
def test_a_leaf_without_a_gradient(leaf):
    tree = {"weights": jnp.ones(2), "steps": leaf}
    dtype = re.escape(str(leaf.dtype))
    message = rf"leaf \['steps'\] has dtype {dtype}, and a metric is defined on .*out of params and gradients"
    with pytest.raises(TypeError, match=f"params: {message}"):
        STAGE_1.init(tree)
    state = STAGE_1.init({**tree, "steps": jnp.ones(2)})
    with pytest.raises(TypeError, match=f"gradients: {message}"):
        STAGE_1.update(tree, state, tree)
    rules = {"trained": riemannian_sgd(0.1), "kept": optax.set_to_zero()}
    tx = optax.partition(rules, {"weights": "trained", "steps": "kept"})
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert not np.any(updates["steps"])
    assert np.all(updates["weights"] < 0)


@pytest.mark.parametrize("alpha", [-1, -1e-9, np.float32(-2.0), np.inf, np.nan], ids=str)
@pytest.mark.parametrize(
    "make",
    [lambda a: ro.compute_metric(ro.phi.activity(), a), lambda a: riemannian_sgd(0.1, alpha=a)],
    ids=["compute_metric", "riemannian_sgd"],
)
def test_alpha_out_of_range(make, alpha):
    with pytest.raises(ValueError, match=r"^alpha must be a finite number in \[0, inf\), got"):
        make(alpha)


def test_alpha_beyond_float32_is_refused():
    """It would be infinite there, and phi of 0 times it no number."""
    with pytest.raises(ValueError, match=r"^alpha is 1e\+39, which is infinite in float32"):
        ro.compute_metric(ro.phi.activity(), 1e39)


@pytest.mark.parametrize("role", ["inverse", "Metric", "", None])
def test_unknown_role(role):
    with pytest.raises(ValueError, match=r"^role must be one of 'metric', 'inverse_metric', got"):
        ro.compute_metric(ro.phi.activity(), role=role)


@pytest.mark.parametrize("make", [ro.normalize_metric, lambda g: ro.phi.unit_mean(ro.phi.activity(), over=g)])
def test_unknown_group(make):
    with pytest.raises(ValueError, match=r"^over must be one of 'leaf', 'neuron', 'tree', got 'layer'"):
        make("layer")


def test_unknown_group_of_a_conformal_metric():
    with pytest.raises(ValueError, match=r"^conformal must be one of 'leaf', 'neuron', 'tree', got 'layer'"):
        ro.compute_metric(ro.phi.activity(), conformal="layer")


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("phi", ro.compute_metric),
        ("phi", lambda phi: riemannian_sgd(0.1, phi=phi)),
        ("phi", lambda phi: ro.riemannian_adamw(0.1, phi=phi)),
        ("tx", ro.on_metric),
        ("tx", ro.on_gradient),
        ("tx", ro.skip_nonfinite),
        ("inner", ro.in_orthonormal_frame),
        ("default", ro.partition_by_kind),
        ("bias", lambda tx: ro.partition_by_kind(optax.sgd(0.1), bias=tx)),
        ("phi number 0", lambda phi: ro.phi.weighted_sum(phi)),
        ("phi number 1", lambda phi: ro.phi.product(ro.phi.activity(), phi)),
    ],
)
def test_a_maker_that_was_not_called(argument, make):
    """``ro.phi.activity`` without its parentheses."""
    with pytest.raises(
        TypeError, match=rf"^{argument} must be an optax.GradientTransformation.*function activity"
    ):
        make(ro.phi.activity)


NEEDS_PARAMS = {
    "secant_curvature": ro.phi.secant_curvature(),
    "hutchinson_curvature": ro.phi.hutchinson_curvature(),
    "modification_energy": ro.phi.modification_energy(),
    "maintenance_energy": ro.phi.maintenance_energy(),
    "from_weights": ro.phi.from_weights(abs),
}


@pytest.mark.parametrize("name", NEEDS_PARAMS)
def test_missing_params(name):
    """Optax's own sentence, with the name of who needs them."""
    with pytest.raises(ValueError, match="params") as optax_error:
        optax.add_decayed_weights(1.0).update(PARAMS, optax.EmptyState(), None)
    tx = riemannian_sgd(0.1, phi=NEEDS_PARAMS[name])
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        tx.update(PARAMS, tx.init(PARAMS))
    assert str(error.value).endswith(str(optax_error.value))


def test_missing_params_of_track_energy():
    with pytest.raises(ValueError, match=r"^track_energy: "):
        ro.track_energy().update(PARAMS, ro.track_energy().init(PARAMS))


def test_missing_obj_fn():
    tx = riemannian_sgd(0.1, phi=ro.phi.hutchinson_curvature())
    message = r"^hutchinson_curvature needs the extra argument obj_fn, a function of .*: call tx.update\(grad"
    with pytest.raises(ValueError, match=message):
        update(tx)
    updates, _ = update(tx, obj_fn=lambda params: optax.tree.norm(params, squared=True))
    np.testing.assert_allclose(updates["kernel"], -0.1 * PARAMS["kernel"] / 3, rtol=1e-6)  # E = 1 + 2


def test_from_weights_with_a_transformation():
    with pytest.raises(TypeError, match=r"^function must map a weight array to phi values"):
        ro.phi.from_weights(ro.phi.activity())


@pytest.mark.parametrize("combine", [ro.phi.weighted_sum, ro.phi.product])
def test_phis_in_a_list(combine):
    with pytest.raises(TypeError, match=r"^phi number 0 is a list: give the phis one by one"):
        combine([ro.phi.activity(), ro.phi.maintenance_energy()])


def test_unknown_kind_of_parameter():
    with pytest.raises(
        ValueError, match=r"^kernel is no kind of parameter: use one of matrix, embedding, bias"
    ):
        ro.partition_by_kind(optax.sgd(0.1), kernel=optax.sgd(0.1))


def test_metric_at_without_a_metric():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match=r"^metric_at: this update of tx applied no metric"):
        ro.metric_at(tx, PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("leaf", [jax.nn.relu, "relu", object()], ids=["function", "text", "object"])
def test_a_leaf_that_is_no_array_is_named_with_the_function_that_filters_it_out(leaf):
    params = {"layer": {"kernel": jnp.ones(3), "activation": leaf}}
    for tx in (ro.riemannian_sgd(0.1), ro.in_eigenbasis(optax.sgd(0.1))):
        with pytest.raises(TypeError, match=r"\['layer'\]\['activation'\] is no array but .*eqx\.filter\("):
            tx.init(params)


def test_leaves_of_unsigned_integers_and_of_keys_are_refused_by_name():
    for leaf in (jnp.ones(3, jnp.uint32), jax.random.key(0), np.ones(2, bool), 3):
        with pytest.raises(TypeError, match=r"leaf \['seed'\] has dtype .*keep this leaf out of params"):
            ro.riemannian_sgd(0.1).init({"kernel": jnp.ones(3), "seed": leaf})


RESIZABLE = {
    "compute_metric": lambda: ro.riemannian_sgd(0.1),
    "in_eigenbasis": lambda: ro.in_eigenbasis(optax.sgd(0.1)),
    "compute_metric with activity": lambda: ro.riemannian_sgd(0.1, phi=ro.phi.activity()),
    "compute_metric in 8 bits": lambda: ro.riemannian_sgd(
        0.1, phi=ro.low_precision_state(ro.phi.activity(), "int8")
    ),
}


@pytest.mark.parametrize("make", RESIZABLE.values(), ids=RESIZABLE)
def test_a_parameter_that_was_resized_is_named(make):
    tx = make()
    state = tx.init({"embedding": jnp.ones([6, 4]), "kernel": jnp.ones([4, 4])})
    params = {"embedding": jnp.ones([8, 4]), "kernel": jnp.ones([4, 4])}
    with pytest.raises(ValueError, match=r"leaf \['embedding'\] has shape \(8, 4\).*tx\.init"):
        tx.update(params, state, params)


@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_sgd, ro.riemannian_schedule_free])
def test_a_parameter_that_has_come_or_gone_is_named(make):
    tx = make(0.1)
    params = {"kernel": jnp.ones([4, 4])}
    grown = {**params, "new": jnp.ones(2)}
    with pytest.raises(
        ValueError, match=r"leaf \['new'\] is in the gradients and not .*tx\.init.*transplant"
    ):
        tx.update(grown, tx.init(params), grown)
    with pytest.raises(ValueError, match=r"leaf \['new'\] is in the state of phi and not in the gradients"):
        tx.update(params, tx.init(grown), params)


def test_a_gradient_of_none_is_named_by_an_eigenbasis():
    tx = ro.in_eigenbasis(optax.adam(0.1))
    params = {"frozen": jnp.ones([4, 4]), "kernel": jnp.ones([4, 4])}
    with pytest.raises(ValueError, match=r"gradients lack leaf \['frozen'\], or have None there"):
        tx.update({**params, "frozen": None}, tx.init(params), params)
    with pytest.raises(ValueError, match=r"has not been made for leaf \['frozen'\]"):
        tx.update(params, tx.init({**params, "frozen": None}), params)
    both = {**params, "frozen": None}
    with pytest.raises(ValueError, match=r"gradients lacks leaf \['frozen'\] of params"):
        tx.update(both, tx.init(both), params)
    updates, _ = tx.update(both, tx.init(both), both)
    assert updates["frozen"] is None


@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_schedule_free])
def test_a_leaf_that_is_none_only_in_the_state_or_only_in_the_gradients_is_named(make):
    tx = make(0.1)
    params = {"frozen": jnp.ones([4, 4]), "kernel": jnp.ones([4, 4])}
    without = {**params, "frozen": None}
    with pytest.raises(ValueError, match=r"gradients have None at leaf \['frozen'\]"):
        tx.update(without, tx.init(params), without)
    with pytest.raises(ValueError, match=r"arrays of the state have None at leaf \['frozen'\]"):
        tx.update(params, tx.init(without), params)


INJECTED = {
    "block_size": lambda inject: inject(ro.low_precision_state)(optax.trace(0.9), "int8"),
    "copies": lambda inject: inject(ro.anchor.benna_fusi_chain)(),
    "key": lambda inject: inject(ro.phi.hutchinson_curvature)(),
    "field": lambda inject: inject(ro.retract)(ro.fields.Quadratic(0.1)),
    "state_dtype": lambda inject: inject(ro.riemannian_sgd)(0.1, state_dtype=jnp.bfloat16),
    "function": lambda inject: inject(ro.phi.from_weights)(jnp.abs),
    "factor": lambda inject: inject(ro.multiply_metric)(lambda w: 1 + w**2),
    "refresh_budget": lambda inject: inject(ro.riemannian_eigenbasis)(0.1, refresh_budget=1e6),
}


@pytest.mark.parametrize("argument", INJECTED)
def test_an_injected_argument_that_is_no_hyperparameter_is_named(argument):
    """The message says how to keep it from becoming an array."""
    with pytest.raises((TypeError, ValueError), match=rf'name "{argument}" in its static_args'):
        INJECTED[argument](optax.inject_hyperparams).init({"kernel": jnp.ones([4, 4])})


def test_a_phi_may_return_numbers_of_python_for_scalars():
    tx = optax.chain(
        ro.compute_metric(phi_of(lambda g: {"scalar": 2.0}), alpha=1.0), ro.scale_by_inverse_metric()
    )
    gradients = {"scalar": jnp.asarray(6.0)}
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    assert float(updates["scalar"]) == 2.0
