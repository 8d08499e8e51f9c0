"""The gradient flow: closed solutions, events, dense output, orders of solvers; and transport on paths."""

import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

import riemann_optax as ro
from riemann_optax import flow

CURVATURE = np.array([1.0, 7.0])
START = {"w": np.array([2.0, -1.0])}
STEPS = np.array([64, 128, 256, 512])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def loss(params):
    return jnp.sum(CURVATURE.astype(params["w"].dtype) * params["w"] ** 2) / 2


def start():
    return jax.tree.map(jnp.asarray, START)


def exact(time):
    return START["w"] * np.exp(-CURVATURE * time)


def slope(errors):
    return -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]


def test_eq_1_of_a_quadratic_is_an_exponential_everywhere():
    times = np.array([0.0, 0.1, 0.5, 1.0])
    solution = flow.gradient_flow(loss, start(), None, times)
    np.testing.assert_array_equal(solution.ts, times)
    np.testing.assert_allclose(solution.ys["w"], [exact(t) for t in times], atol=1e-8)
    for time in (0.03, 0.77):
        np.testing.assert_allclose(solution.evaluate(time)["w"], exact(time), atol=1e-6)


def test_eq_2_is_eq_1_in_the_chart():
    """Under 1/abs(w) the flow of abs-values obeys (log w)' = -f'; in the chart sqrt(w) it is a plain flow."""
    field = ro.fields.Multiplicative()
    solution = flow.gradient_flow(loss, start(), field, 0.5)

    def in_chart(params):
        return loss({"w": params["w"] * jnp.abs(params["w"]) / 4})

    chart = {"w": 2 * np.sign(START["w"]) * np.sqrt(np.abs(START["w"]))}
    plain = flow.gradient_flow(in_chart, jax.tree.map(jnp.asarray, chart), None, 0.5).ys["w"][-1]
    np.testing.assert_allclose(solution.ys["w"][-1], plain * np.abs(plain) / 4, rtol=1e-7)


def test_eq_2_of_a_constant_metric_is_a_slower_eq_1():
    solution = flow.gradient_flow(loss, start(), ro.fields.Constant(4.0), 1.0)
    np.testing.assert_allclose(solution.ys["w"][-1], exact(0.25), rtol=1e-7)


def test_stops_where_the_loss_falls_to_a_value():
    times = np.array([0.01, 5.0, 6.0])
    solution = flow.gradient_flow(loss, start(), None, times, stop_loss=0.5)
    assert bool(solution.event_mask)
    assert np.isfinite(solution.ts).tolist() == [True, True, False]
    np.testing.assert_allclose(solution.ts[0], 0.01)
    np.testing.assert_allclose(loss({"w": exact(solution.ts[1])}), 0.5, rtol=1e-6)
    np.testing.assert_allclose(loss({"w": solution.ys["w"][1]}), 0.5, rtol=1e-9)
    np.testing.assert_allclose(solution.ys["w"][1], exact(solution.ts[1]), rtol=1e-6)


def test_a_loss_that_is_not_reached_stops_nothing():
    solution = flow.gradient_flow(loss, start(), None, 0.1, stop_loss=1e-9)
    assert not bool(solution.event_mask)
    np.testing.assert_allclose(solution.ts, [0.1])


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1.0), (diffrax.Midpoint(), 2.0)])
def test_order_of_a_solver_with_constant_steps(solver, order):
    field = ro.fields.Quadratic(1.0)
    fine = flow.gradient_flow(loss, start(), field, 1.0, rtol=1e-12).ys["w"][-1]

    @jax.jit
    def end(step_size):
        solution = flow.gradient_flow(loss, start(), field, 1.0, solver=solver, step_size=step_size)
        return solution.ys["w"][-1]

    errors = [np.linalg.norm(end(1 / steps) - fine) for steps in STEPS]
    assert slope(errors) == pytest.approx(order, abs=0.15)


def test_eulers_solver_is_the_optimiser():
    """A picture may draw the optimiser's steps over the flow: both are on one clock."""
    field, rate, steps = ro.fields.Quadratic(1.0), 0.05, 20
    tx = optax.chain(ro.attach_field(field), ro.scale_by_inverse_metric(), optax.scale_by_learning_rate(rate))

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, steps, step, (start(), tx.init(start())))
    solution = flow.gradient_flow(loss, start(), field, rate * steps, solver=diffrax.Euler(), step_size=rate)
    np.testing.assert_allclose(solution.ys["w"][-1], params["w"], rtol=1e-10)


def test_float32_weights_stay_float32():
    params = {"w": jnp.asarray(START["w"], jnp.float32)}
    with jax.enable_x64(False):
        solution = flow.gradient_flow(loss, params, ro.fields.Absolute(1.0), 0.5)
        assert solution.ys["w"].dtype == jnp.float32


