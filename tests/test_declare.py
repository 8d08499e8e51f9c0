"""What transformations say of themselves: names, needs, and the fields of their states."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax import _declare as declare
from riemann_optax._state_fields import StateFields, declare_fields
from riemann_optax.eigenbasis.coordinates import coordinate_arrays

from .contract.registry import ENTRIES

PARAMS = {"kernel": jnp.ones([4, 3]), "bias": jnp.ones(3)}
WRAPPERS = {"weighted_sum", "product", "power", "unit_mean", "limited_mean", "permuted", "leaf_mean"}
OTHERS = {"Phi", "draw_perturbations", "ExtraArgument", "EXTRA_ARGUMENTS"}
RULES = [n for n in ro.phi.__all__ if not n.endswith("State") and n not in WRAPPERS | OTHERS]


def make(name):
    """Return the public phi of that name with its defaults."""
    if name in ("from_weights", "from_value"):
        return getattr(ro.phi, name)(abs)
    if name == "bayesian_gradient_descent":
        return ro.phi.bayesian_gradient_descent(initial_deviation=0.1)
    return getattr(ro.phi, name)()


@pytest.mark.parametrize("name", RULES)
def test_a_phi_is_called_by_the_function_that_makes_it(name):
    assert make(name).name == name


@pytest.mark.parametrize("name", RULES)
def test_a_phi_needs_what_its_update_reads(name):
    """The keyword-only arguments of an update are what it reads by name, and all it reads is declared."""
    phi = make(name)
    signature = inspect.signature(phi.update)
    read = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert read - {"task_importance"} <= set(phi.needs) <= set(ro.phi.EXTRA_ARGUMENTS)


def phi_as_described(phi):
    return {leaf.phi for leaf in ro.describe(phi, PARAMS, alpha=1.0).leaves}


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda phi: phi, "activity"),
        (lambda phi: optax.chain(phi, optax.scale(2.0)), "activity"),
        (lambda phi: optax.chain(optax.clip(1.0), phi), "activity"),
        (lambda phi: optax.partition({"all": phi}, "all"), "activity"),
        (lambda phi: optax.named_chain(("phi", phi)), "activity"),
        (lambda _: optax.inject_hyperparams(ro.phi.activity)(decay=0.9), "activity"),
        (ro.low_precision_state, "activity"),
        (lambda phi: ro.low_precision_state(ro.low_precision_state(phi)), "activity"),
        (ro.phi.unit_mean, "unit_mean(activity)"),
        (lambda phi: ro.phi.limited_mean(phi, limit=1.0), "limited_mean(activity)"),
        (ro.phi.permuted, "permuted(activity)"),
        (ro.phi.leaf_mean, "leaf_mean(activity)"),
        (lambda phi: ro.phi.power(phi, 2.0), "power(activity)"),
        (lambda phi: ro.phi.product(phi, ro.phi.per_neuron()), "product(activity, per_neuron)"),
        (lambda phi: ro.phi.power(ro.phi.unit_mean(phi), 2.0), "power(unit_mean(activity))"),
        (lambda phi: optax.chain(phi, ro.phi.activity(decay=0.5)), "activity, activity"),
    ],
)
def test_the_name_goes_through_every_wrapper(wrap, name):
    assert phi_as_described(wrap(ro.phi.activity())) == {name}


def test_an_undeclared_phi_is_called_so():
    assert phi_as_described(optax.stateless(lambda updates, _: jax.tree.map(abs, updates))) == {"undeclared"}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda phi: phi,
        ro.low_precision_state,
        ro.phi.unit_mean,
        ro.phi.permuted,
        lambda phi: ro.phi.product(ro.phi.activity(), phi),
        lambda phi: optax.chain(ro.scale_by_metric(phi, 1.0), optax.scale(-0.1)),
        lambda phi: optax.chain(optax.masked(ro.scale_by_metric(phi, 1.0), {"kernel": True, "bias": False})),
        lambda phi: optax.MultiSteps(ro.riemannian_sgd(0.1, phi=phi), 2).gradient_transformation(),
        lambda phi: ro.in_eigenbasis(ro.riemannian_sgd(0.1, phi=phi)),
        lambda phi: ro.skip_nonfinite(ro.master_weights(ro.riemannian_sgd(0.1, phi=phi))),
    ],
)
def test_needs_are_heard_through_every_wrapper(wrap):
    assert declare.needs_of(wrap(ro.phi.online_ewc()), PARAMS) == ("per_example_gradients", "task_boundary")


def test_needs_of_wrapped_phis_are_those_of_all_parts():
    phi = ro.phi.product(ro.phi.hutchinson_curvature(), ro.phi.online_ewc())
    assert phi.needs == ("obj_fn", "per_example_gradients", "task_boundary")


def test_what_needs_nothing_needs_nothing():
    assert declare.needs_of(optax.adamw(0.1), PARAMS) == ()


def test_a_need_outside_of_the_vocabulary_is_an_error():
    with pytest.raises(
        ValueError, match=r"^mine: needs must name extra arguments .*, got 'per_example_grads'"
    ):
        ro.phi.Phi(optax.init_empty_state, None, name="mine", needs=["per_example_grads"])


def test_a_phi_rebuilt_as_a_tree_is_the_same_phi():
    """Tree libraries rebuild a NamedTuple from its fields."""
    phi = ro.phi.online_ewc()
    rebuilt = jax.tree.map(lambda function: function, phi)
    assert isinstance(rebuilt, ro.phi.Phi)
    assert (rebuilt.name, rebuilt.needs) == (phi.name, phi.needs)


@pytest.mark.parametrize(
    "role", ["linear", "squared", "captured", "nonnegative", "weights", "refused", "exact"]
)
def test_a_declared_field_must_exist(role):
    with pytest.raises(ValueError, match=r"^ActivityState has no field 'momentum' to declare"):
        declare_fields(**{role: ("momentum",)})(ro.phi.ActivityState)


def undeclared(state):
    """Return the error about a state all of whose leaves are turned, or None."""
    try:
        coordinate_arrays(state, PARAMS, [True, True], StateFields())
    except ValueError as error:
        return str(error)
    return None


# What keeps arrays that no rotation can carry, or counts what a rotation changes, and is refused by name.
REFUSED = {
    "in_eigenbasis": "InEigenbasisState.right_factors",  # an eigenbasis in an eigenbasis
    "riemannian_eigenbasis": "InEigenbasisState.right_factors",
    "soap": "InEigenbasisState.right_factors",
    "low_precision_state:int8": "ActivityState.second_moment",  # codes of 8 bits
    "synaptic_caching": "synaptic_caching counts updates as they are applied",
    "track_energy": "track_energy counts updates as they are applied",
}


@pytest.mark.parametrize("name", [n for n in ENTRIES if n not in REFUSED])
def test_every_state_of_this_package_declares_its_fields(name):
    assert undeclared(ENTRIES[name].build().init(PARAMS)) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rotation_can_carry_is_refused_by_its_name(name):
    assert REFUSED[name] in str(undeclared(ENTRIES[name].build().init(PARAMS)))


@pytest.mark.parametrize("shape", [(6, 4), (6, 6), (2, 6, 4)])
def test_an_eigenbasis_in_an_eigenbasis_is_refused_at_every_shape(shape):
    with pytest.raises(ValueError, match=r"can carry InEigenbasisState\.left_factors"):
        ro.in_eigenbasis(ro.in_eigenbasis(optax.scale_by_adam())).init({"kernel": jnp.ones(shape)})


def test_eigenbases_of_different_leaves_may_be_inside_of_each_other():
    params = {"a": jnp.ones([6, 4]), "b": jnp.ones([6, 4])}
    inside = ro.in_eigenbasis(optax.scale_by_adam(), sides=lambda name, _: "both" if "a" in name else "none")
    ro.in_eigenbasis(inside, sides=lambda name, _: "none" if "a" in name else "both").init(params)


def optax_transformations():
    """Yield every transformation that Optax makes from simple arguments, by its name."""
    simple = ((), (0.1,), (optax.sgd(0.1),), (optax.sgd(0.1), 2))
    for module in (optax, optax.contrib):
        for name in sorted(dir(module)):
            function = getattr(module, name)
            if name.startswith("_") or not callable(function) or inspect.isclass(function):
                continue
            for arguments in simple:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        tx = function(*arguments)
                        state = tx.init(PARAMS)
                except Exception:  # not with these arguments, or no transformation at all
                    continue
                yield name, tx, state
                break


def has_weight_shaped_arrays(state):
    return any(jnp.shape(leaf) == (4, 3) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


OPTAX = {name: (tx, state) for name, tx, state in optax_transformations() if has_weight_shaped_arrays(state)}
# Maxima over rows, means of rows, step sizes and rewards of single weights, a projection of its own.
OPTAX_REFUSED = {"cocob", "galore", "rprop", "sm3", "adafactor", "scale_by_factored_rms"}


def refused(name):
    return name.removeprefix("scale_by_") in OPTAX_REFUSED or name in OPTAX_REFUSED


def test_the_walk_over_optax_finds_what_is_known():
    assert {"adam", "adan", "optimistic_gradient_descent", "ademamix", "prodigy", "momo"} <= set(OPTAX)
    assert {"rprop", "lbfgs", "mechanize", "dog", "schedule_free"} <= set(OPTAX)
    assert len(OPTAX) > 50


@pytest.mark.parametrize("name", OPTAX)
def test_every_state_of_optax_is_in_the_table_or_refused_by_name(name):
    message = undeclared(OPTAX[name][1])
    if refused(name):
        assert message.endswith("outside of in_eigenbasis.")
        with pytest.raises(ValueError, match=r"outside of in_eigenbasis\.$"):
            ro.in_eigenbasis(OPTAX[name][0]).init(PARAMS)
    else:
        assert message is None


LINEAR = {
    "adam": (optax.scale_by_adam(), ["mu"]),
    "adan": (optax.scale_by_adan(), ["m", "v", "g"]),
    "optimistic_gradient": (optax.scale_by_optimistic_gradient(), ["previous_gradient"]),
    "ademamix": (optax.contrib.scale_by_ademamix(), ["m1", "m2"]),
    "apply_every": (optax.apply_every(8), ["grad_acc"]),
    "lion": (optax.scale_by_lion(), ["mu"]),
    "trace": (optax.trace(0.9), ["trace"]),
    "ema": (optax.ema(0.9), ["ema"]),
    "dog": (optax.contrib.dog(0.1), ["init_params"]),
    "schedule_free": (optax.contrib.schedule_free_sgd(0.1), ["z"]),
    "momo": (optax.contrib.momo(0.1), ["exp_avg"]),
}


@pytest.mark.parametrize(("tx", "fields"), LINEAR.values(), ids=LINEAR)
def test_what_is_linear_is_carried_exactly(tx, fields):
    """What an optimiser remembers in turned coordinates, turned back, is what it remembers in plain ones."""
    inside = ro.in_eigenbasis(tx, update_every=1, decay=0.5)
    params = {"kernel": jax.random.normal(jax.random.key(9), [4, 3])}
    state, plain = inside.init(params), optax.with_extra_args_support(tx).init(params)
    extra = {"value": jnp.float32(1.0)}
    for step in range(4):
        gradients = {"kernel": jax.random.normal(jax.random.key(step), [4, 3])}
        _, state = inside.update(gradients, state, params, **extra)
        _, plain = optax.with_extra_args_support(tx).update(gradients, plain, params, **extra)
    left, right = (
        np.asarray(basis["kernel"][0], np.float64) for basis in (state.left_bases, state.right_bases)
    )
    for field in fields:
        turned = np.asarray(optax.tree.get(state.inner, field)["kernel"], np.float64)
        expected = np.asarray(optax.tree.get(plain, field)["kernel"])
        np.testing.assert_allclose(left @ turned @ right.T, expected, atol=1e-5 * np.abs(expected).max())


class Mine(ro.phi.ActivityState):
    """A state class of a user, which inherits no declaration by accident."""

    linear_fields = ()
    squared_fields = ()


def test_a_field_can_be_declared_by_the_caller():
    momentum = optax.GradientTransformation(
        lambda params: Mine(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params)),
        lambda updates, state, params=None: (updates, state),
    )
    with pytest.raises(ValueError, match=r"declared how Mine.second_moment changes .* linear_fields="):
        ro.in_eigenbasis(momentum).init(PARAMS)
    ro.in_eigenbasis(momentum, linear_fields=("second_moment",)).init(PARAMS)
    ro.in_eigenbasis(momentum, squared_fields=("second_moment",)).init(PARAMS)


def test_an_array_of_a_plain_tuple_has_no_name_to_declare():
    momentum = optax.GradientTransformation(
        lambda params: (jax.tree.map(jnp.zeros_like, params),),
        lambda updates, state, params=None: (updates, state),
    )
    with pytest.raises(ValueError, match=r"array at \[0\]\[0\] of .* make that state a NamedTuple"):
        ro.in_eigenbasis(optax.chain(momentum)).init(PARAMS)


def test_an_undeclared_extra_argument_that_may_turn_is_refused():
    tx = ro.in_eigenbasis(optax.identity())
    state = tx.init(PARAMS)
    tx.update(PARAMS, state, PARAMS, progress=0.5)
    with pytest.raises(ValueError, match=r"^in_eigenbasis: the extra argument mask may depend on the coord"):
        tx.update(PARAMS, state, PARAMS, mask=PARAMS)


@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_a_phi_of_ones_own_sees_its_own_part_of_an_extra_argument(wrap):
    """Wrappers mask gradients and pass extra arguments on whole: the phi met a tree of another structure."""

    def update(updates, state, params=None, *, inputs, **extra_args):
        values = jax.tree.map(lambda g, x: jnp.full(g.shape, jnp.mean(jnp.square(x))), updates, inputs)
        return values, state

    phi = ro.phi.Phi(lambda params: optax.EmptyState(), update, name="power", needs=("inputs",))
    chosen = {"kernel": True, "bias": False}
    metric = optax.chain(ro.compute_metric(phi), ro.scale_by_inverse_metric())
    tx = {
        "masked": optax.masked(metric, chosen),
        "partition": optax.partition({True: metric, False: optax.identity()}, chosen),
    }[wrap]
    params = {"kernel": jnp.ones([3, 2]), "bias": jnp.ones(2)}
    inputs = {"kernel": jnp.full([4, 3], 2.0), "bias": 1.0}
    updates, _ = tx.update(params, tx.init(params), params, inputs=inputs)
    np.testing.assert_allclose(updates["kernel"], 1 / 5)
    np.testing.assert_allclose(updates["bias"], 1)
