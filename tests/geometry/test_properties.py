"""What is true of every field, weight and vector, as properties; and one thing often said that is false."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import riemann_optax as ro
from riemann_optax import flow

SEPARABLE = {
    "constant": ro.fields.Constant(2.5),
    "absolute": ro.fields.Absolute(3.0),
    "quadratic": ro.fields.Quadratic(3.0),
    "multiplicative": ro.fields.Multiplicative(0.1),
    "log-normal": ro.fields.LogNormal(0.1),
    "derived": ro.fields.Elementwise(lambda w: jnp.exp(jnp.sin(w))),
}
KINDS = ["euler", "geodesic", "second_order", "mirror"]
SIZE = 4

few = settings(max_examples=12, derandomize=True, deadline=None)
vectors = arrays(np.float64, SIZE, elements=st.floats(-2, 2, width=32))
fields = pytest.mark.parametrize("field", SEPARABLE.values(), ids=SEPARABLE)
few_fields = pytest.mark.parametrize("field", [SEPARABLE["absolute"], SEPARABLE["derived"]])


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


def close(actual, expected, scale=1.0):
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-9 * scale)


@fields
def test_exponential_and_logarithm_map_invert_each_other(field):
    @jax.jit
    def there_and_back(w, u):
        step = ro.geometry.exponential_map(field, w, u)
        return ro.geometry.logarithm_map(field, w, step), ro.geometry.distance(field, w, step)

    norm = jax.jit(lambda w, u: ro.geometry.norm(field, w, u))

    @few
    @given(vectors, vectors)
    def holds(w, u):
        tangent, distance = there_and_back(w, u)
        close(tangent, u)
        close(distance, norm(w, u))  # geodesics have constant speed

    holds()


@fields
def test_distance_is_symmetric_and_obeys_the_triangle(field):
    distance = jax.jit(lambda w, d: ro.geometry.distance(field, w, d))

    @few
    @given(vectors, vectors, vectors)
    def holds(a, b, c):
        close(distance(a, b - a), distance(b, a - b))
        assert distance(a, c - a) <= distance(a, b - a) + distance(b, c - b) + 1e-9
        assert distance(a, a - a) == 0

    holds()


@fields
def test_transport_keeps_inner_products_and_composes(field):
    @jax.jit
    def moved(w, d, e, u, v):
        carried = [ro.geometry.transport(field, w, d, x) for x in (u, v)]
        in_two = ro.geometry.transport(field, w + e, d - e, ro.geometry.transport(field, w, e, u))
        inner = ro.geometry.inner(field, w, u, v), ro.geometry.inner(field, w + d, *carried)
        return inner, carried[0], in_two

    @few
    @given(vectors, vectors, vectors, vectors, vectors)
    def holds(w, d, e, u, v):
        (before, after), once, twice = moved(w, d, e, u, v)
        close(after, before, scale=10)
        close(twice, once)

    holds()


@few_fields
def test_sharp_and_flat_invert_each_other_and_are_dual(field):
    @jax.jit
    def both(w, u, c):
        lowered = ro.geometry.flat(field, w, u)
        return (
            ro.geometry.sharp(field, w, lowered),
            jnp.vdot(lowered, c),
            ro.geometry.inner(field, w, u, c),
        )

    @few
    @given(vectors, vectors, vectors)
    def holds(w, u, c):
        again, paired, inner = both(w, u, c)
        close(again, u)
        close(paired, inner, scale=10)

    holds()


def coupled_metric(w):
    return 1 + jnp.tanh(w * jnp.roll(w, 1)) / 2 + jnp.sum(jnp.square(w)) / 3


def test_christoffel_term_is_that_of_the_textbook():
    """Against all derivatives of the whole metric tensor, contracted."""
    field = ro.fields.Coupled(coupled_metric)

    @jax.jit
    def both(w, u, v):
        tensor = jnp.diag(coupled_metric(w))
        d = jax.jacfwd(lambda x: jnp.diag(coupled_metric(x)))(w)  # d[i, j, k] = partial_k g_ij
        lowered = (jnp.einsum("kji->kij", d) + d - jnp.einsum("ijk->kij", d)) / 2
        symbols = jnp.linalg.solve(tensor, lowered.reshape(SIZE, -1)).reshape(d.shape)
        expected = jnp.einsum("kij,i,j->k", symbols, u, v)
        return ro.geometry.christoffel(field, w, u, v), expected, ro.geometry.christoffel(field, w, u)

    @few
    @given(vectors, vectors, vectors)
    def holds(w, u, v):
        actual, expected, _ = both(w, u, v)
        close(actual, expected)
        _, same, alone = both(w, u, u)
        close(alone, same)

    holds()


@few_fields
def test_derivative_is_that_of_the_metric(field):
    derivative = jax.jit(lambda w, u: field.derivative(w, u))

    @few
    @given(vectors, vectors)
    def holds(w, u):
        step = 1e-6
        moved = (field(w + step * u) - field(w - step * u)) / (2 * step)
        smooth = np.abs(w) > 1e-5  # not at a kink
        np.testing.assert_allclose(derivative(w, u)[smooth], moved[smooth], rtol=1e-5, atol=1e-5)

    holds()


@few_fields
def test_steps_are_invariant_to_coordinatewise_reparameterisation(field):
    """With w = sinh(v): the same covector, the same metric, the same point reached."""
    pulled_back = ro.fields.Elementwise(lambda v: field.elementwise(jnp.sinh(v)) * jnp.cosh(v) ** 2)

    @jax.jit
    def both(v, gradient):
        w = jnp.sinh(v)
        step = ro.geometry.exponential_map(field, w, ro.geometry.sharp(field, w, gradient))
        covector = gradient * jnp.cosh(v)
        turned = ro.geometry.exponential_map(pulled_back, v, ro.geometry.sharp(pulled_back, v, covector))
        return w + step, jnp.sinh(v + turned)

    @few
    @given(vectors, vectors)
    def holds(v, gradient):
        direct, turned = both(v, gradient / 4)
        np.testing.assert_allclose(turned, direct, rtol=1e-6, atol=1e-7)

    holds()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_commute_with_permutations(kind):
    """Of the weights of a leaf, for a separable field; the tree's one decision of second_order included."""
    field = SEPARABLE["absolute"]

    @jax.jit
    def step(u, w):
        tx = ro.retract(field, kind)
        return tx.update(u, tx.init(w), w)[0]

    @few
    @given(vectors, vectors, st.permutations(range(SIZE)))
    def holds(w, u, order):
        order = np.array(order)
        close(step(u[order], w[order]), np.asarray(step(u, w))[order])

    holds()


