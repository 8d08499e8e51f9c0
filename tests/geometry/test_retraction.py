"""retract: exponentiated gradient, orders of accuracy and invariance, acceptance, and how fields combine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import riemann_optax as ro

KINDS = ["euler", "geodesic", "second_order", "mirror"]
HESSIAN = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
MINIMUM = np.array([0.9, -0.5, 0.4])
START = np.array([-0.6, 0.8, 1.7])
STEPS = np.array([32, 64, 128, 256])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def loss(w):
    error = w - MINIMUM
    return error @ HESSIAN @ error / 2


def descend(field, kind, objective, start, steps, time=1.0):
    """Return where ``steps`` equal steps of a chain lead within ``time`` of the flow."""

    def step(_, w):
        tx = optax.chain(
            ro.attach_field(field),
            ro.scale_by_inverse_metric(),
            optax.scale_by_learning_rate(time / steps),
            ro.retract(field, kind),
        )
        return optax.apply_updates(w, tx.update(jax.grad(objective)(w), tx.init(w), w)[0])

    return jax.lax.fori_loop(0, steps, step, jnp.asarray(start))


def slope(errors):
    """The exponent of a power law: the log-log slope of the errors against the length of a step."""
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def distances(points, target):
    return [float(jnp.linalg.norm(point - target)) for point in points]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_follows_the_flow_to_first_order(kind):
    from riemann_optax import flow

    field = ro.fields.Absolute(2.0)
    exact = flow.gradient_flow(loss, jnp.asarray(START), field, 1.0, rtol=1e-11).ys[-1]
    run = jax.jit(lambda steps: descend(field, kind, loss, START, steps))
    assert slope(distances([run(n) for n in STEPS], exact)) == pytest.approx(1.0, abs=0.15)


class Reparameterised(ro.fields.SeparableField):
    """The metric of ``field`` in the coordinates v, with w = v + v**3 / 3."""

    def __init__(self, field):
        self.field = field

    def elementwise(self, weights):
        return self.field.elementwise(forward(weights)) * (1 + weights**2) ** 2


def forward(v):
    return v + v**3 / 3


def back(w):
    """The real root of the cubic."""
    return 2 * np.sinh(np.arcsinh(1.5 * w) / 3)


def defects(kind):
    """How far the same steps in two coordinate systems have drifted apart, for each number of steps."""
    field = ro.fields.Absolute(2.0)
    other = Reparameterised(field)

    def drift(steps):
        direct = descend(field, kind, loss, START, steps)
        turned = descend(other, kind, lambda v: loss(forward(v)), back(START), steps)
        return jnp.linalg.norm(direct - forward(turned))

    drift = jax.jit(drift)
    return [float(drift(n)) for n in STEPS]


@pytest.mark.parametrize(("kind", "order"), [("euler", 1.0), ("second_order", 2.0)])
def test_order_of_the_invariance_defect(kind, order):
    assert slope(defects(kind)) == pytest.approx(order, abs=0.15)


def test_the_exponential_map_is_invariant_to_rounding():
    assert max(defects("geodesic")) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_mirror_step_under_one_over_abs_is_exponentiated_gradient(dtype):
    field, rate = ro.fields.Multiplicative(), 0.3
    tx = optax.chain(
        ro.attach_field(field),
        ro.scale_by_inverse_metric(),
        optax.scale_by_learning_rate(rate),
        ro.retract(field, "mirror"),
    )
    weights = np.array([0.5, -0.2, 3.0, -1e-3], dtype)
    ours, theirs = jnp.asarray(weights), weights.astype(np.float64)
    minimum = np.array([-1.0, 1.0, 0.1, -2.0])
    state = tx.init(ours)
    for _ in range(60):
        gradient = np.tanh(theirs - minimum)
        theirs = theirs * np.exp(-rate * np.sign(theirs) * gradient)
        updates, state = tx.update(jnp.tanh(ours - minimum.astype(dtype)), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5 if dtype == jnp.float32 else 1e-12)
    np.testing.assert_array_equal(np.sign(ours), np.sign(weights))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mirror_step_keeps_signs(kind):
    field = ro.fields.Multiplicative()
    weights = jnp.array([1.0, -1.0])
    # One long step each towards 0. (The second-order step is Euler's here: its correction is refused.)
    tx = ro.retract(field, kind)
    updates, _ = tx.update(jnp.array([-3.0, 3.0]), tx.init(weights), weights)
    crossed = np.sign(weights + updates) != np.sign(weights)
    assert crossed.all() == (kind != "mirror")
    assert crossed.any() == (kind != "mirror")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [ro.fields.Multiplicative(), ro.fields.LogNormal()], ids=["abs", "square"])
def test_a_weight_at_zero_under_an_infinite_metric_stays_and_spoils_nothing(kind, field):
    tx = optax.chain(ro.attach_field(field), ro.scale_by_inverse_metric(), ro.retract(field, kind))
    weights = jnp.array([0.0, 2.0])
    updates, _ = tx.update(jnp.array([0.1, 0.1]), tx.init(weights), weights)
    assert updates[0] == 0
    assert np.isfinite(updates[1])
    assert updates[1] != 0


@pytest.mark.parametrize(
    ("kind", "field"), [("mirror", ro.fields.Multiplicative()), ("geodesic", ro.fields.LogNormal())]
)
def test_a_weight_that_underflows_to_zero_stays_there_whatever_momentum_remembers(kind, field):
    tx = optax.chain(
        ro.attach_field(field),
        ro.scale_by_inverse_metric(),
        optax.trace(0.9),
        optax.scale_by_learning_rate(1.0),
        ro.retract(field, kind),
    )
    weights = jnp.array([1e-3, -1e-3, 1.0], jnp.float32)
    gradients = jnp.array([1e3, -1e3, 0.1], jnp.float32) / (jnp.abs(weights) if kind == "geodesic" else 1)
    state = tx.init(weights)
    seen = []
    for step in range(6):
        updates, state = tx.update(gradients * (1 if step < 3 else -1), state, weights)
        weights = optax.apply_updates(weights, updates)
        seen.append(np.asarray(weights))
    assert np.isfinite(seen).all()
    assert not np.any(np.stack(seen)[1:, :2])
    assert abs(state[2].trace[0]) > 0  # it has not forgotten
    assert seen[-1][2] != 1


def test_second_order_correction_is_taken_below_the_bound_only():
    field = ro.fields.Multiplicative()
    tx = ro.retract(field, "second_order")
    # Here the correction is u**2 / (4 w): twice its size over the step's is u / (2 w).
    weights = jnp.array([1.0])
    for step, taken in ((1.49, True), (1.51, False), (-1.49, True), (-1.51, False)):
        updates, _ = tx.update(jnp.array([step]), tx.init(weights), weights)
        expected = step + step**2 / 4 if taken else step
        np.testing.assert_allclose(updates, [expected], rtol=1e-12)


def test_second_order_bound_is_one_for_the_whole_tree():
    tx = ro.retract(ro.fields.Multiplicative(), "second_order")
    weights = {"a": jnp.array([1.0]), "b": jnp.array([100.0])}
    alone = {"a": jnp.array([1.6]), "b": jnp.array([0.0])}
    updates, _ = tx.update(alone, tx.init(weights), weights)
    assert updates["a"][0] == 1.6
    with_long_flat_step = {"a": jnp.array([1.6]), "b": jnp.array([60.0])}
    updates, _ = tx.update(with_long_flat_step, tx.init(weights), weights)
    assert updates["a"][0] > 1.6


def test_second_order_step_of_a_coupled_field_matches_its_geodesic_to_third_order():
    """On the sphere geodesics are great circles; Euler's step misses them at second order."""
    sphere = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones_like(w[0]), jnp.cos(w[0]) ** 2]))
    start, direction = jnp.array([0.7, 0.2]), jnp.array([0.5, 0.9])

    def point(w):
        return jnp.stack([jnp.cos(w[0]) * jnp.cos(w[1]), jnp.cos(w[0]) * jnp.sin(w[1]), jnp.sin(w[0])])

    def great_circle(length):
        velocity = jax.jvp(point, (start,), (direction,))[1]
        speed = jnp.linalg.norm(velocity)
        return jnp.cos(length * speed) * point(start) + jnp.sin(length * speed) * velocity / speed

    for kind, order in (("euler", 2.0), ("second_order", 3.0)):
        tx = ro.retract(sphere, kind)
        errors = [
            jnp.linalg.norm(
                point(start + tx.update(direction / n, tx.init(start), start)[0]) - great_circle(1 / n)
            )
            for n in STEPS
        ]
        assert slope(errors) == pytest.approx(order, abs=0.15)


