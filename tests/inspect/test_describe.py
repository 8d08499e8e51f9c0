"""describe: the table a person reads before a run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxpr_as_fun

import riemann_optax as ro
from riemann_optax import riemannian_sgd
from riemann_optax.inspect import _evaluate

PARAMS = {"layer": {"kernel": jnp.array([[0.0, 1.0, 3.0]]), "bias": jnp.zeros(3)}}


def test_describe_reads_phi_metric_rates_and_bytes_of_each_leaf():
    tx = ro.partition_by_kind(
        riemannian_sgd(0.1, momentum=0.9, phi=ro.phi.maintenance_energy(), alpha=2.0), bias=optax.sgd(0.1)
    )
    description = ro.describe(tx, PARAMS)
    bias, kernel = description.leaves
    assert (kernel.name, kernel.shape, kernel.phi) == ("['layer']['kernel']", (1, 3), "maintenance_energy")
    assert (kernel.metric_min, kernel.metric_max, kernel.state_bytes) == (1.0, 7.0, 12)
    assert (bias.phi, bias.metric_min, bias.metric_max, bias.state_bytes) == ("", 1.0, 1.0, 0)
    table = str(description)
    assert "Euclidean" in table
    assert "0.1429 to 1" in table


def test_describe_takes_a_phi_alone_and_gradients_and_state():
    phi = ro.phi.activity(decay=0.5)
    gradients = jax.tree.map(lambda p: 2.0 * jnp.ones_like(p), PARAMS)
    leaf = ro.describe(phi, PARAMS, gradients, alpha=3.0).leaves[0]
    np.testing.assert_allclose([leaf.metric_min, leaf.metric_max], 1 + 3.0 * 2.0, rtol=1e-6)
    assert (leaf.phi, leaf.state_bytes) == ("activity", 12)
    _, state = phi.update(jax.tree.map(jnp.zeros_like, PARAMS), phi.init(PARAMS))
    later = ro.describe(phi, PARAMS, gradients, state).leaves[0]
    np.testing.assert_allclose(later.metric_max, 1 + np.sqrt(0.5 * 4.0 / 0.75), rtol=1e-6)


def test_describe_passes_extra_arguments():
    loss = lambda p: jnp.sum(p["layer"]["kernel"] ** 2)  # noqa: E731
    kernel = ro.describe(ro.phi.hutchinson_curvature(), PARAMS, obj_fn=loss).leaves[1]
    np.testing.assert_allclose(kernel.metric_max, 3.0, rtol=1e-6)


def test_equal_layers_share_a_line():
    """A Transformer has hundreds of arrays and some ten kinds of them."""

    def layer(heads):
        return {"query": {"kernel": jnp.ones([8, heads, 4])}, "bias": jnp.ones(3)}

    params = {"blocks": [layer(3 if i == 5 else 2) for i in range(12)], "head": jnp.ones([4, 5])}
    description = ro.describe(ro.riemannian_eigenbasis(0.1), params)
    assert len(description.leaves) == 25  # for a program that reads them
    lines = str(description).splitlines()
    table, rest = lines[2:6], lines[7:]
    names = ("['blocks'][0..11]['bias']", "['blocks'][0,1,2,3,4,6,7,8,9,10,11]['query']['kernel']")
    others = ("['blocks'][5]['query']['kernel']", "['head']")
    assert [line.split("  ")[0] for line in table] == [*names, *others]
    assert table[0].endswith("12 x 12")  # momentum and phi of three weights, in bfloat16
    assert " x " not in table[2]
    assert [line.split(" (")[0] for line in rest] == [
        *(f"read as: {name}" for name in (names[1], others[0])),
        *(f"eigenbasis: {name}" for name in (names[1], *others)),
    ]


def test_a_line_stands_for_exactly_the_leaves_that_it_names():
    """Not for a second head where a block has none; and 01 is another name than 1."""
    params = {f"block_{i}": {f"head_{j}": jnp.ones(2) for j in range(1 + i % 2)} for i in range(4)}
    params |= {"block_01": {"head_0": jnp.ones(2)}, "v2": jnp.ones(3)}
    table = str(ro.describe(optax.adam(0.1), params)).splitlines()[2:-1]
    assert [line.split("  ")[0] for line in table] == [
        "['block_0..3']['head_0']",
        "['block_1,3']['head_1']",
        "['block_01']['head_0']",
        "['v2']",
    ]


def test_describe_says_that_a_plain_optimiser_is_euclidean():
    description = ro.describe(optax.adam(0.1), PARAMS)
    assert [leaf.phi for leaf in description.leaves] == ["", ""]
    assert [leaf.state_bytes for leaf in description.leaves] == [24, 24]


@pytest.mark.parametrize("make", [ro.riemannian_sgd, ro.riemannian_adamw])
def test_nothing_of_an_alias_is_compiled(make, monkeypatch):
    """What NumPy cannot evaluate JAX would compile, for each shape of the leaves anew."""
    params = {"kernel": jnp.ones([3, 5]), "bias": jnp.ones(5), "scale": jnp.ones(7)}
    expected = ro.metric_at(make(0.1), params, make(0.1).init(params), params)
    compiled = []
    monkeypatch.setattr(
        _evaluate, "jaxpr_as_fun", lambda closed: compiled.append(closed) or jaxpr_as_fun(closed)
    )
    description = ro.describe(make(0.1), params)
    assert [str(closed) for closed in compiled] == []
    for leaf, metric in zip(description.leaves, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            [leaf.metric_min, leaf.metric_max], [metric.min(), metric.max()], rtol=1e-6
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_running_sums_by_numpy_are_those_of_jax(reverse):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    for axis in (0, 1):
        function = lambda x, a=axis: jax.lax.cumsum(jnp.stack([x, 2 * x], axis=1), a, reverse)  # noqa: E731
        (found,) = _evaluate.evaluate(jax.make_jaxpr(function)(x), x)
        np.testing.assert_allclose(found, function(x), rtol=1e-5)


def test_describe_wants_a_transformation():
    with pytest.raises(TypeError, match="a function that makes one has to be called"):
        ro.describe(ro.phi.activity, PARAMS)


def squared_gradient():
    def update(gradients, state, params=None, **extra_args):
        return jax.tree.map(jnp.square, gradients), state

    return ro.phi.Phi(optax.init_empty_state, update, name="squared_gradient")


def test_describe_names_a_phi_of_ones_own_as_it_declares_itself():
    for description in (
        ro.describe(riemannian_sgd(0.1, phi=squared_gradient()), PARAMS),
        ro.describe(squared_gradient(), PARAMS, alpha=2.0),
    ):
        assert {leaf.phi for leaf in description.leaves} == {"squared_gradient"}


def test_how_arrays_are_read_is_said_where_it_is_not_plain():
    params = {
        "bias": jnp.zeros(3),
        "kernel": jnp.zeros((2, 3)),
        "embedding": jnp.zeros((9, 2)),
        "layers": {"bias": jnp.zeros((4, 3)), "kernel": jnp.zeros((4, 2, 3))},
        "query": {"kernel": jnp.zeros((4, 2, 2))},
    }
    description = ro.describe(ro.phi.factored_activity(), params)
    assert description.axes == (
        "['embedding'] (9, 2): 9 rows that are looked up, of 2",
        "['layers']['bias'] (4, 3): a stack of 4: a vector of 3",
        "['layers']['kernel'] (4, 2, 3): a stack of 4: inputs 2, outputs 3, by default: name the module "
        "in axes= to confirm or to change it",
        "['query']['kernel'] (4, 2, 2): inputs 4, outputs 2*2",
    )
    assert str(description).splitlines()[-1] == f"read as: {description.axes[-1]}"
    assert ro.describe(ro.phi.activity(), params).axes == ()  # nothing is read


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    ],
    ids=["apply_if_finite", "MultiSteps"],
)
def test_a_metric_in_a_branch_is_described_too(wrap):
    """Compiled it cannot be read, so it is run operation by operation."""
    tx = optax.chain(ro.scale_by_metric(ro.phi.maintenance_energy(), 3.0), optax.scale(-0.1))
    plain, wrapped = ro.describe(tx, PARAMS), ro.describe(wrap(tx), PARAMS)
    assert [leaf[:5] for leaf in wrapped.leaves] == [leaf[:5] for leaf in plain.leaves]
    assert {leaf.phi for leaf in wrapped.leaves} == {"maintenance_energy"}


def test_an_error_of_the_update_is_its_own():
    with pytest.raises(ValueError, match="hutchinson_curvature needs the extra argument obj_fn"):
        ro.describe(ro.phi.hutchinson_curvature(), PARAMS)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_the_numbers_are_those_of_metric_at(storage):
    """NumPy evaluates the update for describe, JAX for metric_at; narrow weights too."""
    shapes = {"kernel": (5, 7), "bias": (7,), "scalar": (), "layers": (3, 4, 2), "empty": (0, 3)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    draw = lambda key, shape: jax.random.normal(key, shape).astype(storage)  # noqa: E731
    params = {name: draw(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)}
    gradients = jax.tree.map(lambda p: (3 * p**2 - 1).astype(p.dtype), params)
    phi = ro.phi.product(ro.phi.factored_activity(), ro.phi.maintenance_energy(power=0.7))
    for tx in (ro.riemannian_adamw(0.1), ro.riemannian_sgd(0.1, phi=phi, alpha=3.0, conformal="neuron")):
        _, state = tx.update(gradients, tx.init(params), params)
        later = jax.tree.map(lambda g: -2 * g, gradients)
        metric = ro.metric_at(tx, later, state, params)
        for leaf, expected in zip(
            ro.describe(tx, params, later, state).leaves, jax.tree.leaves(metric), strict=True
        ):
            extremes = [jnp.min(expected), jnp.max(expected)] if expected.size else [1.0, 1.0]
            np.testing.assert_allclose([leaf.metric_min, leaf.metric_max], extremes, rtol=2e-6)


def test_where_the_metric_is_zero_the_rate_is_infinite():
    phi = ro.phi.multiplicative_geometry(eps=0.0)
    tx = ro.scale_by_metric(phi, 1.0, role="inverse_metric")
    assert " inf " in str(ro.describe(tx, {"b": jnp.zeros(2)}))


def test_state_of_flattened_parameters_belongs_to_none_of_them():
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones(2)}
    described = ro.describe(optax.flatten(riemannian_sgd(0.1, phi=ro.phi.activity())), params)
    assert [row.state_bytes for row in described.leaves] == [0, 0]
    assert described.shared_state_bytes >= 4 * 14


def test_a_module_of_nnx_stands_for_its_parameters():
    """Its keys for dropout and its running means are none."""
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
    )
    tx = ro.riemannian_adamw(0.1)
    assert ro.describe(tx, model) == ro.describe(tx, nnx.state(model, nnx.Param))


@pytest.mark.parametrize("phi", [ro.phi.activity(), ro.phi.maintenance_energy()], ids=lambda phi: phi.name)
def test_the_metric_of_flattened_parameters_is_that_of_their_leaves(phi):
    """E is what the update divides by, leaf for leaf, and ranges over the leaf alone."""
    params = {
        "bias": jnp.array([1.0, -3.0]),
        "kernel": jnp.arange(6.0).reshape(2, 3),
        "scale": jnp.array(2.0),
    }
    gradients = jax.tree.map(lambda p: 0.5 * p + 1, params)
    tx = optax.flatten(riemannian_sgd(0.1, phi=phi))
    state = tx.init(params)
    found = ro.metric_at(tx, gradients, state, params)
    updates, _ = tx.update(gradients, state, params)
    chex.assert_trees_all_close(found, jax.tree.map(lambda g, u: -0.1 * g / u, gradients, updates), rtol=1e-5)
    described = ro.describe(tx, params, gradients)
    assert {leaf.phi for leaf in described.leaves} == {phi.name}
    for leaf, metric in zip(described.leaves, jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(
            (leaf.metric_min, leaf.metric_max), (metric.min(), metric.max()), rtol=1e-5
        )
    one = jnp.ones((2, 3))  # of a single array too
    assert ro.metric_at(tx, one, tx.init(one), one).shape == (2, 3)


def test_a_metric_of_other_leaves_than_those_given_is_not_called_euclidean():
    params = {"real": jnp.ones(2), "turned": jnp.ones(3, jnp.complex64)}
    tx = optax.contrib.split_real_and_imaginary(riemannian_sgd(0.1, phi=ro.phi.activity()))
    with pytest.raises(
        ValueError, match=r"metric_at: the metric is one of \['turned'\].*no leaf of gradients"
    ):
        ro.metric_at(tx, params, tx.init(params), params)
    with pytest.raises(ValueError, match="no leaf of gradients"):
        ro.describe(tx, params)


def test_what_a_phi_lacks_is_told_to_who_calls_describe():
    tx, params = riemannian_sgd(0.1, phi=ro.phi.hutchinson_curvature()), jnp.array([1.0, 2.0])
    with pytest.raises(ValueError, match=r"needs the extra argument obj_fn.* describe take it by name"):
        ro.describe(tx, params)
    (leaf,) = ro.describe(tx, params, obj_fn=lambda w: jnp.sum(w**2)).leaves
    assert leaf.phi == "hutchinson_curvature"


@pytest.mark.parametrize("mask", [False, True], ids=["partition", "masked"])
def test_labels_and_masks_may_be_functions_that_read_the_parameters(mask):
    """Optax's count by parameter calls them with a placeholder; the numbers are those of the same tree."""
    params = {"torso": {"kernel": jnp.ones((4, 8))}, "head": {"kernel": jnp.ones((8, 3))}}

    def made(by):
        if mask:
            return optax.chain(optax.masked(optax.trace(0.9), by), ro.riemannian_adamw(0.1))
        return optax.partition({"t": ro.riemannian_adamw(0.1), "h": optax.sgd(0.1, momentum=0.9)}, by)

    def read(params):
        return {name: name == "torso" if mask else name[0] for name in params}

    by_function, by_tree = (ro.describe(made(by), params) for by in (read, read(params)))
    assert by_function == by_tree
    assert by_tree.leaves[1].state_bytes > 0


