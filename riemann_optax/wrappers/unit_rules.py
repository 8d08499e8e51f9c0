"""Which hidden units to reset: three published rules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree


class UnitRule(NamedTuple):
    """A rule that chooses the hidden units to reset; :func:`reset_units` calls it at every update.

    A tree of units is like the parameters, with an array of shape ``[units]`` at the kernel of each hidden
    layer and ``optax.MaskedNode`` elsewhere; ``jax.tree.map`` sees only the arrays.

    Attributes:
      init: makes the state from a tree of units, zeros in the working dtype.
      update: the function ``(activities, outgoing, state) -> (chosen, state)``. ``activities`` is a tree of
        units with arrays ``[examples, units]`` instead; ``outgoing`` is a tree of units with the sum of the
        magnitudes of each unit's outgoing weights; ``chosen`` is a tree of units with booleans.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, riemann_optax as ro
      >>> def choose(activities, outgoing, state):  # the units that are 0 for all examples
      ...     return jax.tree.map(lambda h: (h == 0).all(0), activities), state
      >>> rule = ro.UnitRule(init=lambda units: (), update=choose)
      >>> print(rule.update(jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.ones(2), ())[0])
      [False  True]
      >>> tx = ro.reset_units(optax.adam(1e-3), rule)
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]


class DormantUnitsState(NamedTuple):
    """State of :func:`dormant_units`.

    Attributes:
      count: int32 scalar, the number of updates so far.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's


def dormant_units(threshold: float = 0.1, *, every: int = 1000) -> UnitRule:
    r"""Choose the units that are much less active than their layer, now and then (ReDo).

    .. math::
      \mathrm{mean}\,|h_i| \le \tau \cdot \mathrm{mean}_k\,\mathrm{mean}\,|h_k|

    with means over the examples of the batch, and over the units of the layer. State: a count.

    Args:
      threshold: ``tau``, at least 0. Published values: 0 to 0.1.
      every: updates between two choices, at least 1.

    Returns:
      A rule with state :class:`DormantUnitsState`, for :func:`reset_units`.

    Raises:
      ValueError: for a negative concrete ``threshold``, or ``every`` below 1.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> rule = ro.dormant_units(0.1, every=1)
      >>> chosen, _ = rule.update(jnp.array([[5.0, -0.1, 0.0]]), jnp.ones(3), rule.init(jnp.zeros(3)))
      >>> print(chosen)
      [False  True  True]

    References:
      Sokar et al, `The Dormant Neuron Phenomenon in Deep Reinforcement Learning
      <https://arxiv.org/abs/2302.12902>`_, ICML, 2023
    """
    _check.check_number("threshold", threshold, low=0.0)
    _check.check_count("every", every)

    def init(units: Any) -> DormantUnitsState:
        del units
        return DormantUnitsState(jnp.zeros([], jnp.int32))

    def update(activities: Any, outgoing: Any, state: DormantUnitsState) -> tuple[Any, DormantUnitsState]:
        del outgoing
        count = optax.safe_increment(state.count)

        def choose(activity: jax.Array) -> jax.Array:
            sizes = _mean_magnitude(activity)
            # A product, not a quotient: if all activities are 0, the whole layer is dormant.
            dormant = sizes <= jnp.asarray(threshold).astype(sizes.dtype) * jnp.mean(sizes)
            return jnp.logical_and(dormant, count % every == 0)

        return jax.tree.map(choose, activities), DormantUnitsState(count)

    return UnitRule(init, update)


class SilentUnitsState(NamedTuple):
    """State of :func:`silent_units`; the last three are trees of units.

    Attributes:
      count: int32 scalar, the number of updates so far.
      silence: int32, for how many updates each unit has been silent.
      durations: int32, shape [units, longest + 1], how often each unit was silent for that many updates.
      limit: int32, the length of silence at which each unit is reset.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    silence: Any
    durations: Any
    limit: Any


