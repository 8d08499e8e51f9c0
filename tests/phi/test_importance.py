"""Importance summed over tasks against NumPy replays of the papers, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

from .replay import RTOL, STEPS, plain, walk

TASKS = (90, 150, 230)  # the updates that are the first of a new task
SHAPES = {"a": (3,), "b": (2, 2)}
BATCH = 4


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def tree_of(draw):
    return {name: draw(shape) for name, shape in SHAPES.items()}


def random_path(seed=0, steps=STEPS):
    """Weights that walk at random, the gradients met there, and those of each example."""
    generator = np.random.default_rng(seed)
    weights = tree_of(lambda shape: np.cumsum(0.1 * generator.normal(size=(steps, *shape)), axis=0))
    examples = tree_of(lambda shape: 0.5 + generator.normal(size=(steps, BATCH, *shape)))
    return weights, {name: e.mean(1) for name, e in examples.items()}, examples


def follow(phi, weights, gradients, tasks=TASKS, **extra_args):
    """Return phi at every step of a given path; arguments and results have a leading step axis."""
    steps = len(jax.tree.leaves(weights)[0])
    boundaries = np.isin(np.arange(steps), tasks)

    def step(state, inputs):
        g, w, boundary, extra = inputs
        values, state = phi.update(g, state, w, task_boundary=boundary, **extra)
        return state, values

    inputs = jax.tree.map(jnp.asarray, (gradients, weights, boundaries, extra_args))
    state, values = jax.lax.scan(step, phi.init(jax.tree.map(lambda w: jnp.asarray(w[0]), weights)), inputs)
    return jax.tree.map(np.asarray, values), state


def assert_replayed(actual, expected):
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], np.stack([e[name] for e in expected]), rtol=RTOL, atol=1e-12)


def zeros():
    return tree_of(np.zeros)


def test_synaptic_intelligence_replays_its_paper():
    """Zenke 2017, Eqs. 3 and 5, with the rectifier of the authors' code."""
    weights, gradients, _ = random_path()
    memory, xi = 0.8, 0.1
    omega, big_omega, start = zeros(), zeros(), {name: w[0] for name, w in weights.items()}
    expected, rectified, kept = [], 0, 0
    for step in range(STEPS):
        if step in TASKS:
            for name in SHAPES:
                end = weights[name][step]
                total = memory * big_omega[name] + omega[name] / ((end - start[name]) ** 2 + xi)
                rectified, kept = rectified + np.sum(total < 0), kept + np.sum(total > 0)
                big_omega[name] = np.maximum(total, 0)
                omega[name], start[name] = np.zeros(SHAPES[name]), end
        expected.append({name: value.copy() for name, value in big_omega.items()})
        if step + 1 < STEPS:
            for name, w in weights.items():
                omega[name] += -gradients[name][step] * (w[step + 1] - w[step])
    assert rectified > 0
    assert kept > 0
    actual, _ = follow(ro.phi.synaptic_intelligence(damping=xi, memory=memory), weights, gradients)
    assert_replayed(actual, expected)


def path_integral(steps, duration=2.0):
    """Return the path integral of gradient descent on a quadratic, its loss drop and ``sum(h dw**2)/2``."""
    curvature, minimum = np.array([1.0, 3.0, 0.2]), np.array([1.0, -2.0, 0.5])
    weights = [np.zeros(3)]
    for _ in range(steps):
        weights.append(weights[-1] - duration / steps * curvature * (weights[-1] - minimum))
    weights = np.stack(weights)
    gradients = curvature * (weights - minimum)
    _, state = follow(ro.phi.synaptic_intelligence(), weights, gradients, tasks=())
    loss = 0.5 * curvature * (weights - minimum) ** 2
    second_order = 0.5 * curvature * np.sum(np.diff(weights, axis=0) ** 2, axis=0)
    return np.asarray(state.path_integral), loss[0] - loss[-1], second_order


