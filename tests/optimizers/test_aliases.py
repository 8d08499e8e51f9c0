"""The adaptive aliases against NumPy in float64, and the bounds that they promise."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

RNG = np.random.default_rng(1)
START = {"w": RNG.standard_normal([4, 3]), "b": RNG.standard_normal(3)}
SCALES = {"w": np.exp(RNG.standard_normal([4, 3])), "b": np.exp(RNG.standard_normal(3))}
STEPS = 40


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def gradient(params, step):
    noise = np.random.default_rng(100 + step)
    return {name: SCALES[name] * params[name] + noise.standard_normal(params[name].shape) for name in START}


def walk(tx, steps=STEPS):
    """Return the path of the weights, and the last state."""
    params = jax.tree.map(jnp.asarray, START)
    state, path = tx.init(params), [START]
    update = jax.jit(tx.update)
    for step in range(steps):
        gradients = jax.tree.map(jnp.asarray, gradient(path[-1], step))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        path.append(jax.tree.map(np.asarray, params))
    return path, state


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("alpha", [2.0, 100.0])
def test_riemannian_adamw_by_hand(alpha, nesterov):
    rate, b1, b2, eps, decay = 0.03, 0.8, 0.9, 1e-3, 0.1
    params = {name: leaf.copy() for name, leaf in START.items()}
    rows, columns, squares = np.zeros(4), np.zeros(3), np.zeros(3)
    means = {name: np.zeros_like(leaf) for name, leaf in START.items()}
    expected = [START]
    for t in range(1, STEPS + 1):
        g = gradient(params, t - 1)
        rows = b2 * rows + (1 - b2) * np.mean(g["w"] ** 2, axis=1)
        columns = b2 * columns + (1 - b2) * np.mean(g["w"] ** 2, axis=0)
        squares = b2 * squares + (1 - b2) * g["b"] ** 2
        total = 1 - b2**t
        phi = {
            "w": np.sqrt(np.outer(rows, columns) / np.mean(rows) / total),
            "b": np.sqrt(squares / total),
        }
        mu = np.concatenate([phi["w"].ravel(), phi["b"]]).mean()
        for name in START:
            metric = np.maximum(
                (mu + alpha * phi[name]) / (1 + alpha) + eps, np.sqrt(1 - b2) * np.abs(g[name])
            )
            u = g[name] / metric
            means[name] = b1 * means[name] + (1 - b1) * u
            step = means[name] / (1 - b1**t)
            if nesterov:
                step = b1 * means[name] / (1 - b1 ** (t + 1)) + (1 - b1) * u / (1 - b1**t)
            decayed = decay * params[name] if name == "w" else 0.0
            params[name] = params[name] - rate * (step + decayed)
        expected.append({name: leaf.copy() for name, leaf in params.items()})
    tx = ro.riemannian_adamw(
        rate, b1, b2, eps, alpha=alpha, nesterov=nesterov, weight_decay=decay, mask={"w": True, "b": False}
    )
    chex.assert_trees_all_close(walk(tx)[0], expected, rtol=1e-8)


@pytest.mark.parametrize("over", ["tree", "leaf"])
def test_means_from_the_factors_are_the_means_of_the_product(over):
    """What factored_activity hands along is what compute_metric would have taken from its values."""
    phi = ro.phi.factored_activity()
    hidden = optax.GradientTransformationExtraArgs(phi.init, phi.update)  # declares nothing
    shapes = {"matrix": (4, 3), "stack": (2, 3, 5), "vector": (7,), "number": ()}
    rng = np.random.default_rng(2)
    ours, plain = (ro.compute_metric(p, 3.0, conformal=over) for p in (phi, hidden))
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state, other = ours.init(params), plain.init(params)
    for _ in range(4):
        gradients = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
        updates, state = ours.update(gradients, state)
        expected, other = plain.update(gradients, other)
        chex.assert_trees_all_close(ro.split(updates), ro.split(expected), rtol=1e-12)


def test_schedule_free_by_hand():
    rate, b1, power = 0.1, 0.8, 2.0
    x, y, z = ({name: leaf.copy() for name, leaf in START.items()} for _ in range(3))
    total, expected = 0.0, [START]
    for step in range(STEPS):
        g = gradient(y, step)
        total += (step + 1) ** power
        share = (step + 1) ** power / total
        for name in START:
            z[name] = z[name] - rate * g[name]
            x[name] = (1 - share) * x[name] + share * z[name]
            y[name] = (1 - b1) * z[name] + b1 * x[name]
        expected.append({name: leaf.copy() for name, leaf in y.items()})
    path, state = walk(ro.schedule_free(optax.sgd(rate), b1=b1, power=power))
    chex.assert_trees_all_close(path, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(ro.eval_params(state, path[-1]), x, rtol=1e-5, atol=1e-6)


def test_warm_up_rises_to_the_rate_and_stays():
    """The first step of schedule-free is that of its base; the warm-up is counted in float32."""
    with_it, without = (
        ro.riemannian_schedule_free(0.1, warmup_steps=steps, weight_decay=0.0) for steps in (10, 0)
    )
    first = [walk(tx, steps=1)[0][1] for tx in (with_it, without)]
    for name, start in START.items():
        np.testing.assert_allclose(10 * (first[0][name] - start), first[1][name] - start, rtol=1e-6)


def test_eval_params_of_groups_is_the_average_of_each():
    """A model whose tables have a rate of their own, and whose scale is left to AdamW."""
    start = {"table": jnp.ones([3, 2]), "kernel": jnp.full([2, 2], 0.5), "scale": jnp.ones(2)}
    rates = {"table": 0.4, "kernel": 0.1}
    alone = {name: ro.riemannian_schedule_free(rate, warmup_steps=0) for name, rate in rates.items()}
    tx = optax.partition(alone | {"scale": optax.adamw(0.1)}, {name: name for name in start})
    gradients = {name: leaf + 0.3 * jnp.arange(leaf.size).reshape(leaf.shape) for name, leaf in start.items()}
    params, state = start, tx.init(start)
    for _ in range(5):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    averaged = ro.eval_params(state, params)
    for name, own in alone.items():
        expected, own_state = {name: start[name]}, own.init({name: start[name]})
        for _ in range(5):
            updates, own_state = own.update({name: gradients[name]}, own_state, expected)
            expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(averaged[name], ro.eval_params(own_state, expected)[name], rtol=1e-5)
        assert np.abs(averaged[name] - params[name]).max() > 1e-3
    np.testing.assert_array_equal(averaged["scale"], params["scale"])


def test_eval_params_refuses_two_averages_of_a_leaf_and_other_parameters():
    params = jax.tree.map(jnp.asarray, START)
    state = ro.riemannian_schedule_free(0.1).init(params)
    with pytest.raises(ValueError, match=r"2 schedule-free averages of leaf \['b'\]"):
        ro.eval_params((state, state), params)
    with pytest.raises(ValueError, match="params"):
        ro.eval_params(state, {"w": params["w"]})


def least_squares():
    rng = np.random.default_rng(3)
    left, _, right = np.linalg.svd(rng.standard_normal([80, 20]), full_matrices=False)
    inputs = jnp.asarray(left * np.geomspace(1, 0.1, 20) @ right * np.sqrt(80))
    targets = inputs @ jnp.asarray(rng.standard_normal([20, 5])) + 1.0

    def loss(params):
        return jnp.mean(jnp.sum((inputs @ params["w"] + params["b"] - targets) ** 2, axis=-1)) / 2

    return loss, {"w": jnp.zeros([20, 5]), "b": jnp.zeros(5)}


def losses(tx, steps):
    loss, params = least_squares()

    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


def test_a_rate_that_falls_to_0_converges_and_a_constant_one_stalls():
    """As the docstring says, on a noiseless problem; ``optax.nadam`` at a constant rate does the same."""
    steps = 20_000
    for constant in (ro.riemannian_adamw(0.003, weight_decay=0.0), optax.nadam(0.003)):
        assert jnp.median(losses(constant, steps)[-1000:]) > 1e-8
    schedule = optax.cosine_decay_schedule(0.003, steps)
    assert losses(ro.riemannian_adamw(schedule, weight_decay=0.0), steps)[-1] < 1e-20


def largest_steps(tx, stream, steps):
    """Return the largest absolute update of each leaf, in units of the rate."""
    state, largest = tx.init(stream(0)), {}
    update = jax.jit(tx.update)
    for step in range(steps):
        gradients = stream(step)
        updates, state = update(gradients, state, gradients)
        for name, leaf in updates.items():
            largest[name] = max(largest.get(name, 0.0), float(jnp.max(jnp.abs(leaf))))
    return largest


def heavy_tailed(step):
    """Rare rows, and gradients that differ by orders of magnitude from step to step."""
    rng = np.random.default_rng(1000 + step)
    size = 10.0 ** rng.uniform(-3, 3)
    seen = rng.random([6, 1]) < 0.05
    return {
        "embedding": jnp.asarray(size * seen * rng.standard_normal([6, 4])),
        "vector": jnp.asarray(size * (rng.random(5) < 0.1) * rng.standard_normal(5)),
    }


@pytest.mark.parametrize(("b1", "b2", "alpha"), [(0.9, 0.97, 100.0), (0.5, 0.9, 2.0)])
def test_the_bound_on_all_steps(b1, b2, alpha):
    """``E`` is at least ``sqrt(1 - b2) |g|``; Nesterov's first step is the longest of steady ones."""
    tx = ro.riemannian_adamw(1.0, b1, b2, alpha=alpha, weight_decay=0.0)
    bound = (1 + b1 / (1 + b1)) / np.sqrt(1 - b2)
    assert max(largest_steps(tx, heavy_tailed, 200).values()) <= bound


