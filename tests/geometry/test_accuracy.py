"""Every separable field against adaptive quadrature in float64: short steps, sign changes, zero weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import riemann_optax as ro

# The field, its E in NumPy, and how many powers of E can be integrated up to 0 and across it: the root, E.
FIELDS = {
    "constant": (ro.fields.Constant(2.5), lambda w: 2.5, 2),
    "absolute": (ro.fields.Absolute(3.0), lambda w: 1 + 3 * abs(w), 2),
    "absolute, strong": (ro.fields.Absolute(1e4), lambda w: 1 + 1e4 * abs(w), 2),
    "absolute, flat": (ro.fields.Absolute(0.0), lambda w: 1.0, 2),
    "quadratic": (ro.fields.Quadratic(3.0), lambda w: 1 + 3 * w * w, 2),
    "quadratic, strong": (ro.fields.Quadratic(1e4), lambda w: 1 + 1e4 * w * w, 2),
    "quadratic, flat": (ro.fields.Quadratic(0.0), lambda w: 1.0, 2),
    "multiplicative": (ro.fields.Multiplicative(), lambda w: 1 / abs(w), 1),
    "multiplicative, eps": (ro.fields.Multiplicative(1e-3), lambda w: 1 / (abs(w) + 1e-3), 2),
    "log-normal": (ro.fields.LogNormal(), lambda w: 1 / w**2, 0),
    "log-normal, eps": (ro.fields.LogNormal(0.01), lambda w: 1 / (w * w + 1e-4), 2),
    "derived, smooth": (ro.fields.Elementwise(lambda w: 1 + w**4), lambda w: 1 + w**4, 2),
    "derived, kink": (ro.fields.Elementwise(lambda w: 1 + 3 * jnp.abs(w)), lambda w: 1 + 3 * abs(w), 2),
}
WEIGHTS = (0.0, 1e-7, -1e-3, 0.3, -0.7, 5.0, -40.0)
STEPS = (1e-6, -1e-6, 1e-3, -1e-3, 0.2, -3.0)
SINGULAR = {"multiplicative", "log-normal"}


def cases(name, power):
    """Pairs of a float32 weight and displacement that the field can integrate over."""
    _, _, across = FIELDS[name]
    pairs = [(np.float32(w), np.float32(d)) for w in WEIGHTS for d in STEPS]
    if across < power:
        # Not up to the pole, and not so far from it that the quadrature itself fails.
        pairs = [(w, d) for w, d in pairs if float(w) * (float(w) + float(d)) > 0 and abs(d) < 1e3 * abs(w)]
    return np.array(pairs, np.float32).T


def integral(density, weight, displacement):
    """The integral over the displacement, which is the unknown's own scale: nothing cancels."""
    w, d = float(weight), float(displacement)
    breaks = [0.0, -w / d, 1.0] if w * (w + d) < 0 else [0.0, 1.0]
    parts = [
        quad(lambda t: density(w + t * d), low, high, epsabs=0, epsrel=1e-9, limit=200)[0]
        for low, high in itertools.pairwise(breaks)
    ]
    return d * sum(parts)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("power", [1, 2], ids=["arc", "dual"])
def test_integrals_and_inverses_in_float32(name, power):
    field, metric, _ = FIELDS[name]
    forward, back = (
        (field.arc_length, field.geodesic_displacement),
        (field.dual_displacement, field.mirror_displacement),
    )[power - 1]
    weights, displacements = cases(name, power)

    def density(w):
        return np.sqrt(metric(w)) if power == 1 else metric(w)

    exact = np.array([integral(density, w, d) for w, d in zip(weights, displacements, strict=True)])
    np.testing.assert_allclose(jax.jit(forward)(weights, displacements), exact, rtol=1e-5)
    # The inverse is asked for the float32 nearest to the integral: so much its answer may differ by.
    amounts = exact.astype(np.float32)
    ends = weights.astype(np.float64) + displacements
    slopes = np.array([density(end) if end or name not in SINGULAR else np.inf for end in ends])
    expected = displacements + (amounts - exact) / slopes
    # Where a large amount makes a small step, as near the end of a bounded dual variable, rounding the amount
    # alone moves the step.
    rounding = 4 * np.finfo(np.float32).eps * np.abs(exact / slopes)
    assert (np.abs(jax.jit(back)(weights, amounts) - expected) <= 1e-5 * np.abs(expected) + rounding).all()