def test_path_integral_on_a_quadratic_equals_the_loss_drop():
    exact, drop, second_order = path_integral(300)
    np.testing.assert_allclose(exact, drop + second_order, rtol=1e-12)
    errors = [np.abs(np.subtract(*path_integral(steps)[:2])).max() for steps in (1000, 4000)]
    assert errors[1] / drop.max() < 2e-3
    slope = np.log(errors[0] / errors[1]) / np.log(4)
    assert abs(slope - 1) < 0.15  # the error is first order in the step


def corrected_mean(terms, decay):
    """The bias-corrected running mean from its definition."""
    ages = np.arange(len(terms))[::-1]
    return np.average(terms, axis=0, weights=decay**ages)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_online_ewc_replays_its_papers(decay):
    """Schwarz 2018: F* <- gamma F* + F_i, with Kirkpatrick's F_i, the mean squared per-example gradient."""
    weights, gradients, examples = random_path()
    memory, fisher, expected = 0.7, zeros(), []
    first = 0
    for step in range(STEPS):
        if step in TASKS:
            for name in SHAPES:
                squares = (examples[name][first:step] ** 2).mean(axis=1)
                fisher[name] = memory * fisher[name] + corrected_mean(squares, decay)
            first = step
        expected.append({name: value.copy() for name, value in fisher.items()})
    phi = ro.phi.online_ewc(memory=memory, decay=decay)
    actual, _ = follow(phi, weights, gradients, per_example_gradients=examples)
    assert_replayed(actual, expected)


def test_online_ewc_takes_the_fisher_information_measured_at_the_mode():
    weights, gradients, _ = random_path(steps=4)
    fisher = {name: np.arange(4.0).reshape(4, *[1] * len(s)) * np.ones(s) for name, s in SHAPES.items()}
    for running in (True, False):
        phi = ro.phi.online_ewc(memory=0.5, running=running)
        actual, state = follow(phi, weights, gradients, tasks=(2, 3), task_importance=fisher)
        np.testing.assert_allclose(actual["a"][:, 0], [0, 0, 2, 0.5 * 2 + 3])
        assert len(jax.tree.leaves(state.task_mean)) == (2 if running else 0)


def test_without_per_example_gradients_it_is_the_batched_fisher_and_the_factor_is_the_batch_size():
    signs = np.array([[1 if i >> b & 1 else -1 for b in range(BATCH)] for i in range(2**BATCH)])
    examples = signs[:, :, None] * np.array([1.0, 2.0, 5.0])  # independent examples with mean zero
    weights, gradients = np.zeros((len(signs), 3)), examples.mean(1)
    phi = ro.phi.online_ewc(decay=1.0)
    importance = {}
    for kind, extra in (("proper", {"per_example_gradients": examples}), ("batched", {})):
        _, state = follow(phi, weights, gradients, tasks=(), **extra)
        importance[kind] = ro.consolidate(state, jnp.zeros(3)).importance
    np.testing.assert_allclose(importance["proper"], [1.0, 4.0, 25.0], rtol=1e-6)
    np.testing.assert_allclose(importance["batched"] * BATCH, importance["proper"], rtol=1e-6)


def gaussian_task(seed, sigma, examples=16):
    """A linear-Gaussian task whose design is orthogonal and whose residuals at the mode are all +-sigma."""
    generator = np.random.default_rng(seed)
    hadamard = np.array([[1.0]])
    while len(hadamard) < examples:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    scales, truth = generator.uniform(0.5, 2.0, size=3), generator.normal(size=3)
    inputs = hadamard[:, 1:4] * scales
    return inputs, inputs @ truth + sigma * hadamard[:, 5], truth


