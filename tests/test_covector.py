"""The leaf between the stages answers its shape and dtype, and shows one message to everything else."""

import copy
import operator
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

HELP = (
    "the metric is still attached: move this transformation before compute_metric "
    "or after scale_by_inverse_metric, which the chain must have"
)
PARAMS = {"kernel": jnp.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])}
STAGE_1 = ro.compute_metric(ro.phi.maintenance_energy(), alpha=2.0)


def stage_1_result(gradients=PARAMS):
    return STAGE_1.update(gradients, STAGE_1.init(PARAMS), PARAMS)[0]


@pytest.fixture
def covector():
    return stage_1_result()["kernel"]


def shows_help():
    """The whole message, which names the leaf first; where JAX trims the traceback it adds a note."""
    return pytest.raises(ro.MetricAttachedError, match=rf"^leaf \['kernel'\]: {HELP}\.(\n|$)")


ONE_ARGUMENT = [
    *(operator.neg, operator.pos, operator.abs, operator.invert, operator.not_, operator.index),
    *(float, int, complex, bool, round, len, iter, list, tuple, sum, max, sorted, reversed),
    *(
        jnp.sum,
        jnp.asarray,
        jnp.array,
        jnp.abs,
        jnp.sqrt,
        jnp.isfinite,
        jnp.where,
        jnp.linalg.norm,
        jnp.stack,
    ),
    *(jnp.zeros_like, jnp.ones_like, jax.typeof, jax.device_put, jax.lax.stop_gradient),
    *(np.sum, np.asarray, np.array, np.abs, np.sqrt, np.isnan, np.linalg.norm, np.stack, np.zeros_like),
    np.add.reduce,
]
INDEXING = {
    "item": lambda x: x[0],
    "mask": lambda x: x[x > 0],
    "assignment": lambda x: operator.setitem(x, 0, 1.0),
    "deletion": lambda x: operator.delitem(x, 0),
    "at": lambda x: x.at[0].set(1.0),
    "membership": lambda x: 1.0 in x,
    "unpacking": lambda x: [*x],
}
ATTRIBUTES = ["T", "sum", "mean", "astype", "reshape", "at", "sharding", "devices", "aval", "real", "unknown"]
TWO_ARGUMENTS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, divmod),
    *(operator.pow, operator.matmul, operator.and_, operator.or_, operator.xor),
    *(operator.lshift, operator.rshift),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(jnp.add, jnp.maximum, jnp.dot, np.add, np.maximum, np.dot),
]
OTHERS = {
    "number": 2.0,
    "numpy": np.ones([2, 3], np.float32),
    "numpy scalar": np.float32(2),
    "jax": jnp.ones([2, 3]),
}


def name(function):
    return f"{function.__module__}.{function.__name__}" if hasattr(function, "__module__") else repr(function)


@pytest.mark.parametrize("function", ONE_ARGUMENT, ids=name)
def test_functions_of_one_argument(covector, function):
    with shows_help():
        function(covector)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("function", TWO_ARGUMENTS, ids=name)
def test_functions_and_operators_of_two_arguments_on_both_sides(covector, function, other):
    with shows_help():
        function(covector, other)
    with shows_help():
        function(other, covector)


@pytest.mark.parametrize("function", TWO_ARGUMENTS, ids=name)
def test_two_covectors(covector, function):
    with shows_help():
        function(covector, covector)


@pytest.mark.parametrize("index", INDEXING.values(), ids=INDEXING)
def test_indexing(covector, index):
    with shows_help():
        index(covector)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_unknown_attributes(covector, attribute):
    with shows_help():
        getattr(covector, attribute)


def test_in_place_operators(covector):
    for operation in (operator.iadd, operator.imul, operator.itruediv):
        with shows_help():
            operation(covector, 2.0)
        with shows_help():
            operation(np.ones([2, 3]), covector)


def test_what_may_be_asked(covector):
    assert covector.shape == jnp.shape(covector) == (2, 3)
    assert covector.ndim == jnp.ndim(covector) == 2
    assert covector.size == 6
    assert covector.dtype == jnp.float32
    np.testing.assert_array_equal(covector.components, PARAMS["kernel"])
    np.testing.assert_allclose(covector.metric, 1 + 2 * np.abs(PARAMS["kernel"]))
    np.testing.assert_allclose(covector.inverse_metric, 1 / covector.metric)