@pytest.mark.parametrize("make", [ro.fields.Absolute, ro.fields.Quadratic])
def test_alpha_zero_is_flat(make):
    field = make(0.0)

    @jax.jit
    def parts(w, u):
        geometry = ro.geometry
        steps = []
        for kind in KINDS:
            tx = ro.retract(field, kind)
            steps.append(tx.update(u, tx.init(w), w)[0])
        return (
            steps,
            geometry.christoffel(field, w, u),
            geometry.distance(field, w, u),
            geometry.transport(field, w, u, w),
        )

    @few
    @given(vectors, vectors)
    def holds(w, u):
        steps, christoffel, distance, transported = parts(w, u)
        for step in steps:
            close(step, u)
        assert (np.asarray(christoffel) == 0).all()
        close(distance, np.linalg.norm(u))
        close(transported, w)

    holds()


@fields
def test_critical_points_stay(field):
    @jax.jit
    def updates(w):
        result = []
        for kind in KINDS:
            tx = optax.chain(ro.attach_field(field), ro.scale_by_inverse_metric(), ro.retract(field, kind))
            result.append(tx.update(jnp.zeros_like(w), tx.init(w), w)[0])
        return result

    @few
    @given(vectors)
    def holds(w):
        assert not np.any(updates(w))

    holds()


def convex_loss(factor, minimum):
    """A convex function that is not quadratic, with its one minimum where it says."""
    return lambda w: (
        jnp.sum(jnp.logaddexp(factor @ (w - minimum), -(factor @ (w - minimum))))
        + jnp.sum((w - minimum) ** 2)
    )


@pytest.mark.parametrize("name", ["absolute", "quadratic", "derived"])
def test_bregman_divergence_to_the_optimum_falls_along_the_flow_of_convex_losses(name):
    field, times = SEPARABLE[name], np.linspace(0.02, 1.0, 8)

    @jax.jit
    def divergences(factor, minimum, start):
        solution = flow.gradient_flow(convex_loss(factor, minimum), start, field, times)
        path = jnp.concatenate([start[None], solution.ys])
        return jax.vmap(lambda w: ro.geometry.bregman_divergence(field, w, minimum - w))(path)

    @few
    @given(arrays(np.float64, (SIZE, SIZE), elements=st.floats(-2, 2, width=32)), vectors, vectors)
    def holds(factor, minimum, start):
        values = np.asarray(divergences(factor, minimum, start))
        assert (values >= -1e-12).all()
        assert (np.diff(values) <= 1e-9).all()

    holds()


