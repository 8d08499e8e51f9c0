"""What is a differential equation: the gradient flow that small steps approach, geodesics, and transport.

Needs diffrax: ``pip install 'riemann-optax[flow]'``. Nothing else in the package does, so ``riemann_optax``
imports this module only when ``riemann_optax.flow`` is asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _check
from riemann_optax.fields.base import MetricField, check_field_type, to_working_tree
from riemann_optax.geometry import maps

try:
    import diffrax

    from riemann_optax._shooting import velocity_towards
    from riemann_optax._stopping import stop_at, time_dtype
except ImportError as error:
    raise ImportError(
        "riemann_optax.flow needs diffrax, which is not installed: pip install 'riemann-optax[flow]'."
    ) from error


def gradient_flow(
    loss: Callable[[optax.Params], jax.Array],
    params: optax.Params,
    field: MetricField | None,
    t: Any,
    *,
    stop_loss: float | None = None,
    solver: Any = None,
    step_size: float | None = None,
    rtol: float | None = None,
    max_steps: int = 4096,
) -> diffrax.Solution:
    r"""Solve the gradient flow from ``params``: Eq. 1 of the paper, or Eq. 2 under a metric field.

    .. math::
      \dot w = -\nabla f(w) \qquad\text{or}\qquad \dot w = -g(w)^{-1}\,\nabla f(w)

    A step of an optimiser at rate ``r`` is a step of length ``r`` in the time of the flow: ``n`` steps of
    gradient descent belong to the time ``n * r``. The solution has one derivative, in reverse mode
    (``jax.grad``, ``jax.jacrev``), as that of diffrax has.

    Args:
      loss: a function of the parameters, differentiable, without noise.
      params: where to start, a tree of real floating-point leaves; float64 for more than some 6 digits.
      field: the metric field of Eq. 2, or None for Eq. 1.
      t: the final time, positive; or an array of increasing times at which to keep the weights, the last of
        which is the final one.
      stop_loss: stop as soon as the loss reaches this value. ``solution.ts`` then holds the requested times
        before that moment, the moment itself, and infinity for the rest; ``solution.event_mask`` says whether
        it happened.
      solver: a diffrax solver; by default ``diffrax.Tsit5()``. Where the Hessian under the metric has a very
        large condition number, ``diffrax.Kvaerno5()`` needs fewer steps.
      step_size: None for adaptive steps, or the length of constant ones (``solver=diffrax.Euler()`` with
        ``step_size=r`` is gradient descent at the rate ``r``).
      rtol: relative tolerance of adaptive steps; by default 1e-5, for float64 weights 1e-9. The absolute
        tolerance is a thousandth of it, times the largest of ``params`` where that is below 1.
      max_steps: give up after so many steps of the solver; memory for the dense output of all of them.

    Returns:
      A ``diffrax.Solution``: ``solution.ts`` and ``solution.ys`` hold the times asked for and the weights at
      them (a leading axis is added to each leaf), ``solution.evaluate(time)`` the weights at any time until
      the end.

    Raises:
      ImportError: on import of this module, without diffrax.
      TypeError: where ``field`` is neither None nor a metric field, a leaf is not real, or ``t`` is traced.
      ValueError: where ``t`` is not positive, does not increase or has no end, or ``step_size`` is not
        positive, or the loss at ``params`` is known and not above ``stop_loss``.
      RuntimeError: (from diffrax) where ``max_steps`` are not enough.

    Examples:
      >>> import jax, jax.numpy as jnp, riemann_optax as ro
      >>> loss = lambda w: jnp.sum(w)
      >>> w = jnp.array([4.0])
      >>> print(ro.flow.gradient_flow(loss, w, None, 1.0).ys[-1])  # Eq. 1: at constant speed
      [3.]
      >>> field = ro.fields.Multiplicative()
      >>> solution = ro.flow.gradient_flow(loss, w, field, jnp.array([0.5, 1.0]))  # Eq. 2: w' = -w
      >>> print(solution.ys[-1])  # 4 / e
      [1.4715]
      >>> print(solution.evaluate(jnp.log(2.0)))
      [2.]
      >>> print(ro.flow.gradient_flow(loss, w, field, 9.0, stop_loss=1.0).ts[-1])  # log 4
      1.3863

    References:
      Kang, Son and Joel, *Biological Synaptic Plasticity Based Riemannian Geometry AI Learning Optimization
      Mechanism* (in Korean; the text names no venue and no year): Eqs. 1 and 2.

      Kidger, `On Neural Differential Equations <https://arxiv.org/abs/2202.02435>`_, Oxford, 2021: diffrax.
    """
    if field is not None:
        check_field_type(field)
    times = _times(t)
    params = to_working_tree(params, "params")
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(params))

    def velocity(time: Any, weights: optax.Params, _: Any) -> optax.Updates:
        del time
        gradient = jax.grad(loss)(weights)
        tangent = gradient if field is None else maps.sharp(field, weights, gradient)
        return jax.tree.map(jnp.negative, tangent)

    event = None
    if stop_loss is not None:
        event = stop_at(loss, params, stop_loss, time_dtype(wide, True))
    return _solve(velocity, params, times, solver, step_size, rtol, max_steps, wide, event)


class Motion(NamedTuple):
    """Where a geodesic is, and how it moves there.

    Attributes:
      point: the weights.
      velocity: a tangent vector at them.
    """

    point: optax.Params
    velocity: optax.Updates


def geodesic(
    field: MetricField,
    params: optax.Params,
    tangent: optax.Updates,
    t: Any = 1.0,
    *,
    solver: Any = None,
    step_size: float | None = None,
    rtol: float | None = None,
    max_steps: int = 4096,
) -> diffrax.Solution:
    r"""Follow the geodesic through ``params`` with the velocity ``tangent``, for any diagonal metric.

    .. math::
      \ddot w = -\Gamma(\dot w, \dot w)

    Its speed stays the same. What it has moved at time 1 is the exponential map of ``tangent``; for a
    separable field :func:`riemann_optax.geometry.exponential_map` has it in closed form, without a solver.

    Args:
      field: a metric field.
      params: where to start, a tree of real floating-point leaves; float64 for more than some 6 digits.
      tangent: the velocity there, of the same structure.
      t: the final time, or an array of increasing times; as in :func:`gradient_flow`.
      solver: a diffrax solver; by default ``diffrax.Tsit5()``.
      step_size: None for adaptive steps, or the length of constant ones.
      rtol: relative tolerance of adaptive steps.
      max_steps: give up after so many steps of the solver.

    Returns:
      A ``diffrax.Solution`` whose ``ys`` are a :class:`Motion`, as in :func:`gradient_flow`.

    Raises:
      TypeError, ValueError, RuntimeError: as :func:`gradient_flow`; and where ``params`` and ``tangent``
        differ in structure or shape.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> from riemann_optax import flow
      >>> half_plane = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / w[1] ** 2))
      >>> start, east = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
      >>> point = flow.geodesic(half_plane, start, east).ys.point[-1]
      >>> print(point, round(float(jnp.sum(point**2)), 4))  # on the circle about the origin
      [0.7616 0.6481] 1.0
    """
    check_field_type(field)
    point = to_working_tree(params, "params")
    velocity = maps.to_working_vector(tangent, point, "tangent")
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(point))
    start = Motion(point, optax.tree.cast_like(velocity, point))
    return _follow(field, start, _times(t), solver, step_size, rtol, max_steps, wide)


def geodesic_between(
    field: MetricField,
    params: optax.Params,
    displacement: optax.Updates,
    t: Any = 1.0,
    *,
    solver: Any = None,
    rtol: float | None = None,
    max_steps: int = 4096,
) -> diffrax.Solution:
    r"""Find a geodesic from one point to another, for any diagonal metric, by shooting.

    .. math::
      \ddot w = -\Gamma(\dot w, \dot w), \qquad w(0) = w_0, \quad w(1) = w_0 + d

    The velocity at the start is found by Newton's method for a part of ``d``, then for longer and longer
    ones up to the whole, each from the two before: sixteenths, or smaller parts where these fail. Of
    several geodesics, as on a sphere, it is the one that grows out of the shortest way to a point nearby.
    The Jacobian is that of all weights: for a hundred weights at most. ``jax.grad`` does not go through the
    search.
    For a separable field :func:`riemann_optax.geometry.logarithm_map` has the velocity in closed form.

    Args:
      field: a metric field.
      params: where to start, a tree of real floating-point leaves; float64 for more than some 6 digits.
      displacement: the other point minus ``params``.
      t: the times to keep, as in :func:`gradient_flow`; at time 1 the geodesic is at the other point.
      solver: a diffrax solver; by default ``diffrax.Tsit5()``.
      rtol: relative tolerance of adaptive steps and, ten times as large, of the end.
      max_steps: give up after so many steps of the solver.

    Returns:
      What :func:`geodesic` returns. ``solution.evaluate(0.0).velocity`` is the initial velocity, and its
      :func:`riemann_optax.geometry.norm` at ``params`` the length of the geodesic.

    Raises:
      TypeError, ValueError: as :func:`geodesic`.
      RuntimeError: where no geodesic is found; under ``jit`` from diffrax, which says less.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> from riemann_optax import flow
      >>> half_plane = ro.fields.Coupled(lambda w: jnp.full_like(w, 1 / w[1] ** 2))
      >>> start = jnp.array([-1.0, 1.0])
      >>> solution = flow.geodesic_between(half_plane, start, jnp.array([2.0, 0.0]))
      >>> velocity = solution.evaluate(0.0).velocity
      >>> print(round(float(ro.geometry.norm(half_plane, start, velocity)), 3))  # arcosh 3
      1.763
      >>> print(solution.evaluate(0.5).point.round(3))  # half-way, on the circle about the origin
      [0.    1.414]
    """
    check_field_type(field)
    start = to_working_tree(params, "params")
    whole = optax.tree.cast_like(maps.to_working_vector(displacement, start, "displacement"), start)
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(start))
    if rtol is None:
        rtol = 1e-9 if wide else 1e-5

    def end(velocity: optax.Updates) -> optax.Params:
        motion, forward = Motion(start, velocity), diffrax.ForwardMode()
        path: Any = _follow(field, motion, np.ones(1), solver, None, rtol, max_steps, wide, forward).ys
        return jax.tree.map(lambda points: points[-1], path.point)

    velocity, found = velocity_towards(end, start, whole, 10 * rtol)
    if not isinstance(found, jax.core.Tracer) and found < 1:
        raise RuntimeError(
            f"displacement: no geodesic was found beyond {100 * float(found):.4g} per cent of the way: the "
            "metric changes too much on it, or the point is outside of where the field is defined. Go over a "
            "point between the two, or give float64 weights, more max_steps or a larger rtol."
        )
    return geodesic(field, start, velocity, t, solver=solver, rtol=rtol, max_steps=max_steps)


def _follow(
    field: MetricField,
    start: Motion,
    times: np.ndarray[Any, Any],
    solver: Any,
    step_size: float | None,
    rtol: float | None,
    max_steps: int,
    wide: bool,
    adjoint: Any = None,
) -> diffrax.Solution:
    def motion(time: Any, state: Motion, _: Any) -> Motion:
        del time
        bend = maps.christoffel(field, state.point, state.velocity)
        return Motion(state.velocity, jax.tree.map(jnp.negative, bend))

    return _solve(motion, start, times, solver, step_size, rtol, max_steps, wide, adjoint=adjoint)


def parallel_transport(
    field: MetricField,
    path: Callable[[jax.Array], optax.Params],
    tangent: optax.Updates,
    t: Any,
    *,
    solver: Any = None,
    step_size: float | None = None,
    rtol: float | None = None,
    max_steps: int = 4096,
) -> diffrax.Solution:
    r"""Carry a tangent vector along a path, for any diagonal metric.

    .. math::
      \dot v = -\Gamma(\dot c, v)

    Lengths and angles are kept. Between two points the result depends on the path unless the metric is flat,
    as every separable one is; there :func:`riemann_optax.geometry.transport` is exact and needs no solver.

    Args:
      field: a metric field.
      path: maps the time, a scalar, to a point; differentiable. It starts at time 0.
      tangent: a tangent vector at ``path(0)``.
      t: the final time, or an array of increasing times; as in :func:`gradient_flow`.
      solver: a diffrax solver; by default ``diffrax.Tsit5()``.
      step_size: None for adaptive steps, or the length of constant ones.
      rtol: relative tolerance of adaptive steps.
      max_steps: give up after so many steps of the solver.

    Returns:
      A ``diffrax.Solution`` whose ``ys`` are the vectors, as in :func:`gradient_flow`.

    Raises:
      TypeError, ValueError, RuntimeError: as :func:`gradient_flow`; and where ``path`` and ``tangent`` differ
        in structure.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> from riemann_optax import flow
      >>> sphere = ro.fields.Coupled(lambda w: jnp.stack([jnp.ones(()), jnp.cos(w[0]) ** 2]))
      >>> circle = lambda time: jnp.stack([jnp.arcsin(0.25), 2 * jnp.pi * time])  # of latitude
      >>> solution = flow.parallel_transport(sphere, circle, jnp.array([1.0, 0.0]), 1.0)
      >>> print(solution.ys[-1][0])  # once around it is turned by 2 pi * 0.25: a right angle
      0.000
    """
    check_field_type(field)
    tangent = to_working_tree(tangent, "tangent")
    wide = any(leaf.dtype.itemsize > 4 for leaf in jax.tree.leaves(tangent))
    begin = jax.eval_shape(path, jnp.zeros([]))
    _check.check_same_structure(tangent, begin, "tangent", "path", "let path return a point.")

    def velocity(time: Any, vector: optax.Updates, _: Any) -> optax.Updates:
        point, direction = jax.jvp(path, (time,), (jnp.ones_like(time),))
        point, direction = (to_working_tree(tree, "path") for tree in (point, direction))
        point, direction = (optax.tree.cast_like(tree, vector) for tree in (point, direction))
        return jax.tree.map(jnp.negative, maps.christoffel(field, point, vector, direction))

    return _solve(velocity, tangent, _times(t), solver, step_size, rtol, max_steps, wide)


def _times(t: Any) -> np.ndarray[Any, Any]:
    """Return the times to keep, the last of which is the final one."""
    if isinstance(t, jax.core.Tracer):
        raise TypeError(
            "t must be known when the flow is compiled: mark it as static in jax.jit, or close over it."
        )
    times = np.atleast_1d(np.asarray(t))
    if times.ndim != 1 or not (times.size and times[0] >= 0 and times[-1] > 0 and (np.diff(times) > 0).all()):
        raise ValueError(f"t must be a positive time or an increasing array of times, got {t!r}.")
    if not np.isfinite(times[-1]):
        raise ValueError(f"t must be finite, got {t!r}: to go on until a loss is reached, give stop_loss.")
    return times


def _scale(start: Any) -> jax.Array:
    """Return the largest number that a path starts with, at most 1: what is far below it is not resolved."""
    # In float32, which widens no path.
    largest = jax.lax.stop_gradient(optax.tree.norm(start, ord=jnp.inf)).astype(jnp.float32)
    return jnp.where(largest > 0, jnp.minimum(largest, 1), 1)


def _solve(
    velocity: Callable[..., Any],
    start: Any,
    times: np.ndarray[Any, Any],
    solver: Any,
    step_size: float | None,
    rtol: float | None,
    max_steps: int,
    wide: bool,
    event: Any = None,
    adjoint: Any = None,
) -> diffrax.Solution:
    if step_size is not None:
        _check.check_number("step_size", step_size, low=0.0, low_open=True)
    dtype = time_dtype(wide, event is not None)
    if rtol is None:
        rtol = 1e-9 if wide else 1e-5
    controller: Any = diffrax.ConstantStepSize()
    if step_size is None:
        controller = diffrax.PIDController(rtol=rtol, atol=rtol * 1e-3 * _scale(start))
    solution: diffrax.Solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5() if solver is None else solver,
        t0=dtype(0),
        t1=dtype(times[-1]),
        dt0=None if step_size is None else jnp.asarray(step_size, dtype),
        y0=start,
        saveat=diffrax.SaveAt(ts=jnp.asarray(times[:-1], dtype), t1=True, dense=adjoint is None),
        stepsize_controller=controller,
        max_steps=max_steps,
        event=event,
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        throw=adjoint is None,  # a search says itself what it has not found
    )
    return solution