@pytest.mark.parametrize("name", ["absolute", "multiplicative", "log-normal"])
def test_the_obvious_form_is_not_accurate_enough(name):
    """What the displacement form is for: the charts of weight and end, subtracted, lose their digits."""
    field, metric, _ = FIELDS[name]
    weights = jnp.array([0.3, -0.7, 5.0, -40.0], jnp.float32)
    steps = jnp.full_like(weights, 1e-6)
    exact = np.array([integral(lambda w: np.sqrt(metric(w)), w, 1e-6) for w in weights])
    origin = jnp.where(weights > 0, 0.1, -0.1)
    naive = field.arc_length(origin, weights + steps - origin) - field.arc_length(origin, weights - origin)
    assert np.max(np.abs(naive / exact - 1)) > 0.01
    np.testing.assert_allclose(field.arc_length(weights, steps), exact, rtol=1e-5)


@pytest.mark.parametrize("kind", ["geodesic", "mirror", "second_order"])
def test_steps_of_1e_6_in_float32_match_float64(kind):
    """Whole updates; weights at zero and tangent vectors that are zero included."""
    weights = np.array([0.3, -0.7, 5.0, -40.0, 1e-3, 0.0, 2.0])
    updates = np.array([1e-6, -1e-6, 1e-6, 1e-6, -1e-6, 1e-6, 0.0])
    at_rest = np.where(weights == 0, 0.0, updates)  # what stage 2 makes of any gradient where E is infinite

    def steps(dtype):
        w = jnp.asarray(weights, jnp.float32).astype(dtype)

        def update(name):
            tx = ro.retract(FIELDS[name][0], kind)
            u = jnp.asarray(at_rest if name in SINGULAR else updates, jnp.float32).astype(dtype)
            return tx.update(u, tx.init(w), w)[0]

        return jax.jit(lambda: {name: update(name) for name in FIELDS})()

    narrow = steps(jnp.float32)
    with jax.enable_x64(True):
        wide = steps(jnp.float64)
    for name in FIELDS:
        assert narrow[name].dtype == jnp.float32
        np.testing.assert_allclose(narrow[name], wide[name], rtol=1e-5, err_msg=name)
        assert narrow[name][-1] == 0
        assert narrow[name][-2] == 0 or name not in SINGULAR


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_evaluated_in_float32_and_kept(dtype):
    weights, updates = jnp.array([0.5, -2.0], dtype), jnp.array([1e-3, 1e-3], dtype)
    tx = ro.retract(ro.fields.Absolute(3.0), "geodesic")
    narrow, _ = tx.update(updates, tx.init(weights), weights)
    assert narrow.dtype == dtype
    wide, _ = tx.update(updates.astype(jnp.float32), tx.init(weights), weights.astype(jnp.float32))
    np.testing.assert_array_equal(narrow, wide.astype(dtype))


def test_log_normal_mirror_step_beyond_infinity_is_infinite():
    for eps in (0.0, 0.1):
        field = ro.fields.LogNormal(eps)
        assert np.isinf(field.mirror_displacement(jnp.array([2.0]), jnp.array([100.0]))[0])


@pytest.mark.parametrize("name", ["absolute", "log-normal, eps", "quadratic"])
def test_displacements_differentiate(name):
    """The derivative of the geodesic step is that of its defining equation, through Newton as well."""
    field, metric, _ = FIELDS[name]
    with jax.enable_x64(True):
        w, s = jnp.array(0.4), jnp.array(0.3)
        by_weight, by_length = jax.jit(jax.grad(field.geodesic_displacement, argnums=(0, 1)))(w, s)
        end = float(w + field.geodesic_displacement(w, s))
        np.testing.assert_allclose(by_length, 1 / np.sqrt(metric(end)), rtol=1e-6)
        np.testing.assert_allclose(by_weight, np.sqrt(metric(float(w)) / metric(end)) - 1, rtol=1e-6)
