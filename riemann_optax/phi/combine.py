"""Combining phis: sums, products, powers and means of one."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._declare import Phi, least_of, name_of, phi_around
from riemann_optax._tree import Group


class CombinedState(NamedTuple):
    """State of :func:`weighted_sum` and :func:`product`.

    Attributes:
      states: the states of the combined phis, in their order.
    """

    states: tuple[optax.OptState, ...]


def weighted_sum(*phis: optax.GradientTransformation, weights: Sequence[float] | None = None) -> Phi:
    r"""Weighted sum of phis, :math:`\varphi = \sum_k c_k\,\varphi_k`: the paper's plasticity plus energy.

    ``phi >= 0`` where all phis and weights are. State and collectives: the sum over its parts.

    Args:
      *phis: the phis to add, at least one.
      weights: one number per phi, each in units that make the terms comparable; by default all 1.

    Returns:
      A phi with state :class:`CombinedState`; extra arguments reach all parts.

    Raises:
      ValueError: for no phi at all, or if the numbers of weights and phis differ.
      TypeError: where a phi is no gradient transformation, or ``weights`` no sequence.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.weighted_sum(ro.phi.activity(), ro.phi.maintenance_energy(), weights=[1.0, 0.5])
      >>> params = jnp.array([2.0])
      >>> print(phi.update(jnp.array([3.0]), phi.init(params), params)[0])  # 3 + 0.5 * 2
      [4.]
    """
    parts = _checked(phis)
    if not isinstance(weights, Sequence | jax.Array | np.ndarray | None):
        raise TypeError(f"weights must be a sequence of numbers, one per phi, got {weights!r}.")
    factors = [1.0] * len(parts) if weights is None else list(weights)
    for factor in factors:
        _check.check_number("weights", factor)
    if len(factors) != len(parts):
        raise ValueError(f"weights must hold one number per phi: got {len(factors)} for {len(parts)} phis.")

    def add(*values: jax.Array) -> jax.Array:
        terms = [jnp.asarray(c).astype(v.dtype) * v for c, v in zip(factors, values, strict=True)]
        return sum(terms[1:], start=terms[0])

    def update(
        updates: optax.Updates, state: CombinedState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, CombinedState]:
        values, new_state = _update_parts(parts, updates, state, params, extra_args)
        return jax.tree.map(add, *values), new_state

    # A traced weight is known too late. A phi has no greatest value, and so its negative no least one.
    known = [float(c) if _check.is_concrete_number(c) else 0.0 for c in factors]
    lowest = [c * least_of(part) for c, part in zip(known, parts, strict=True) if c]
    least = -math.inf if min(known) < 0 else sum(lowest)
    return phi_around(parts, _init_parts(parts), update, "weighted_sum", least)


def product(*phis: optax.GradientTransformation) -> Phi:
    r"""Product of phis, :math:`\varphi = \prod_k \varphi_k`: stiff only where all of them are large.

    ``phi >= 0`` where all phis are. State and collectives: the sum over its parts.

    Args:
      *phis: the phis to multiply, at least one.

    Returns:
      A phi with state :class:`CombinedState`; extra arguments reach all parts.

    Raises:
      ValueError: for no phi at all.
      TypeError: where a phi is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.product(ro.phi.activity(), ro.phi.maintenance_energy())
      >>> params = jnp.array([2.0])
      >>> print(phi.update(jnp.array([3.0]), phi.init(params), params)[0])
      [6.]
    """
    parts = _checked(phis)

    def multiply(*values: jax.Array) -> jax.Array:
        return math.prod(values[1:], start=values[0])

    def update(
        updates: optax.Updates, state: CombinedState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, CombinedState]:
        values, new_state = _update_parts(parts, updates, state, params, extra_args)
        return jax.tree.map(multiply, *values), new_state

    # What is negative is multiplied with values that have no limit.
    least = -math.inf if len(parts) > 1 and any(least_of(part) < 0 for part in parts) else None
    return phi_around(parts, _init_parts(parts), update, "product", least)


def power(phi: optax.GradientTransformation, exponent: float) -> Phi:
    r"""Power of a phi, :math:`\varphi^p`.

    A negative exponent turns steepness into flatness: ``power(hutchinson_curvature(), -1)``. There a phi of 0
    gives infinity, so add a constant first: ``weighted_sum(phi, from_weights(jnp.ones_like))``. State and
    collectives: phi's.

    Args:
      phi: a phi that is nowhere negative.
      exponent: any real number but 0.

    Returns:
      A phi with the state of ``phi``.

    Raises:
      ValueError: for an ``exponent`` of 0 or one that is not finite, or a phi that can be negative.
      TypeError: where ``phi`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.power(ro.phi.activity(), 2.0)
      >>> print(phi.update(jnp.array([3.0]), phi.init(jnp.zeros(1)))[0])
      [9.]
    """
    part = _nowhere_negative(phi)
    _check.check_number("exponent", exponent)
    if _check.is_concrete_number(exponent) and exponent == 0:
        raise ValueError("exponent must not be 0: phi would be 1 everywhere.")

    def raise_to_power(value: jax.Array) -> jax.Array:
        raised = _tree.power(value, exponent)
        return jnp.where(jnp.logical_and(value == 0, exponent < 0), jnp.full_like(raised, jnp.inf), raised)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        values, state = part.update(updates, state, params, **extra_args)
        return jax.tree.map(raise_to_power, values), state

    return phi_around([part], part.init, update, "power")


def unit_mean(phi: optax.GradientTransformation, *, over: Group = "tree", axes: Axes = "flax") -> Phi:
    r"""Divide a phi by its mean, :math:`\varphi_i / \mathrm{mean}(\varphi)`, so that alpha has no units.

    ``phi >= 0`` where ``phi`` is. Where the mean is 0 the result is 0. State: phi's. Under sharding
    one all-reduce per leaf, which XLA combines.

    Args:
      phi: a phi that is nowhere negative.
      over: the group of the mean: ``"tree"``, ``"leaf"`` or ``"neuron"`` (the fan-in of each output, by
        ``axes``; a vector is one group, and so is each row of an embedding).
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A phi with the state of ``phi``.

    Raises:
      ValueError: for an unknown group or ``axes``, or a phi that can be negative.
      TypeError: where ``phi`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.unit_mean(ro.phi.activity())
      >>> print(phi.update(jnp.array([1.0, 3.0]), phi.init(jnp.zeros(2)))[0])
      [0.5 1.5]
    """
    part = _nowhere_negative(phi)
    _check.check_choice("over", over, _tree.GROUPS)
    _axes.check_axes(axes)

    def divide(value: jax.Array, mean: jax.Array) -> jax.Array:
        return value / jnp.where(mean == 0, jnp.ones_like(mean), mean)

    return _by_its_mean(part, divide, over, axes, "unit_mean")


def limited_mean(
    phi: optax.GradientTransformation,
    *,
    limit: jax.typing.ArrayLike,
    over: Group = "tree",
    axes: Axes = "flax",
) -> Phi:
    r"""Scale a phi down where its mean is above a limit, :math:`\varphi \min(1, c / \mathrm{mean}(\varphi))`.

    An importance that grows with every task makes everything stiff in the end. Limited, each new task shares
    what there is with those before. With ``limit = c / alpha`` the mean of ``E`` is at most ``1 + c``.
    ``phi >= 0`` where ``phi`` is. State: phi's. Under sharding one all-reduce per leaf, which XLA combines.

    Args:
      phi: a phi that is nowhere negative.
      limit: the largest mean, positive: a number or a traced scalar.
      over: the group of the mean, as in :func:`unit_mean`.
      axes: which axes are inputs and outputs, as in :func:`unit_mean`.

    Returns:
      A phi with the state of ``phi``.

    Raises:
      ValueError: for an unknown group or ``axes``, a limit that is not positive, or a phi that can be
        negative.
      TypeError: where ``phi`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.limited_mean(ro.phi.activity(), limit=1.0)
      >>> print(phi.update(jnp.array([1.0, 3.0]), phi.init(jnp.zeros(2)))[0])  # the mean was 2
      [0.5 1.5]
      >>> print(phi.update(jnp.array([0.1, 0.3]), phi.init(jnp.zeros(2)))[0])
      [0.1 0.3]
    """
    part = _nowhere_negative(phi)
    _check.check_number("limit", limit, low=0.0, low_open=True)
    _check.check_choice("over", over, _tree.GROUPS)
    _axes.check_axes(axes)

    def scale(value: jax.Array, mean: jax.Array) -> jax.Array:
        most = jnp.asarray(limit).astype(mean.dtype)
        return jnp.where(mean > most, value * (most / mean), value)

    return _by_its_mean(part, scale, over, axes, "limited_mean")


def _by_its_mean(
    part: optax.GradientTransformationExtraArgs,
    change: Callable[[jax.Array, jax.Array], jax.Array],
    over: Group,
    axes: Axes,
    name: str,
) -> Phi:
    """Return a phi whose finite values are changed by their mean over the group; infinite ones stay."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        values, state = part.update(updates, state, params, **extra_args)
        endless = jax.tree.map(jnp.isinf, values)
        finite = jax.tree.map(lambda value, is_inf: jnp.where(is_inf, 0, value), values, endless)
        changed = jax.tree.map(change, finite, _axes.group_mean(finite, over, axes))
        return jax.tree.map(jnp.where, endless, values, changed), state

    return phi_around([part], part.init, update, name)


def _checked(phis: Sequence[Any]) -> list[optax.GradientTransformationExtraArgs]:
    if not phis:
        raise ValueError("phis must hold at least one phi.")
    for index, phi in enumerate(phis):
        if isinstance(phi, list | tuple) and not isinstance(phi, optax.GradientTransformation):
            raise TypeError(
                f"phi number {index} is a list: give the phis one by one, as in product(one, another)."
            )
        if not isinstance(phi, optax.GradientTransformation):
            raise TypeError(f"phi number {index} must be an optax.GradientTransformation, got {phi!r}.")
    return [optax.with_extra_args_support(phi) for phi in phis]


def _nowhere_negative(phi: Any) -> optax.GradientTransformationExtraArgs:
    (part,) = _checked([phi])
    if (least := least_of(phi)) < 0:
        low = "negative without a limit" if least == -math.inf else f"as low as {least:g}"
        raise ValueError(
            f"phi must be nowhere negative, but {name_of(phi)} can be {low}: give it to compute_metric as it "
            "is, or in a weighted_sum."
        )
    return part


def _init_parts(
    parts: Sequence[optax.GradientTransformation],
) -> Callable[[optax.Params], CombinedState]:
    return lambda params: CombinedState(tuple(part.init(params) for part in parts))


def _update_parts(
    parts: Sequence[optax.GradientTransformationExtraArgs],
    updates: optax.Updates,
    state: CombinedState,
    params: optax.Params | None,
    extra_args: dict[str, Any],
) -> tuple[list[optax.Updates], CombinedState]:
    results = [
        part.update(updates, part_state, params, **extra_args)
        for part, part_state in zip(parts, state.states, strict=True)
    ]
    return [values for values, _ in results], CombinedState(tuple(new_state for _, new_state in results))