def test_a_weight_whose_row_and_column_were_silent_moves_no_further_than_under_adam():
    """Rows times columns alone would let it move far: their product is small, not the weight's gradient."""
    silent = jnp.zeros([8, 8]).at[1:, 1:].set(1.0)
    alone = jnp.zeros([8, 8]).at[0, 0].set(1.0)

    def last(tx):
        state, update = tx.init(alone), jax.jit(tx.update)
        for _ in range(400):
            _, state = update(silent, state, alone)
        return float(jnp.abs(update(alone, state, alone)[0][0, 0]))

    ours = last(ro.riemannian_adamw(1.0, weight_decay=0.0))
    adam = last(optax.nadam(1.0, b2=0.97))
    # Its bias correction is not quite 1 yet, and its eps of 1e-8 is added to this smallest of means.
    assert ours <= adam / np.sqrt(1 - 0.97**401) * (1 + 1e-7)
    unbounded = ro.riemannian_adamw(1.0, weight_decay=0.0, phi=ro.phi.factored_activity(decay=0.97))
    assert last(unbounded) > 5 * adam


def test_after_a_long_silence_a_vector_moves_less_than_under_adam():
    def stream(step):
        return {"vector": jnp.zeros(4).at[0].set(1.0 if step == 1200 else 0.0)}

    ours = largest_steps(ro.riemannian_adamw(1.0, weight_decay=0.0), stream, 1201)["vector"]
    adam = largest_steps(optax.adam(1.0), stream, 1201)["vector"]
    np.testing.assert_allclose(ours, 0.19 / np.sqrt(0.03), rtol=0.02)
    np.testing.assert_allclose(adam, 0.1 / np.sqrt(0.001 / (1 - 0.999**1201)), rtol=1e-4)