def test_ewc_in_a_gaussian_model_is_the_inverse_variance_per_example():
    sigma = 0.5
    inputs, outputs, mode = gaussian_task(0, sigma)
    examples = (inputs @ mode - outputs)[:, None] * inputs / sigma**2
    phi = ro.phi.online_ewc()
    _, state = phi.update(examples.mean(0), phi.init(jnp.asarray(mode)), per_example_gradients=examples)
    importance = ro.consolidate(state, jnp.asarray(mode)).importance
    np.testing.assert_allclose(importance, (inputs**2).mean(0) / sigma**2, rtol=1e-12)


def test_laplace_in_a_linear_gaussian_model_is_the_exact_posterior_of_two_tasks():
    """Precision and mode against the normal equations; the prior is N(0, prior_variance)."""
    sigma, prior_variance, examples = 0.5, 0.3, 16
    tx = optax.chain(
        ro.compute_metric(ro.phi.laplace(examples_per_task=examples), alpha=prior_variance),
        ro.scale_by_inverse_metric(),
        optax.scale(examples * prior_variance),
        ro.add_anchored_weights(1.0, ro.anchor.task_boundary_weights(from_start=True)),
        optax.scale_by_learning_rate(0.01),
    )
    params = jnp.zeros(3)
    state = tx.init(params)
    precision, information = np.eye(3) / prior_variance, np.zeros(3)
    for seed in (1, 2):
        inputs, outputs, _ = gaussian_task(seed, sigma, examples)
        precision = precision + inputs.T @ inputs / sigma**2
        information = information + inputs.T @ outputs / sigma**2

        def step(carry, _, inputs=inputs, outputs=outputs):
            params, state = carry
            residuals = jnp.asarray(inputs) @ params - jnp.asarray(outputs)
            gradient = (residuals[:, None] * inputs / sigma**2).mean(0)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), length=4000)
        np.testing.assert_allclose(params, np.linalg.solve(precision, information), rtol=1e-6)
        # The Fisher information of the model itself: of labels drawn at the mode, of variance sigma**2.
        drawn = sigma * np.sign(np.arange(examples) % 2 - 0.5)
        per_example = drawn[:, None] * inputs / sigma**2
        state = ro.consolidate(state, params, jnp.asarray((per_example**2).sum(0)))
        metric = 1 + prior_variance * state[0].phi.importance
        np.testing.assert_allclose(np.diag(metric / prior_variance), precision, rtol=1e-6, atol=1e-9)


def test_memory_aware_synapses_on_a_linear_net_by_hand():
    """Aljundi 2018, Eqs. 2 and 3: the mean over examples of abs(d(norm(W x)**2)/dW) = abs(2 (W x) x^T)."""
    generator = np.random.default_rng(0)
    weights = np.cumsum(0.1 * generator.normal(size=(STEPS, 2, 3)), axis=0)
    inputs = generator.normal(size=(STEPS, BATCH, 3))
    expected, omega, seen = [], np.zeros((2, 3)), []
    for step in range(STEPS):
        if step in TASKS:
            omega, seen = 0.9 * omega + np.mean(seen, axis=0), []
        expected.append(omega)
        for x in inputs[step]:
            seen.append(np.abs(2 * np.outer(weights[step] @ x, x)))
    per_example = jax.vmap(jax.vmap(jax.grad(lambda w, x: jnp.sum((w @ x) ** 2)), (None, 0)))(
        jnp.asarray(weights), jnp.asarray(inputs)
    )
    phi = ro.phi.memory_aware_synapses(memory=0.9)
    actual, _ = follow(phi, weights, weights, output_norm_gradients=per_example)
    np.testing.assert_allclose(actual, expected, rtol=RTOL)


