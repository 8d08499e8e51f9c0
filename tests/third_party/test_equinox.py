"""Equinox models: callables among the leaves, weights as (outputs, inputs), None where nothing is trained."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.supply import equinox_modules

from . import training

each_rule = pytest.mark.parametrize("rule", training.RULES)


class Network(eqx.Module):
    """The common network; its activation is a leaf that is no array."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    activation: Callable

    def __init__(self):
        def layer(values):
            fan_in, fan_out = values["kernel"].shape
            linear = eqx.nn.Linear(fan_in, fan_out, key=jax.random.key(0))
            new = jnp.asarray(values["kernel"].T), jnp.asarray(values["bias"])
            return eqx.tree_at(lambda m: (m.weight, m.bias), linear, new)

        self.first, self.second = (layer(values) for values in training.host_weights().values())
        self.activation = jnp.tanh

    def __call__(self, inputs):
        return self.second(self.activation(self.first(inputs)))


def loss(model):
    return training.mean_square(jax.vmap(model)(jnp.asarray(training.INPUTS)))


def leaves(model):
    return {name: [getattr(model, name).weight, getattr(model, name).bias] for name in ("first", "second")}


def plain_loss(params):
    """The same by hand, on lists of arrays in Equinox's order."""
    (first, first_bias), (second, second_bias) = params["first"], params["second"]
    hidden = jnp.tanh(training.INPUTS @ first.T + first_bias)
    return training.mean_square(hidden @ second.T + second_bias)


@each_rule
def test_filtered_model(rule):
    """The documented loop: arrays are filtered out, gradients of the rest are None."""
    tx = training.RULES[rule](training.RATE)
    model = Network()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(loss)(model)
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    for _ in range(training.STEPS):
        model, state = step(model, state)
    start = leaves(Network())
    expected, _ = training.train_plainly(training.RULES[rule](training.RATE), start, plain_loss)
    training.assert_moved_alike(leaves(model), expected, start)


def second_layer_only(tree):
    """Return a model-like tree of booleans: the second layer is trained."""
    false = jax.tree.map(lambda _: False, tree)
    return eqx.tree_at(lambda m: (m.second.weight, m.second.bias), false, (True, True))


def train_second_layer(tx, model, part):
    """Train with gradients that are None outside of the second layer; ``part`` is what the optimiser sees."""
    spec = second_layer_only(model)
    state = tx.init(part(model, spec))

    @eqx.filter_jit
    def step(model, state):
        trained, frozen = eqx.partition(model, spec)
        gradients = eqx.filter_grad(lambda layer: loss(eqx.combine(layer, frozen)))(trained)
        updates, state = tx.update(gradients, state, part(model, spec))
        return eqx.apply_updates(model, updates), state

    for _ in range(training.STEPS):
        model, state = step(model, state)
    return model


def assert_second_layer_trained(model, rule):
    start = leaves(Network())
    for found, kept in zip(leaves(model)["first"], start["first"], strict=True):
        np.testing.assert_array_equal(found, kept)
    second = {"second": start["second"]}
    expected, _ = training.train_plainly(
        training.RULES[rule](training.RATE),
        second,
        lambda part: plain_loss({"first": start["first"], **part}),
    )
    training.assert_moved_alike({"second": leaves(model)["second"]}, expected, second)


@each_rule
def test_frozen_layer_outside_of_the_optimiser(rule):
    """Parameters are None where gradients are: the documented way to freeze a layer."""
    model = train_second_layer(training.RULES[rule](training.RATE), Network(), eqx.filter)
    assert_second_layer_trained(model, rule)


@each_rule
def test_frozen_layer_inside_of_the_optimiser(rule):
    """Gradients of None where there are parameters: trained as if these were absent, or refused by name.

    ``optax.sgd`` takes them, ``optax.adam`` of Optax 0.2.8 does not.
    """

    def all_arrays(model, spec):
        return eqx.filter(model, eqx.is_inexact_array)

    refusal = ""
    try:
        model = train_second_layer(training.RULES[rule](training.RATE), Network(), all_arrays)
    except (TypeError, ValueError) as error:
        refusal = str(error)
    if refusal:
        assert ".first.weight" in refusal
        assert "None" in refusal
    elif rule != "int8":  # whose rounding depends on the number of the leaf in the state
        assert_second_layer_trained(model, rule)


