"""check_field: whether a user's own metric field is a metric and its formulas agree, in words."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check, _tree
from riemann_optax.fields.base import MetricField, SeparableField, check_field_type

_TINY = 1e-6  # the step at which float32 must still be accurate
_SINGLE = 1e-5  # to this relative error
_DOUBLE = 1e-6


class FieldReport(NamedTuple):
    """What :func:`check_field` found out about a field that keeps the contract.

    Attributes:
      separable: whether the field has geodesics in closed form or by quadrature.
      smallest: the smallest ``E`` at the points tried.
      largest: the largest ``E`` there.
    """

    separable: bool
    smallest: float
    largest: float


def check_field(
    field: MetricField,
    params: optax.Params | None = None,
    *,
    zeros: bool = True,
    domain: Any = None,
    points: int = 3,
    seed: int = 0,
) -> FieldReport:
    """Try a metric field of one's own and list what is wrong.

    Tried of every field, at random points: structure, shapes and dtypes of ``E``; that it is positive, finite
    and the same each time and under ``jit``; that its derivative agrees with differences. Of a separable
    field also: that each ``E_i`` depends on its own weight alone; that integrals vanish at no displacement,
    add up along the way, start with the slope ``sqrt(E)`` or ``E`` and are undone by their inverses; that the
    Bregman divergence grows by the dual displacement; and that all this holds from weights at 0, across a
    change of sign, and in float32 to 1e-5 at steps of 1e-6.

    Points are tried in float64 as well, whatever the setting of JAX is. What is wrong only between the points
    that are drawn, such as a narrow bump, is not seen: give more ``points``.

    Args:
      field: the field to check.
      params: parameters of the structure the field expects; by default a matrix and a vector. Weights are
        drawn from normal distributions about 0 with the size of each as standard deviation, or 1 where it is
        0.
      zeros: whether weights may be 0 and change their signs; False for a field with a pole there, such as
        ``fields.Multiplicative()``, for weights that are never 0.
      domain: the open interval in which the field is defined, such as ``(0.0, 1.0)`` for a probability or
        ``(0.0, math.inf)`` for a scale; all weights and steps stay in it. None for all numbers. Where arrays
        differ in it, a tree like ``params`` of intervals and None.
      points: how many.
      seed: of the points.

    Returns:
      A :class:`FieldReport`.

    Raises:
      AssertionError: where something is broken; the message lists all that was found.
      TypeError: where ``field`` is no metric field, or a leaf of ``params`` is not real.
      ValueError: where ``params`` have no weights, or ``domain`` is neither an interval nor a tree of them.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> from riemann_optax.testing import check_field
      >>> print(check_field(ro.fields.Absolute(3.0)).separable)
      True
      >>> bernoulli = ro.fields.Elementwise(lambda p: 1 / (p * (1 - p)))  # its Fisher information
      >>> print(check_field(bernoulli, domain=(0.0, 1.0)).smallest >= 4)
      True
      >>> check_field(ro.fields.Elementwise(lambda w: 1 + 9 * w))
      Traceback (most recent call last):
          ...
      AssertionError: this field breaks its contract:
      - E is not positive and finite at leaf ['matrix']: it reaches from ...

    References:
      Boumal et al, `Manopt, a Matlab toolbox for optimization on manifolds
      <https://jmlr.org/papers/v15/boumal14a.html>`_, Journal of Machine Learning Research, 2014:
      ``checkmanifold``
    """
    check_field_type(field)
    if params is None:
        params = {"matrix": np.full([3, 2], 1.0), "vector": np.full([4], -1.0)}
    params = jax.tree.map(np.asarray, params)
    _check_arguments(params, points)
    domains = _domains(params, domain)
    crosses_zero = zeros and domain is None
    random = np.random.default_rng(seed)
    problems: list[str] = []
    metrics: list[np.ndarray[Any, Any]] = []
    segments: list[tuple[jax.Array, jax.Array]] = []
    wide_by_default = jnp.zeros([]).dtype == jnp.float64
    with jax.enable_x64(True):
        for index in range(points):
            point, other = (_drawn(random, params, domains) for _ in range(2))
            if crosses_zero and index == 0:
                point = jax.tree.map(_with_zeros, point)
            tangent = other if domain is None else jax.tree.map(np.subtract, other, point)
            problems = _metric_problems(field, point, tangent, metrics, wide_by_default)
            if not problems and isinstance(field, SeparableField):
                problems = _independence_problems(field, point, tangent)
            if problems:
                break
            segments.append((_joined(point), _joined(tangent)))
        if isinstance(field, SeparableField) and not problems:
            weights, steps = (jnp.concatenate(parts) for parts in zip(*segments, strict=True))
            if not zeros and domain is None:
                steps = weights * jnp.tanh(steps) / 2
            problems += _integral_problems(field, ARC, weights, steps, crosses_zero)
            problems += _integral_problems(field, DUAL, weights, steps, crosses_zero)
            problems += _divergence_problems(field, weights, steps)
    if problems:
        raise AssertionError("this field breaks its contract:\n" + "\n".join(f"- {p}" for p in problems))
    return FieldReport(
        separable=isinstance(field, SeparableField),
        smallest=float(min(m.min() for m in metrics)),
        largest=float(max(m.max() for m in metrics)),
    )


def _check_arguments(params: Any, points: Any) -> None:
    _check.check_count("points", points)
    if not sum(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError("params must have at least one weight.")
    for name, leaf in _named(params):
        if not (jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)):
            raise TypeError(f"params must be real, got {leaf.dtype} at {name}.")


def _domains(params: Any, domain: Any) -> list[tuple[float, float] | None]:
    """Return the interval of each array, None for all numbers."""
    structure: Any = jax.tree.structure(params)
    try:
        found = [domain] * structure.num_leaves if _is_interval(domain) else structure.flatten_up_to(domain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"domain must be a pair (low, high) with low < high, or a tree like params of such pairs, got "
            f"{domain!r} for {structure}."
        ) from error
    for (name, _), one in zip(_named(params), found, strict=True):
        if not _is_interval(one) or (one is not None and not one[0] < one[1]):
            raise ValueError(f"domain must be a pair (low, high) with low < high, got {one!r} for {name}.")
    return found


def _is_interval(domain: Any) -> bool:
    """Return whether this is two numbers, or None for all of them."""
    return domain is None or (isinstance(domain, tuple | list) and list(map(np.ndim, domain)) == [0, 0])


def _drawn(random: np.random.Generator, params: Any, domains: list[tuple[float, float] | None]) -> Any:
    leaves, structure = jax.tree.flatten(params)
    drawn = [_draw(random, leaf, domain) for leaf, domain in zip(leaves, domains, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _draw(random: np.random.Generator, like: Any, domain: tuple[float, float] | None) -> np.ndarray[Any, Any]:
    scale = np.where(like == 0, 1.0, np.abs(like).astype(np.float64))
    normal = random.normal(size=np.shape(like))
    low, high = domain or (-np.inf, np.inf)
    if np.isfinite(low) and np.isfinite(high):
        return np.asarray(low + (high - low) / (1 + np.exp(-normal)))
    if np.isfinite(low):
        return np.asarray(low + scale * np.exp(normal))
    if np.isfinite(high):
        return np.asarray(high - scale * np.exp(normal))
    return np.asarray(scale * normal)


def _with_zeros(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Set every other weight to 0, where kinks and poles are."""
    return np.where(np.arange(values.size).reshape(values.shape) % 2 == 0, 0.0, values)


