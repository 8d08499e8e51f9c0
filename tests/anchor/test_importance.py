"""The anchor weighted by importance against Kirkpatrick's penalty, which keeps one anchor per task."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

STEPS, TASKS = 300, (60, 130, 190, 250)  # the updates that are the first of a new task
RATE, STRENGTH = 0.05, 3.0
SHAPES = {"a": (3,), "b": (2, 2)}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def draw(seed):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def gradient(weights, step):
    task = sum(step >= first for first in TASKS)
    minima, noise = draw(task), draw(1000 + step)
    return {n: w - 2 * minima[n] + 0.3 * noise[n] for n, w in weights.items()}


def fisher(task):
    """The importance of a task; that of the first is 0 for one weight, and of all for another."""
    values = {name: np.abs(v) for name, v in draw(50 + task).items()}
    values["a"][0] *= task > 0
    values["a"][1] = 0.0
    return values


def penalised(implicit, anchors):
    """Descent with ``strength * sum_k F_k (w - w_k)``, plain or as an implicit step."""
    weights, modes, path = draw(99), [], []
    for step in range(STEPS):
        if step in TASKS:
            modes.append((fisher(len(modes)), weights))
        g = gradient(weights, step)
        new = {}
        for name, w in weights.items():
            total = sum((f[name] for f, _ in modes), start=np.zeros(SHAPES[name]))
            if anchors == "one per task":
                pull = sum((f[name] * (w - mode[name]) for f, mode in modes), start=np.zeros(SHAPES[name]))
            else:
                pull = total * (w - modes[-1][1][name]) if modes else 0.0
            change = RATE * (g[name] + STRENGTH * pull)
            new[name] = w - change / (1 + RATE * STRENGTH * total * implicit)
        weights = new
        path.append(weights)
    return path


def follow(anchor, implicit, announce, own_phi=False):
    phi = ro.phi.online_ewc(running=False)
    pull = ro.add_anchored_weights(STRENGTH, anchor, precision=phi if own_phi else "phi")
    tx = optax.chain(
        ro.compute_metric(phi, alpha=RATE * STRENGTH * implicit),
        pull,
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(RATE),
    )
    weights = jax.tree.map(jnp.asarray, draw(99))
    state, path, update = tx.init(weights), [], jax.jit(tx.update)
    for step in range(STEPS):
        extra = {"task_boundary": jnp.asarray(False), "task_importance": fisher(0)}
        if step in TASKS:
            measured = jax.tree.map(jnp.asarray, fisher(TASKS.index(step)))
            if announce == "argument":
                extra = {"task_boundary": jnp.asarray(True), "task_importance": measured}
            else:
                state = ro.consolidate(state, weights, measured)
        gradients = jax.tree.map(jnp.asarray, gradient(jax.tree.map(np.asarray, weights), step))
        updates, state = update(gradients, state, weights, **extra)
        weights = optax.apply_updates(weights, updates)
        path.append(jax.tree.map(np.asarray, weights))
    return path


@pytest.mark.parametrize("announce", ["argument", "function"])
@pytest.mark.parametrize("implicit", [False, True])
def test_replays_elastic_weight_consolidation_with_one_anchor_per_task(implicit, announce):
    """Kirkpatrick 2017, Eq. 3 for each old task: 300 steps, five tasks, some weights never important."""
    actual = follow(ro.anchor.importance_weighted_weights(), implicit, announce)
    for found, expected in zip(actual, penalised(implicit, "one per task"), strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)


def test_with_a_precision_of_its_own():
    actual = follow(ro.anchor.importance_weighted_weights(), False, "argument", own_phi=True)
    expected = penalised(False, "one per task")
    for name in SHAPES:
        np.testing.assert_allclose(actual[-1][name], expected[-1][name], rtol=1e-9)


def test_the_anchor_at_the_last_boundary_is_another_rule_from_the_third_task_on():
    several, one = penalised(True, "one per task"), penalised(True, "the last")
    actual = follow(ro.anchor.task_boundary_weights(), True, "argument")
    for found, expected in zip(actual, one, strict=True):
        np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-9)
    distance = [abs(a["b"] - b["b"]).max() for a, b in zip(several, one, strict=True)]
    assert max(distance[: TASKS[1]]) < 1e-12
    assert max(distance[TASKS[1] :]) > 0.1


def test_memory_fades_the_anchors_with_their_importance():
    """With memory 1/2 the anchor of two boundaries is (F_1 w_1 / 2 + F_2 w_2) / (F_1 / 2 + F_2)."""
    phi = ro.phi.online_ewc(memory=0.5, running=False)
    pull = ro.add_anchored_weights(1.0, ro.anchor.importance_weighted_weights(memory=0.5), precision=phi)
    state = pull.init(jnp.zeros(1))
    _, state = pull.update(jnp.zeros(1), state, jnp.zeros(1))
    for weight, importance in ((1.0, 4.0), (5.0, 2.0)):
        state = ro.consolidate(state, jnp.array([weight]), jnp.array([importance]))
        _, state = pull.update(jnp.zeros(1), state, jnp.array([weight]))
    np.testing.assert_allclose(state.anchor.weights, (0.5 * 4 * 1 + 2 * 5) / (0.5 * 4 + 2))


def test_without_a_precision_it_says_how_to_give_one():
    pull = ro.add_anchored_weights(1.0, ro.anchor.importance_weighted_weights())
    with pytest.raises(ValueError, match=r"^importance_weighted_weights needs the precision of the pull"):
        pull.update(jnp.zeros(1), pull.init(jnp.zeros(1)), jnp.zeros(1))


def test_three_tasks_pull_as_the_sum_of_their_penalties():
    """In the memory of one anchor: sum_k F_k (w - w_k) anywhere, to the last digits of float64."""
    pull = ro.add_anchored_weights(
        STRENGTH,
        ro.anchor.importance_weighted_weights(),
        precision=ro.phi.online_ewc(running=False),
    )
    modes = [jax.tree.map(jnp.asarray, draw(seed)) for seed in range(3)]
    state = pull.init(modes[0])
    zeros = jax.tree.map(jnp.zeros_like, modes[0])
    _, state = pull.update(zeros, state, modes[0])  # before the first update no task can have ended
    for task, mode in enumerate(modes):
        state = ro.consolidate(state, mode, jax.tree.map(jnp.asarray, fisher(task)))
        _, state = pull.update(zeros, state, mode)
    weights = draw(77)
    found, _ = pull.update(zeros, state, jax.tree.map(jnp.asarray, weights))
    for name, w in weights.items():
        expected = STRENGTH * sum(fisher(k)[name] * (w - np.asarray(modes[k][name])) for k in range(3))
        np.testing.assert_allclose(found[name], expected, rtol=1e-13, atol=1e-14)
    # As many values per weight for a hundred tasks: the anchor, the last weights, and importances.
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 4 * sum(
        w.size for w in weights.values()
    )


@pytest.mark.parametrize("announced", ["consolidate", "task_boundary"])
@pytest.mark.parametrize(
    "make", [ro.anchor.task_boundary_weights, ro.anchor.importance_weighted_weights], ids=["last", "weighted"]
)
def test_the_importance_of_a_pretrained_model_protects_from_the_first_update_on(make, announced):
    """A task that somebody has measured has ended, though this state has seen no update of it."""
    tx = optax.chain(
        ro.add_anchored_weights(STRENGTH, make(), precision=ro.phi.online_ewc(running=False)), optax.sgd(RATE)
    )
    start, importance = jnp.array([1.0, 1.0]), jnp.array([5.0, 0.0])
    weights, state = start, tx.init(start)
    if announced == "consolidate":
        state = ro.consolidate(state, weights, importance)
    for step in range(300):  # the new task wants -1 of both
        more = (
            {} if announced == "consolidate" else {"task_boundary": step == 0, "task_importance": importance}
        )
        updates, state = tx.update(weights + 1.0, state, weights, **more)
        weights = weights + updates
    expected = (STRENGTH * importance * start - 1.0) / (STRENGTH * importance + 1.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_a_precision_that_is_scaled_anew_leaves_the_anchor_among_the_weights():
    pull = ro.add_anchored_weights(
        1.0,
        ro.anchor.importance_weighted_weights(),
        precision=ro.phi.limited_mean(ro.phi.online_ewc(running=False), limit=0.01),
    )
    state = pull.init(jnp.zeros(2))
    _, state = pull.update(jnp.zeros(2), state, jnp.zeros(2))
    for weight, importance in (
        (1.0, [1.0, 1e-3]),
        (2.0, [100.0, 1e-3]),
        (3.0, [0.0, 1e3]),
        (4.0, [0.0, 1.0]),
    ):
        state = ro.consolidate(state, jnp.full(2, weight), jnp.array(importance))
        _, state = pull.update(jnp.zeros(2), state, jnp.full(2, weight))
    assert np.all((np.asarray(state.anchor.weights) >= 1.0) & (np.asarray(state.anchor.weights) <= 4.0))
