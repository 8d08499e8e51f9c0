"""Isometries: the pull of matrices to them, and the nearest one as an anchor."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from riemann_optax import _axes, _check, _tree
from riemann_optax._axes import Axes
from riemann_optax._conventions import MatrixAxes
from riemann_optax._declare import Declared
from riemann_optax._tree import wide_dtype
from riemann_optax.covector import check_leaves, plus
from riemann_optax.eigenbasis.mesh import on_auto_mesh


class IsometryPullState(NamedTuple):
    """State of :func:`add_isometry_pull`.

    Attributes:
      count: int32 scalar, the number of updates so far; a schedule of ``rate`` reads it.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count; the name is Optax's


def add_isometry_pull(
    rate: optax.ScalarOrSchedule, *, axes: Axes = "flax"
) -> optax.GradientTransformationExtraArgs:
    r"""Add the pull of each matrix to the isometries, :math:`4\,\mathrm{rate}\cdot W\,(W^\top W - I)`.

    It is the gradient of :math:`\mathrm{rate}\cdot\|W^\top W - I\|_F^2`; for a wide matrix the expression is
    the same as with :math:`W W^\top`. Singular values return to 1 and singular vectors stay, so that no
    direction of a layer dies in a long sequence of tasks. Vectors (biases, the scales of norms) are left out.

    Where it stands means what it means for :func:`add_anchored_weights`. After stage 2, or after
    ``optax.scale_by_adam``, it is decoupled, as published::

        optax.chain(optax.scale_by_adam(), ro.add_isometry_pull(1e-2), optax.scale_by_learning_rate(lr))

    After stage 2 a step is stable for ``lr * rate < 1/4`` and ``lr * rate * s**2 < 1/2``, with ``s`` the
    largest singular value. Inside of :func:`in_eigenbasis` the pull is exact: it commutes with rotations of
    rows and columns.

    State: a count. Under sharding an all-reduce of a matrix as large as the shorter side squared.

    Args:
      rate: strength of the pull, at least 0: a number, a schedule of the update count, or a traced scalar.
      axes: which axes are inputs and outputs: a preset of :func:`riemann_optax.kernel_axes`,
        :class:`riemann_optax.MatrixAxes`, a function of a leaf's name and the leaf that returns either, or a
        dictionary of these by the names of modules.

    Returns:
      A gradient transformation with state :class:`IsometryPullState`.

    Raises:
      ValueError: for a negative concrete ``rate``; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> pull = ro.add_isometry_pull(0.25)
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.ones(2)}
      >>> gradients = {"kernel": jnp.zeros([2, 2]), "bias": jnp.zeros(2)}
      >>> updates, _ = pull.update(gradients, pull.init(params), params)
      >>> print(updates["kernel"], updates["bias"])  # 2 * (2**2 - 1)
      [[6. 0.]
       [0. 0.]] [0. 0.]

    References:
      Rosseau et al, `AdamO <https://arxiv.org/abs/2606.09762>`_, ICML, 2026
    """
    _check.check_schedulable("rate", rate)
    _axes.check_axes(axes)

    def init(params: optax.Params) -> IsometryPullState:
        _tree.check_inexact(params, "params")
        return IsometryPullState(jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: IsometryPullState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, IsometryPullState]:
        del extra_args
        updates = _tree.arrays(updates)
        params = _check.require_params(_tree.trained(params, updates), "add_isometry_pull")
        check_leaves(updates, params)
        strength = _tree.at_count(rate, state.count)

        def add(read: MatrixAxes | None, weight: jax.Array, update: Any) -> Any:
            if not _is_matrix(read):
                return update
            pull = 4 * jnp.asarray(strength).astype(wide_dtype(weight)) * _on_matrices(_excess, read, weight)
            return plus(update, pull)

        added = _axes.map_leaves(add, axes, params, updates)
        return _tree.like(added, updates), IsometryPullState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def nearest_isometry(*, steps: int = 10, axes: Axes = "flax") -> optax.GradientTransformationExtraArgs:
    r"""Anchor: for each matrix the nearest isometry, scaled by its sides; vectors are their own anchor.

    .. math::
      a = \sqrt{d_\mathrm{out}/d_\mathrm{in}}\;U V^\top, \qquad W = U S V^\top

    The polar factor comes from steps of Newton and Schulz, :math:`X \leftarrow \tfrac32 X - \tfrac12 X X^\top
    X` from :math:`X = W / \|W\|_F`, which raise a small singular value by 1.5 each. As an anchor of
    :func:`add_anchored_weights` it pulls there; :func:`restart_at_boundary` goes there between two tasks.

    A convolution is one matrix of all its taps; published is each tap alone, over their number.

    No state. Under sharding products of matrices in each step. Needs ``params``.

    Args:
      steps: of Newton and Schulz, at least 1. Default 10, as published.
      axes: as of :func:`add_isometry_pull`.

    Returns:
      An anchor without state.

    Raises:
      ValueError: for ``steps`` below 1; at ``update``, where ``params`` are missing.

    Examples:
      >>> import jax.numpy as jnp, riemann_optax as ro
      >>> anchor = ro.anchor.nearest_isometry()
      >>> params = jnp.array([[3.0, 0.0], [0.0, -1.0]])
      >>> print(abs(anchor.update(params, anchor.init(params), params)[0]).round(3))
      [[1. 0.]
       [0. 1.]]

    References:
      Han et al, `FIRE <https://arxiv.org/abs/2602.08040>`_, ICLR, 2026
    """
    _check.check_count("steps", steps)
    _axes.check_axes(axes)

    def polar(matrix: jax.Array) -> jax.Array:
        rows, columns = matrix.shape[-2:]
        if not matrix.size:
            return matrix
        scale = jnp.sqrt(columns / rows).astype(matrix.real.dtype)
        # First by the largest entry, so that no square overflows or vanishes.
        largest = jnp.max(_tree.magnitude(matrix), axis=(-2, -1), keepdims=True)
        factor = _tree.divided(matrix, largest.astype(matrix.dtype), 0.0)
        norm = _tree.power(jnp.sum(_tree.squared_magnitude(factor), axis=(-2, -1), keepdims=True), 0.5)
        factor = _tree.divided(factor, norm.astype(matrix.dtype), 0.0)

        def step(number: Any, x: jax.Array) -> jax.Array:
            return x - _excess(x) / 2

        isometry: jax.Array = scale * jax.lax.fori_loop(0, steps, step, factor)
        return isometry

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Params, optax.EmptyState]:
        del updates, extra_args
        params = _check.require_params(params, "nearest_isometry")

        def target(read: MatrixAxes | None, weight: jax.Array) -> jax.Array:
            if not _is_matrix(read):
                return weight
            return _on_matrices(polar, read, weight).astype(weight.dtype)

        return _tree.like(_axes.map_leaves(target, axes, params), params), state

    return Declared(optax.init_empty_state, update, name="nearest_isometry")