def test_the_exponential_map_solves_the_geodesic_equation():
    field = ro.fields.Absolute(3.0)
    w, u = jnp.array([0.5, -2.0, 0.4]), jnp.array([0.7, -1.0, -0.9])

    def acceleration(t, state, args):
        position, velocity = state
        return velocity, -ro.geometry.christoffel(field, position, velocity)

    end, _ = diffrax.diffeqsolve(
        diffrax.ODETerm(acceleration),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=(w, u),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-10),
    ).ys
    np.testing.assert_allclose(w + ro.geometry.exponential_map(field, w, u), end[0], rtol=1e-6)


def detour(bend):
    """From (0.3, 0) to (0.8, 2) in the time 1, on a detour of a given size."""
    return lambda t: jnp.stack([0.3 + t / 2 + bend * jnp.sin(jnp.pi * t), 2 * t])


CURVED = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones_like(w[0]), jnp.cos(w[0]) ** 2]))  # a sphere
POLAR = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones_like(w[0]), w[0] ** 2]))  # the plane
SEPARABLE = ro.fields.Quadratic(2.0)


@pytest.mark.parametrize(
    ("field", "flat"),
    [(SEPARABLE, True), (POLAR, True), (CURVED, False)],
    ids=["separable", "polar", "sphere"],
)
def test_transport_is_path_independent_exactly_where_the_metric_is_flat(field, flat):
    vectors = jnp.array([[1.0, 0.3], [-0.5, 0.8]])

    @jax.jit
    def carry(bend):
        path = detour(bend)
        return jax.vmap(lambda v: flow.parallel_transport(field, path, v, 1.0).ys[-1])(vectors)

    start, end = detour(0.0)(0.0), detour(0.0)(1.0)
    ends = [carry(bend) for bend in (0.0, 0.5)]
    before = ro.geometry.inner(field, start, *vectors)
    for carried in ends:
        np.testing.assert_allclose(ro.geometry.inner(field, end, *carried), before, rtol=1e-6)
    difference = np.abs(np.array(ends[0]) - np.array(ends[1])).max()
    assert difference < 1e-6 if flat else difference > 0.1
    if field is SEPARABLE:
        direct = ro.geometry.transport(field, start, end - start, vectors[0])
        np.testing.assert_allclose(ends[1][0], direct, rtol=1e-6)


def test_geodesics_of_the_sphere_are_great_circles():
    """Against the sphere in three dimensions: the point moves in the plane of its place and velocity."""
    sphere = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones(()), jnp.cos(w[0]) ** 2]))

    def embed(w):
        latitude, longitude = w
        horizontal = jnp.cos(latitude)
        return jnp.stack(
            [horizontal * jnp.cos(longitude), horizontal * jnp.sin(longitude), jnp.sin(latitude)]
        )

    begin, tangent = jnp.array([0.3, -0.4]), jnp.array([0.5, 0.8])
    times = np.array([0.5, 1.0, 2.0])
    found = flow.geodesic(sphere, begin, tangent, times).ys
    place, velocity = jax.jvp(embed, (begin,), (tangent,))
    speed = jnp.linalg.norm(velocity)
    expected = [place * np.cos(speed * t) + velocity / speed * np.sin(speed * t) for t in times]
    np.testing.assert_allclose(jax.vmap(embed)(found.point), expected, atol=1e-7)
    speeds = jax.vmap(lambda w, v: ro.geometry.norm(sphere, w, v))(*found)
    np.testing.assert_allclose(speeds, ro.geometry.norm(sphere, begin, tangent), rtol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_geodesic_of_a_separable_field_is_the_exponential_map(dtype):
    field = ro.fields.Quadratic(3.0)
    begin = {"w": jnp.array([0.5, -1.0], dtype), "b": jnp.array(2.0, dtype)}
    tangent = jax.tree.map(lambda w: 1 - w, begin)
    found = flow.geodesic(field, begin, tangent).ys.point
    exact = optax.apply_updates(begin, ro.geometry.exponential_map(field, begin, tangent))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one[-1], other, rtol=1e-4 if dtype == jnp.float32 else 1e-7)


def test_a_geodesic_names_what_does_not_fit():
    field = ro.fields.Quadratic(3.0)
    with pytest.raises(TypeError, match="field must be"):
        flow.geodesic(jnp.abs, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="tangent"):
        flow.geodesic(field, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="displacement"):
        flow.geodesic_between(field, jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match=r"^displacement has shape"):
        ro.geometry.logarithm_map(field, jnp.ones(3), jnp.ones(2))
    coupled = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 + jnp.sum(w**2)))
    with pytest.raises(TypeError, match=r"use flow\.geodesic"):
        ro.geometry.exponential_map(coupled, jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match=r"use flow\.geodesic_between"):
        ro.geometry.logarithm_map(coupled, jnp.ones(2), jnp.ones(2))


def test_says_what_is_missing_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.delitem(sys.modules, "riemann_optax.flow")
    monkeypatch.delattr(ro, "flow")
    with pytest.raises(ImportError, match=r"pip install 'riemann-optax\[flow\]'"):
        _ = ro.flow