def test_it_is_said_that_a_state_of_a_run_meets_gradients_of_1():
    tx, params = ro.riemannian_adamw(0.1), {"w": jnp.ones(3)}
    state = tx.init(params)
    remark = "E at gradients of 1: give gradients for those of the run"
    assert remark in str(ro.describe(tx, params, state=state))
    assert remark not in str(ro.describe(tx, params))
    assert remark not in str(ro.describe(tx, params, params, state))


def test_what_a_part_of_optax_lacks_is_told_as_well():
    params = {"w": jnp.ones(2)}
    tx = optax.chain(ro.riemannian_adamw(0.1), optax.contrib.reduce_on_plateau())
    with pytest.raises(ValueError, match=r"needs 'value': call describe\(\.\.\., value=\.\.\.\)"):
        ro.describe(tx, params)
    with pytest.raises(ValueError, match=r"metric_at: the update of tx needs 'value'"):
        ro.metric_at(tx, params, tx.init(params), params)
    assert "activity" in str(ro.describe(tx, params, value=1.0))


def test_the_fast_parameters_of_lookahead_are_described():
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    both, own = optax.LookaheadParams.init_synced(params), ro.riemannian_adamw(0.1)
    tx = optax.lookahead(own, 5, 0.5)
    gradients = jax.tree.map(jnp.sin, params)
    updates, state = tx.update(gradients, tx.init(both), both)
    found = ro.describe(tx, optax.apply_updates(both, updates), gradients, state)
    _, expected = own.update(gradients, own.init(params), params)
    assert found.leaves == ro.describe(own, params, gradients, expected).leaves
    abstract = ro.describe(tx, jax.eval_shape(lambda: both))
    assert [leaf.shape for leaf in abstract.leaves] == [(2, 3)]
