"""Every phi on a model of each library, by changing one word."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import riemann_optax as ro
from riemann_optax.examples.train.phis import PHIS

from . import models

NEEDY = [name for name, phi in PHIS.items() if set(getattr(phi.factory(), "needs", ())) - {"task_boundary"}]


def make_phi(name, case):
    """The phi of a name, told how the library lays out its arrays."""
    factory = getattr(ro.phi, name, None)
    if factory is not None and "axes" in inspect.signature(factory).parameters:
        return factory(axes=case.axes)
    return PHIS[name].factory()


def optimiser(name, case):
    return ro.riemannian_sgd(
        0.01, phi=make_phi(name, case), alpha=PHIS[name].alpha, conformal=None, momentum=None
    )


def nnx_step(case, name):
    """A training step of Flax NNX, as a pure function, and its first state."""
    model = case.make()
    optimizer = nnx.Optimizer(model, optimiser(name, case), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))
    step = ro.value_and_grad(case.loss, needs=optimizer.tx, samples=2, **case.options)

    def train(state, number):
        model, optimizer = nnx.merge(graph, state)
        value, gradients, extra = step(model, case.batch, state=optimizer, task_boundary=number == 1)
        optimizer.update(model, gradients, **extra)
        return nnx.state((model, optimizer)), value

    return train, state


def tree_step(case, name):
    """A training step of a tree, and its first state."""
    model, tx = case.make(), optimiser(name, case)
    params = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else None, model)
    others = jax.tree.map(lambda leaf: None if isinstance(leaf, jax.Array) else leaf, model)
    step = ro.value_and_grad(case.loss, needs=tx, samples=2, **case.options)

    def train(carry, number):
        params, state = carry
        model = jax.tree.map(
            lambda p, o: o if p is None else p, params, others, is_leaf=lambda leaf: leaf is None
        )
        key = {"key": jax.random.fold_in(jax.random.key(0), number)} if case.key else {}
        value, gradients, extra = step(model, case.batch, state=state, task_boundary=number == 1, **key)
        updates, state = tx.update(gradients, state, params, **extra)
        return (optax.apply_updates(params, updates), state), value

    return train, (params, tx.init(params))


def step_of(library, name):
    case = models.CASES[library]
    return (nnx_step if library == "nnx" else tree_step)(case, name)


@pytest.mark.parametrize("library", models.CASES)
@pytest.mark.parametrize("phi", PHIS)
def test_every_phi_on_every_model(phi, library):
    """Traced: nothing is missing, and the state stays what it is. What comes of it is compiled below."""
    train, state = step_of(library, phi)
    after, value = jax.eval_shape(train, state, jnp.array(0))
    assert value.shape == ()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


# Each of the phis that read more than the gradient on one of the models, in turn.
TURNS = [(name, list(models.CASES)[index % 4]) for index, name in enumerate(NEEDY)]


@pytest.mark.parametrize(("phi", "library"), TURNS)
def test_training(phi, library):
    """Compiled in one scan: the weights stay finite, and the loss falls."""
    train, state = step_of(library, phi)
    after, values = jax.jit(lambda state: jax.lax.scan(train, state, jnp.arange(30)))(state)
    values = np.asarray(values)
    assert np.isfinite(values).all()
    assert values[-5:].mean() < values[:5].mean()
    for leaf in jax.tree.leaves(after):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert jnp.isfinite(leaf).all()