def _joined(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield _tree.leaf_name(path), leaf


def _problems_in(field: MetricField, point: Any, dtype: Any) -> tuple[list[str], Any]:
    """Check ``E`` at weights of one dtype; return what is wrong, and ``E``."""
    cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), point)
    try:
        metric = field.metric(cast)
        _check.check_same_structure(metric, cast, "the metric", "the parameters", "return one E per weight.")
        jitted = jax.jit(field.metric)(cast)
    except Exception as error:  # the point is to report whatever a user's code raises
        return [f"metric fails on {jnp.dtype(dtype).name} weights: {type(error).__name__}: {error}"], None
    for name, value in _named(metric):
        if value.dtype != dtype:
            return [
                f"E has dtype {value.dtype} for weights of {jnp.dtype(dtype).name} at {name}: keep "
                "theirs, with Python numbers as constants"
            ], None
        if not (np.isfinite(value).all() and (np.asarray(value) > 0).all()):
            return [
                f"E is not positive and finite at {name}: it reaches from {np.min(value):g} to "
                f"{np.max(value):g} (where weights are 0, an eps may be missing)"
            ], None
    for other, what in ((field.metric(cast), "when asked twice"), (jitted, "under jit")):
        for (name, value), again in zip(_named(metric), jax.tree.leaves(other), strict=True):
            if not np.allclose(value, again, rtol=1e-5):
                return [f"E differs {what} at {name}: it must be a pure function of the weights"], None
    return [], metric


