"""KL-Shampoo and KL-SOAP against the paper's equations, written out in NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.shared.kl_factors import kl_factors
from tests.walk import walk

RATE, B1, B2, EPS, DECAY, EVERY = 0.1, 0.9, 0.8, 1e-3, 0.1, 3


def roots(values):
    """One over the roots of eigenvalues, clamped as published; the eigenvalue kept is the clamped one's."""
    return np.minimum(1 / np.sqrt(values), max(10, min(len(values), 4000)))


def floored(values):
    return np.maximum(values, 1e-6 * values.mean())


def replay(gradients, start, second_moment=False, nesterov=False, scale_free=False, eps=EPS):
    w = start
    rows, columns = w.shape
    m = v = np.zeros_like(w)
    path = []
    for t, g in enumerate(gradients):
        step = np.zeros_like(w)
        if t == 0:
            s_a, s_b = (1 - B2) * g @ g.T / columns, (1 - B2) * g.T @ g / rows
            q_a, q_b = (np.linalg.eigh(s)[1][:, ::-1] for s in (s_a, s_b))
            size = np.sqrt(np.mean(g**2)) if scale_free else 0.1
            r_a, r_b = np.full(rows, size**-0.5), np.full(columns, size**-0.5)
            if scale_free:  # B is size * 1 where A is estimated first
                s_a, s_b = s_a / size, s_b / size
        else:
            h = q_a.T @ g @ q_b
            m = B1 * m + (1 - B1) * g
            ahead = q_a.T @ (B1 * m + (1 - B1) * g if nesterov else m) @ q_b
            if second_moment:
                v = B2 * v + (1 - B2) * h**2
                step = q_a @ (ahead / (np.sqrt(v) + eps)) @ q_b.T
            else:
                root = np.outer(r_a, r_b)
                step = q_a @ (ahead * root / (1 + eps * root)) @ q_b.T
            half_a, half_b = g @ q_b @ np.diag(r_b), np.diag(r_a) @ q_a.T @ g
            s_a = B2 * s_a + (1 - B2) * half_a @ half_a.T / columns
            s_b = B2 * s_b + (1 - B2) * half_b.T @ half_b / rows
            kept = B2 * (1 - B2 ** (t - 1)) / (1 - B2**t) if scale_free else B2
            new_a = kept / r_a**2 + (1 - kept) * np.mean((h * r_b) ** 2, axis=1)
            new_b = kept / r_b**2 + (1 - kept) * np.mean((h * r_a[:, None]) ** 2, axis=0)
            if scale_free:
                r_a, r_b = floored(new_a) ** -0.5, floored(new_b) ** -0.5
            else:
                r_a, r_b = roots(new_a), roots(new_b)
            if t % EVERY == 0:
                q_a, q_b = (np.linalg.qr(s @ q)[0] for s, q in ((s_a, q_a), (s_b, q_b)))
        w = w - RATE * (step + DECAY * w)
        path.append(w)
    return np.stack(path)


@pytest.fixture(scope="module")
def problem():
    """A matrix, one whose gradients are so small that eigenvalues reach their floor, a stack and a bias."""
    random = np.random.default_rng(0)
    start = {
        "dense": {"kernel": random.standard_normal((5, 4)), "bias": random.standard_normal(4)},
        "still": {"kernel": random.standard_normal((3, 4))},
        "layers": {"kernel": random.standard_normal((2, 4, 3))},
    }

    def correlated(x, path):
        size = 1e-4 if "still" in str(path) else 1.0
        mixed = random.standard_normal((x.shape[0] if x.ndim == 1 else x.shape[-2],) * 2)
        return size * np.stack([mixed @ random.standard_normal(x.shape) for _ in range(20)])

    return start, jax.tree.map_with_path(lambda path, x: correlated(x, path), start)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("second_moment", [False, True])
def test_they_are_the_published_algorithm(problem, second_moment, nesterov):
    """Twenty steps with six refreshes; a stack is two matrices, and a vector has Adam's steps."""
    start, gradients = problem
    tx = kl_factors(
        RATE,
        B1,
        B2,
        EPS,
        weight_decay=DECAY,
        second_moment=second_moment,
        nesterov=nesterov,
        precondition_frequency=EVERY,
    )
    with jax.enable_x64(True):
        path = walk(tx, gradients, start)
        adamw = optax.nadamw if nesterov else optax.adamw
        bias = walk(
            adamw(RATE, B1, B2, EPS, weight_decay=DECAY), gradients["dense"]["bias"], start["dense"]["bias"]
        )

    def assert_follows(actual, gradients, start):
        np.testing.assert_allclose(
            actual, replay(gradients, start, second_moment, nesterov), rtol=1e-9, atol=1e-11
        )

    for name in ("dense", "still"):
        assert_follows(path[name]["kernel"], gradients[name]["kernel"], start[name]["kernel"])
    for layer in range(2):
        each = (tree["layers"]["kernel"] for tree in (path, gradients))
        actual, own = (array[:, layer] for array in each)
        assert_follows(actual, own, start["layers"]["kernel"][layer])
    np.testing.assert_allclose(path["dense"]["bias"], bias, rtol=1e-12)


def test_the_scale_free_form_is_its_equations_and_knows_no_units(problem):
    start, gradients = (tree["dense"]["kernel"] for tree in problem)
    tx = kl_factors(RATE, B1, B2, 0.0, weight_decay=DECAY, precondition_frequency=EVERY, scale_free=True)
    with jax.enable_x64(True):
        path, other = (np.asarray(walk(tx, scale * gradients, start)) for scale in (1.0, 1e-4))
    expected = replay(gradients, start, scale_free=True, eps=0.0)
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(other, expected, rtol=1e-8, atol=1e-10)


def test_without_a_second_moment_there_is_no_state_of_that_kind():
    params = {"kernel": jnp.zeros([64, 64])}

    def values_per_weight(**options):
        state = jax.eval_shape(kl_factors(0.1, **options).init, params)
        return sum(leaf.size for leaf in jax.tree.leaves(state)) / 64**2

    assert values_per_weight() == pytest.approx(5, abs=0.05)  # mean, two factors, two bases
    assert values_per_weight(second_moment=True) == pytest.approx(6, abs=0.05)
