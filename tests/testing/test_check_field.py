"""check_field passes the fields there are and says in words what others break."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import riemann_optax as ro
from riemann_optax.testing import check_field


@pytest.mark.parametrize(
    "field",
    [
        ro.fields.Constant(2.0),
        ro.fields.Multiplicative(0.1),
        ro.fields.LogNormal(0.1),
        ro.fields.Elementwise(lambda w: 1 + jnp.abs(w)),
    ],
    ids=lambda field: type(field).__name__,
)
def test_passes_the_fields_of_the_package(field):
    report = check_field(field)
    assert report.separable
    assert 0 < report.smallest <= report.largest


@pytest.mark.parametrize("field", [ro.fields.Multiplicative(), ro.fields.LogNormal()], ids=["abs", "square"])
def test_a_pole_at_zero_is_refused_unless_no_weight_is_zero(field):
    with pytest.raises(AssertionError, match=r"not positive and finite .* an eps may be missing"):
        check_field(field)
    assert check_field(field, zeros=False).separable


def test_passes_a_coupled_field_on_parameters_of_ones_own():
    def metric(params):
        size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return jax.tree.map(lambda leaf: (1 + size) * jnp.ones_like(leaf), params)

    params = {"layer": {"kernel": np.ones([2, 2]), "scale": np.ones([])}}
    assert not check_field(ro.fields.Coupled(metric), params).separable


class Plain(ro.fields.Absolute):
    """1 + abs(w); each class below breaks one thing of it."""

    def __init__(self):
        super().__init__(1.0)


class WrongIntegral(Plain):
    def arc_length(self, weights, displacement):
        return 2 * super().arc_length(weights, displacement)


class WrongInverse(Plain):
    def mirror_displacement(self, weights, dual_displacement):
        return dual_displacement / self.elementwise(weights)


class DoesNotCross(Plain):
    def geodesic_displacement(self, weights, arc_length):
        there = super().geodesic_displacement(weights, arc_length)
        return jnp.where(weights * (weights + there) < 0, -weights, there)


class DoesNotAddUp(Plain):
    def dual_displacement(self, weights, displacement):
        return self.elementwise(weights + displacement / 2) * displacement


class OfAConstant(Plain):
    def arc_length(self, weights, displacement):
        return super().arc_length(weights, displacement) + 1


class DifferenceOfCharts(Plain):
    def dual_displacement(self, weights, displacement):
        def chart(w):
            return w + w * jnp.abs(w) / 2

        return chart(weights + displacement) - chart(weights)


class StoppedGradient(Plain):
    def elementwise(self, weights):
        return 1 + jnp.abs(jax.lax.stop_gradient(weights))


class NotItsOwn(Plain):
    def elementwise(self, weights):
        return 1 + jnp.mean(weights**2) * jnp.ones_like(weights)


class WrongDivergence(Plain):
    def bregman_divergence(self, weights, displacement):
        return displacement**2 / 2


class NotTheInverse(Plain):
    def inverse(self, params):
        return self.metric(params)


class Impure(Plain):
    calls = 0

    def elementwise(self, weights):
        type(self).calls += 1
        return self.calls + weights**2


class Narrow(Plain):
    def elementwise(self, weights):
        return (1 + weights**2).astype(jnp.float32)


class MissingLeaf(ro.fields.MetricField):
    def metric(self, params):
        return {"matrix": jnp.ones_like(params["matrix"])}


class Raises(Plain):
    def elementwise(self, weights):
        raise KeyError("no such weight")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (ro.fields.Elementwise(jnp.sin), "E is not positive and finite at leaf"),
        (WrongIntegral(), r"arc_length does not grow by sqrt\(E\)"),
        (WrongInverse(), "mirror_displacement does not undo dual_displacement"),
        (DoesNotCross(), "geodesic_displacement does not undo arc_length where the sign changes"),
        (DoesNotAddUp(), "dual_displacement does not add up"),
        (OfAConstant(), "arc_length and geodesic_displacement must be 0 at 0"),
        (DifferenceOfCharts(), "dual_displacement has a relative error of .* in float32 at steps of 1e-06"),
        (StoppedGradient(), "the derivative of E disagrees with differences"),
        (NotItsOwn(), "E_i depends on other weights than w_i"),
        (WrongDivergence(), "bregman_divergence is not the integral of dual_displacement"),
        (NotTheInverse(), "inverse is not 1/E at leaf"),
        (Impure(), "E differs when asked twice"),
        (Narrow(), "E has dtype float32 for weights of float64"),
        (MissingLeaf(), r"the metric lacks leaf \['vector'\]"),
        (Raises(), "metric fails on float32 weights: KeyError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ro.fields.MetricField) else None,
)
def test_says_what_is_broken(field, words):
    with pytest.raises(AssertionError, match=words):
        check_field(field)


def test_the_unbroken_original_passes():
    assert check_field(Plain()).smallest >= 1


@pytest.mark.parametrize(
    ("function", "domain"),
    [
        (lambda p: 1 / (p * (1 - p)), (0.0, 1.0)),  # of a Bernoulli variable, by its probability
        (lambda s: 2 / s**2, (0.0, np.inf)),  # of a normal variable, by its standard deviation
        (lambda s: 1 / (0.5 - s), (-np.inf, 0.5)),
    ],
    ids=["between", "above", "below"],
)
def test_a_field_of_an_interval_is_tried_in_it(function, domain):
    """The Fisher metrics that textbooks begin with are not defined for all numbers."""
    field = ro.fields.Elementwise(function)
    with pytest.raises(AssertionError):
        check_field(field)
    assert check_field(field, domain=domain, points=10).separable


def test_each_array_may_have_an_interval_of_its_own():
    """The Fisher metric of normal variables by their means, any numbers, and standard deviations, above 0."""

    def fisher(params):
        deviation = params["deviation"]
        return {"deviation": 2 / deviation**2, "mean": 1 / deviation**2}

    params = {"deviation": np.ones(3), "mean": np.zeros(3)}
    own = {"deviation": (0.0, np.inf), "mean": None}

    def of_both_signs(params):
        if not isinstance(params["mean"], jax.core.Tracer):
            assert np.all(params["deviation"] > 0)
            means.append(params["mean"])
        return fisher(params)

    means: list = []
    assert not check_field(ro.fields.Coupled(of_both_signs), params, domain=own, points=5).separable
    assert np.min(means) < 0 < np.max(means)


def test_weights_of_any_real_dtype_say_how_large_they_are():
    for dtype in (jnp.bfloat16, jnp.float32, jnp.int32):
        assert check_field(Plain(), {"w": jnp.ones(3, dtype)}).separable


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"params": {}}, ValueError, "at least one weight"),
        ({"params": {"w": np.zeros([0, 3])}}, ValueError, "at least one weight"),
        ({"params": {"w": np.ones(2, complex)}}, TypeError, r"params must be real, got complex128 at .*'w'"),
        ({"points": 0}, ValueError, "points must be an integer of at least 1"),
        ({"domain": (1.0, 0.0)}, ValueError, "low < high"),
        ({"domain": {"vector": (0.0, 1.0)}}, ValueError, "a tree like params of such pairs"),
        (
            {"domain": {"matrix": None, "vector": 1.0}},
            ValueError,
            r"low < high, got 1.0 for leaf \['vector'\]",
        ),
    ],
    ids=["empty", "no weights", "complex", "no points", "no interval", "another tree", "a number"],
)
def test_refuses_what_would_check_nothing(options, error, words):
    with pytest.raises(error, match=words):
        check_field(Plain(), **options)


def test_refuses_what_is_no_field():
    with pytest.raises(TypeError, match=r"fields\.Elementwise"):
        check_field(jnp.abs)


@pytest.mark.parametrize(
    "function", ["inner", "norm", "sharp", "flat", "distance", "exponential_map", "transport"]
)
def test_a_function_in_the_place_of_a_field_is_refused_with_the_remedy(function):
    called = getattr(ro.geometry, function)
    vectors = [jnp.ones(2)] * (len(inspect.signature(called).parameters) - 1)
    with pytest.raises(TypeError, match=r"field must be .*fields\.Elementwise"):
        called(jnp.abs, *vectors)


@pytest.mark.parametrize(
    "field",
    [
        ro.fields.Coupled(
            lambda w: jnp.stack([jnp.ones(()), jnp.cos(w[0]) ** 2])
        ),  # of flow.parallel_transport
        ro.fields.Elementwise(lambda w: jnp.where(jnp.abs(w) > 1, 2.0, 1.0)),
    ],
    ids=["an array without a dtype", "Python's numbers"],
)
def test_constants_have_the_dtype_of_the_users_program(field):
    assert check_field(field, np.array([0.3, 0.2]), zeros=False).largest <= 2
    with (
        jax.enable_x64(True),
        pytest.raises(AssertionError, match="E has dtype float64 for weights of float32"),
    ):
        check_field(field, np.array([0.3, 0.2]), zeros=False)