def silent_units(
    percentile: float = 0.95, *, every: int = 100, longest: int = 200, first: int | None = None
) -> UnitRule:
    r"""Choose the units that have been silent for unusually long (self-normalised resets).

    A unit is silent at an update if :math:`h_i \le 0` for all examples. Each unit has its own limit. Every
    ``every`` updates it becomes a percentile of the lengths of the unit's silences since the last change,
    including silences that ended in a reset. If this percentile is not below the old limit, the limit is
    doubled instead. A unit that was never silent for a whole update, or whose only silence goes on, gets
    the limit 1, as in the authors' program. The rule is for rectified units.

    State: ``longest + 3`` integers per unit, and a count.

    Args:
      percentile: the percentile of the durations, in (0, 1]. Published values: 0.92 to 0.99 and above.
      every: updates between two changes of the limits; published: a task of 100 updates.
      longest: the largest limit, in updates; published: 20,000 examples in batches of 100.
      first: the first limit; None means ``longest``.

    Returns:
      A rule with state :class:`SilentUnitsState`, for :func:`reset_units`.

    Raises:
      ValueError: for an argument outside its range.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> rule = ro.silent_units(first=2)
      >>> state = rule.init(jnp.zeros(2))
      >>> for _ in range(2):  # two examples, two units, of which the first fires
      ...     chosen, state = rule.update(jnp.array([[1.0, 0.0], [0.0, -1.0]]), jnp.ones(2), state)
      ...     print(chosen)
      [False False]
      [False  True]

    References:
      Farias and Jozefiak, `Self-Normalized Resets for Plasticity in Continual Learning
      <https://arxiv.org/abs/2410.20098>`_, ICLR, 2025
    """
    _check.check_number("percentile", percentile, low=0.0, high=1.0, low_open=True)
    _check.check_count("every", every)
    _check.check_count("longest", longest)
    if first is not None:
        _check.check_count("first", first)

    def init(units: Any) -> SilentUnitsState:
        def whole(value: int) -> Any:
            return jax.tree.map(lambda u: jnp.full_like(u, value, dtype=jnp.int32), units)

        durations = jax.tree.map(lambda u: jnp.zeros((*u.shape, longest + 1), jnp.int32), units)
        start = min(longest if first is None else first, longest)
        return SilentUnitsState(jnp.zeros([], jnp.int32), whole(0), durations, whole(start))

    def counted(durations: jax.Array, ended: jax.Array, silence: jax.Array) -> jax.Array:
        place = jnp.arange(longest + 1) == silence[:, None]
        return durations + jnp.logical_and(place, ended[:, None]).astype(durations.dtype)

    def new_limit(durations: jax.Array, limit: jax.Array) -> jax.Array:
        # A duration of 0 is not a silence: the unit keeps firing.
        cumulative = jnp.cumsum(durations[:, 1:], axis=1).astype(jnp.float32)
        below = 1 - 2.0**-22  # 0.6 of 25 are 15, and 15.000001 in float32
        reached = cumulative >= below * percentile * cumulative[:, -1:]
        duration = 1 + jnp.argmax(reached, axis=1).astype(limit.dtype)
        duration = jnp.where(cumulative[:, -1] == 0, 0, duration)  # no silence has ended
        return jnp.clip(jnp.where(duration < limit, duration, 2 * limit), 1, longest)

    def update(activities: Any, outgoing: Any, state: SilentUnitsState) -> tuple[Any, SilentUnitsState]:
        del outgoing
        count = optax.safe_increment(state.count)
        silent = jax.tree.map(lambda h: jnp.all(h <= 0, axis=0), activities)
        durations = jax.tree.map(
            lambda d, quiet, age: counted(d, ~quiet, age), state.durations, silent, state.silence
        )
        silence = jax.tree.map(lambda quiet, age: jnp.where(quiet, age + 1, 0), silent, state.silence)
        chosen = jax.tree.map(lambda age, limit: age >= limit, silence, state.limit)
        durations = jax.tree.map(counted, durations, chosen, silence)
        silence = jax.tree.map(lambda c, age: jnp.where(c, 0, age), chosen, silence)
        due = count % every == 0
        limit = jax.tree.map(lambda d, old: jnp.where(due, new_limit(d, old), old), durations, state.limit)
        durations = jax.tree.map(lambda d: jnp.where(due, jnp.zeros_like(d), d), durations)
        return chosen, SilentUnitsState(count, silence, durations, limit)

    return UnitRule(init, update)