WHOLE = {
    "riemannian_adamw": ro.riemannian_adamw,
    "riemannian_eigenbasis": ro.riemannian_eigenbasis,
    "riemannian_schedule_free": ro.riemannian_schedule_free,
    "soap": ro.soap,
}


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_update_takes_the_whole_model_as_optax_does(make):
    """``tx.update(gradients, state, model)``: what is no weight, and has no gradient, is passed over."""
    model, arrays, tx = Network(), eqx.filter(Network(), eqx.is_inexact_array), make(0.1)
    gradients = eqx.filter_grad(loss)(model)
    updates, state = tx.update(gradients, tx.init(arrays), model)
    expected, expected_state = tx.update(gradients, tx.init(arrays), arrays)
    assert jax.tree.structure((updates, state)) == jax.tree.structure((expected, expected_state))
    for found, wanted in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_average_of_a_whole_model_is_a_model():
    tx, model = ro.riemannian_schedule_free(0.1), Network()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for _ in range(3):
        updates, state = tx.update(eqx.filter_grad(loss)(model), state, model)
        model = eqx.apply_updates(model, updates)
    averaged = ro.eval_params(state, model)
    expected = ro.eval_params(state, eqx.filter(model, eqx.is_inexact_array))
    assert averaged.activation is jnp.tanh
    for name in ("first", "second"):
        for found, wanted in zip(leaves(averaged)[name], leaves(expected)[name], strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert loss(averaged) < loss(Network())


@each_rule
def test_whole_model_is_refused_by_the_name_of_the_leaf_and_the_remedy(rule):
    """A callable is no parameter: the error names it, and the function that filters it out."""
    with pytest.raises(TypeError) as error:
        training.RULES[rule](training.RATE).init(Network())
    assert "activation" in str(error.value)
    assert "filter" in str(error.value)


def test_matrices_of_equinox_have_their_outputs_first():
    """A factored metric does not mind; the eigenbasis of a transposed matrix is the transposed one."""
    start = training.host_weights()
    turned = jax.tree.map(lambda leaf: leaf.T, start)

    def turned_loss(params):
        return training.loss(jax.tree.map(lambda leaf: leaf.T, params))

    for rule in ("riemannian_sgd", "riemannian_adamw", "in_eigenbasis"):
        params, _ = training.train_plainly(training.RULES[rule](training.RATE), turned, turned_loss)
        training.assert_trained_as_plainly(jax.tree.map(lambda leaf: leaf.T, params), rule)


def test_metric_of_a_filtered_model():
    metric = ro.compute_metric(ro.phi.activity(decay=0.0), alpha=3.0)
    tx = optax.chain(metric, ro.scale_by_inverse_metric(), optax.scale(-0.1))
    model = Network()
    arrays = eqx.filter(model, eqx.is_inexact_array)
    gradients = eqx.filter_grad(loss)(model)
    metric = ro.metric_at(tx, gradients, tx.init(arrays), arrays)
    assert metric.activation is None
    expected = jax.tree.map(lambda g: 1 + 3 * abs(g), leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), leaves(metric), expected)


class Tempered(eqx.Module):
    """A Python number is a leaf of the tree, and a constant of the model."""

    network: Network
    dropout: eqx.nn.Dropout
    temperature: float

    def __init__(self):
        self.network, self.dropout = Network(), eqx.nn.Dropout(0.5, inference=True)
        self.temperature = 2.0

    def __call__(self, inputs):
        return self.network(self.dropout(inputs)) / self.temperature


@pytest.mark.parametrize("needs", [(), "inputs", "activities", "per_example_gradients"])
def test_python_numbers_of_a_module_are_constants(needs):
    model = Tempered()
    value, gradients, extra = ro.value_and_grad(batch_loss, needs=needs)(model, training.INPUTS)
    expected_value, expected = eqx.filter_value_and_grad(batch_loss)(model, training.INPUTS)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for signal in jax.tree.leaves(extra, is_leaf=lambda node: isinstance(node, Tempered)):
        assert signal.temperature is None
    tx = ro.riemannian_adamw(0.01)
    updates, _ = tx.update(gradients, tx.init(eqx.filter(model, eqx.is_inexact_array)), model)
    assert eqx.apply_updates(model, updates).temperature == 2.0


def batch_loss(model, batch):
    return training.mean_square(jax.vmap(model)(jnp.asarray(batch)))


@pytest.mark.parametrize("needs", ["inputs", "activities", "per_example_gradients"])
def test_a_model_of_two_trees_shows_what_a_whole_one_shows(needs):
    """The loop of Equinox's guides: partition, and combine in the loss."""
    model = Network()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def combined(params, batch):
        return batch_loss(eqx.combine(params, static), batch)

    _, gradients, extra = ro.value_and_grad(combined, needs=needs)(params, training.INPUTS)
    _, expected, whole = ro.value_and_grad(batch_loss, needs=needs)(model, training.INPUTS)
    for one, other in ((gradients, expected), (extra[needs], whole[needs])):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_an_evaluation_that_ends_leaves_the_classes_to_those_that_go_on():
    """Evaluations of several threads overlap; of them each sees its own."""
    before = vars(eqx.nn.Linear)["__call__"]
    first, second = equinox_modules.watch(), equinox_modules.watch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert vars(eqx.nn.Linear)["__call__"] is not before
    second.__exit__(None, None, None)
    assert vars(eqx.nn.Linear)["__call__"] is before


