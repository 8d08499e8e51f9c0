"""Controls: phis that keep some of what a phi knows, to find out whether the rest of it helped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from riemann_optax import _check, _tree
from riemann_optax._check import check_transformation
from riemann_optax._declare import Phi, phi_around
from riemann_optax.phi import _state


class PermutedState(NamedTuple):
    """State of :func:`permuted`.

    Attributes:
      key: the random key of the permutations, fixed for the run.
      phi: the state of the phi.
    """

    key: jax.Array
    phi: optax.OptState


def permuted(phi: optax.GradientTransformation, *, key: jax.Array | int = 0) -> Phi:
    r"""Give each weight the phi of another: :math:`\varphi_{\pi(i)}`, :math:`\pi` random within each leaf.

    An identification control. Train twice, each with its own best learning rate: once with ``phi`` and once
    with ``permuted(phi)``. Both have the same values of ``E`` in each leaf at every step. If the permuted one
    does as well, it did not matter *which* weight is stiff, and the apparent gain of the metric is a gain of
    its learning rate.

    The permutation is fixed for the run. It is not stored: each update recomputes it from the key. A fresh
    permutation at every update would give each weight the same average rate, which over time is
    :func:`leaf_mean` with noise. A fixed one gives each weight a steady, slowly changing ``E``, as a real
    metric does, but the ``E`` of another weight.

    ``phi >= 0`` where ``phi`` is. State: phi's, and a key. Under sharding each leaf is gathered, one
    all-gather per leaf; under ``shard_map`` a permutation stays within the shard. Sorts each leaf at every
    update: a control, not a method.

    Args:
      phi: any phi.
      key: a random key or an integer seed; the control is best repeated with a few.

    Returns:
      A phi with state :class:`PermutedState`.

    Raises:
      TypeError: where ``phi`` is no gradient transformation, or ``key`` neither a random key nor an integer.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.permuted(ro.phi.maintenance_energy(), key=1)
      >>> params = jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> values, _ = phi.update(params, phi.init(params), params)
      >>> print(jnp.sort(values), bool((values == params).all()))
      [1. 2. 3. 4.] False
    """
    check_transformation("phi", phi)
    part = optax.with_extra_args_support(phi)
    _check.check_key(key)

    def init(params: optax.Params) -> PermutedState:
        return PermutedState(key=_state.as_key(key), phi=part.init(params))

    def update(
        updates: optax.Updates, state: PermutedState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, PermutedState]:
        values, phi_state = part.update(updates, state.phi, params, **extra_args)
        leaves, treedef = jax.tree.flatten(values)
        keys = jax.random.split(state.key, max(len(leaves), 1))
        shuffled = [_shuffle(k, leaf) for k, leaf in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(treedef, shuffled), PermutedState(state.key, phi_state)

    return phi_around([part], init, update, "permuted")


def leaf_mean(phi: optax.GradientTransformation) -> Phi:
    r"""Give all weights of a leaf their mean phi: one learning rate per leaf.

    .. math::
      \varphi_i \leftarrow \frac{1}{n} \sum_{j = 1}^{n} \varphi_j

    over the ``n`` weights of the leaf that holds ``i``. An identification control, weaker than
    :func:`permuted`: it keeps the schedule of the rates and their balance between leaves. If it does as well
    as ``phi``, the metric helped by adapting the rate of each leaf, and differences *within* leaves did
    nothing.

    ``phi >= 0`` where ``phi`` is. State: phi's. Under sharding one all-reduce of a scalar per leaf, which XLA
    combines.

    Args:
      phi: any phi.

    Returns:
      A phi with the state of ``phi``.

    Raises:
      TypeError: where ``phi`` is no gradient transformation.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> phi = ro.phi.leaf_mean(ro.phi.maintenance_energy())
      >>> params = {"w": jnp.array([1.0, -3.0]), "b": jnp.array([5.0])}
      >>> values, _ = phi.update(params, phi.init(params), params)
      >>> print(values["w"], values["b"])
      [2. 2.] [5.]
    """
    check_transformation("phi", phi)
    part = optax.with_extra_args_support(phi)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        values, state = part.update(updates, state, params, **extra_args)
        means = _tree.group_mean(values, "leaf")
        return jax.tree.map(lambda value, mean: jnp.zeros_like(value) + mean, values, means), state

    return phi_around([part], part.init, update, "leaf_mean")


def _shuffle(key: jax.Array, leaf: jax.Array) -> jax.Array:
    """Shuffle all values of a leaf, which keeps its shape and sharding."""
    sharding = jax.typeof(leaf).sharding
    shuffled = jax.random.permutation(key, _tree.gathered(leaf).reshape(-1)).reshape(leaf.shape)
    explicit = AxisType.Explicit in sharding.mesh.axis_types
    return jax.sharding.reshard(shuffled, sharding) if explicit else shuffled