@pytest.mark.filterwarnings("ignore:.*negative without a limit")  # a field less 1 is not
def test_fields_combine_with_phis_and_metrics():
    """One metric, 1 + 3 w**2, attached in the five ways there are."""
    field = ro.fields.Quadratic(3.0)
    nothing = ro.compute_metric(ro.phi.from_weights(jnp.zeros_like), alpha=0.0)
    params = {"w": jnp.array([0.0, 1.0, -2.0])}
    stages = [
        ro.attach_field(field),
        ro.compute_metric(ro.phi.from_weights(lambda w: w**2), alpha=3.0),
        optax.chain(nothing, ro.multiply_metric(field)),
        optax.chain(nothing, ro.multiply_metric(field.as_factor())),
        ro.compute_metric(
            ro.phi.weighted_sum(
                ro.phi.from_weights(field), ro.phi.from_weights(jnp.ones_like), weights=[1, -1]
            )
        ),
    ]
    for stage in stages:
        tx = optax.chain(stage, ro.scale_by_inverse_metric())
        metric = ro.metric_at(tx, params, tx.init(params), params)
        np.testing.assert_allclose(metric["w"], [1.0, 4.0, 13.0], rtol=1e-12)
        np.testing.assert_allclose(metric["w"], field.metric(params)["w"], rtol=1e-12)
        np.testing.assert_allclose(1 / metric["w"], field.inverse(params)["w"], rtol=1e-12)