class LeastUsefulUnitsState(NamedTuple):
    """State of :func:`least_useful_units`; all fields are trees of units, the last with a scalar per layer.

    Attributes:
      utility: running mean of the contribution of each unit, not bias-corrected.
      age: int32, updates since each unit was last reset.
      due: scalars, how many units of each layer are due for a reset; fractions accumulate.
    """

    utility: Any
    age: Any
    due: Any


def least_useful_units(rate: float = 1e-4, *, maturity: int = 100, decay: float = 0.99) -> UnitRule:
    r"""Choose the least useful mature units, a small share per update (continual backpropagation).

    .. math::
      u_i \leftarrow \beta u_i + (1 - \beta)\,\mathrm{mean}\,|h_i|\,\sum_k |w_{ik}|, \qquad
      \hat u_i = u_i / (1 - \beta^{\mathrm{age}_i})

    with ``w`` the outgoing weights. At every update ``rate`` times the number of mature units of a layer is
    added to the layer's count of due resets. The integer part of the count is reset, smallest utility first.

    State: 2 values per unit, and 1 per layer.

    Args:
      rate: share of the mature units to reset per update, in [0, 1].
      maturity: a new unit is protected for this many updates, at least 0.
      decay: decay of the running mean, in [0, 1). Published: 0.99.

    Returns:
      A rule with state :class:`LeastUsefulUnitsState`, for :func:`reset_units`.

    Raises:
      ValueError: for an argument outside its range.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> rule = ro.least_useful_units(0.5, maturity=0)  # of two units one per update
      >>> activity, outgoing = jnp.array([[1.0, 2.0]]), jnp.array([5.0, 1.0])
      >>> chosen, _ = rule.update(activity, outgoing, rule.init(jnp.zeros(2)))
      >>> print(chosen)
      [False  True]

    References:
      Dohare et al, `Loss of plasticity in deep continual learning
      <https://doi.org/10.1038/s41586-024-07711-7>`_, Nature, 2024
    """
    _check.check_share("rate", rate)  # above 1 more would be due than there is, and the debt would grow
    _check.check_count("maturity", maturity, low=0)
    _check.check_decay(decay)

    def init(units: Any) -> LeastUsefulUnitsState:
        return LeastUsefulUnitsState(
            utility=jax.tree.map(jnp.zeros_like, units),
            age=jax.tree.map(lambda u: jnp.zeros_like(u, dtype=jnp.int32), units),
            due=jax.tree.map(lambda u: jnp.zeros([], u.dtype), units),
        )

    def update(
        activities: Any, outgoing: Any, state: LeastUsefulUnitsState
    ) -> tuple[Any, LeastUsefulUnitsState]:
        age = jax.tree.map(optax.safe_increment, state.age)

        def averaged(utility: jax.Array, activity: jax.Array, weights: jax.Array) -> jax.Array:
            share = jnp.asarray(decay).astype(utility.dtype)
            contribution = _mean_magnitude(activity).astype(utility.dtype) * weights.astype(utility.dtype)
            return share * utility + (1 - share) * contribution

        utility = jax.tree.map(averaged, state.utility, activities, outgoing)
        due = jax.tree.map(
            lambda number, old: number + jnp.asarray(rate).astype(number.dtype) * jnp.sum(old > maturity),
            state.due,
            age,
        )

        def choose(utility: jax.Array, age: jax.Array, due: jax.Array) -> jax.Array:
            mature = age > maturity
            share = jnp.asarray(decay).astype(utility.dtype)
            unbiased = utility / (1 - share ** age.astype(utility.dtype))
            order = jnp.argsort(jnp.where(mature, unbiased, jnp.inf))
            rank = jnp.zeros_like(age).at[order].set(jnp.arange(len(age), dtype=age.dtype))
            return jnp.logical_and(mature, rank < jnp.floor(due))

        chosen = jax.tree.map(choose, utility, age, due)
        return chosen, LeastUsefulUnitsState(
            utility=jax.tree.map(lambda c, u: jnp.where(c, 0, u), chosen, utility),
            age=jax.tree.map(lambda c, a: jnp.where(c, 0, a), chosen, age),
            due=jax.tree.map(lambda c, number: number - jnp.sum(c), chosen, due),
        )

    return UnitRule(init, update)


def _mean_magnitude(activity: jax.Array) -> jax.Array:
    return jnp.mean(_tree.magnitude(activity), axis=0)
