"""Competition: only the largest changes happen."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._tree import Group
from riemann_optax.covector import Covector, map_covectors
from riemann_optax.edits._edit import stateless_edit


def competitive_plasticity(
    fraction: float, over: Group = "leaf", *, axes: Axes = "flax"
) -> optax.GradientTransformationExtraArgs:
    r"""Let only the weights with the largest steps move (between the stages).

    .. math::
      \frac{1}{E_i} \leftarrow \begin{cases} 1/E_i & |\partial_i f|/E_i \text{ among the largest} \\
      0 & \text{otherwise} \end{cases}

    By default each leaf competes by itself, as each layer does in the paper; with ``compute_metric(...,
    alpha=0)`` this is then the published rule, equal to it in float64. Learning modifies few synapses at a
    time, which saves the energy of modification: count it with :func:`track_energy`. Losing weights
    store a rate of exactly 0, so no infinity enters the update; reading ``E`` there gives infinity. Place it
    after the other edits of the metric. Momentum after stage 2 still moves losing weights.

    No state. The threshold is found exactly, bit by bit: 31 passes over the steps (63 in float64), and under
    sharding as many all-reduces of one count per group, but nothing is sorted or gathered.

    Args:
      fraction: the share of the weights of each group that move, in (0, 1]; rounded to a whole number of
        weights, and at least one. Weights equal to the smallest of them move too.
      over: the group that competes: ``"leaf"``, ``"neuron"`` (the fan-in of each output, by ``axes``;
        published too) or ``"tree"``, where a layer of small gradients may not move at all. Leaves without a
        metric do not take part.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A gradient transformation without state.

    Raises:
      ValueError: for a concrete ``fraction`` outside (0, 1] or an unknown group; at ``update``, where no leaf
        carries a metric.

    Examples:
      >>> import jax.numpy as jnp, optax, riemann_optax as ro
      >>> tx = optax.chain(
      ...     ro.compute_metric(ro.phi.maintenance_energy(), alpha=1.0),
      ...     ro.competitive_plasticity(fraction=0.5),
      ...     ro.scale_by_inverse_metric(),
      ... )
      >>> params, gradients = jnp.array([9.0, 0.0, 0.0, 1.0]), jnp.array([8.0, 1.0, 0.1, -4.0])
      >>> print(tx.update(gradients, tx.init(params), params)[0])  # g/E = 0.8, 1, 0.1 and -2
      [ 0.  1.  0. -2.]

    References:
      van Rossum and Pache, `Competitive plasticity to reduce the energetic costs of learning
      <https://doi.org/10.1371/journal.pcbi.1012553>`_, PLoS Computational Biology, 2024
    """
    _check.check_number("fraction", fraction, low=0.0, high=1.0, low_open=True)
    _check.check_choice("over", over, _tree.GROUPS)
    _axes.check_axes(axes)

    def edit(updates: optax.Updates) -> optax.Updates:
        sizes = map_covectors(
            lambda c: _tree.magnitude(c.components) * c.inverse_metric, updates, lambda _: optax.MaskedNode()
        )
        winners = _largest(sizes, fraction, over, axes)

        def compete(covector: Any, wins: jax.Array) -> Any:
            if not isinstance(covector, Covector):
                return covector
            rate = covector.inverse_metric
            return covector.with_inverse_metric(jnp.where(wins, rate, jnp.zeros_like(rate)))

        return jax.tree.map(compete, updates, winners)

    return stateless_edit("competitive_plasticity", edit)


def _largest(sizes: Any, fraction: Any, over: Group, axes: Axes) -> Any:
    """Return which values of a tree of non-negative floats are among the largest of their group.

    Non-negative floats are ordered as their bits are. The threshold, the k-th largest, is the largest number
    that at least k values reach: its bits are found one by one from the top, by counting.
    """
    leaves, treedef = jax.tree.flatten(sizes)
    if not leaves:
        return sizes
    double = over == "tree" and any(leaf.dtype.itemsize > 4 for leaf in leaves)
    bits = [_bits(leaf.astype(jnp.float64) if double else leaf) for leaf in leaves]
    groups = [
        _axes.group_axes(read, leaf.ndim, over)
        for read, leaf in zip(_axes.read(sizes, axes), leaves, strict=True)
    ]
    counts = [math.prod(leaf.shape[a] for a in group) for leaf, group in zip(leaves, groups, strict=True)]
    if over == "tree":
        counts = [sum(counts)] * len(counts)
    needed = [_needed(fraction, n) for n in counts]

    def reach(thresholds: list[jax.Array]) -> list[jax.Array]:
        """Return how many values of its group reach each threshold."""
        numbers = [
            jnp.sum(b >= t, axis=group, keepdims=True, dtype=k.dtype)
            for b, t, k, group in zip(bits, thresholds, needed, groups, strict=True)
        ]
        if over == "tree":
            total = sum((n.reshape(()) for n in numbers[1:]), start=numbers[0].reshape(()))
            numbers = [total.reshape(n.shape) for n in numbers]
        return numbers

    def add_bit(step: Any, thresholds: list[jax.Array]) -> list[jax.Array]:
        def candidate(t: jax.Array) -> jax.Array:
            position = t.dtype.itemsize * 8 - 2 - step  # the sign bit is never set
            return jnp.where(
                position >= 0, t | (jnp.ones_like(t) << jnp.maximum(position, 0).astype(t.dtype)), t
            )

        candidates = [candidate(t) for t in thresholds]
        return [
            jnp.where(n >= k, c, t)
            for n, k, c, t in zip(reach(candidates), needed, candidates, thresholds, strict=True)
        ]

    # Sums of zeros, to get the sharding that the loop will give them.
    start = [
        jnp.sum(jnp.zeros_like(b), axis=group, keepdims=True, dtype=b.dtype)
        for b, group in zip(bits, groups, strict=True)
    ]
    length = max(b.dtype.itemsize for b in bits) * 8 - 1
    thresholds = jax.lax.fori_loop(0, length, add_bit, start)
    return jax.tree.unflatten(treedef, [b >= t for b, t in zip(bits, thresholds, strict=True)])


def _bits(size: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(size, jnp.uint64 if size.dtype.itemsize > 4 else jnp.uint32)


def _needed(fraction: Any, group_size: int) -> jax.Array:
    """Return how many weights of a group move, in a type that can count them all."""
    dtype = jnp.int32 if group_size <= np.iinfo(np.int32).max else jnp.float32
    if _check.is_concrete_number(fraction):
        return jnp.asarray(max(round(float(fraction) * group_size), 1), dtype)
    return jnp.maximum(jnp.round(fraction * float(group_size)), 1).astype(dtype)