def _metric_problems(
    field: MetricField,
    point: Any,
    tangent: Any,
    metrics: list[np.ndarray[Any, Any]],
    wide_by_default: bool,
) -> list[str]:
    """Check what every field promises: E itself and its derivative."""
    for dtype, wide in ((jnp.float32, wide_by_default), (jnp.float64, True)):
        # Constants without a dtype are as wide as JAX is: with narrow weights as in the user's own program.
        with jax.enable_x64(wide):
            problems, metric = _problems_in(field, point, dtype)
        if problems:
            return problems
    weights = jax.tree.map(jnp.asarray, point)
    for (name, value), rate in zip(_named(metric), jax.tree.leaves(field.inverse(weights)), strict=True):
        if not np.allclose(value * rate, 1, rtol=_DOUBLE):
            return [f"inverse is not 1/E at {name}"]
    metrics += [np.asarray(leaf) for leaf in jax.tree.leaves(metric)]
    return _derivative_problems(field, weights, jax.tree.map(jnp.asarray, tangent))


def _derivative_problems(field: MetricField, weights: Any, tangent: Any) -> list[str]:
    step = 1e-6
    derivative = field.derivative(weights, tangent)
    sides = [
        field.metric(jax.tree.map(lambda w, u, s=side: w + s * step * u, weights, tangent))
        for side in (-1, 0, 1)
    ]
    for (name, slope), low, here, high in zip(
        _named(derivative), *(jax.tree.leaves(side) for side in sides), strict=True
    ):
        left, right = np.asarray(here - low) / step, np.asarray(high - here) / step
        # At a kink the derivative may be that of either side or between them.
        slack = 1e-3 * (np.abs(left) + np.abs(right)) + 1e-6 * np.asarray(here)
        slope = np.asarray(slope)
        if not (
            (slope >= np.minimum(left, right) - slack) & (slope <= np.maximum(left, right) + slack)
        ).all():
            return [f"the derivative of E disagrees with differences of E at {name}: is a gradient stopped?"]
    return []


def _independence_problems(field: SeparableField, point: Any, tangent: Any) -> list[str]:
    """Check that the derivative of E is diagonal."""
    weights, directions = jax.tree.map(jnp.asarray, point), jax.tree.map(jnp.asarray, tangent)
    own = field.derivative(weights, jax.tree.map(jnp.ones_like, weights))
    along = field.derivative(weights, directions)
    for (name, actual), slope, u in zip(
        _named(along), jax.tree.leaves(own), jax.tree.leaves(directions), strict=True
    ):
        if not np.allclose(actual, slope * u, rtol=1e-6, atol=1e-9):
            return [
                f"E_i depends on other weights than w_i at {name}: derive from MetricField instead, or use "
                "fields.Coupled"
            ]
    return []


