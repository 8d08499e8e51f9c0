"""The energy that a run spends on its weights, and synaptic caching, which spends less."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._varying import varying_like


class TrackEnergyState(NamedTuple):
    """State of :func:`track_energy`, float32 scalars in the units of the weights.

    Attributes:
      modification: ``sum abs(dw)`` over all weights and all updates so far.
      compensation: what rounding has put into ``modification`` too much (Kahan); subtract it for the last
        digits.
      maintenance: ``sum abs(w)`` over all weights, before the last update.
      total_maintenance: the sum of ``maintenance`` over all updates so far.
      maintenance_compensation: what rounding has put into ``total_maintenance`` too much.
    """

    modification: jax.Array
    compensation: jax.Array
    maintenance: jax.Array
    total_maintenance: jax.Array
    maintenance_compensation: jax.Array

    def counts_updates(self) -> str:
        """Return what counts updates; what changes them on their way asks for this method."""
        return "track_energy"


def track_energy() -> optax.GradientTransformationExtraArgs:
    r"""Keep the energy spent on changing and on keeping weights (last in a chain).

    .. math::
      M_t = M_{t-1} + \sum_i |\Delta w_i|, \qquad m_t = \sum_i |w_i|, \qquad S_t = \sum_{s \le t} m_s

    ``M`` is the published energy of plasticity, and ``M + c * S`` the published sum of modification and
    maintenance over a run, with ``c`` the cost of maintenance per update. Li and van Rossum charge
    maintenance for the transient part of a weight only (:func:`synaptic_caching`); here it is charged for the
    whole weight.

    It passes updates through, so it must see them as they will be applied: after the learning rate, and after
    what changes them, such as :func:`in_eigenbasis` and :func:`schedule_free`, which refuse it inside. For
    bfloat16 weights it counts the steps before they are rounded. Needs ``params``. Under sharding one
    all-reduce per leaf and sum, which XLA combines.

    Returns:
      A gradient transformation with state :class:`TrackEnergyState`; find it with
      ``optax.tree.get(state, "TrackEnergyState")``.

    Raises:
      ValueError: at ``update``, where ``params`` are missing; where a leaf still carries its metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(optax.sgd(0.5), ro.track_energy())
      >>> params = jnp.array([1.0, -2.0])
      >>> _, state = tx.update(jnp.array([2.0, 4.0]), tx.init(params), params)
      >>> energy = optax.tree.get(state, "TrackEnergyState")
      >>> print(energy.modification, energy.maintenance, energy.total_maintenance)
      3.0 3.0 3.0

    References:
      Li and van Rossum, `Energy efficient synaptic plasticity <https://doi.org/10.7554/eLife.50804>`_,
      eLife, 2020
    """

    def init(params: optax.Params) -> TrackEnergyState:
        numbers = [jnp.zeros([], jnp.float32) for _ in TrackEnergyState._fields]
        return TrackEnergyState(*varying_like(numbers, params))

    def update(
        updates: optax.Updates,
        state: TrackEnergyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TrackEnergyState]:
        del extra_args
        updates = _tree.arrays(updates)
        params = _check.require_params(_tree.trained(params, updates), "track_energy")
        return updates, TrackEnergyState(**_account(state, updates, params))

    return optax.GradientTransformationExtraArgs(init, update)


class SynapticCachingState(NamedTuple):
    """State of :func:`synaptic_caching`.

    Attributes:
      transient: the part of each weight that is not consolidated, shaped like the parameters.
      consolidations: int32 scalar, the number of updates so far that consolidated a weight.
      modification: ``sum abs(s)`` over all that has been consolidated so far; float32, as all that follow.
      compensation: what rounding has put into ``modification`` too much (Kahan).
      maintenance: ``sum abs(s)`` over all that is transient after the last update.
      total_maintenance: the sum of ``maintenance`` over all updates so far.
      maintenance_compensation: what rounding has put into ``total_maintenance`` too much.
    """

    transient: optax.Updates
    consolidations: jax.Array
    modification: jax.Array
    compensation: jax.Array
    maintenance: jax.Array
    total_maintenance: jax.Array
    maintenance_compensation: jax.Array

    def counts_updates(self) -> str:
        """Return what counts updates; what changes them on their way asks for this method."""
        return "synaptic_caching"


def synaptic_caching(
    threshold: float, *, fading: float = 1e-3, over: Literal["tree", "leaf", "weight"] = "tree"
) -> optax.GradientTransformationExtraArgs:
    r"""Keep changes transient, which is cheap, until one is large; then consolidate (last in a chain).

    .. math::
      s \leftarrow (1 - \lambda)\,s + \Delta w; \qquad
      \max_i |s_i| > \theta: \quad M \leftarrow M + \sum_i |s_i|, \quad s \leftarrow 0

    Changes that cancel before they are consolidated cost no energy of modification. What is transient costs
    maintenance instead: with ``c`` its cost per update (published: 1e-3) the energy of a run is
    ``modification + c * total_maintenance``, and :func:`track_energy` counts what the same run spends without
    a cache. To end a run, add the last ``maintenance``, which is what consolidating the rest costs.

    The network computes with both parts of a weight together. So with ``fading=0`` the updates pass
    unchanged, and this only keeps the account; what fades of the transient part is taken from the weight.

    It must see the updates as they will be applied: after the learning rate, and after what changes them,
    such as :func:`in_eigenbasis` and :func:`schedule_free`, which refuse it inside. State: 1 value per
    weight, float32 or wider, and 6 numbers. Under sharding one all-reduce per leaf and sum, and one for the
    largest change, which XLA combines.

    Args:
      threshold: ``theta``, positive, in the units of the weights.
      fading: ``lambda``, the share of what is transient that fades per update, in [0, 1). Published: 1e-3.
      over: what is consolidated together when one of it crosses the threshold: ``"tree"``, all weights, as
        published for the least energy; ``"leaf"``, those of the leaf; ``"weight"``, the weight alone.

    Returns:
      A gradient transformation with state :class:`SynapticCachingState`; find it with
      ``optax.tree.get(state, "SynapticCachingState")``.

    Raises:
      ValueError: for a concrete ``threshold`` that is not positive, a ``fading`` outside [0, 1) or an unknown
        ``over``; at ``update``, where a leaf still carries its metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(optax.sgd(1.0), ro.synaptic_caching(1.5, fading=0.0))
      >>> state = tx.init(jnp.zeros(2))
      >>> for gradient in (jnp.array([1.0, 1.0]), jnp.array([-1.0, 1.0])):  # one returns
      ...     _, state = tx.update(gradient, state)
      ...     energy = optax.tree.get(state, "SynapticCachingState")
      ...     print(energy.transient, energy.modification, energy.total_maintenance)
      [-1. -1.] 0.0 2.0
      [0. 0.] 2.0 2.0

    References:
      Li and van Rossum, `Energy efficient synaptic plasticity <https://doi.org/10.7554/eLife.50804>`_,
      eLife, 2020
    """
    _check.check_number("threshold", threshold, low=0.0, low_open=True)
    _check.check_number("fading", fading, low=0.0, high=1.0, high_open=True)
    _check.check_choice("over", over, ("tree", "leaf", "weight"))

    def init(params: optax.Params) -> SynapticCachingState:
        numbers = [jnp.zeros([], jnp.int32), *(jnp.zeros([], jnp.float32) for _ in range(5))]
        return SynapticCachingState(_tree.vectors_like(params), *varying_like(numbers, params))

    def faded(update: jax.Array, transient: jax.Array) -> jax.Array:
        lost = jnp.asarray(fading).astype(transient.real.dtype) * transient
        return (update.astype(transient.dtype) - lost).astype(update.dtype)

    def update(
        updates: optax.Updates,
        state: SynapticCachingState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SynapticCachingState]:
        del params, extra_args
        updates = jax.tree.map(faded, _tree.arrays(updates), state.transient)
        # What the weights are given, rounded to their dtype: the parts add up to the weight.
        transient = jax.tree.map(lambda s, u: s + u.astype(s.dtype), state.transient, updates)
        full, some = _crossed(transient, threshold, over)
        consolidated = jax.tree.map(lambda f, s: jnp.where(f, s, jnp.zeros_like(s)), full, transient)
        kept = jax.tree.map(lambda f, s: jnp.where(f, jnp.zeros_like(s), s), full, transient)
        count = jnp.where(some, optax.safe_increment(state.consolidations), state.consolidations)
        return updates, SynapticCachingState(kept, count, **_account(state, consolidated, kept))

    return optax.GradientTransformationExtraArgs(init, update)


def _crossed(transient: optax.Updates, threshold: Any, over: str) -> tuple[Any, jax.Array]:
    """Return which weights of each leaf are consolidated, one boolean or one per weight; and whether any."""

    def above(leaf: jax.Array) -> jax.Array:
        size = _tree.magnitude(leaf)
        return size > jnp.asarray(threshold).astype(size.dtype)

    found = jax.tree.map(above, transient)
    leaves = jax.tree.map(jnp.any, found)
    some = jnp.any(jnp.stack([jnp.zeros([], bool), *jax.tree.leaves(leaves)]))
    together = {"weight": found, "leaf": leaves, "tree": jax.tree.map(lambda _: some, leaves)}
    return together[over], some


def _account(state: Any, changed: optax.Updates, maintained: optax.Updates) -> dict[str, jax.Array]:
    """Return the fields of an account after an update, by name: what was changed, and what is maintained."""
    maintenance = _sum_of_magnitudes(maintained)
    modification, compensation = _compensated_sum(
        state.modification, state.compensation, _sum_of_magnitudes(changed)
    )
    total, maintenance_compensation = _compensated_sum(
        state.total_maintenance, state.maintenance_compensation, maintenance
    )
    return {
        "modification": modification,
        "compensation": compensation,
        "maintenance": maintenance,
        "total_maintenance": total,
        "maintenance_compensation": maintenance_compensation,
    }


def _compensated_sum(
    total: jax.Array, compensation: jax.Array, term: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the new sum and compensation: over a long run each term is below the spacing of the sum."""
    increment = term - compensation
    new = total + increment
    missed = (new - total) - increment
    return new, jnp.where(jnp.isfinite(new), missed, jnp.zeros_like(missed))


def _sum_of_magnitudes(tree: Any) -> jax.Array:
    sums = [jnp.sum(_tree.magnitude(leaf)).astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return sum(sums, start=jnp.zeros([], jnp.float32))