def _is_matrix(read: MatrixAxes | None) -> bool:
    return _axes.sides(read) is not None


def _excess(matrix: jax.Array) -> jax.Array:
    """Return ``W (W^H W - I)`` by the smaller of the two Gram matrices."""
    rows, columns = matrix.shape[-2:]
    adjoint = jnp.conj(jnp.swapaxes(matrix, -1, -2))
    if rows < columns:
        gram = jnp.matmul(matrix, adjoint, precision="highest")
        return jnp.matmul(gram - jnp.eye(rows, dtype=gram.dtype), matrix, precision="highest")
    gram = jnp.matmul(adjoint, matrix, precision="highest")
    return jnp.matmul(matrix, gram - jnp.eye(columns, dtype=gram.dtype), precision="highest")


def _on_matrices(
    function: Callable[[jax.Array], jax.Array], read: MatrixAxes | None, weight: jax.Array
) -> jax.Array:
    """Return ``function`` of the matrices ``[*stack, inputs, outputs]`` in a leaf, in the leaf's shape."""
    assert read is not None
    stack = [axis for axis in range(weight.ndim) if axis not in (*read.inputs, *read.outputs)]
    order = (*stack, *read.inputs, *read.outputs)
    first, middle = len(stack), len(stack) + len(read.inputs)
    back = [order.index(axis) for axis in range(weight.ndim)]

    def own(leaf: jax.Array) -> jax.Array:
        moved = jnp.transpose(leaf.astype(wide_dtype(leaf)), order)
        sides = (math.prod(moved.shape[first:middle]), math.prod(moved.shape[middle:]))
        matrices = moved.reshape(*moved.shape[:first], *sides)
        return jnp.transpose(function(matrices).reshape(moved.shape), back)

    # Where both sides of a product are spread over an Explicit mesh, its result has no obvious place.
    result: jax.Array = on_auto_mesh(own, weight, weight)
    return result
