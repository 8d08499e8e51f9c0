"""Further arguments of a loss: what reaches it, what is data, and whose random numbers an example has."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import riemann_optax as ro


class Normalised(nn.Module):
    """A hidden layer with statistics."""

    units: int

    @nn.compact
    def __call__(self, x, train):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(self.units)(x))
        return nn.Dense(1)(nn.relu(hidden))


@pytest.mark.parametrize("units", [3, 8])
def test_statistics_of_as_many_units_as_examples_are_no_data(units):
    network = Normalised(units)
    batch = {"x": jax.random.normal(jax.random.key(0), (8, 3)), "y": jnp.ones((8, 1))}

    def loss(params, batch, statistics, train=True):
        variables = {"params": params, "batch_stats": statistics}
        out, changed = network.apply(variables, batch["x"], train, mutable=["batch_stats"])
        return jnp.mean((out - batch["y"]) ** 2), changed["batch_stats"]

    variables = network.init(jax.random.key(1), batch["x"], False)
    step = ro.value_and_grad(loss, "per_example_gradients", has_aux=True, statistics="running")
    _, _, extra = step(variables["params"], batch, variables["batch_stats"])
    alone = jax.vmap(jax.grad(lambda p, b: loss(p, b, variables["batch_stats"], False)[0]), (None, 0))
    expected = alone(variables["params"], jax.tree.map(lambda x: x[:, None], batch))
    for made, one in zip(*map(jax.tree.leaves, (extra["per_example_gradients"], expected)), strict=True):
        np.testing.assert_allclose(made, one, rtol=1e-4, atol=1e-6)


def test_a_random_key_of_two_numbers_is_no_data_of_two_examples():
    loss = lambda w, batch, rng: jnp.mean((batch @ w) ** 2) * jax.random.uniform(rng)  # noqa: E731
    step = ro.value_and_grad(loss, "per_example_gradients")
    made = step(jnp.ones(3), jnp.ones((2, 3)), jax.random.PRNGKey(0))[2]["per_example_gradients"]
    assert made.shape == (2, 3)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "two numbers"])
@pytest.mark.parametrize("name", ["key", "rng", "dropout_key"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_each_example_has_random_numbers_of_its_own(make, name, chunk_size):
    def draw(w, batch, key):
        return jnp.mean((batch @ w) * jax.random.uniform(key, [len(batch)]))

    losses = {
        "key": lambda w, batch, key: draw(w, batch, key),
        "rng": lambda w, batch, rng: draw(w, batch, rng),
        "dropout_key": lambda w, batch, dropout_key: draw(w, batch, dropout_key),
    }
    step = ro.value_and_grad(losses[name], "per_example_gradients", chunk_size=chunk_size)
    batch, key = jnp.ones((8, 3)), make(0)
    calls = [lambda: step(jnp.ones(3), batch, **{name: key})]
    if name != "key":
        calls.append(lambda: step(jnp.ones(3), batch, key))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(8))
    expected = jax.vmap(lambda one: jax.random.uniform(one, [1]))(keys)
    for call in calls:
        made = call()[2]["per_example_gradients"]
        np.testing.assert_allclose(made, np.broadcast_to(expected, (8, 3)), rtol=1e-6)


@pytest.mark.parametrize("name", ["keys", "rngs"])
def test_arrays_of_keys_are_an_examples_own_too(name):
    """Of the layers, not of the examples: as many keys as examples look like data, and are refused."""

    def draw(w, batch, keys):
        return jnp.mean((batch @ w) * jax.random.uniform(keys[1], [len(batch)]))

    losses = {
        "keys": lambda w, batch, keys: draw(w, batch, keys),
        "rngs": lambda w, batch, rngs: draw(w, batch, rngs),
    }
    step, batch = ro.value_and_grad(losses[name], "per_example_gradients"), jnp.ones((8, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    made = step(jnp.ones(3), batch, keys)[2]["per_example_gradients"]
    own = jax.vmap(jax.random.fold_in, (None, 0))(keys[1], jnp.arange(8))
    np.testing.assert_allclose(made[:, 0], jax.vmap(jax.random.uniform)(own), rtol=1e-6)
    with pytest.raises(ValueError, match="further argument 1 of the loss has arrays of 8 rows"):
        step(jnp.ones(3), batch, jax.random.split(jax.random.key(0), 8))


def test_a_stream_of_nnx_keeps_its_own_keys():
    model, batch = nnx.Linear(3, 1, rngs=nnx.Rngs(0)), jnp.ones((4, 3))
    step = ro.value_and_grad(lambda m, b, rngs: jnp.mean(m(b)) * rngs.uniform(), "per_example_gradients")
    for call in (lambda: step(model, batch, nnx.Rngs(0)), lambda: step(model, batch, rngs=nnx.Rngs(0))):
        made = call()[2]["per_example_gradients"]["bias"]
        assert len(set(made.ravel().tolist())) == 4


@pytest.mark.parametrize(
    "labels", [np.array([1, 5], np.uint32), {"y": np.array([1.0, 5.0])}], ids=["uint32", "dict"]
)
def test_labels_beside_something_nested_are_data(labels):
    step = ro.value_and_grad(lambda w, batch, labels, teacher=0: jnp.mean(batch @ w), "per_example_gradients")
    with pytest.raises(ValueError, match="further argument labels of the loss has arrays of 2 rows"):
        step(jnp.ones(3), jnp.ones((2, 3)), labels=labels)
    with pytest.raises(ValueError, match="further argument 1 of the loss has arrays of 2 rows"):
        step(jnp.ones(3), jnp.ones((2, 3)), (np.ones(2), {"aux": np.ones(2)}))


def test_two_numbers_whose_name_only_begins_like_a_key():
    loss = lambda w, batch, keypoints: jnp.mean(batch @ w) * keypoints[0]  # noqa: E731
    step = ro.value_and_grad(loss, "per_example_gradients")
    made = step(jnp.ones(3), jnp.ones((4, 3)), np.array([3, 5], np.uint32))[2]["per_example_gradients"]
    np.testing.assert_allclose(made, 3.0)


def test_two_numbers_that_are_not_called_a_key_are_left_alone():
    loss = lambda w, batch, shape: jnp.mean(batch @ w) * shape[1]  # noqa: E731
    step = ro.value_and_grad(loss, "per_example_gradients")
    made = step(jnp.ones(3), jnp.ones((4, 3)), np.array([5, 7], np.uint32))[2]["per_example_gradients"]
    np.testing.assert_allclose(made, 7.0)


def test_keywords_reach_a_loss_that_takes_any():
    """A decorator without functools.wraps has such a signature too."""

    def loss(w, batch, **options):
        return jnp.mean((batch @ w) ** options.pop("power", 2)) * (3.0 if options.get("train") else 1.0)

    w, batch = jnp.ones(3), jnp.ones((4, 3))
    tx = ro.riemannian_sgd(0.1, phi=ro.phi.online_ewc())
    step = ro.value_and_grad(loss, tx)
    boundary = jnp.asarray(True)
    value, gradients, extra = step(
        w, batch, state=tx.init(w), train=True, power=3, key=jax.random.key(0), task_boundary=boundary
    )
    np.testing.assert_allclose(value, 81.0)
    np.testing.assert_allclose(gradients, 81.0)
    assert extra.keys() == {"per_example_gradients", "task_boundary"}


def test_a_misspelt_argument_of_the_loss_is_told():
    step = ro.value_and_grad(lambda w, batch, **options: jnp.mean(batch @ w) * len(options))
    with pytest.warns(UserWarning, match=r"task_boundry, which no phi of .* reads: is it task_boundary\?"):
        step(jnp.ones(3), jnp.ones((4, 3)), task_boundry=True)
    step = ro.value_and_grad(lambda w, batch, train=False: jnp.mean(batch @ w) * (2.0 if train else 1.0))
    with pytest.warns(UserWarning, match=r"trainn, which loss_fn does not have: is it train\?"):
        step(jnp.ones(3), jnp.ones((4, 3)), trainn=True)


def test_the_loss_and_the_step_may_both_have_a_state():
    def loss(w, batch, state=None):
        return jnp.mean((batch @ w) ** 2) * (1.0 if state is None else state)

    w, batch = jnp.ones(3), jnp.ones((4, 3))
    step = ro.value_and_grad(loss)
    required = ro.value_and_grad(lambda w, batch, state: loss(w, batch, state))
    with pytest.raises(ValueError, match=r"state is an argument of loss_fn, and the step's own name for"):
        required(w, batch, state=jnp.float32(2.0))
    bound = ro.value_and_grad(functools.partial(loss, state=3.0))
    np.testing.assert_allclose(bound(w, batch, state=optax.sgd(0.1).init(w))[0], 27.0)
    value, _, _ = step(w, batch, jnp.float32(2.0), state=optax.sgd(0.1).init(w))
    np.testing.assert_allclose(value, 18.0)
    np.testing.assert_allclose(step(w, batch)[0], 9.0)


def test_the_static_part_of_an_equinox_model_is_no_data():
    model = eqx.nn.MLP(8, 1, 6, 2, key=jax.random.key(0))
    trained, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(trained, batch, static):
        return jnp.mean(jax.vmap(eqx.combine(trained, static))(batch) ** 2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, gradients, extra = ro.value_and_grad(loss, "per_example_gradients")(
            trained, jax.random.normal(jax.random.key(1), (4, 8)), static
        )
    mean = jax.tree.map(lambda g: g.mean(0), extra["per_example_gradients"])
    for one, whole in zip(*map(jax.tree.leaves, (mean, gradients)), strict=True):
        np.testing.assert_allclose(one, whole, rtol=1e-5, atol=1e-7)


def test_two_optimisers_train_what_each_of_them_does():
    model = nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), b=nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    parts = [nnx.All(nnx.Param, nnx.PathContains(name)) for name in ("a", "b")]
    needs = [nnx.Optimizer(model, ro.riemannian_sgd(0.1), wrt=part) for part in parts]
    _, gradients, _ = ro.value_and_grad(lambda m, x: jnp.mean(m.b(m.a(x)) ** 2), needs)(
        model, jnp.ones((4, 2))
    )
    assert set(gradients) == {"a", "b"}


def test_wrt_is_that_of_the_optimiser_that_is_needed():
    class Tuned(nnx.Module):
        def __init__(self, rngs):
            self.base = nnx.Linear(4, 2, rngs=rngs)
            self.lora = nnx.LoRA(4, 2, 2, base_module=self.base, rngs=rngs)

        def __call__(self, x):
            return self.lora(x)

    model, batch = Tuned(nnx.Rngs(0)), jnp.ones((4, 4))
    loss = lambda m, b: jnp.mean((m(b) - 1) ** 2)  # noqa: E731
    optimizer = nnx.Optimizer(model, ro.riemannian_sgd(0.1), wrt=nnx.LoRAParam)
    expected = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, batch)
    filters = ({"needs": optimizer}, {"wrt": nnx.LoRAParam}, {"wrt": nnx.DiffState(0, nnx.LoRAParam)})
    for options in filters:
        gradients = ro.value_and_grad(loss, **options)(model, batch)[1]
        assert jax.tree.structure(gradients) == jax.tree.structure(expected)
        for made, one in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
            np.testing.assert_allclose(made, one, rtol=1e-6)
