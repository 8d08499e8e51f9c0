"""Anchors against closed forms and NumPy replays, and the pull in each of its three places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

RTOL = 1e-5
STEPS = 300
RATE = 0.05


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def follow(tx, start, gradient, boundaries=()):
    """Return the path of ``tx`` from ``start``."""
    params, path = jnp.asarray(start), [np.asarray(start)]
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(STEPS):
        g = jnp.asarray(gradient(path[-1], step))
        updates, state = update(g, state, params, task_boundary=np.bool_(step in boundaries))
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.stack(path)


def noisy(w, step):
    """The gradient of a quadratic whose minimum jumps, with noise."""
    minimum = np.array([1.0, -1.0, 2.0]) * np.sign(np.sin(0.03 * step + 0.1))
    return np.array([1.0, 3.0, 0.2]) * (w - minimum) + np.random.default_rng(step).normal(size=3)


def replay(start, pull_of):
    """NumPy gradient descent on ``noisy`` plus a pull; ``pull_of(w, step)`` returns it."""
    path = [np.asarray(start, float)]
    for step in range(STEPS):
        w = path[-1]
        path.append(w - RATE * (noisy(w, step) + pull_of(w, step)))
    return np.stack(path)


START = np.array([0.5, -0.3, 1.0])


def sgd(*parts):
    return optax.chain(*parts, optax.scale_by_learning_rate(RATE))


def test_initial_weights_replay_l2_init():
    """Kumar 2023: gradient descent on the loss plus strength * norm(w - w_0)**2, of gradient 2 * strength."""
    strength = 0.3
    expected = replay(START, lambda w, step: 2 * strength * (w - START))
    actual = follow(sgd(ro.add_anchored_weights(2 * strength, ro.anchor.initial_weights())), START, noisy)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_slow_weights_replay_a_running_mean(decay):
    mean = START

    def pull(w, step):
        nonlocal mean
        mean = decay * mean + (1 - decay) * w
        return 2.0 * (w - mean)

    expected = replay(START, pull)
    actual = follow(sgd(ro.add_anchored_weights(2.0, ro.anchor.slow_weights(decay=decay))), START, noisy)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("leak", [False, True])
def test_benna_fusi_chain_replays_its_paper(leak):
    """Benna and Fusi 2016: C_k du_k/dt = g_{k-1} (u_{k-1} - u_k) - g_k (u_k - u_{k+1}), by Euler steps."""
    copies, coupling = 4, 0.3
    capacity = 2.0 ** np.arange(copies + 1)
    tubes = coupling * 2.0 ** -np.arange(copies + 1)
    tubes[-1] *= leak
    u = np.tile(START, (copies + 1, 1))
    expected = [u[0]]
    for step in range(STEPS):
        levels = np.concatenate([u, np.zeros((1, 3))])  # beyond the last tube there is nothing
        flow = tubes[:, None] * (levels[:-1] - levels[1:])
        u = u - flow / capacity[:, None]
        u[1:] += flow[:-1] / capacity[1:, None]
        u[0] -= RATE * noisy(expected[-1], step)
        expected.append(u[0])
    anchor = ro.anchor.benna_fusi_chain(copies=copies, coupling=coupling, leak=leak)
    actual = follow(sgd(ro.add_anchored_weights(coupling / RATE, anchor)), START, noisy)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


def test_benna_fusi_chain_of_two_variables_is_solved_exactly():
    """Without gradients w + 2 u is kept and w - u shrinks by 1 - g (1/C_0 + 1/C_1) per update."""
    coupling = 0.2
    tx = sgd(
        ro.add_anchored_weights(coupling / RATE, ro.anchor.benna_fusi_chain(copies=1, coupling=coupling))
    )
    # One gradient at the first update parts the weight from its copy.
    actual = follow(tx, np.zeros(1), lambda w, step: np.full(1, -1 / RATE) if step == 0 else np.zeros(1))
    distance = (1 - coupling * (1 + 1 / 2)) ** np.arange(STEPS)
    np.testing.assert_allclose(actual[1:, 0], 1 / 3 + 2 / 3 * distance, rtol=1e-10)


def test_benna_fusi_chain_with_a_closed_end_keeps_what_it_holds():
    copies, coupling = 3, 0.25
    tx = sgd(
        ro.add_anchored_weights(coupling / RATE, ro.anchor.benna_fusi_chain(copies=copies, coupling=coupling))
    )
    params = jnp.array([2.0])
    state = tx.init(params)
    content = []
    for step in range(50):
        updates, state = tx.update(jnp.full(1, float(step == 0)), state, params)
        params = params + updates
        levels = [params, *state[0].anchor.copies]
        content.append(float(sum(2.0**k * u[0] for k, u in enumerate(levels))))
    np.testing.assert_allclose(content, content[0], rtol=1e-6)
    assert max(abs(float(u[0] - params[0])) for u in levels) > 1e-4


@pytest.mark.parametrize("from_start", [False, True])
def test_task_boundary_weights_with_a_precision_replay_elastic_weight_consolidation(from_start):
    """Kirkpatrick 2017, Eq. 3, online as Schwarz 2018: loss + lambda/2 * sum F (w - w*)**2, plain descent."""
    boundaries, strength = (0, 100, 180), 0.4
    fisher, centre, squares = np.zeros(3), START if from_start else None, []

    def pull(w, step):
        nonlocal fisher, centre, squares
        if step in boundaries and step > 0:
            fisher, centre, squares = fisher + np.mean(squares, axis=0), w, []
        squares.append(noisy(w, step) ** 2)
        return 0.0 if centre is None else strength * (1 + fisher) * (w - centre)

    expected = replay(START, pull)
    importance = ro.phi.weighted_sum(ro.phi.online_ewc(decay=1.0), ro.phi.from_weights(jnp.ones_like))
    anchor = ro.anchor.task_boundary_weights(from_start=from_start)
    tx = sgd(ro.add_anchored_weights(strength, anchor, precision=importance))
    np.testing.assert_allclose(follow(tx, START, noisy, boundaries), expected, rtol=RTOL)


def three_places(place):
    """The chain with the pull before, between or after the stages; E = 1 + 3 |w|."""
    pull = ro.add_anchored_weights(2.0, ro.anchor.initial_weights())
    stages = [ro.compute_metric(ro.phi.activity(decay=0.0), 3.0), ro.scale_by_inverse_metric()]
    stages.insert({"before": 0, "between": 1, "after": 2}[place], pull)
    return optax.chain(*stages, optax.scale_by_learning_rate(RATE))


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_the_pull_means_what_its_place_says(place):
    """phi = |g| of the last gradient: before the stages it sees the pull, between and after it does not."""
    tx, params = three_places(place), jnp.array([1.0])
    _, state = tx.update(jnp.zeros(1), tx.init(params), params)
    updates, _ = tx.update(jnp.array([0.5]), state, jnp.array([4.0]))
    gradient, pull = 0.5, 2.0 * (4.0 - 1.0)
    step = {
        "before": (gradient + pull) / (1 + 3 * (gradient + pull)),
        "between": (gradient + pull) / (1 + 3 * gradient),
        "after": gradient / (1 + 3 * gradient) + pull,
    }[place]
    np.testing.assert_allclose(updates, [-RATE * step], rtol=1e-6)


def penalised(strength, with_metric):
    """Quadratic penalty of precision F = [1, 50] around w = 1, from w = 0: with the metric or plainly."""
    fisher = jnp.array([1.0, 50.0])
    constant = ro.phi.from_weights(lambda w: jnp.broadcast_to(fisher, w.shape))
    tx = optax.chain(
        ro.compute_metric(constant, RATE * strength if with_metric else 0.0),
        ro.add_anchored_weights(strength, ro.anchor.initial_weights(), precision="phi"),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(RATE),
    )
    params = jnp.ones(2)
    state = tx.init(params)
    _, state = tx.update(jnp.zeros(2), state, params)
    params = jnp.zeros(2)
    for _ in range(200):
        updates, state = tx.update(jnp.zeros(2), state, params)
        params = params + updates
    return np.asarray(params)


def test_the_metric_makes_a_strong_pull_an_implicit_step_where_the_plain_penalty_diverges():
    stable = 0.9 * 2 / (RATE * 50)
    np.testing.assert_allclose(penalised(stable, with_metric=False), 1.0, atol=1e-2)
    assert abs(penalised(2 * stable, with_metric=False)).max() > 1e6
    for strength in (stable, 2 * stable, 1e4 * stable):
        np.testing.assert_allclose(penalised(strength, with_metric=True), 1.0, atol=1e-2)


def test_a_leaf_without_a_metric_is_not_pulled_by_the_phi_of_stage_1():
    """Its phi is 0 where the others have one: the metric covers some leaves, and the pull those alone."""
    params = {"covered": jnp.ones(2), "other": jnp.ones(2)}
    tx = optax.chain(
        optax.masked(
            ro.compute_metric(ro.phi.from_weights(jnp.ones_like)), {"covered": True, "other": False}
        ),
        ro.add_anchored_weights(0.5, ro.anchor.initial_weights(), precision="phi"),
        ro.scale_by_inverse_metric(),
    )
    moved = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(moved, tx.update(moved, tx.init(params), params)[1], moved)
    np.testing.assert_allclose(updates["covered"], -0.5 / 2)
    np.testing.assert_array_equal(updates["other"], 0)


def test_phi_of_stage_1_and_a_phi_of_its_own_give_the_same_pull():
    def chain(precision):
        return optax.chain(
            ro.compute_metric(ro.phi.online_ewc(), 0.5),
            ro.add_anchored_weights(0.4, ro.anchor.task_boundary_weights(), precision=precision),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(RATE),
        )

    shared = follow(chain("phi"), START, noisy, (100, 200))
    own = follow(chain(ro.phi.online_ewc()), START, noisy, (100, 200))
    np.testing.assert_allclose(shared, own, rtol=1e-12)
    alone = follow(chain(ro.phi.from_weights(jnp.zeros_like)), START, noisy, (100, 200))
    assert abs(shared - alone).max() > 0.1


def test_a_schedule_of_the_rate():
    params = jnp.ones(1)
    tx = ro.add_anchored_weights(optax.linear_schedule(1.0, 3.0, 2), ro.anchor.initial_weights())
    _, state = tx.update(jnp.zeros(1), tx.init(params), params)
    pulls = []
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(1), state, 2 * params)
        pulls.append(float(updates[0]))
    np.testing.assert_allclose(pulls, [2.0, 3.0, 3.0])


def test_narrow_and_complex_weights_are_pulled_exactly():
    for dtype in (jnp.bfloat16, jnp.complex64):
        for anchor in (ro.anchor.initial_weights(), ro.anchor.slow_weights(), ro.anchor.benna_fusi_chain()):
            params = jnp.array([1.0], dtype)
            pull = ro.add_anchored_weights(0.5, anchor)
            _, state = pull.update(0 * params, pull.init(params), params)
            updates, state = pull.update(
                0 * params, state, params * (1 + (2j if dtype == jnp.complex64 else 2))
            )
            assert updates.dtype == dtype
            expected = 0.5 * (2j if dtype == jnp.complex64 else 2)
            np.testing.assert_allclose(np.asarray(updates, complex), [expected], rtol=1e-2)


def test_the_slow_copies_of_bfloat16_weights_do_not_stall():
    anchor = ro.anchor.slow_weights(decay=0.999)
    state = anchor.init(jnp.zeros(1, jnp.bfloat16))
    _, state = anchor.update(jnp.zeros(1), state, jnp.zeros(1, jnp.bfloat16))
    for _ in range(1000):
        target, state = anchor.update(jnp.zeros(1), state, jnp.ones(1, jnp.bfloat16))
    np.testing.assert_allclose(target, 1 - 0.999**1000, rtol=1e-4)


@pytest.mark.parametrize("edit", [ro.clip_metric(high=2.0), ro.competitive_plasticity(0.5)])
def test_the_phi_of_stage_1_survives_the_edits_of_its_metric(edit):
    params, gradients = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    pull = ro.add_anchored_weights(0.1, ro.anchor.initial_weights(), precision="phi")

    def pulled(*stages):
        tx = optax.chain(ro.compute_metric(ro.phi.activity(decay=0.0)), *stages)
        _, state = tx.update(gradients, tx.init(params), params)
        return ro.split(tx.update(gradients, state, params + 1.0)[0])[0]

    np.testing.assert_allclose(pulled(pull, edit), gradients + 0.1 * gradients, rtol=1e-6)
    np.testing.assert_array_equal(pulled(edit, pull), pulled(pull, edit))


def test_what_cannot_be_meant_is_an_error():
    params = jnp.ones(2)
    pull = ro.add_anchored_weights(0.1, ro.anchor.initial_weights(), precision="phi")
    with pytest.raises(ValueError, match="no leaf carries a metric"):
        pull.update(params, pull.init(params), params)
    with pytest.raises(ValueError, match="precision must be one of 'phi'"):
        ro.add_anchored_weights(0.1, ro.anchor.initial_weights(), precision="fisher")
    with pytest.raises(TypeError, match="anchor must be an optax"):
        ro.add_anchored_weights(0.1, ro.anchor.initial_weights)
    with pytest.raises(ValueError, match="rate must be a finite number"):
        ro.add_anchored_weights(-0.1, ro.anchor.initial_weights())
    with pytest.raises(ValueError, match="copies must be an integer"):
        ro.anchor.benna_fusi_chain(copies=0)
    with pytest.raises(ValueError, match="coupling"):
        ro.anchor.benna_fusi_chain(coupling=1.5)
    with pytest.raises(ValueError, match="add_anchored_weights"):
        pull.update(params, pull.init(params))


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    "anchor",
    [
        ro.anchor.initial_weights(),
        ro.anchor.slow_weights(),
        ro.anchor.benna_fusi_chain(),
        ro.anchor.task_boundary_weights(from_start=True),
        ro.anchor.importance_weighted_weights(),
    ],
    ids=["initial", "slow", "chain", "boundary", "weighted"],
)
def test_an_anchor_in_few_bits_does_not_pull_weights_that_stand_on_it(anchor, storage):
    """A rounded anchor is elsewhere, and weights would go there by themselves."""
    tx = ro.low_precision_state(
        optax.chain(ro.add_anchored_weights(50.0, anchor, precision=ro.phi.online_ewc()), optax.sgd(0.1)),
        storage,
    )
    weights = jax.random.normal(jax.random.key(0), (64,))
    state = tx.init(weights)
    for step, gradient in enumerate((1.0, 0.0, 0.0)):
        updates, state = tx.update(
            jnp.full(64, gradient * 1e-3), state, weights, task_boundary=jnp.array(step == 1)
        )
    np.testing.assert_array_equal(updates, 0.0)
