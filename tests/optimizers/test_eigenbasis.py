"""riemannian_eigenbasis against NumPy in float64, and the state that it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro
from riemann_optax.examples import data, models
from tests.walk import walk

RATE, B1, B2, EPS, DECAY, BASIS_DECAY, ALPHA = 0.03, 0.8, 0.9, 1e-3, 0.1, 0.7, 50.0
EVERY, SETTLING = 4, 24


def by_hand(
    gradients,
    start,
    nesterov,
    b1=B1,
    decay=DECAY,
    basis_decay=BASIS_DECAY,
    every=EVERY,
    settling=SETTLING,
    factored=False,
    share=1.0,
    tempered=True,
):
    """One matrix with fewer rows than columns: momentum lives in the axes of the weights here.

    Factored is the phi of the schedule-free form: row times column, and steps are bounded.
    """
    w = start
    rows, columns = w.shape
    factor, basis = np.zeros((rows, rows)), None
    mean, squares = np.zeros_like(w), np.zeros_like(w)
    row_means, column_means = np.zeros(rows), np.zeros(columns)
    path = []
    for t, g in enumerate(gradients, 1):
        lines = g / np.mean(g**2, axis=0) ** 0.25 if tempered else g
        factor = basis_decay * factor + (1 - basis_decay) * lines @ lines.T
        if basis is None:
            basis = np.linalg.eigh(factor)[1][:, ::-1]
        mean = b1 * mean + (1 - b1) * g
        ahead = mean / (1 - b1**t)
        if nesterov:
            ahead = b1 * mean / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        turned, turned_mean = basis.T @ g, basis.T @ ahead
        seen = share * turned**2 + (1 - share) * turned_mean**2
        row_means = B2 * row_means + (1 - B2) * np.mean(seen, axis=1)
        column_means = B2 * column_means + (1 - B2) * np.mean(seen, axis=0)
        squares = B2 * squares + (1 - B2) * seen
        known = np.outer(row_means, column_means) / np.mean(row_means) if factored else squares
        phi = np.sqrt(known / (1 - B2**t))
        metric = (phi.mean() + ALPHA * phi) / (1 + ALPHA) + EPS
        if factored:
            metric = np.maximum(metric, np.sqrt(1 - B2) * np.abs(turned))
        w = w - RATE * (basis @ (turned_mean / metric) + decay * w)
        path.append(w)
        distance = max(1, min(t - 1, settling) * every // settling)
        if t > 1 and (t - 1) % distance == 0:
            order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
            new = np.linalg.qr(factor @ basis[:, order])[0]
            mixing = (new.T @ basis) ** 2
            squares, row_means, basis = mixing @ squares, mixing @ row_means, new
    return path


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_by_hand_with_momentum_in_the_axes_of_the_weights(nesterov, share):
    """Momentum in the frame, turned with the basis, is momentum outside of it."""
    random = np.random.default_rng(0)
    start, mixed = random.standard_normal((4, 6)), random.standard_normal((4, 4))
    gradients = np.stack([mixed @ random.standard_normal((4, 6)) for _ in range(40)])
    tx = ro.riemannian_eigenbasis(
        RATE,
        B1,
        B2,
        EPS,
        weight_decay=DECAY,
        alpha=ALPHA,
        nesterov=nesterov,
        gradient_share=share,
        basis_decay=BASIS_DECAY,
        mu_dtype=None,
        nu_dtype=None,
        basis_dtype=None,
        update_every=EVERY,
        settling_steps=SETTLING,
    )

    with jax.enable_x64(True):
        path = walk(tx, gradients, start)
    expected = by_hand(gradients, start, nesterov, share=0.3 if share is None else share)
    np.testing.assert_allclose(path, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("period", [None, 2, 8])
def test_steps_in_noise_and_in_an_oscillation_are_as_long_as_the_metric_says(period, nesterov):
    """Of the square, a mean with the filter ``H`` keeps the mean of ``|H|**2`` over the spectrum."""
    weights = 0.1 * 0.9 ** np.arange(400)
    if nesterov:
        weights = 0.9 * weights + 0.1 * (np.arange(400) == 0)
    if period is None:
        gradients, kept = jax.random.normal(jax.random.key(0), (3000, 64)), np.sum(weights**2)
    else:
        turns = 2 * np.pi / period * np.arange(3000)[:, None] + np.linspace(0, np.pi, 64, endpoint=False)
        gradients = jnp.cos(turns + 0.1)
        kept = np.abs(np.sum(weights * np.exp(-2j * np.pi / period * np.arange(400)))) ** 2
    for share in (0.0, 0.3, 1.0):
        tx = ro.riemannian_eigenbasis(
            1.0,
            b2=0.99,
            nu_dtype=None,
            mu_dtype=None,
            nesterov=nesterov,
            gradient_share=share,
            weight_decay=0.0,
        )
        steps = jnp.diff(jnp.stack(walk(tx, gradients, jnp.zeros(64))), axis=0)
        length = float(jnp.sqrt(jnp.mean(steps[500:] ** 2)))
        assert length == pytest.approx(np.sqrt(kept / (share + (1 - share) * kept)), rel=0.03)


def test_a_phi_of_ones_own_sees_the_gradient_with_its_sign():
    """A phi that learns rates from the sign of gradients would be another rule on sizes."""
    seen = []
    phi = optax.stateless(lambda updates, params: seen.append(updates) or jax.tree.map(jnp.abs, updates))
    gradient = jnp.array([3.0, -4.0])
    for share, expected in ((None, [3.0, -4.0]), (1.0, [3.0, -4.0]), (0.0, [3.0, 4.0])):
        tx = ro.riemannian_eigenbasis(0.1, phi=phi, gradient_share=share, nesterov=False)
        tx.update(gradient, tx.init(gradient), gradient)
        np.testing.assert_allclose(seen.pop(), expected, rtol=1e-6)


def test_the_share_may_be_injected_and_traced():
    params, gradient = jnp.ones((3, 2)), jnp.array([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]])

    def second_update(share):
        tx = ro.riemannian_eigenbasis(0.1, gradient_share=share)
        _, state = tx.update(gradient, tx.init(params), params)
        return tx.update(-gradient, state, params)[0]

    shares = jnp.array([0.0, 0.4, 1.0])
    mapped = jax.vmap(second_update)(shares)
    for share, found in zip(shares, mapped, strict=True):
        np.testing.assert_allclose(found, second_update(float(share)), rtol=1e-4, atol=1e-6)
    injected = optax.inject_hyperparams(ro.riemannian_eigenbasis)(0.1, gradient_share=0.4)
    state = injected.init(params)
    assert state.hyperparams["gradient_share"] == pytest.approx(0.4)
    _, slope = jax.jvp(second_update, (0.4,), (1.0,))
    assert np.all(np.isfinite(slope))


def test_schedule_free_in_the_eigenbasis_by_hand():
    """Without momentum tangents depend on gradients alone; the averaging, by hand, is around them."""
    random = np.random.default_rng(1)
    start = random.standard_normal((4, 6))
    gradients = random.standard_normal((30, 4, 4)) @ random.standard_normal((30, 4, 6))
    path = by_hand(
        gradients,
        start,
        False,
        b1=0.0,
        decay=0.0,
        basis_decay=0.95,
        every=10,
        settling=300,
        factored=True,
        tempered=False,
    )
    tangents = np.diff(np.stack([start, *path]), axis=0) / RATE
    iterate, average, trained, expected, total = start, start, start, [], 0.0
    for t, tangent in enumerate(tangents, 1):
        iterate = iterate + RATE * (tangent - DECAY * trained)
        total += t**2
        average = average + t**2 / total * (iterate - average)
        trained = B1 * average + (1 - B1) * iterate
        expected.append(trained)
    options = {"weight_decay": DECAY, "alpha": ALPHA, "sides": "smaller", "basis_dtype": None}
    tx = ro.riemannian_schedule_free(RATE, B1, B2, EPS, warmup_steps=0, **options)
    with jax.enable_x64(True):
        found = walk(tx, gradients, start)
    # The state keeps b1 and the sum of the averaging weights in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    narrow = jax.eval_shape(
        ro.riemannian_schedule_free(RATE, sides="smaller").init, {"w": jnp.zeros((64, 64), jnp.float32)}
    )
    assert byte_count(narrow) == pytest.approx(2 * 4 * 64 * 64, rel=0.05)


def byte_count(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def transformer(width, layers, vocabulary):
    """A Transformer with separate query, key, value and output projections, as Flax names and shapes them."""
    heads = width // 64

    def kernel(*shape):
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    norm = {"scale": jax.ShapeDtypeStruct((width,), jnp.float32)}
    layer = {
        "attention": {name: kernel(width, heads, 64) for name in ("query", "key", "value")}
        | {"out": kernel(heads, 64, width)},
        "up": kernel(width, 4 * width) | {"bias": jax.ShapeDtypeStruct((4 * width,), jnp.float32)},
        "down": kernel(4 * width, width) | {"bias": jax.ShapeDtypeStruct((width,), jnp.float32)},
        "norms": [norm, norm],
    }
    embedding = {"embedding": jax.ShapeDtypeStruct((vocabulary, width), jnp.float32)}
    return {"embed": embedding, "layers": [layer] * layers, "head": kernel(width, vocabulary)}


@pytest.mark.parametrize("size", [(512, 6, 256), (512, 6, 8192), (1024, 24, 50_000)])
def test_the_state_of_a_transformer_is_at_most_one_and_a_half_times_its_weights(size):
    params = transformer(*size)
    state = jax.eval_shape(ro.riemannian_eigenbasis(0.003).init, params)
    assert byte_count(state) <= 1.51 * byte_count(params)  # vectors, rows and columns: under one percent
    assert byte_count(jax.eval_shape(optax.adamw(0.003).init, params)) >= 2 * byte_count(params)


def test_it_learns_the_bundled_text():
    """Thirty steps of the small language model, where bases turn and momentum with them."""
    dataset = data.load_text(window=16)
    model = models.build("transformer", dataset, seed=0)
    train = {name: jnp.asarray(array) for name, array in dataset.parts["train"].items()}
    tx = ro.riemannian_eigenbasis(0.01, update_every=5)

    def loss(params, indices):
        inputs, targets = dataset.take(train, indices)
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def step(params, state, indices):
        value, gradients = jax.value_and_grad(loss)(params, indices)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params, losses = model.parameters, []
    state = tx.init(params)
    for number in range(30):
        params, state, value = step(params, state, data.batch_indices(dataset.num_train, 4, 0, number))
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    assert int(state[0].kept_bases) == 0


@pytest.mark.parametrize("size", [1e15, 1e20, 1e25, 1e30, 3e38])
@pytest.mark.parametrize(
    "make",
    [ro.riemannian_adamw, ro.riemannian_schedule_free, ro.riemannian_eigenbasis],
    ids=lambda f: f.__name__,
)
def test_one_huge_finite_gradient_makes_a_step_of_the_usual_size(make, size):
    """As under Adam, whose second moment grows with it: twenty steps move no weight by thirty rates."""
    rate, params = 0.003, {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    tx = make(rate)
    state, update, start = tx.init(params), jax.jit(tx.update), params
    for number in range(20):
        gradients = jax.tree.map(lambda w, n=number: jnp.full_like(w, size if n == 10 else 1.0), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, leaf in params.items():
        assert np.max(np.abs(leaf - start[name])) < 30 * rate
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_infinity_is_not_hidden():
    """A clip that made it finite would keep ``optax.apply_if_finite`` outside from seeing anything."""
    tx, params = ro.riemannian_eigenbasis(0.003), {"bias": jnp.ones(3)}
    updates, _ = tx.update({"bias": jnp.array([1.0, jnp.inf, 1.0])}, tx.init(params), params)
    assert not np.isfinite(updates["bias"][1])


def test_a_running_mean_that_would_stall_is_refused():
    """In bfloat16 it does not move at a decay of 0.999; in float32, or at the defaults, it does."""
    for options, named in (({"b2": 0.999}, "b2=0.999.*nu_dtype"), ({"b1": 0.995}, "b1=0.995.*mu_dtype")):
        with pytest.raises(ValueError, match=named):
            ro.riemannian_eigenbasis(0.1, **options)
        ro.riemannian_eigenbasis(0.1, **options, nu_dtype="float32", mu_dtype="float32")
    ro.riemannian_eigenbasis(0.1, b2=0.999, phi=ro.phi.activity())  # the default phi alone has mean squares
    ro.riemannian_eigenbasis(0.1, b1=0.99, b2=0.99)


def test_state_in_bfloat16_follows_that_in_float32():
    """A hundred steps on a noisy quadratic end at the same loss, to a few percent."""
    keys = jax.random.split(jax.random.key(0), 100)
    wanted = jax.random.normal(jax.random.key(1), (8, 12))
    scales = jnp.geomspace(1.0, 0.03, 8)[:, None]

    def loss(w):
        return 0.5 * jnp.sum((scales * (w - wanted)) ** 2)

    def last(**dtypes):
        tx = ro.riemannian_eigenbasis(optax.cosine_decay_schedule(0.1, 100), weight_decay=0.0, **dtypes)

        def step(carry, key):
            w, state = carry
            noise = 0.01 * jax.random.normal(key, w.shape)
            updates, state = tx.update(jax.grad(loss)(w) + noise, state, w)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.zeros((8, 12))
        return jax.lax.scan(step, (start, tx.init(start)), keys)[0][0]

    narrow, wide = last(), last(mu_dtype=None, nu_dtype=None)
    assert loss(wide) < loss(jnp.zeros((8, 12))) / 10
    assert float(loss(narrow) / loss(wide)) == pytest.approx(1.0, abs=0.05)
    assert float(jnp.abs(narrow - wide).max()) > 0