@pytest.mark.parametrize("per_example", [False, True])
def test_rwalk_replays_its_paper(per_example):
    """Chaudhry 2018, Eqs. 6 to 9, terms scaled to [0, 1]; windows and rectifier as in the authors' code."""
    weights, gradients, examples = random_path()
    interval, mixing, epsilon, memory = 7, 0.6, 0.05, 0.4
    squares = {
        name: (examples[name] ** 2).mean(1) if per_example else gradients[name] ** 2 for name in SHAPES
    }
    fisher, importance = {name: s[0] for name, s in squares.items()}, zeros()
    score, task_score, finished, begin, negative = None, zeros(), 0, 0, 0
    expected = []

    def close_window(end):
        nonlocal begin, negative
        for name, w in weights.items():
            if end == begin:
                continue
            decrease = -sum(gradients[name][t] * (w[t + 1] - w[t]) for t in range(begin, end))
            distance = 0.5 * fisher[name] * (w[end] - w[begin]) ** 2 + epsilon
            negative += np.sum(decrease < 0)
            task_score[name] = task_score[name] + np.maximum(decrease / distance, 0)
            window = squares[name][begin:end].mean(0)
            fisher[name] = mixing * window + (1 - mixing) * fisher[name]
        begin = end

    for step in range(STEPS):
        if step in TASKS or step - begin == interval:
            close_window(step)
        if step in TASKS:
            if score is None:
                score = task_score
            else:
                score = {name: memory * score[name] + (1 - memory) * task_score[name] for name in SHAPES}
            task_score, finished = zeros(), finished + 1
            terms = [np.concatenate([t[name].ravel() for name in SHAPES]) for t in (fisher, score)]
            scaled = sum((t - t.min()) / (t.max() - t.min()) for t in terms)
            raw = [t.mean() for t in terms]
            importance = {"a": scaled[:3], "b": scaled[3:].reshape(2, 2)}
        expected.append({name: value.copy() for name, value in importance.items()})
    assert finished == len(TASKS)
    assert negative > 0
    assert raw[1] > 5 * raw[0]  # without scaling it would be mostly the score
    phi = ro.phi.rwalk(interval=interval, mixing=mixing, damping=epsilon, memory=memory)
    extra = {"per_example_gradients": examples} if per_example else {}
    actual, _ = follow(phi, weights, gradients, **extra)
    assert_replayed(actual, expected)


def test_rwalk_does_not_count_a_boundary_before_the_first_update_as_a_task():
    weights, gradients, _ = random_path()
    with_start, _ = follow(ro.phi.rwalk(), weights, gradients, tasks=(0, *TASKS))
    without, _ = follow(ro.phi.rwalk(), weights, gradients)
    np.testing.assert_array_equal(with_start["a"], without["a"])
    assert np.any(without["a"])


def test_rwalk_of_equal_weights_is_zero_and_not_nan():
    params = jnp.ones(3)
    phi = ro.phi.rwalk()
    _, state = phi.update(params, phi.init(params), params)
    np.testing.assert_array_equal(ro.consolidate(state, params).importance, 0)


def test_laplace_replays_natural_continual_learning():
    """Kao 2021, Eq. 6 with a diagonal precision: w <- w - eta * (grad / Lambda + w - mu)."""
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(STEPS, BATCH, 3))
    targets = generator.normal(size=(len(TASKS) + 1, 3))
    variance, rate, examples = 0.4, 0.02, 20.0

    def per_example(w, step):
        task = np.searchsorted(TASKS, step, side="right")
        return np.array([1.0, 2.0, 0.3]) * (w - targets[task]) + noise[step]

    w, mu, precision = np.ones(3), None, np.full(3, 1 / variance)
    seen, path = [], [np.ones(3)]
    for step in range(STEPS):
        if step in TASKS:
            precision, mu, seen = precision + examples * np.mean(seen, axis=0), w, []
        g = per_example(w, step)
        seen.append((g**2).mean(0))
        pull = 0.0 if mu is None else w - mu
        w = w - rate * (examples * g.mean(0) / precision + pull)
        path.append(w)
    tx = plain(
        ro.phi.laplace(examples_per_task=examples, decay=1.0),
        variance,
        rate,
        after=[
            optax.scale(examples * variance),
            ro.add_anchored_weights(1.0, ro.anchor.task_boundary_weights()),
        ],
    )

    def extra_args(w, state, step):
        return {"per_example_gradients": per_example(w, step), "task_boundary": np.bool_(step in TASKS)}

    actual = walk(tx, np.ones(3), lambda w, step: per_example(w, step).mean(0), extra_args)
    np.testing.assert_allclose(actual, path, rtol=RTOL)