def test_no_step_before_momentum_exceeds_its_share_of_the_mean():
    """``|u| <= (1 + alpha) |g| / mean(phi)``, of matrices too."""
    phi, alpha = ro.phi.factored_activity(decay=0.97), 100.0
    tx = ro.scale_by_metric(phi, alpha, conformal="tree")
    state, own = tx.init(heavy_tailed(0)), phi.init(heavy_tailed(0))
    for step in range(100):
        gradients = heavy_tailed(step)
        updates, state = tx.update(gradients, state)
        values, own = phi.update(gradients, own)
        mean = np.concatenate([np.ravel(leaf) for leaf in values.values()]).mean()
        for name, leaf in updates.items():
            assert np.all(np.abs(leaf) * mean <= (1 + alpha) * np.abs(gradients[name]) * (1 + 1e-9))


ALIASES = {
    "adamw": ro.riemannian_adamw,
    "schedule_free": ro.riemannian_schedule_free,
    "eigenbasis": lambda rate, **options: ro.riemannian_eigenbasis(rate, basis_dtype=jnp.float64, **options),
}


@pytest.mark.parametrize("conformal", ["tree", "neuron"])
@pytest.mark.parametrize("make", ALIASES.values(), ids=ALIASES)
def test_axes_reach_the_metric_of_an_alias(make, conformal):
    """Three layers under one name, which a convolution has too, are three arrays; by default they are not."""
    layers = jnp.asarray(RNG.standard_normal([3, 4, 5]))
    apart, stacked = {str(i): layer for i, layer in enumerate(layers)}, {"conv": {"kernel": layers}}

    def steps(params, **options):
        tx = make(0.1, conformal=conformal, **options)
        state = tx.init(params)
        for power in (1, 2):
            updates, state = tx.update(jax.tree.map(lambda w, power=power: w**power, params), state, params)
        return updates

    expected = jnp.stack(list(steps(apart).values()))
    for axes in ("scanned", {"conv": "scanned"}, lambda name, leaf: ro.MatrixAxes((1,), (2,))):
        found = steps(stacked, axes=axes)["conv"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    assert np.abs(steps(stacked)["conv"]["kernel"] - expected).max() > 1e-4


@pytest.mark.parametrize("make", [ro.riemannian_adamw, ro.riemannian_schedule_free])
def test_axes_beside_a_phi_are_refused(make):
    with pytest.raises(ValueError, match=r"^axes belongs to the default phi, .* give axes to that phi"):
        make(0.1, phi=ro.phi.per_neuron(), axes="equinox")
    with pytest.raises(ValueError, match=r"^axes must be one of 'flax'"):
        make(0.1, axes="torch")
    make(0.1, phi=ro.phi.per_neuron(axes="equinox"))


OPTIONS = {
    "adamw": {},
    "schedule_free": {"warmup_steps": 3},
    "eigenbasis": {"basis_dtype": jnp.float32, "update_every": 1},
}


@pytest.mark.parametrize("alias", OPTIONS)
def test_hyper_parameters_are_read_and_set_during_a_run(alias):
    """From the same state on, a value set in it is that of an optimiser made with it; compiled once."""
    make, options = getattr(ro, f"riemannian_{alias}"), {"record": True, **OPTIONS[alias]}
    tx = optax.inject_hyperparams(make, static_args=tuple(OPTIONS[alias]))(0.01, **options)
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), START)
    compilations = []

    @jax.jit
    def update(gradients, state, params):
        compilations.append(alias)
        return tx.update(gradients, state, params)

    def step_of(state, **values):
        """The step, and the state after it: both as an optimiser made with these values has them."""
        found, after = update(params, state, params)
        expected = jax.jit(make(**values, **options).update)(params, state.inner_state, params)
        for x, y in zip(jax.tree.leaves((found, after.inner_state)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
        read = ro.metric_scalars(after, params)
        assert {name: read[f"hyperparams/{name}"] for name in values} == pytest.approx(values, rel=1e-6)
        return found, after

    _, state = step_of(tx.init(params), learning_rate=0.01)
    before, _ = step_of(state, learning_rate=0.01)
    values = {"learning_rate": 0.02, "alpha": 3.0, "b2": 0.9, "weight_decay": 0.5, "eps": 0.1}
    values |= {"tau": 0.5} if alias == "eigenbasis" else {}
    for name, value in values.items():
        state.hyperparams[name] = jnp.asarray(value, state.hyperparams[name].dtype)
    found, _ = step_of(state, **values)
    for name in START:
        assert np.abs(found[name] - before[name]).max() > 0.1 * np.abs(before[name]).max()
    assert len(compilations) == 1


@pytest.mark.parametrize("name", ["riemannian_sgd", *(f"riemannian_{alias}" for alias in OPTIONS), "soap"])
def test_inject_hyperparams_takes_an_alias_as_it_is(name):
    """As it takes ``optax.adamw``: without ``static_args``, and with the numbers that the alias has."""
    make, params = getattr(ro, name), jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), START)
    plain, injected = make(0.01), optax.inject_hyperparams(make)(0.01)
    state, own = plain.init(params), injected.init(params)
    for _ in range(3):
        expected, state = jax.jit(plain.update)(params, state, params)
        found, own = jax.jit(injected.update)(params, own, params)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("alias", "options"),
    [
        ("adamw", {}),
        ("sgd", {}),
        ("sgd", {"decay_in_metric": True}),
        ("schedule_free", {"warmup_steps": 3}),
        ("eigenbasis", {}),
    ],
)
def test_a_mask_that_was_taken_for_a_schedule_is_refused(alias, options):
    """Without static_args it is called at the count of updates, and its one boolean would stop all decay."""
    params = jax.tree.map(jnp.asarray, START)
    make = getattr(ro, f"riemannian_{alias}")
    matrices = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)  # noqa: E731
    static = set(inspect.signature(make).parameters) - {"learning_rate", "weight_decay", "mask"}
    tx = optax.inject_hyperparams(make, static_args=static)(0.1, weight_decay=0.5, mask=matrices, **options)
    with pytest.raises(ValueError, match=r'^mask must be a tree .* name "mask" in its static_args'):
        tx.update(params, tx.init(params), params)
    tx = optax.inject_hyperparams(make, static_args={"mask", *static})(
        0.1, weight_decay=0.5, mask=matrices, **options
    )
    plain = make(0.1, weight_decay=0.0, **options)
    found, expected = (rule.update(params, rule.init(params), params)[0] for rule in (tx, plain))
    np.testing.assert_allclose(found["b"], expected["b"], rtol=1e-6)
    assert np.abs(found["w"] - expected["w"]).max() > 1e-4
    one = make(0.1, weight_decay=0.5, mask=True, **options)  # a tree of one leaf
    one.update(params["w"], one.init(params["w"]), params["w"])