def test_the_classes_of_equinox_are_as_before_when_nobody_watches():
    before = vars(eqx.nn.Linear)["__call__"]

    def broken(model, batch):
        assert vars(eqx.nn.Linear)["__call__"] is not before
        raise RuntimeError("in the loss")

    with pytest.raises(RuntimeError, match="in the loss"):
        ro.value_and_grad(broken, needs="inputs")(Network(), training.INPUTS)
    assert vars(eqx.nn.Linear)["__call__"] is before


METRIC = ro.compute_metric(ro.phi.activity())
INVERSE = ro.scale_by_inverse_metric()
OF_WHOLE_MODELS = {
    "frame": optax.chain(METRIC, ro.in_orthonormal_frame(optax.trace(0.9))),
    "gradient": optax.chain(METRIC, ro.on_gradient(optax.trace(0.9)), INVERSE),
    "product": optax.chain(METRIC, ro.multiply_metric(jnp.exp), INVERSE),
    "pull": optax.chain(METRIC, INVERSE, ro.add_anchored_weights(0.1, ro.anchor.initial_weights())),
    "isometry": optax.chain(METRIC, INVERSE, ro.add_isometry_pull(0.1, axes="equinox")),
    "spectrum": optax.chain(METRIC, INVERSE, ro.add_spectral_pull(0.1, axes="equinox")),
    "noise": optax.chain(METRIC, ro.add_metric_noise(0.1, 1.0, field=jnp.cosh), INVERSE),
    "master": ro.master_weights(ro.riemannian_sgd(0.1)),
    "energy": optax.chain(METRIC, INVERSE, ro.track_energy()),
    "retraction": optax.chain(
        ro.attach_field(ro.fields.Quadratic(1.0)),
        INVERSE,
        optax.scale(-0.1),
        ro.retract(ro.fields.Quadratic(1.0)),
    ),
    "soft resets": ro.soft_resets(ro.riemannian_sgd(0.1), 0.1),
    "restart": ro.restart_at_boundary(ro.riemannian_sgd(0.1), ro.anchor.initial_weights()),
    "relative steps": ro.riemannian_adamw(0.1, axes="equinox", multiply_by_parameter_scale=True),
    "resets": ro.reset_units(ro.riemannian_sgd(0.1), ro.dormant_units(0.1), axes="equinox"),
    "guard": ro.skip_nonfinite(ro.scale_by_metric(ro.phi.synaptic_intelligence())),
    "metric": optax.chain(METRIC, ro.on_metric(optax.scale_by_param_block_rms()), INVERSE),
}


@pytest.mark.parametrize("name", OF_WHOLE_MODELS)
def test_a_whole_model_of_equinox_passes_for_its_parameters(name):
    tx = OF_WHOLE_MODELS[name]
    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    gradients = jax.tree.map(jnp.ones_like, params)
    more = {
        "soft resets": {"obj_fn": lambda m: jnp.sum(m.layers[0].weight)},
        "guard": {"task_boundary": True},
        "resets": {"activities": jax.tree.map(lambda w: jnp.ones([2, w.shape[0]]), params)},
    }.get(name, {})
    expected, _ = tx.update(gradients, tx.init(params), params, **more)
    found, _ = tx.update(gradients, tx.init(params), model, **more)
    assert eqx.tree_equal(found, expected)
    if not more:
        assert str(ro.describe(tx, model)) == str(ro.describe(tx, params))


def test_neurons_of_a_matrix_of_equinox_are_its_rows():
    gradients = {"weight": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    tx = ro.riemannian_sgd(0.1, conformal="neuron", axes="equinox")
    found = ro.metric_at(tx, gradients, tx.init(gradients), gradients)["weight"]
    np.testing.assert_allclose(found, (np.array([[1.5], [3.5]]) + gradients["weight"]) / 2, rtol=1e-6)


def test_describe_tells_that_a_matrix_of_equinox_is_read_as_flax_s():
    """Where it is square nothing else could tell."""
    params = eqx.filter(eqx.nn.MLP(8, 8, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    told = ro.describe(ro.riemannian_sgd(0.1, phi=ro.phi.per_neuron()), params).axes
    assert len(told) == 2
    assert all(
        'inputs 8, outputs 8, as in Flax; a Linear of Equinox has the outputs first, axes="equinox"' in one
        for one in told
    )
    phi = ro.phi.per_neuron(axes="equinox")
    assert "as in Flax" not in str(ro.describe(ro.riemannian_sgd(0.1, phi=phi), params))
