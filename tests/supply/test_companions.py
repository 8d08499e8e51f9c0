"""Modules beside the model: what nnx.value_and_grad does with them, value_and_grad does too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.testing import check_examples


class Changing(nnx.Module):
    """Its statistics and its random numbers change with each call."""

    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


X = jnp.arange(32.0).reshape(8, 4) / 32


def modules():
    return nnx.Linear(4, 4, rngs=nnx.Rngs(0)), Changing(nnx.Rngs(1))


def loss(model, x, other):
    return jnp.mean((model(x) - other(x)) ** 2)


def of_any_order(model, other, x):
    return loss(model, x, other)


def in_a_tuple(model, x, others):
    return loss(model, x, others["critic"][0])


GIVEN = {
    "further": (loss, lambda other: (X, other)),
    "second": (of_any_order, lambda other: (other, X)),
    "nested": (in_a_tuple, lambda other: (X, {"critic": (other, 1.0)})),
}


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("compile_it", [lambda f: f, nnx.jit], ids=["eager", "nnx.jit"])
@pytest.mark.parametrize("given", GIVEN)
def test_a_module_beside_the_model_changes_as_under_nnx(given, compile_it):
    loss_fn, arguments = GIVEN[given]
    results = []
    for differentiate in (nnx.value_and_grad, ro.value_and_grad):
        model, other = modules()

        def step(model, other, differentiate=differentiate):
            return differentiate(loss_fn)(model, *arguments(other))[:2]

        found = [compile_it(step)(model, other) for _ in range(2)]
        results.append((found, nnx.state(other)))
    same(*results)


def test_several_evaluations_of_a_step_are_one_call_of_it():
    """At a rate of 0 the weights stay, and the gradient there is the same: with the same masks."""
    model, other = modules()
    tx = nnx.Optimizer(model, ro.riemannian_sgd(0.0, phi=ro.phi.secant_curvature()), wrt=nnx.Param)
    step = ro.value_and_grad(loss, needs=tx)
    for _ in range(2):
        calls = int(other.dropout.rngs.count[...])
        _, gradients, extra = step(model, X, other=other, state=tx)
        tx.update(model, gradients, **extra)
    assert int(other.dropout.rngs.count[...]) == calls + 1
    same(extra["gradients_at_previous_params"], gradients)


def test_a_module_that_nothing_changes_may_come_from_outside_of_jit():
    model, teacher = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    graph, params = nnx.split(model)

    @jax.jit
    def step(params):
        return ro.value_and_grad(loss)(nnx.merge(graph, params), X, teacher)[0]

    np.testing.assert_allclose(step(params), loss(model, X, teacher), rtol=1e-6)
    assert not isinstance(teacher.kernel[...], jax.core.Tracer)


def test_single_examples_meet_the_whole_module_beside_them():
    """Its kernel has as many rows as the batch has examples, and is no data."""
    model, teacher = nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (8, 8))
    found = ro.value_and_grad(loss, needs="per_example_gradients")(model, x, teacher)
    each = [nnx.grad(loss)(model, x[n : n + 1], teacher)["kernel"][...] for n in range(8)]
    np.testing.assert_allclose(
        found[2]["per_example_gradients"]["kernel"], jnp.stack(each), rtol=1e-5, atol=1e-6
    )


def test_a_linen_loss_may_be_given_a_module_of_nnx():
    other = Changing(nnx.Rngs(1))
    before = other.norm.mean[...]
    _, gradients, _ = ro.value_and_grad(lambda w, x, other: jnp.mean((x @ w - other(x)) ** 2))(
        jnp.ones([4, 4]), X, other
    )
    assert gradients.shape == (4, 4)
    assert (other.norm.mean[...] != before).any()
    assert optax.tree.norm(gradients) > 0


def with_others(model, x, rngs, metric, seen):
    value = jnp.mean((model(x) + rngs.noise.normal(())) ** 2)
    metric.update(values=value)
    seen[...] += 1
    return value


@pytest.mark.parametrize("beside", [True, False], ids=["with a critic", "alone"])
def test_random_numbers_metrics_and_variables_go_on_as_under_nnx(beside):
    results = []
    for differentiate in (nnx.value_and_grad, ro.value_and_grad):
        model, critic = modules()
        rngs, metric, seen = nnx.Rngs(noise=3), nnx.metrics.Average(), nnx.BatchStat(jnp.zeros(()))

        def loss_fn(model, x, rngs, metric, seen, critic=None):
            return with_others(model, x, rngs, metric, seen) + (
                0 if critic is None else loss(model, x, critic)
            )

        given = (X, rngs, metric, seen, *([critic] if beside else []))
        values = [float(differentiate(loss_fn)(model, *given)[0]) for _ in range(3)]
        results.append((jnp.asarray(values), metric.compute(), rngs.noise.count[...], seen[...]))
    same(*results)


class Head(nnx.Module):
    def __init__(self, shared, seed):
        self.shared, self.out = shared, nnx.Linear(4, 1, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.out(self.shared(x))


@pytest.mark.parametrize(
    "make", [lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(5)), lambda: nnx.BatchNorm(4, rngs=nnx.Rngs(5))]
)
def test_what_two_modules_share_they_share_in_a_step(make):
    results = []
    for differentiate in (nnx.value_and_grad, ro.value_and_grad):
        shared, model = make(), nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        found = differentiate(lambda m, x, a, b: jnp.mean(a(m(x)) ** 2) + jnp.mean(b(2 * m(x) + 1) ** 2))(
            model, X, Head(shared, 1), Head(shared, 2)
        )
        results.append((found[0], found[1], nnx.state(shared)))
    same(*results)


@pytest.mark.parametrize("whole", [True, False], ids=["the model itself", "a part of it"])
def test_a_module_that_shares_weights_with_the_model_is_refused(whole):
    encoder = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    actor = Head(encoder, 1)
    with pytest.raises(ValueError, match=r"shares variables with the model.*put both into one model"):
        ro.value_and_grad(lambda a, x, c: jnp.mean(a(x) ** 2) + jnp.mean(c(x) ** 2))(
            actor, X, actor if whole else Head(encoder, 2)
        )


def test_batch_norm_beside_the_model_mixes_examples_too():
    need, critic = "per_example_gradients", Head(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), 1)
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(2))
    together = nnx.Dict(model=nnx.clone(model), critic=nnx.clone(critic))  # before its statistics change

    def loss_fn(model, x, critic):
        return jnp.mean(critic(model(x)) ** 2)

    with pytest.raises(ValueError, match=r"BatchNorm \(0.shared\), which mixes the examples"):
        ro.value_and_grad(loss_fn, need)(model, X, critic)
    found = ro.value_and_grad(loss_fn, need, statistics="running")(model, X, critic)[2][need]
    as_one = ro.value_and_grad(lambda m, x: loss_fn(m.model, x, m.critic), need, statistics="running")
    np.testing.assert_allclose(found["kernel"], as_one(together, X)[2][need]["model"]["kernel"], rtol=1e-6)
    assert jnp.abs(found["kernel"]).max() > 0


def test_a_dictionary_of_modules_is_a_model():
    results = []
    for differentiate in (nnx.value_and_grad, ro.value_and_grad):
        model, other = modules()
        nets = {"a": model, "b": other}
        for _ in range(2):
            found = differentiate(lambda nets, x: loss(nets["a"], x, nets["b"]))(nets, X)[:2]
        results.append((found, nnx.state(other)))
    same(*results)


def test_arguments_that_are_no_tree_of_jax_are_left_as_they_are():
    value, _, _ = ro.value_and_grad(lambda w, x, table: jnp.sum(x @ w) * table[1] * table["a"])(
        jnp.ones(4), jnp.ones([2, 4]), {1: 1.0, "a": 2.0}
    )
    assert value == 16.0


def test_checking_examples_leaves_a_module_beside_the_model_as_it_was():
    """Its kernel has as many rows as the batch has examples, and is no data; its dropout is on."""
    model, critic = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 1, rngs=nnx.Rngs(1))
    check_examples(lambda m, x, c: jnp.mean(c(m(x)) ** 2), model, X, critic)
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(2))
    with pytest.raises(AssertionError, match="dropout is on"):
        check_examples(lambda m, x, d: jnp.mean(d(m(x)) ** 2), model, X, dropout)
    assert int(dropout.rngs.count[...]) == 0


def test_each_example_has_a_mask_of_its_own_in_a_module_beside_the_model_too():
    model, dropout = nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(2))
    step = ro.value_and_grad(lambda m, x, d: jnp.mean(d(m(x)) ** 2), needs="per_example_gradients")
    found = step(model, jnp.ones([6, 4]), dropout)[2]["per_example_gradients"]["kernel"]
    assert len({tuple(row) for row in np.asarray(found[:, 0] != 0)}) > 1
