"""The pull of the largest singular value of each matrix to 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax._state_fields import declare_fields
from riemann_optax._tree import wide_dtype
from riemann_optax.covector import Covector, check_leaves, plus


@declare_fields(linear=("vectors",))
class SpectralPullState(NamedTuple):
    """State of :func:`add_spectral_pull`.

    Attributes:
      count: int32 scalar, the number of updates so far; a schedule of ``rate`` reads it.
      vectors: the right singular vector of each matrix, shaped like the weights with 1 for the axes of the
        inputs; zeros before the first update, ``optax.MaskedNode`` for what is no matrix.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's
    vectors: Any


def add_spectral_pull(
    rate: optax.ScalarOrSchedule, *, steps: int = 1, axes: Axes = "flax"
) -> optax.GradientTransformationExtraArgs:
    r"""Add the pull of each matrix's largest singular value to 1.

    .. math::
      2\,\mathrm{rate}\,(\sigma - 1)\,u v^\top = \nabla_W\ \mathrm{rate}\,(\sigma_{\max}(W) - 1)^2, \qquad
      u \propto W v, \quad \sigma v = W^\top u

    with steps of the power iteration from the vector of the last update, so that it follows the weights.
    Vectors are left out. The paper also pulls biases to 0: ``optax.add_decayed_weights(rate, mask=...)`` does
    that. :func:`add_isometry_pull` pulls all singular values.

    Where it stands means what it means for :func:`add_anchored_weights`. In the paper it is a penalty of the
    loss: put it before stage 1. Inside of :func:`in_eigenbasis` it is exact: the vector turns with the basis.

    State: a vector as long as the outputs of each matrix, and a count. Under sharding two all-reduces of a
    vector for each step.

    Args:
      rate: strength of the pull, at least 0: a number, a schedule of the update count, or a traced scalar.
      steps: of the power iteration per update, at least 1.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A gradient transformation with state :class:`SpectralPullState`.

    Raises:
      ValueError: for a negative concrete ``rate``, or ``steps`` below 1; at ``update``, where ``params`` are
        missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> pull = ro.add_spectral_pull(0.5, steps=20)
      >>> params = jnp.diag(jnp.array([3.0, 0.5]))
      >>> updates, _ = pull.update(jnp.zeros([2, 2]), pull.init(params), params)
      >>> print(updates.round(3) + 0.0)  # 2 * 0.5 * (3 - 1) in the largest direction only
      [[2. 0.]
       [0. 0.]]

    References:
      Lewandowski et al, `Learning Continually by Spectral Regularization
      <https://arxiv.org/abs/2406.06811>`_, ICLR, 2025
    """
    _check.check_schedulable("rate", rate)
    _check.check_count("steps", steps)
    _axes.check_axes(axes)

    def init(params: optax.Params) -> SpectralPullState:
        _tree.check_inexact(params, "params")

        def start(read: MatrixAxes | None, zeros: jax.Array) -> Any:
            if _axes.sides(read) is None or read is None:
                return optax.MaskedNode()
            return jnp.sum(zeros, axis=read.inputs, keepdims=True)

        zeros = _tree.vectors_like(_tree.bare(params))
        return SpectralPullState(jnp.zeros([], jnp.int32), _axes.map_leaves(start, axes, zeros))

    def update(
        updates: optax.Updates,
        state: SpectralPullState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SpectralPullState]:
        del extra_args
        updates = _tree.arrays(updates)
        params = _check.require_params(_tree.trained(params, updates), "add_spectral_pull")
        strength = _tree.at_count(rate, state.count)
        bare = _tree.bare(params)
        structure: Any
        leaves, structure = jax.tree.flatten(bare)
        vectors = structure.flatten_up_to(state.vectors)
        own = check_leaves(updates, params)
        added, turned = [], []
        for read, weight, old, change in zip(_axes.read(bare, axes), leaves, vectors, own, strict=True):
            if isinstance(old, optax.MaskedNode) or read is None:
                added.append(change)
                turned.append(old)
                continue
            matrix = weight.astype(wide_dtype(weight))
            # 0 before the first update, of weights that have been 0, and of a matrix that came later: a power
            # iteration never leaves it.
            lost = jnp.all(old == 0, axis=read.outputs, keepdims=True)
            vector = jnp.where(lost, _first_vector(old), old)
            size, left, right = _largest(matrix, vector, read, steps)
            pull = 2 * jnp.asarray(strength).astype(size.dtype) * (size - 1) * left * jnp.conj(right)
            added.append(plus(change, pull))
            turned.append(right.astype(old.dtype))
        whole = jax.tree.structure(updates, is_leaf=lambda leaf: isinstance(leaf, Covector))
        return jax.tree.unflatten(whole, added), SpectralPullState(
            optax.safe_increment(state.count), jax.tree.unflatten(structure, turned)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _first_vector(like: jax.Array) -> jax.Array:
    """Return a vector in general position: ones may be at right angles to the one that is looked for."""
    return jnp.ones_like(like) * jax.random.normal(jax.random.key(0), like.shape, like.dtype)


def _largest(
    matrix: jax.Array, vector: jax.Array, read: MatrixAxes, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the largest singular value and its vectors, in the axes of the array.

    Sums along axes, no products of matrices: any sharding does.
    """

    def unit(x: jax.Array, along: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        size = _tree.power(jnp.sum(_tree.squared_magnitude(x), axis=along, keepdims=True), 0.5)
        return size, x / jnp.where(size == 0, jnp.ones_like(size), size).astype(x.dtype)

    def step(right: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _, left = unit(jnp.sum(matrix * right, axis=read.outputs, keepdims=True), read.inputs)
        size, right = unit(jnp.sum(jnp.conj(matrix) * left, axis=read.inputs, keepdims=True), read.outputs)
        return size, left, right

    # Of entries near 1 no square overflows or vanishes.
    largest = jnp.max(_tree.magnitude(matrix), axis=(*read.inputs, *read.outputs), keepdims=True, initial=0)
    matrix = _tree.divided(matrix, largest.astype(matrix.dtype), 0.0)
    vector = vector.astype(matrix.dtype)
    if steps > 1:
        vector = jax.lax.fori_loop(0, steps - 1, lambda _, right: step(right)[2], vector)
    size, left, right = step(vector)
    return size * largest, left, right
