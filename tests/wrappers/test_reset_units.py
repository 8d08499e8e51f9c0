"""Units drawn anew: the published rules replayed in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

SIZES, BATCH, STEPS, RATE = (5, 8, 6, 3), 4, 240, 0.02
LAYERS = len(SIZES) - 1


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def first_weights():
    generator = np.random.default_rng(0)
    return [
        {
            "kernel": generator.normal(size=(rows, columns)) / np.sqrt(rows),
            "bias": generator.normal(size=columns) - 0.5,
        }
        for rows, columns in itertools.pairwise(SIZES)
    ]


def drawn(shape):
    """A kernel that is the same in both programs."""
    return np.cos(np.arange(np.prod(shape), dtype=float)).reshape(shape)


def initializer(key, shape, dtype):
    return jnp.asarray(drawn(shape), dtype)


def batch(step):
    return np.random.default_rng(100 + step // 40).normal(size=(BATCH, SIZES[0]))


def hidden_activities(weights, step):
    activities, x = [], batch(step)
    for layer in weights:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0.0)
        activities.append(x)
    return activities


def gradients(weights, step):
    """Of nothing in particular, but of the weights and noise."""
    generator = np.random.default_rng(1000 + step)
    return [
        {
            n: 0.5 * layer[n] + generator.normal(size=layer[n].shape) + (n == "bias")
            for n in ("bias", "kernel")
        }
        for layer in weights
    ]


class Adam:
    """Adam step by step, with moments that can be forgotten."""

    def __init__(self, weights):
        self.count = 0
        self.moments = [
            {n: [np.zeros_like(w), np.zeros_like(w)] for n, w in layer.items()} for layer in weights
        ]

    def step(self, weights, grads):
        self.count += 1
        for layer, own, moments in zip(weights, grads, self.moments, strict=True):
            for name, w in layer.items():
                first, second = moments[name]
                first[:] = 0.9 * first + 0.1 * own[name]
                second[:] = 0.999 * second + 0.001 * own[name] ** 2
                mean, square = first / (1 - 0.9**self.count), second / (1 - 0.999**self.count)
                w -= RATE * mean / (np.sqrt(square) + 1e-8)


def renew(weights, adam, layer, unit):
    """Incoming weights drawn, bias and outgoing weights 0, moments of all of them 0."""
    weights[layer]["kernel"][:, unit] = drawn(weights[layer]["kernel"].shape)[:, unit]
    weights[layer]["bias"][unit] = 0.0
    weights[layer + 1]["kernel"][unit] = 0.0
    for moment in range(2):
        adam.moments[layer]["kernel"][moment][:, unit] = 0.0
        adam.moments[layer]["bias"][moment][unit] = 0.0
        adam.moments[layer + 1]["kernel"][moment][unit] = 0.0


def dormant(threshold, every):
    def choose(weights, activities, step):
        chosen = []
        for layer in range(LAYERS - 1):
            size = np.abs(activities[layer]).mean(0)
            dead = size <= threshold * size.mean()
            chosen.append(dead if (step + 1) % every == 0 else np.zeros_like(dead))
        return chosen

    return choose


class Silent:
    """Algorithm 1 of Farias and Jozefiak, in examples instead of updates, as their program counts."""

    def __init__(self, percentile, every, longest, first):
        self.percentile, self.every, self.longest = percentile, every, longest * BATCH
        self.ages = [np.zeros(n, int) for n in SIZES[1:-1]]
        self.limits = [np.full(n, first * BATCH) for n in SIZES[1:-1]]
        self.ended = [[[] for _ in range(n)] for n in SIZES[1:-1]]

    def __call__(self, weights, activities, step):
        chosen = []
        for layer in range(LAYERS - 1):
            silent = (activities[layer] <= 0).all(0)
            chosen.append(np.zeros(SIZES[layer + 1], bool))
            for unit, quiet in enumerate(silent):
                if not quiet:
                    self.ended[layer][unit].append(self.ages[layer][unit])
                self.ages[layer][unit] = self.ages[layer][unit] + BATCH if quiet else 0
                if self.ages[layer][unit] >= self.limits[layer][unit]:
                    chosen[layer][unit] = True
                    self.ended[layer][unit].append(self.ages[layer][unit])
                    self.ages[layer][unit] = 0
        if (step + 1) % self.every == 0:
            for layer in range(LAYERS - 1):
                for unit, ended in enumerate(self.ended[layer]):
                    self.limits[layer][unit] = self.limit(ended, self.limits[layer][unit])
            self.ended = [[[] for _ in range(n)] for n in SIZES[1:-1]]
        return chosen

    def limit(self, ended, limit):
        lasted = sorted(age for age in ended if age > 0)
        duration = 1
        if lasted:  # the first at which the share of durations up to it reaches the percentile
            duration = next(
                age
                for n, age in enumerate(lasted, 1)
                if sum(x <= age for x in lasted) >= self.percentile * len(lasted)
            )
        return np.clip(duration if duration < limit else 2 * limit, BATCH, self.longest)


class LeastUseful:
    """Algorithm 1 of Dohare et al, with the corrected utilities of their program."""

    def __init__(self, rate, maturity, decay):
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.utility = [np.zeros(n) for n in SIZES[1:-1]]
        self.age = [np.zeros(n, int) for n in SIZES[1:-1]]
        self.due = [0.0] * (LAYERS - 1)

    def __call__(self, weights, activities, step):
        chosen = []
        for layer in range(LAYERS - 1):
            outgoing = np.abs(weights[layer + 1]["kernel"]).sum(1)
            contribution = np.abs(activities[layer]).mean(0) * outgoing
            self.utility[layer] = self.decay * self.utility[layer] + (1 - self.decay) * contribution
            self.age[layer] += 1
            mature = np.flatnonzero(self.age[layer] > self.maturity)
            self.due[layer] += self.rate * len(mature)
            number = int(self.due[layer])
            self.due[layer] -= number
            unbiased = self.utility[layer] / (1 - self.decay ** self.age[layer])
            worst = mature[np.argsort(unbiased[mature], kind="stable")[:number]]
            chosen.append(np.isin(np.arange(SIZES[layer + 1]), worst))
            self.utility[layer][worst] = 0.0
            self.age[layer][worst] = 0
        return chosen


RULES = {
    "dormant": (lambda: ro.dormant_units(0.3, every=20), lambda: dormant(0.3, 20)),
    "silent": (
        lambda: ro.silent_units(0.9, every=30, longest=25, first=8),
        lambda: Silent(0.9, 30, 25, 8),
    ),
    "least useful": (
        lambda: ro.least_useful_units(0.01, maturity=30, decay=0.9),
        lambda: LeastUseful(0.01, 30, 0.9),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_replays_the_published_rule_around_adam(name):
    make, oracle = RULES[name]
    tx = ro.reset_units(optax.adam(RATE), make(), initializer=initializer)
    params = jax.tree.map(jnp.asarray, first_weights())
    state, update = tx.init(params), jax.jit(tx.update)
    weights, choose = first_weights(), oracle()
    adam, resets = Adam(weights), 0
    for step in range(STEPS):
        own = jax.tree.map(np.asarray, params)
        seen = [{"kernel": h, "bias": h} for h in hidden_activities(own, step)]
        updates, state = update(gradients(own, step), state, params, activities=seen)
        params = optax.apply_updates(params, updates)

        activities = hidden_activities(weights, step)
        adam.step(weights, gradients(weights, step))
        for layer, chosen in enumerate(choose(weights, activities, step)):
            for unit in np.flatnonzero(chosen):
                renew(weights, adam, layer, unit)
                resets += 1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), params, weights)
        assert state.resets == resets
    assert resets > 10
    for moment, found in ((0, state.inner_state[0].mu), (1, state.inner_state[0].nu)):
        expected = [{n: m[moment] for n, m in layer.items()} for layer in adam.moments]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_the_published_order_between_two_layers():
    """A weight from a chosen unit to another chosen one is drawn, as where layers are renewed in turn."""
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(2.0, every=1), initializer=initializer)
    params = jax.tree.map(jnp.asarray, first_weights())
    seen = [{"kernel": jnp.ones([1, n]), "bias": jnp.ones([1, n])} for n in SIZES[1:]]
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activities=seen)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after[0]["kernel"], drawn((5, 8)), rtol=1e-12)
    np.testing.assert_allclose(after[1]["kernel"], drawn((8, 6)), rtol=1e-12)
    np.testing.assert_array_equal(after[2]["kernel"], np.zeros((6, 3)))
    np.testing.assert_array_equal(after[2]["bias"], params[2]["bias"])


@pytest.mark.parametrize("rate", [1.5, -0.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=r"rate must be a finite number in \[0, 1\]"):
        ro.least_useful_units(rate)


@pytest.mark.parametrize(
    "rule",
    [
        ro.least_useful_units(0.2, maturity=1),
        ro.silent_units(first=2, longest=4),
        ro.dormant_units(0.5, every=2),
    ],
    ids=["least_useful", "silent", "dormant"],
)
def test_a_batch_that_is_no_number_tells_the_rule_nothing(rule):
    """The guard inside skips its gradients; utilities and silences are those of the other batches."""
    tx = ro.reset_units(ro.skip_nonfinite(optax.sgd(RATE)), rule, initializer=initializer)

    def trained(steps):
        params = jax.tree.map(jnp.asarray, first_weights())
        state = tx.init(params)
        for step in steps:
            weights = jax.tree.map(np.asarray, params)
            scale = np.nan if step is None else 1.0
            gradient = jax.tree.map(lambda g, c=scale: c * jnp.asarray(g), gradients(weights, step or 0))
            seen = jax.tree.map(lambda h, c=scale: c * h, hidden_activities(weights, step or 0))
            signals = [{"kernel": h, "bias": h} for h in seen]
            updates, state = tx.update(gradient, state, params, activities=signals)
            params = optax.apply_updates(params, updates)
        return params, state

    (params, state), (expected, wanted) = trained([0, None, 1, 2, 3, 4]), trained([0, 1, 2, 3, 4])
    assert state.resets == wanted.resets
    for found, other in zip(
        jax.tree.leaves((params, state.rule)), jax.tree.leaves((expected, wanted.rule)), strict=True
    ):
        np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize("percentile", [0.2, 0.6, 0.8, 1.0])
def test_a_percentile_of_silences_is_counted_exactly(percentile):
    """The smallest duration that so many of the silences 1 to 25, one of each, do not exceed."""
    rule = ro.silent_units(percentile, every=50, longest=60, first=60)
    state = rule.init(jnp.zeros(1))
    state = state._replace(count=state.count + 49, durations=jnp.zeros([1, 61], jnp.int32).at[0, 1:26].set(1))
    assert int(rule.update(jnp.ones([1, 1]), jnp.ones(1), state)[1].limit[0]) == round(percentile * 25)


@pytest.mark.parametrize(
    ("axes", "shape", "reader"),
    [
        ("flax", (200, 64), (64, 2)),
        ("equinox", (64, 200), (2, 64)),
        ("flax", (3, 3, 8, 64), (3, 3, 64, 2)),
        ("equinox", (64, 8, 3, 3), (2, 64, 3, 3)),
    ],
)
def test_an_initializer_of_jax_counts_the_inputs(axes, shape, reader):
    """He's deviation is sqrt(2 / inputs), wherever a library keeps its inputs."""
    params = {"hidden": {"weight": jnp.zeros(shape)}, "head": {"weight": jnp.ones(reader)}}
    he = jax.nn.initializers.he_normal()
    tx = ro.reset_units(optax.sgd(0.0), ro.dormant_units(0.0, every=1), initializer=he, axes=axes)
    seen = {"hidden": {"weight": jnp.zeros([2, 64])}, "head": {"weight": jnp.zeros([2, 2])}}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, activities=seen)
    drawn = np.asarray(updates["hidden"]["weight"])
    inputs = drawn.size / 64
    np.testing.assert_allclose(drawn.std(), np.sqrt(2 / inputs), rtol=0.02)