def test_masked_leaves_are_left_alone():
    field = ro.fields.Quadratic(3.0)
    params = {"w": jnp.array([1.0]), "b": jnp.array([1.0])}
    tx = optax.masked(
        optax.chain(ro.attach_field(field), ro.scale_by_inverse_metric(), ro.retract(field)),
        {"w": True, "b": False},
    )
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"] == 1.0
    assert updates["w"] < 0.25


def test_momentum_in_the_frame_is_parallel_transported():
    """in_orthonormal_frame(trace) equals momentum on the tangent, moved by the geometry's own transport."""
    field, rate, decay = ro.fields.Absolute(2.0), 0.1, 0.9
    tx = optax.chain(
        ro.attach_field(field),
        ro.in_orthonormal_frame(optax.trace(decay)),
        optax.scale_by_learning_rate(rate),
        ro.retract(field, "geodesic"),
    )
    ours = theirs = jnp.asarray(START)
    state, momentum = tx.init(ours), jnp.zeros(3)
    for _ in range(10):
        updates, state = tx.update(jax.grad(loss)(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        momentum = ro.geometry.sharp(field, theirs, jax.grad(loss)(theirs)) + decay * momentum
        step = ro.geometry.exponential_map(field, theirs, -rate * momentum)
        momentum = ro.geometry.transport(field, theirs, step, momentum)
        theirs = theirs + step
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_clipping_in_the_frame_bounds_the_metric_norm():
    field = ro.fields.Quadratic(3.0)
    tx = optax.chain(ro.attach_field(field), ro.in_orthonormal_frame(optax.clip_by_global_norm(0.5)))
    weights, gradient = jnp.asarray(START), jnp.array([3.0, -20.0, 5.0])
    tangent, _ = tx.update(gradient, tx.init(weights), weights)
    np.testing.assert_allclose(ro.geometry.norm(field, weights, tangent), 0.5, rtol=1e-12)
    whole = ro.geometry.sharp(field, weights, gradient)
    np.testing.assert_allclose(tangent / whole, np.full(3, tangent[0] / whole[0]), rtol=1e-12)


@pytest.mark.parametrize(
    "rule",
    [
        optax.trace(0.9, nesterov=True),
        optax.scale_by_adam(),
        optax.clip_by_global_norm(0.5),
        optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(), optax.add_decayed_weights(0.01)),
    ],
    ids=["momentum", "adam", "clip", "clipped adamw"],
)
def test_a_rule_in_the_frame_is_the_same_rule_in_the_chart(rule):
    """A separable metric is flat: Riemannian Adam with geodesic steps is Adam in the coordinates that say so.

    Decay inside the frame, too: of the weights themselves, which the chart's rule is therefore handed.
    """
    field, rate = ro.fields.Absolute(2.0), 0.1
    riemannian = optax.chain(
        ro.attach_field(field),
        ro.in_orthonormal_frame(rule),
        optax.scale_by_learning_rate(rate),
        ro.retract(field, "geodesic"),
    )
    plain = optax.chain(rule, optax.scale_by_learning_rate(rate))
    zero = jnp.zeros(3)

    def weights_at(chart):
        return field.geodesic_displacement(zero, chart)

    w, x = jnp.asarray(START), field.arc_length(zero, jnp.asarray(START))
    state, plain_state = riemannian.init(w), plain.init(x)
    update, plain_update = jax.jit(riemannian.update), jax.jit(plain.update)
    for _ in range(25):
        updates, state = update(jax.grad(loss)(w), state, w)
        # The gradient in the chart: dw/dx = 1/sqrt(E).
        gradient = jax.grad(loss)(weights_at(x)) / jnp.sqrt(field(weights_at(x)))
        steps, plain_state = plain_update(gradient, plain_state, weights_at(x))
        w, x = optax.apply_updates(w, updates), optax.apply_updates(x, steps)
    np.testing.assert_allclose(weights_at(x), w, rtol=1e-9)
    assert np.linalg.norm(w - START) > 0.1


def test_errors_name_the_argument_and_the_remedy():
    coupled = ro.fields.Coupled(lambda w: w)
    with pytest.raises(ValueError, match="kind must be one of 'euler'"):
        ro.retract(ro.fields.Constant(), "exact")
    for kind in ("geodesic", "mirror"):
        with pytest.raises(TypeError, match=r"separable field.*second_order"):
            ro.retract(coupled, kind)
    with pytest.raises(TypeError, match=r"fields\.Elementwise"):
        ro.retract(lambda w: w)
    with pytest.raises(TypeError, match=r"fields\.Elementwise"):
        ro.attach_field(jnp.abs)
    tx = ro.retract(ro.fields.Constant())
    with pytest.raises(ValueError, match=r"retract: .*params"):
        tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    with pytest.raises(TypeError, match=r"leaf \['w'\] has dtype complex.*optax.partition"):
        tx.update({"w": 1j * jnp.ones(1)}, tx.init({}), {"w": 1j * jnp.ones(1)})
    for make in (ro.fields.Absolute, ro.fields.Quadratic, ro.fields.Multiplicative, ro.fields.LogNormal):
        with pytest.raises(ValueError, match="must be a finite number"):
            make(-1.0)
    with pytest.raises(ValueError, match="value must be a finite number"):
        ro.fields.Constant(0.0)


@pytest.mark.parametrize("attach", [ro.attach_field, lambda field: ro.multiply_metric(field.as_factor())])
def test_complex_weights_are_refused_and_not_cut(attach):
    """``E`` was that of the real part, or the error spoke of a phi that nobody had given."""
    first = [] if attach is ro.attach_field else [ro.compute_metric(ro.phi.activity())]
    tx = optax.chain(*first, attach(ro.fields.Quadratic(1.0)), ro.scale_by_inverse_metric())
    params = {"w": jnp.array([1.0 + 2.0j])}
    with pytest.raises(TypeError, match=r"params: leaf \['w'\] has dtype complex.*optax.partition"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="weights: the only leaf has dtype complex"):
        ro.fields.Quadratic(1.0)(params["w"])
