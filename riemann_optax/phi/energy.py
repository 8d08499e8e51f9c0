"""Energy: what it costs to keep a weight and to change it; and phis that are functions of the weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _check, _tree
from riemann_optax._declare import Phi
from riemann_optax._state_fields import declare_fields
from riemann_optax.phi import _state


def from_weights(function: Callable[[jax.Array], jax.Array]) -> Phi:
    r"""Make a phi that is a pure function of the weights, :math:`\varphi_i = \varphi(w)_i`.

    Only such a phi makes the metric a field on parameter space, with geodesics and a flow.

    ``phi >= 0`` where the function is. No state. No collective of its own. Needs ``params``.

    Args:
      function: maps a weight array to phi values of its shape; complex weights arrive complex, all others in
        float32 or wider.

    Returns:
      A phi without state.

    Raises:
      TypeError: where ``function`` is not callable.
      ValueError: at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.from_weights(lambda w: w**2)
      >>> params = jnp.array([1.0, -3.0])
      >>> print(phi.update(jnp.ones(2), phi.init(params), params)[0])
      [1. 9.]
    """
    if not callable(function) or isinstance(function, optax.GradientTransformation):
        hint = _check.injected("function", function)
        raise TypeError(f"function must map a weight array to phi values, got {function!r}{hint}.")
    return function_of_weights("from_weights", function)


def function_of_weights(name: str, function: Callable[[jax.Array], jax.Array]) -> Phi:
    """Return the phi of :func:`from_weights` under a name of its own."""

    def evaluate(weights: jax.Array) -> jax.Array:
        weights = jnp.asarray(weights)
        values = function(weights if jnp.iscomplexobj(weights) else _tree.to_working_dtype(weights))
        return jnp.asarray(values)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del updates, extra_args
        return jax.tree.map(evaluate, _check.require_params(params, name)), state

    return Phi(optax.init_empty_state, update, name=name)


def maintenance_energy(*, power: float = 1.0) -> Phi:
    r"""What a synapse costs to keep and to use: its strength, :math:`\varphi_i = |w_i|^p`.

    ``phi >= 0``. No state. No collective. Needs ``params``.

    Args:
      power: the exponent ``p``, positive. Transmission costs are about linear in strength.

    Returns:
      A phi without state.

    Raises:
      ValueError: for a ``power`` that is not positive; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.maintenance_energy()
      >>> params = jnp.array([0.5, -2.0])
      >>> print(phi.update(jnp.ones(2), phi.init(params), params)[0])
      [0.5 2. ]

    References:
      Attwell and Laughlin, `An energy budget for signaling in the grey matter of the brain
      <https://doi.org/10.1097/00004647-200110000-00001>`_, Journal of Cerebral Blood Flow and Metabolism,
      2001

      Levy and Baxter, `Energy-efficient neuronal computation via quantal synaptic failures
      <https://doi.org/10.1523/JNEUROSCI.22-11-04746.2002>`_, Journal of Neuroscience, 2002
    """
    _check.check_number("power", power, low=0.0, low_open=True)
    return function_of_weights(
        "maintenance_energy", lambda weights: _tree.power(_tree.magnitude(weights), power)
    )


@declare_fields(
    linear=("previous_params",), squared=("energy",), weights=("previous_params",), exact=("previous_params",)
)
class ModificationEnergyState(NamedTuple):
    """State of :func:`modification_energy`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      previous_params: the parameters at the last update.
      energy: running mean or sum of ``abs(dw)``, shaped like the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    previous_params: optax.Params
    energy: optax.Updates


def modification_energy(*, decay: float | None = None, state_dtype: Any = None) -> Phi:
    r"""What it has cost to change a synapse: the sum, or a running mean, of the applied changes.

    .. math::
      \varphi_t = \sum_{s<t} |w_{s+1} - w_s| \qquad\text{or}\qquad
      \varphi_t = \frac{1-\beta}{1-\beta^{t-1}} \sum_{s<t} \beta^{t-1-s}\,|w_{s+1} - w_s|

    The changes are those found in the weights, whatever came after in the chain; at the first update there
    is none and ``phi = 0``.

    ``phi >= 0``. State: 2 values per weight. No collective. Needs ``params``.

    Args:
      decay: None (default) for the sum, as energy adds up; or the decay of a running mean, in [0, 1).
      state_dtype: of the energy; None means float32, or wider where the parameter is wider.

    Returns:
      A phi with state :class:`ModificationEnergyState`.

    Raises:
      ValueError: for a concrete ``decay`` outside [0, 1); at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.modification_energy()
      >>> gradients, state = jnp.ones(1), phi.init(jnp.zeros(1))
      >>> for weight in (0.0, 2.0, 1.5):
      ...     values, state = phi.update(gradients, state, jnp.array([weight]))
      ...     print(values)
      [0.]
      [2.]
      [2.5]

    References:
      Li and van Rossum, `Energy efficient synaptic plasticity <https://doi.org/10.7554/eLife.50804>`_,
      eLife, 2020
    """
    if decay is not None:
        _check.check_decay(decay, state_dtype=state_dtype)
    _check.check_state_dtype(state_dtype)

    def init(params: optax.Params) -> ModificationEnergyState:
        return ModificationEnergyState(
            count=jnp.zeros([], jnp.int32),
            previous_params=_state.zeros_of(params),
            energy=_tree.zeros_like(params, state_dtype),
        )

    def update(
        updates: optax.Updates,
        state: ModificationEnergyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ModificationEnergyState]:
        del updates, extra_args
        params = _check.require_params(params, "modification_energy")
        change = jax.tree.map(
            _tree.magnitude, _state.applied_change(params, state.previous_params, state.count)
        )
        if decay is None:
            energy = jax.tree.map(lambda e, c: e.astype(c.dtype) + c, state.energy, change)
            values = energy
        else:
            # The first update has seen no change yet: it neither enters the mean nor counts in its weight.
            averaged = _state.running_mean(change, state.energy, decay)
            energy = jax.tree.map(lambda m: jnp.where(state.count == 0, jnp.zeros_like(m), m), averaged)
            values = _state.debias(energy, decay, jnp.maximum(state.count, 1))
        new_state = ModificationEnergyState(
            count=optax.safe_increment(state.count),
            previous_params=_state.copy_like(params, state.previous_params),
            energy=_state.cast_like(energy, state.energy),
        )
        return values, new_state

    return Phi(init, update, name="modification_energy")