class _Integral(NamedTuple):
    """A method of a field, its inverse, and what the method integrates."""

    forward: str
    inverse: str
    density: str


ARC = _Integral("arc_length", "geodesic_displacement", "sqrt(E)")
DUAL = _Integral("dual_displacement", "mirror_displacement", "E")


def _integral_problems(
    field: SeparableField, names: _Integral, weights: jax.Array, steps: jax.Array, zeros: bool
) -> list[str]:
    """Check an integral and its inverse, in float64 and at short steps in float32."""
    forward, inverse = jax.jit(getattr(field, names.forward)), jax.jit(getattr(field, names.inverse))
    displacements = {"": steps}
    if zeros:
        displacements[" where the sign changes"] = -2 * weights  # to the mirror image
    lengths = {where: np.asarray(forward(weights, d)) for where, d in displacements.items()}
    if not all(np.isfinite(length).all() for length in lengths.values()):
        return [f"{names.forward} is not finite over a change of sign or from 0: a pole of E needs an eps"]
    problems = []
    none = jnp.zeros_like(weights)
    if np.any(forward(weights, none)) or np.any(inverse(weights, none)):
        problems.append(f"{names.forward} and {names.inverse} must be 0 at 0")
    parts = forward(weights, steps / 3) + forward(weights + steps / 3, 2 * steps / 3)
    if not np.allclose(parts, lengths[""], rtol=_DOUBLE, atol=1e-12):
        problems.append(f"{names.forward} does not add up: two parts of a way are not as long as the whole")

    def density(w: jax.Array) -> jax.Array:
        return jnp.sqrt(field.elementwise(w)) if names is ARC else field.elementwise(w)

    # Away from 0, where the density may have a kink.
    inside = jnp.where(weights == 0, jnp.full_like(weights, 1e-2), weights)
    half = 1e-4 * inside
    slope = (forward(inside, half) - forward(inside, -half)) / (2 * half)
    if not np.allclose(slope, density(inside), rtol=1e-5):
        problems.append(
            f"{names.forward} does not grow by {names.density}: it is not that integral of the metric"
        )
    for where, displacement in displacements.items():
        if not np.allclose(inverse(weights, lengths[where]), displacement, rtol=_DOUBLE, atol=1e-12):
            problems.append(f"{names.inverse} does not undo {names.forward}{where}")
    narrow = weights.astype(jnp.float32)
    step = jnp.full_like(narrow, _TINY)
    amount = step * density(narrow)
    for name, function, argument in ((names.forward, forward, step), (names.inverse, inverse, amount)):
        wide = np.asarray(function(narrow.astype(jnp.float64), argument.astype(jnp.float64)))
        error = np.max(np.abs(np.asarray(function(narrow, argument), np.float64) / wide - 1))
        if not error < _SINGLE:
            problems.append(
                f"{name} has a relative error of {error:.1e} in float32 at steps of {_TINY:g}: write it as a "
                "displacement (expm1, log1p), not as a difference of charts"
            )
    return problems


def _divergence_problems(field: SeparableField, weights: jax.Array, steps: jax.Array) -> list[str]:
    """Check that the divergence is the integral of the dual displacement over the displacement."""
    divergence = jax.jit(field.bregman_divergence)
    near = steps * (1 - 1e-4)
    grown = np.asarray(divergence(weights, steps) - divergence(weights, near))
    middle = np.asarray(field.dual_displacement(weights, (steps + near) / 2) * (steps - near))
    # Differences of numbers that nearly agree, and a kink of E may lie between them.
    if np.any(divergence(weights, jnp.zeros_like(weights))) or not np.allclose(grown, middle, rtol=1e-3):
        return ["bregman_divergence is not the integral of dual_displacement from 0 to the displacement"]
    return []