def test_by_default_nothing_is_forgotten():
    """The published sums: two equal tasks are worth twice one."""
    one, params = jnp.ones(1), jnp.array([1.0])
    path = ro.phi.synaptic_intelligence(damping=1.0)
    state, found = path.init(params), []
    for step in range(6):  # tasks of one step: down from 1 to 0 against a gradient of 4, and back for nothing
        down = step % 2
        gradient = jnp.array([0.0 if down else 4.0])
        values, state = path.update(gradient, state, params * (1 - down), task_boundary=step > 0)
        found.append(float(values[0]))
    assert found == [0, 2, 2, 4, 4, 6]
    for phi in (ro.phi.online_ewc(running=False), ro.phi.memory_aware_synapses(running=False)):
        state = phi.init(params)
        for _ in range(2):
            state = ro.consolidate(state, params, one)
        np.testing.assert_allclose(phi.update(one, state, params)[0], 2)


def test_numbers_of_a_boundary_are_as_wide_as_64_bit_types_allow():
    """In float32 a memory of 0.7 is off by 2e-8, and so is the importance."""
    ones = jnp.ones(2)
    for phi in (
        ro.phi.online_ewc(memory=0.7),
        ro.phi.synaptic_intelligence(memory=0.7),
        ro.phi.rwalk(memory=0.7),
    ):
        _, state = phi.update(ones, phi.init(ones), ones)
        numbers = [getattr(state, name) for name in ("memory", "damping", "mixing") if hasattr(state, name)]
        assert {n.dtype for n in numbers} == {jnp.dtype(jnp.float64)}
        assert float(state.memory) == 0.7


def test_an_importance_that_is_measured_is_given_where_there_may_be_a_boundary():
    phi, params = ro.phi.online_ewc(running=False), jnp.zeros(2)
    ones, measured = jnp.ones(2), jnp.array([3.0, 5.0])
    state = phi.init(params)
    _, state = phi.update(ones, state, params, task_boundary=False)  # no boundary, and nothing to measure
    values, state = phi.update(ones, state, params, task_boundary=True, task_importance=measured)
    np.testing.assert_array_equal(values, measured)
    with pytest.raises(ValueError, match="each update whose task_boundary may be true"):
        phi.update(ones, state, params, task_boundary=jnp.asarray(True))
    for one in (phi, ro.phi.online_ewc()):
        with pytest.raises(ValueError, match=r"^task_importance is taken in at a task boundary"):
            one.update(ones, one.init(params), params, task_importance=measured)


@pytest.mark.parametrize(
    "name", ["modification_energy", "rwalk", "synaptic_intelligence", "secant_curvature"]
)
def test_the_state_of_a_weakly_typed_scalar_keeps_its_type(name):
    """A state that changes it once is traced twice."""
    phi, params = getattr(ro.phi, name)(), {"scalar": jnp.asarray(1.0)}
    state = phi.init(params)
    more = {"per_example_gradients": {"scalar": jnp.ones(2)}} if name == "rwalk" else {}
    _, after = phi.update({"scalar": jnp.ones([])}, state, params, **more)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


@pytest.mark.parametrize(
    "anchor",
    [ro.anchor.initial_weights, ro.anchor.task_boundary_weights, ro.anchor.importance_weighted_weights],
)
def test_the_state_of_an_anchor_of_a_weakly_typed_scalar_keeps_its_type(anchor):
    anchor, params = anchor(), {"scalar": jnp.asarray(1.0)}
    state = anchor.init(params)
    more = {"precision": params} if "importance" in type(state)._fields else {}
    _, after = anchor.update(params, state, params, task_boundary=False, **more)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