def test_masks_by_shape_work_around_stage_2():
    """A mask in Optax's way looks at the updates too."""
    decay = optax.add_decayed_weights(1.0, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    tx = optax.chain(STAGE_1, optax.chain(ro.scale_by_inverse_metric(), decay))
    params = {**PARAMS, "bias": jnp.array([3.0])}
    updates, _ = tx.update(params, tx.init(params), params)
    metric = jax.tree.map(lambda p: 1 + 2 * abs(p), params)
    np.testing.assert_allclose(updates["bias"], params["bias"] / metric["bias"], rtol=1e-6)
    expected = params["kernel"] / metric["kernel"] + params["kernel"]
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda tree: m], ids=["tree", "function"])
def test_masked_stages(wrap):
    """Leaves kept out of stage 1 pass stage 2 as Euclidean ones."""
    mask = wrap({"kernel": True, "bias": False})
    tx = optax.chain(optax.masked(STAGE_1, mask), ro.scale_by_inverse_metric())
    params = {**PARAMS, "bias": jnp.array([3.0])}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates["bias"], params["bias"])
    np.testing.assert_allclose(
        updates["kernel"], params["kernel"] / (1 + 2 * abs(params["kernel"])), rtol=1e-6
    )


def test_is_a_leaf_and_not_an_array(covector):
    (leaf,) = jax.tree.leaves({"a": covector})
    assert leaf is covector
    assert not isinstance(covector, jax.Array | np.ndarray)


def test_repr_of_instance_and_class(covector):
    for text in (repr(covector), str(covector), f"{covector}"):
        assert text == f"<Covector leaf ['kernel'], shape (2, 3), dtype float32: {HELP}>"
    assert repr(ro.Covector) == f"<class 'riemann_optax.Covector'> ({HELP})"


def test_the_only_leaf_is_called_so():
    covector, _ = STAGE_1.update(jnp.ones(2), STAGE_1.init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ro.MetricAttachedError, match=f"^the only leaf: {HELP}"):
        covector + 1


def test_copies_keep_their_values(covector):
    for twin in (copy.copy(covector), pickle.loads(pickle.dumps(covector))):
        np.testing.assert_array_equal(twin.components, covector.components)
        np.testing.assert_array_equal(twin.metric, covector.metric)
        with shows_help():
            twin + 1


BOUNDARIES = {
    "jit returns": lambda c: jax.jit(lambda g: stage_1_result(g))(PARAMS),
    "jit takes": lambda c: jax.jit(lambda x: x)(c),
    "grad": lambda c: jax.grad(lambda x: 1.0)(c),
    "vmap takes": lambda c: jax.vmap(lambda x: x)(c),
    "vmap returns": lambda c: jax.vmap(lambda i: stage_1_result())(jnp.arange(2)),
    "cond takes": lambda c: jax.lax.cond(True, lambda x: x, lambda x: x, c),
    "cond returns": lambda c: jax.lax.cond(jnp.array(True), lambda: c, lambda: c),
    "scan carry": lambda c: jax.lax.scan(lambda x, _: (x, None), c, length=2),
    "scan returns": lambda c: jax.lax.scan(lambda x, _: (x, c), 0.0, length=2),
    "eval_shape returns": lambda c: jax.eval_shape(lambda: c),
    "custom_jvp takes": lambda c: jax.nn.relu(c),
}


@pytest.mark.parametrize("boundary", BOUNDARIES.values(), ids=BOUNDARIES)
def test_boundaries_of_transformations_of_jax(covector, boundary):
    with pytest.raises((TypeError, ValueError)) as caught:
        boundary(covector)
    assert HELP in str(caught.value)


def test_both_stages_inside_of_transformations_of_jax():
    """What stays inside of one function passes jit, cond, scan, vmap, grad and remat."""
    tx = optax.chain(STAGE_1, ro.scale_by_inverse_metric())
    state = tx.init(PARAMS)

    def tangent(gradient):
        return tx.update({"kernel": gradient}, state, PARAMS)[0]["kernel"]

    gradient = PARAMS["kernel"]
    metric = 1 + 2 * np.abs(gradient)
    expected = gradient / metric
    np.testing.assert_allclose(jax.jit(tangent)(gradient), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.remat(tangent)(gradient), expected, rtol=1e-6)
    branch = jax.lax.cond(jnp.array(True), tangent, lambda g: g, gradient)
    np.testing.assert_allclose(branch, expected, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda carry, g: (carry, tangent(g)), 0, jnp.stack([gradient, 2 * gradient]))
    np.testing.assert_allclose(scanned, np.stack([expected, 2 * expected]), rtol=1e-6)
    mapped = jax.vmap(tangent)(jnp.stack([gradient, 2 * gradient]))
    np.testing.assert_allclose(mapped, np.stack([expected, 2 * expected]), rtol=1e-6)
    derivative = jax.grad(lambda g: jnp.sum(tangent(g)))(gradient)
    np.testing.assert_allclose(derivative, 1 / metric, rtol=1e-6)


def test_a_covector_is_copied_as_it_is_pickled():
    tx = ro.compute_metric(ro.phi.activity())
    covector, _ = tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))
    for copied in (copy.copy(covector), copy.deepcopy(covector), pickle.loads(pickle.dumps(covector))):
        np.testing.assert_array_equal(copied.components, covector.components)
