"""What in_eigenbasis has to be: SOAP with Adam inside, blind to a turn of the problem, nothing where idle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .. import as_users


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def path_of(tx, loss, params, steps, **extra_args):
    """Return the parameters after each step on a deterministic loss."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


def run(tx, loss, params, steps, **extra_args):
    """Return that path of a compiled run."""
    return as_users.jit(lambda p: path_of(tx, loss, p, steps, **extra_args))(params)


def orthogonal(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def conformal(alpha=30.0):
    return ro.scale_by_metric(ro.phi.activity(decay=0.9), alpha, conformal="tree")


def soap(gradients, rate, b1, b2, eps, decay, every, slots, settling=0):
    """Algorithms 3 and 4 of Vyas et al. 2024 with bias correction, and with their code's sorted columns.

    The first bases are the eigenvectors of the first gradient's correlations, as in their code; a side is
    refreshed where the step is its slot modulo ``every``; the first step is taken. Until the step
    ``settling`` the distance of the refreshes grows in proportion to the step, by whole steps from 1.
    """
    rows, columns = gradients[0].shape
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    m = v = w = np.zeros((rows, columns))
    path = []
    for t, g in enumerate(gradients):
        left = decay * left + (1 - decay) * g @ g.T
        right = decay * right + (1 - decay) * g.T @ g
        if t == 0:
            q_left = np.linalg.eigh(left)[1][:, ::-1]
            q_right = np.linalg.eigh(right)[1][:, ::-1]
        turned = q_left.T @ g @ q_right
        if t == 0:
            turned = np.where(abs(turned) > 1.5e-8 * abs(turned).max(), turned, 0)  # what is rounding
        m = b1 * m + (1 - b1) * (g if t else q_left @ turned @ q_right.T)  # in the original coordinates
        v = b2 * v + (1 - b2) * turned**2
        scale = np.sqrt(v / (1 - b2 ** (t + 1))) + eps
        turned_m = q_left.T @ m @ q_right if t else (1 - b1) * turned
        step = turned_m / (1 - b1 ** (t + 1)) / scale
        w = w - rate * q_left @ step @ q_right.T
        path.append(w)
        distance = max(1, every * t // settling) if t < settling else every
        if t and t % distance == slots[0] % distance:
            order = np.argsort(-np.diag(q_left.T @ left @ q_left), kind="stable")
            q_left, v = np.linalg.qr(left @ q_left[:, order])[0], v[order]
        if t and t % distance == slots[1] % distance:
            order = np.argsort(-np.diag(q_right.T @ right @ q_right), kind="stable")
            q_right, v = np.linalg.qr(right @ q_right[:, order])[0], v[:, order]
    return path


@pytest.mark.parametrize(("every", "settling"), [(3, 0), (3, 30), (4, 50)])
def test_with_adam_inside_it_is_soap(every, settling):
    random = np.random.default_rng(0)
    scales = np.geomspace(0.5, 2, 5)[:, None] * np.geomspace(0.7, 1, 4)
    gradients = [orthogonal(1, 5) @ (scales * random.standard_normal((5, 4))) for _ in range(60)]
    tx = optax.chain(
        ro.in_eigenbasis(
            optax.scale_by_adam(b1=0.9, b2=0.95),
            decay=0.8,
            update_every=every,
            settling_steps=settling,
            second_moments="keep",
        ),
        optax.scale_by_learning_rate(0.1),
    )

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = params + updates
        return (params, state), params

    start = jnp.zeros([5, 4])
    _, path = as_users.jit(lambda g: jax.lax.scan(step, (start, tx.init(start)), g))(jnp.array(gradients))
    expected = soap(gradients, 0.1, 0.9, 0.95, 1e-8, 0.8, every, (0, 1), settling)
    np.testing.assert_allclose(path, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("inner", "second_moments"),
    [
        (lambda: optax.scale_by_adam(b2=0.9), "keep"),
        (lambda: optax.chain(conformal(), optax.trace(0.9, nesterov=True)), "mix"),
    ],
    ids=["adam", "conformal"],
)
def test_turning_the_problem_turns_the_trajectory(inner, second_moments):
    a, b = orthogonal(2, 4), orthogonal(3, 3)
    target = np.random.default_rng(4).standard_normal((4, 3))
    weights = np.geomspace(1, 8, 12).reshape(4, 3)
    tx = optax.chain(
        ro.in_eigenbasis(inner(), update_every=2, second_moments=second_moments),
        optax.scale_by_learning_rate(0.01),
    )

    @as_users.jit
    def turned_by(a, b):
        def loss(w):
            return jnp.sum(weights * jnp.cosh(a.T @ w @ b.T - target))

        return path_of(tx, loss, jnp.zeros([4, 3]), 40)

    path, turned = turned_by(jnp.eye(4), jnp.eye(3)), turned_by(a, b)
    assert np.abs(path[-1]).max() > 0.1
    np.testing.assert_allclose(turned, a @ path @ b, rtol=1e-6, atol=1e-8)


def quadratic(a, b, target):
    return lambda w: 0.5 * jnp.sum((w - target) * (a @ (w - target) @ b))


def settled(tx, state, a, b, target):
    """Show the factors many gradients of a quadratic, at weights drawn at random, until the bases settle."""
    random = np.random.default_rng(5)
    gradients = a @ (random.standard_normal((300, *target.shape)) - target) @ b

    def step(state, gradient):
        return tx.update(gradient, state, jnp.zeros_like(target), obj_fn=jnp.sum)[1], None

    return as_users.jit(lambda state, g: jax.lax.scan(step, state, g)[0])(state, jnp.array(gradients))


def test_a_quadratic_with_a_kronecker_hessian_is_taken_as_the_diagonal_one():
    """In the eigenvectors of both factors the Hessian is diagonal, and Hutchinson's phi exact: one step."""
    q, r = orthogonal(6, 4), orthogonal(7, 3)
    a, b = q @ np.diag([1.0, 3, 9, 27]) @ q.T, r @ np.diag([1.0, 4, 16]) @ r.T
    target = np.random.default_rng(8).standard_normal((4, 3))
    metric = optax.chain(
        ro.compute_metric(ro.phi.hutchinson_curvature(decay=0.0), 1e9), ro.scale_by_inverse_metric()
    )
    tx = optax.chain(ro.in_eigenbasis(metric, update_every=10**6), optax.scale_by_learning_rate(1e9))
    start = jnp.zeros([4, 3])
    loss = quadratic(a, b, target)
    state = tx.init(start)
    exact = state[0]._replace(
        count=jnp.ones_like(state[0].count), left_bases=jnp.array(q)[None], right_bases=jnp.array(r)[None]
    )
    updates, _ = as_users.jit(lambda g, s, p: tx.update(g, s, p, obj_fn=loss))(
        jax.grad(loss)(start), (exact, *state[1:]), start
    )
    np.testing.assert_allclose(start + updates, target, rtol=1e-6)


def test_the_bases_of_a_kronecker_hessian_are_found():
    """The correlations of gradients at random weights are those of the factors of the Hessian, squared."""
    q, r = orthogonal(6, 4), orthogonal(7, 3)
    a, b = q @ np.diag([1.0, 3, 9, 27]) @ q.T, r @ np.diag([1.0, 4, 16]) @ r.T
    tx = ro.in_eigenbasis(optax.identity(), decay=0.99, update_every=5)
    state = settled(tx, tx.init(jnp.zeros([4, 3])), a, b, np.zeros((4, 3)))
    for basis, true in ((state.left_bases, q), (state.right_bases, r)):
        overlap = np.abs(true[:, ::-1].T @ basis[0])
        np.testing.assert_allclose(overlap, np.eye(len(true)), atol=0.15)


def gradients_of(params, step):
    return jax.tree.map(lambda p: jnp.sin(p * 3 + step), params)


@pytest.mark.parametrize("options", [{"sides": "none"}, {"max_size": 2}])
def test_where_no_side_has_a_basis_it_is_inner_bit_for_bit(options):
    params = {"b": jnp.arange(4.0), "w": jnp.arange(12.0).reshape(4, 3)}
    inner = optax.chain(conformal(), optax.trace(0.9))
    tx = ro.in_eigenbasis(inner, **options)
    state, inner_state = tx.init(params), inner.init(params)
    for step in range(3):
        updates, state = tx.update(gradients_of(params, step), state, params)
        expected, inner_state = inner.update(gradients_of(params, step), inner_state, params)
        chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_equal(state.inner, inner_state)


def test_in_the_basis_that_it_has_already_it_is_inner_bit_for_bit():
    """Gradients of independent entries, the largest first, have the identity for eigenvectors."""
    inner = optax.scale_by_adam()
    tx = ro.in_eigenbasis(inner, update_every=2)
    params = jnp.zeros([3, 3])
    state, inner_state = tx.init(params), inner.init(params)
    update = as_users.jit(tx.update)
    for step in range(6):
        gradient = jnp.diag(jnp.array([9.0, 3, 1])) * (1 + 0.1 * step)
        updates, state = update(gradient, state, params)
        expected, inner_state = inner.update(gradient, inner_state, params)
        np.testing.assert_allclose(updates, expected, rtol=1e-14, atol=0)


def test_mixing_keeps_what_averages_mean():
    """A turn carries momentum as a vector, and second moments as variances of independent coordinates."""
    params = jnp.zeros([3, 2])
    inner = optax.scale_by_adam(b1=0.9, b2=0.9)
    tx = ro.in_eigenbasis(inner, decay=0.5, update_every=1)
    random = np.random.default_rng(9)
    state = tx.init(params)
    update = as_users.jit(tx.update)
    momentum = np.zeros((3, 2))
    for _ in range(5):
        gradient = random.standard_normal((3, 2))
        before = state
        _, state = update(jnp.array(gradient), state, params)
        momentum = 0.9 * momentum + 0.1 * gradient
    q, r = state.left_bases[0], state.right_bases[0]
    np.testing.assert_allclose(q @ state.inner.mu @ r.T, momentum, rtol=1e-12)
    q_old, r_old = before.left_bases[0], before.right_bases[0]
    in_old = 0.9 * before.inner.nu + 0.1 * (q_old.T @ gradient @ r_old) ** 2
    expected = ((q.T @ q_old) ** 2) @ in_old @ ((r_old.T @ r) ** 2)
    np.testing.assert_allclose(state.inner.nu, expected, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(state.inner.nu), jnp.sum(in_old), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32], ids=lambda dtype: dtype.__name__)
def test_the_rounding_of_a_narrow_gradient_is_not_made_a_step_of(dtype):
    """One example's gradient has rank one; Adam would blow what rounding adds to it up to a whole step."""
    random = np.random.default_rng(3)
    gradient = jnp.asarray(np.outer(random.standard_normal(40), random.standard_normal(24)), dtype)
    tx = ro.in_eigenbasis(optax.scale_by_adam())
    updates, _ = as_users.jit(tx.update)(gradient, tx.init(gradient))
    assert updates.dtype == dtype
    sizes = np.linalg.svd(np.asarray(updates, np.float64), compute_uv=False)
    np.testing.assert_allclose(sizes[0], 1, rtol=0.01)
    assert sizes[1] < 0.05  # the result is rounded too