def test_geodesic_distance_to_the_optimum_need_not_fall():
    """Often said and false, even of a convex quadratic loss under a flat metric.

    The first weight is far from its minimum in the metric (which is small where it stands and large on the
    way), and the second weight pulls it the wrong way. Its distance grows by more than the other's falls.
    """
    field = ro.fields.Quadratic(400.0)
    start, minimum = jnp.array([0.0, 102.0]), jnp.array([-1.0, 100.0])
    hessian = jnp.array([[1.0, -0.9], [-0.9, 1.0]])
    assert (np.linalg.eigvalsh(hessian) > 0).all()

    def loss(w):
        return (w - minimum) @ hessian @ (w - minimum) / 2

    # The speed of the second weight is 1/E = 1/4e6 of the first one's: a short time for the one alone.
    path = flow.gradient_flow(loss, start, field, np.array([0.01, 0.02, 0.03])).ys
    path = [start, *path]
    distances = [float(ro.geometry.distance(field, w, minimum - w)) for w in path]
    divergences = [float(ro.geometry.bregman_divergence(field, w, minimum - w)) for w in path]
    losses = [float(loss(w)) for w in path]
    assert (np.diff(distances) > 0).all()
    assert (np.diff(divergences) < 0).all()
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize("field", [ro.fields.Multiplicative(), ro.fields.LogNormal()])
@pytest.mark.parametrize("kind", ["geodesic", "mirror"])
def test_reverse_derivatives_of_a_step_beside_a_pole_are_those_of_differences(field, kind):
    """The way to 0 is infinite, and the derivative of its length no number."""
    with jax.enable_x64(True):
        weights, step = jnp.array([0.7, -1.3, 0.2]), jnp.array([0.3, 0.4, -0.15])

        def total(weights):
            moved, _ = ro.retract(field, kind).update(step, optax.EmptyState(), weights)
            return jnp.vdot(moved, jnp.array([1.0, 2.0, 3.0]))

        unit = 1e-6 * jnp.eye(3)
        differences = [(total(weights + d) - total(weights - d)) / 2e-6 for d in unit]
        np.testing.assert_allclose(jax.grad(total)(weights), differences, rtol=1e-6)


def test_a_vector_or_a_metric_of_another_shape_is_named():
    field, params = ro.fields.Absolute(1.0), {"w": jnp.ones(3)}
    wide = {"w": jnp.ones([3, 1])}
    for call in (
        lambda: ro.geometry.inner(field, params, wide, params),
        lambda: ro.geometry.distance(field, params, wide),
        lambda: ro.geometry.exponential_map(field, params, wide),
        lambda: ro.retract(field, "geodesic").update(wide, optax.EmptyState(), params),
    ):
        with pytest.raises(
            ValueError, match=r"has shape \(3, 1\) where leaf \['w'\] of params has shape \(3,\)"
        ):
            call()
    with pytest.raises(TypeError, match=r"covector: leaf \['w'\] has dtype int32"):
        ro.geometry.sharp(field, params, {"w": jnp.ones(3, jnp.int32)})
    matrix = ro.fields.Coupled(lambda w: jnp.array([[2.0, 1.0], [1.0, 2.0]]))
    for function in (ro.geometry.norm, ro.geometry.christoffel):
        with pytest.raises(ValueError, match=r"field has shape \(2, 2\).*the diagonal of the metric"):
            function(matrix, jnp.ones(2), jnp.ones(2))


def test_beside_a_weight_at_rest_in_a_pole_lengths_are_finite():
    field, weights, tangent = ro.fields.Multiplicative(), jnp.array([0.0, 4.0]), jnp.array([0.0, 2.0])
    assert ro.geometry.norm(field, weights, tangent) == 1
    np.testing.assert_array_equal(ro.geometry.flat(field, weights, tangent), [0.0, 0.5])


@pytest.mark.parametrize("name", ["Multiplicative", "LogNormal"])
def test_a_vector_at_a_weight_that_stays_in_a_pole_stays_what_it_is(name):
    """The transport over no way; from the pole only 0 is carried, into it everything becomes 0."""
    field = getattr(ro.fields, name)()
    weights, way = jnp.array([0.0, 0.0, 0.0, 4.0]), jnp.array([0.0, 0.0, 1.0, -4.0])

    def carried(tangent, way):
        return ro.geometry.transport(field, weights, way, tangent)

    tangent = jnp.array([2.0, 0.0, 0.0, 5.0])
    np.testing.assert_array_equal(carried(tangent, way), [2.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda v: carried(v, way)[0])(tangent), [1.0, 0.0, 0.0, 0.0])
    assert jnp.isfinite(jax.grad(lambda d: carried(tangent, d)[0])(way)[0])


def test_a_geodesic_beyond_the_end_of_a_derived_chart_is_infinite():
    field = ro.fields.Elementwise(lambda w: 1 / (1 + w**2) ** 2)  # its chart is the arc tangent
    for length in (0.5, 1.2, 1.5):
        found = ro.geometry.exponential_map(field, jnp.zeros(1), jnp.array([length]))
        np.testing.assert_allclose(found, np.tan(length), rtol=1e-5)
    assert np.isinf(ro.geometry.exponential_map(field, jnp.zeros(1), jnp.array([2.0])))


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("length", [-2.0, -0.1, 0.3, 1.0, 3.5])
def test_derived_steps_stay_in_the_domain_of_a_field(probability, length):
    """The Fisher metric of a Bernoulli variable: arcs of a half circle, and mirror steps of the logit."""
    field = ro.fields.Elementwise(lambda p: 1 / (p * (1 - p)))
    with jax.enable_x64(True):
        p, amount = jnp.array([probability]), jnp.array([length])
        angle = np.arcsin(np.sqrt(probability)) + length / 2
        exact = np.sin(angle) ** 2 - probability if 0 < angle < np.pi / 2 else np.sign(length) * np.inf
        found = field.geodesic_displacement(p, amount)
        np.testing.assert_allclose(found, exact, rtol=1e-6)
        logit = np.log(probability / (1 - probability)) + length
        found = field.mirror_displacement(p, amount)
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-logit)) - probability, rtol=1e-6)
