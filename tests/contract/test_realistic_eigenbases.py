"""Averages in an eigenbasis against NumPy at realistic sides, given the bases that the state holds."""

import numpy as np
import optax
import pytest

import riemann_optax as ro

from .realistic import (
    DECAY,
    DRAWN,
    FAILED,
    RATE,
    assert_near,
    gradients_of,
    run,
    size,
    some_shapes,
)


def bases_of(state, shape):
    """Return the bases of both sides of the kernel; a side that is left alone has the identity."""

    def matrix(basis, size):
        alone = isinstance(basis["kernel"], optax.MaskedNode)
        return np.eye(size) if alone else np.asarray(basis["kernel"], np.float64)[0]

    return matrix(state.left_bases, shape[0]), matrix(state.right_bases, shape[1])


class Turned:
    """A NumPy replay in the bases of the state: what is asked is not where they point, but what follows."""

    def __init__(self, shape):
        self.shape = shape
        self.left, self.right = np.eye(shape[0]), np.eye(shape[1])
        self.factors = {"left": 0.0, "right": 0.0}

    def enter(self, gradient, state, first):
        """Return the gradient in the bases in use; the first come from the first gradient."""
        if first:
            self.left, self.right = bases_of(state, self.shape)
        turned = self.left.T @ gradient @ self.right
        if first:  # what the basis cannot resolve is 0
            limit = np.sqrt(np.finfo(np.float32).eps) * np.abs(turned).max()
            turned = np.where(np.abs(turned) <= limit, 0, turned)
        return turned

    def leave(self, step):
        return self.left @ step @ self.right.T

    def change(self, state):
        """Take the bases after a refresh and return how coordinates change on both sides."""
        old = self.left, self.right
        self.left, self.right = bases_of(state, self.shape)
        for basis in (self.left, self.right):
            np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-5)
        return old[0].T @ self.left, old[1].T @ self.right


SIDES = {
    **dict.fromkeys(FAILED, ("smaller", "both")),
    (64, 48): ("both",),
    (48, 100): ("smaller", "both"),
    **dict.fromkeys(DRAWN, ("smaller",)),
    (37, 173): ("input", "output", "both"),
}
each_side = pytest.mark.parametrize(
    ("shape", "sides"),
    [(shape, sides) for shape, choices in SIDES.items() for sides in choices],
    ids=lambda value: value if isinstance(value, str) else size(value),
)


@each_side
def test_factored_metric_in_an_eigenbasis(shape, sides):
    """Second moments of rows and columns are mixed by the squares of the change of basis, nothing else."""
    metric = ro.compute_metric(ro.phi.factored_activity(decay=DECAY), 3.0)
    inner = optax.chain(metric, ro.scale_by_inverse_metric())
    tx = optax.chain(ro.in_eigenbasis(inner, sides=sides, update_every=2), optax.scale(-RATE))
    frame = Turned(shape)
    rows, columns = np.zeros((shape[0], 1)), np.zeros((1, shape[1]))
    changed = 0
    history = zip(run(tx, shape), gradients_of(shape), strict=True)
    for t, ((updates, (state, _)), gradient) in enumerate(history):
        turned = frame.enter(gradient, state, t == 0)
        rows = DECAY * rows + (1 - DECAY) * (turned**2).mean(axis=1, keepdims=True)
        columns = DECAY * columns + (1 - DECAY) * (turned**2).mean(axis=0, keepdims=True)
        r, c = (v / (1 - DECAY ** (t + 1)) for v in (rows, columns))
        expected = -RATE * frame.leave(turned / (1 + 3 * np.sqrt(r * c / r.mean())))
        assert_near(updates["kernel"], expected)
        left, right = frame.change(state)
        changed += any(np.abs(matrix - np.eye(len(matrix))).max() > 1e-3 for matrix in (left, right))
        rows, columns = (left**2).T @ rows, columns @ right**2
        assert_near(optax.tree.get(state.inner, "rows")["kernel"], rows)
        assert_near(optax.tree.get(state.inner, "columns")["kernel"], columns)
    assert changed >= 1  # a refresh has come


@pytest.mark.parametrize(
    ("shape", "sides"), [((100, 50), "both"), ((48, 128), "smaller"), ((37, 173), "output")], ids=str
)
def test_momentum_and_second_moments_in_an_eigenbasis(shape, sides):
    """Adam inside: the first moment is turned as a vector, the second mixed by squares."""
    tx = optax.chain(
        ro.in_eigenbasis(optax.scale_by_adam(b1=0.8, b2=DECAY, eps=0.1), sides=sides, update_every=2),
        optax.scale(-RATE),
    )
    frame = Turned(shape)
    mu, nu = np.zeros(shape), np.zeros(shape)
    history = zip(run(tx, shape), gradients_of(shape), strict=True)
    for t, ((updates, (state, _)), gradient) in enumerate(history):
        turned = frame.enter(gradient, state, t == 0)
        mu, nu = 0.8 * mu + 0.2 * turned, DECAY * nu + (1 - DECAY) * turned**2
        step = mu / (1 - 0.8 ** (t + 1)) / (np.sqrt(nu / (1 - DECAY ** (t + 1))) + 0.1)
        assert_near(updates["kernel"], -RATE * frame.leave(step), 1e-3)
        left, right = frame.change(state)
        mu, nu = left.T @ mu @ right, (left**2).T @ nu @ right**2
        assert_near(state.inner.mu["kernel"], mu)
        assert_near(state.inner.nu["kernel"], nu)


@some_shapes
def test_factors_and_bases_are_those_of_the_gradients(shape):
    """Factors are running means of G G^T and G^T G; the first bases make the first of them diagonal."""
    tx = ro.in_eigenbasis(optax.identity(), decay=DECAY, update_every=2)
    factors = [0.0, 0.0]
    for t, ((_, state), g) in enumerate(zip(run(tx, shape), gradients_of(shape), strict=True)):
        factors = [DECAY * f + (1 - DECAY) * c for f, c in zip(factors, (g @ g.T, g.T @ g), strict=True)]
        for side, factor in zip(("left", "right"), factors, strict=True):
            assert_near(getattr(state, f"{side}_factors")["kernel"][0], factor, 1e-5)
            if t == 0:
                basis = np.asarray(getattr(state, f"{side}_bases")["kernel"][0], np.float64)
                diagonal = basis.T @ factor @ basis
                assert_near(diagonal, np.diag(np.sort(np.diag(diagonal))[::-1]), 1e-5)