def test_the_package_is_imported_without_diffrax():
    """Another process: this one has imported it."""
    code = (
        "import sys, riemann_optax as ro; assert 'diffrax' not in sys.modules; "
        "ro.flow; assert 'diffrax' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="no attribute 'flows'"):
        _ = ro.flows


def test_errors_name_the_argument():
    for t in (0.0, -1.0, [1.0, 0.5], [0.5, 0.5], [[1.0]], []):
        with pytest.raises(ValueError, match="t must be a positive time"):
            flow.gradient_flow(loss, start(), None, t)
    with pytest.raises(TypeError, match="field must be"):
        flow.gradient_flow(loss, start(), jnp.abs, 1.0)
    with pytest.raises(TypeError, match="real floating-point"):
        flow.gradient_flow(loss, {"w": jnp.arange(2)}, None, 1.0)


def test_an_event_of_float32_weights_where_float64_is_enabled():
    start = jnp.ones(2, jnp.float32)
    solution = flow.gradient_flow(lambda w: jnp.sum(w**2), start, None, 1.0, stop_loss=0.5)
    np.testing.assert_allclose(solution.ts, [np.log(2) / 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"t": np.inf}, "t must be finite.*stop_loss"), ({"t": 1.0, "step_size": -0.1}, "step_size must be")],
)
def test_a_time_without_an_end_and_a_step_backwards_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        flow.gradient_flow(loss, START, None, **arguments)


def test_a_traced_time_is_refused():
    with pytest.raises(TypeError, match="t must be known when the flow is compiled"):
        jax.jit(lambda t: flow.gradient_flow(loss, START, None, t).ys)(1.0)


def test_a_path_has_the_structure_of_the_tangent_and_any_float():
    sphere = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones((), w.dtype), jnp.cos(w[0]) ** 2]))

    def path(time):
        return jnp.stack([jnp.asarray(0.25), time])

    wide = flow.parallel_transport(sphere, path, jnp.array([1.0, 0.0]), 1.0).ys
    narrow = flow.parallel_transport(sphere, path, jnp.array([1.0, 0.0], jnp.float32), 1.0).ys
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="let path return a point"):
        flow.parallel_transport(sphere, lambda time: {"w": path(time)}, jnp.ones(2), 1.0)


@pytest.mark.parametrize("share", [0.5, 1e-2, 1e-4])
def test_float32_reaches_a_stop_loss(share):
    """The default dtype; the rounding of a large loss must not keep the root from being found."""
    generator = np.random.default_rng(0)
    for scale in (1e-2, 1.0, 30.0):
        weights = jnp.asarray(scale * generator.normal(size=3), jnp.float32)
        stop = share * float(jnp.sum(weights**2))
        solution = flow.gradient_flow(lambda w: jnp.sum(w**2), weights, None, 20.0, stop_loss=stop)
        np.testing.assert_allclose(jnp.sum(solution.ys[-1] ** 2), stop, rtol=1e-4)


@pytest.mark.parametrize("stop", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_a_loss_whose_minimum_is_not_at_0_is_stopped_at(stop, wide):
    """There the weights round before the loss is small: exp(-2 a t) (w - c) is known, and so is the time."""
    steep, centre, first = np.array([1.0, 50.0]), np.array([3.0, -2.0]), np.array([1.0, -1.0])

    def loss_at(time):
        return np.sum(steep * ((first - centre) * np.exp(-2 * steep * time)) ** 2)

    exact = optimize.brentq(lambda time: loss_at(time) - stop, 0.0, 20.0, xtol=1e-14)
    with jax.enable_x64(wide):
        loss = lambda w: jnp.sum(jnp.asarray(steep) * (w - jnp.asarray(centre)) ** 2)  # noqa: E731
        solution = flow.gradient_flow(loss, jnp.asarray(first), None, 100.0, stop_loss=stop)
        # 2e-7, the rounding of a weight of 3, is this share of its way to go; the loss has twice that.
        share = (1e-9 if wide else 2e-5) + (0 if wide else 2e-7) / np.sqrt(stop)
        np.testing.assert_allclose(loss(solution.ys[-1]), stop, rtol=4 * share)
        np.testing.assert_allclose(solution.ts[-1], exact, rtol=2 * share)


def test_a_loss_that_is_there_already_is_refused():
    with pytest.raises(ValueError, match="stop_loss must be below the loss at params"):
        flow.gradient_flow(loss, start(), None, 1.0, stop_loss=100.0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_small_weights_are_followed_as_exactly_as_large_ones(scale):
    """In float32; the problems are scale invariant, so the end over the start is that of 1."""
    start = jnp.array([scale], jnp.float32)
    plain = ro.flow.gradient_flow(lambda w: 5 * jnp.sum(w**2), start, None, 1.0)
    np.testing.assert_allclose(plain.ys[-1] / scale, np.exp(-10.0), rtol=1e-3)
    field = ro.fields.LogNormal()
    turned = ro.flow.gradient_flow(lambda w: 3 * jnp.sum(jnp.log(w)), start, field, 1.0)
    np.testing.assert_allclose(turned.ys[-1] / scale, np.exp(-3.0), rtol=1e-3)
